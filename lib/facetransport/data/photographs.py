"""Photographs on disk become a FaceSet: read, brought into the template, written in shards.

A `Collection` says what is known of each photograph and how to read it; ``imagefolder``, ``celeba`` and ``recordio``
list theirs. What cannot be used is refused or listed by name, never replaced by a plain resize.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, ImageOps

from facetransport.data import shards
from facetransport.data.alignment import estimate, from_112, similarity, transform_points, warp
from facetransport.data.detection import DLIB, Detector
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet
from facetransport.data.template import ARCFACE_112
from facetransport.devices import WHOLE, Share

Grey = Literal["refuse", "repeat"]
Broken = Literal["refuse", "skip"]
Geometry = Literal["landmarks", "insightface", "detect", "whole"]
Face = tuple[np.ndarray, np.ndarray | None]  # an aligned image, and its landmarks where they are known
COLOUR, GREY = ("RGB", "RGBA", "P", "CMYK", "YCbCr"), ("1", "L", "LA")  # modes of PIL, 8 bits a channel
# that Pillow decodes by itself: left alone, it hands an EPS to whatever program is called Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF", "JPEG2000")
MOST = 64_000_000  # pixels, of the largest cameras; more take gigabytes in each process
PART = 256  # photographs a shard


@dataclass(frozen=True)
class Collection:
    """Photographs, not read yet.

    table: a row each, with ``identity`` (int), ``source`` (text, unique) and what else is known.
    read: source -> uint8 (H, W, 3), RGB; it travels to other processes.
    geometry: where the face is. "landmarks": at the five points in the table, in pixels of the photograph;
        "insightface": photographs are InsightFace's 112-pixel crops; "detect": where a detector finds it; "whole": the
        photograph is square and used as it is, as IDiff-Face uses FFHQ.
    detector: for "detect"; by default dlib's.
    """

    table: pd.DataFrame
    read: Callable[[str], np.ndarray]
    geometry: Geometry
    detector: Detector = DLIB

    def __post_init__(self) -> None:
        if self.geometry not in get_args(Geometry):
            raise ValueError(f"geometry: expected one of {', '.join(get_args(Geometry))}, got {self.geometry!r}")
        needed = ["identity", "source", *(LANDMARK_COLUMNS if self.geometry == "landmarks" else ())]
        missing = [name for name in needed if name not in self.table]
        if missing:
            raise ValueError(f"table: expected columns {', '.join(needed)}; missing {', '.join(missing)}")
        if not len(self.table) or self.table["source"].duplicated().any():
            raise ValueError(f"table: expected at least one row, each of another source, got {len(self.table)} rows")


def decode(data: bytes, name: str, grey: Grey = "refuse") -> np.ndarray:
    """uint8 (H, W, 3), RGB, of the bytes of an image file; ValueError that says ``name`` where it is broken or refused.

    Of a format in ``FORMATS``, at most ``MOST`` pixels; turned upright where the file says how it was held. grey:
    "repeat" makes three equal channels of one.
    """
    try:
        image = _opened(data)
    except Exception as error:  # damaged bytes raise whatever they run into
        raise ValueError(
            f"{name}: not an image that can be read whole ({error}); expected one of {', '.join(FORMATS)}: "
            "fetch or convert it again"
        ) from None
    if image.mode not in (*COLOUR, *GREY):
        raise ValueError(f"{name}: expected 8 bits a channel, got mode {image.mode}; convert it first")
    if image.mode in GREY and grey == "refuse":
        raise ValueError(f"{name}: expected colour, got a grey image; allow it by grey='repeat' (--grey repeat)")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage that leaves the picture whole, and of sizes that are allowed here
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST:
            raise ValueError(f"{image.width} x {image.height} pixels, expected at most {MOST:,}")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def read_file(root: Path, grey: Grey, source: str) -> np.ndarray:
    """uint8 (H, W, 3), RGB, of a file below ``root``."""
    path = root / source
    if not path.is_file():
        raise FileNotFoundError(f"{path}: listed, but not there; complete the folder or take it off the list")
    return decode(path.read_bytes(), str(path), grey)


def aligned(
    image: np.ndarray,
    landmarks: np.ndarray | None,
    geometry: Geometry,
    size: int,
    detector: Detector = DLIB,
) -> Face | None:
    """uint8 (size, size, 3) in the template and the landmarks (5, 2) there; None where no face was found.

    landmarks: (5, 2) pixels of ``image``, where known. detector: for the geometry "detect".
    """
    matrix = _to_template(image, landmarks, geometry, size, detector)
    if matrix is None:
        return None
    points = ARCFACE_112 if geometry == "insightface" and landmarks is None else landmarks
    return warp(image, matrix, size), None if points is None else transform_points(points, matrix)


def _to_template(
    image: np.ndarray, landmarks: np.ndarray | None, geometry: Geometry, size: int, detector: Detector
) -> np.ndarray | None:
    height, width = image.shape[:2]
    if geometry == "landmarks":
        return estimate(np.asarray(landmarks), size)
    if geometry == "detect":
        points = detector.find(image)
        return None if points is None else similarity(points, detector.target(size))
    side = 112 if geometry == "insightface" else width
    if (height, width) != (side, side):
        raise ValueError(f"expected {side} x {side} pixels for geometry {geometry!r}, got {width} x {height}")
    if geometry == "insightface":
        return from_112(size)
    return np.array([[1, 0, 0.5], [0, 1, 0.5]]) * (size / side) - np.array([[0, 0, 0.5]] * 2)  # pixel centres


def to_faceset(
    collection: Collection, folder: Path, size: int, workers: int | None = None, broken: Broken = "refuse"
) -> tuple[FaceSet, dict[str, str]]:
    """Read and align all photographs into ``folder``: the FaceSet, and what was left out, with the reason.

    On every core; resumes after a kill. The table gains or replaces landmarks in pixels of the result, where they are
    known. Memory: a shard per process. broken: "skip" leaves out files that cannot be read, as it does photographs
    without a detected face.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # who comes second waits, and takes what the first has made
        to_shards(collection, folder, size, WHOLE, workers, broken)
        (folder / ".lock").unlink(missing_ok=True)
    faces = FaceSet.load(folder)
    if not len(faces):
        raise ValueError(f"{folder}: no face found in any of {len(collection.table)} photographs; try another geometry")
    lost = collection.table["source"][~collection.table["source"].isin(faces.table["source"])]
    return faces, {source: _why(collection.read, source) for source in lost}


def to_shards(
    collection: Collection, folder: Path, size: int, share: Share, workers: int | None = None, broken: Broken = "refuse"
) -> FaceSet | None:
    """Job i's share (i, n) of `to_faceset`, for n jobs beside each other; the one that ends last joins all, the others
    return None. `to_faceset` afterwards reads what they made, or makes what is missing."""
    rows = [collection.table.iloc[i : i + PART] for i in range(0, len(collection.table), PART)]
    plan = {"size": size, "geometry": collection.geometry, "photographs": _digest(collection)}
    plan |= {"detector": collection.detector.name} if collection.geometry == "detect" else {}
    if shards.claim(folder, plan):
        return FaceSet.load(folder)
    make = partial(_part, collection.read, collection.geometry, collection.detector, size, broken)
    return shards.build(folder, rows, [len(part) for part in rows], make, workers, f"reading {folder.name}", share)


def _why(read: Callable[[str], np.ndarray], source: str) -> str:
    try:
        read(source)
    except (ValueError, OSError) as error:
        return str(error)
    return "no face found"


def _part(
    read: Callable[[str], np.ndarray],
    geometry: Geometry,
    detector: Detector,
    size: int,
    broken: Broken,
    table: pd.DataFrame,
) -> FaceSet:
    """The faces of some rows; rows without one are left out."""
    found = [_one(read, geometry, detector, size, broken, row) for _, row in table.iterrows()]
    images = [face[0] for face in found if face]
    table = table[[face is not None for face in found]].reset_index(drop=True)
    points = [face[1] for face in found if face and face[1] is not None]
    if points:
        table = table.assign(**dict(zip(LANDMARK_COLUMNS, np.stack(points).reshape(-1, 10).T, strict=True)))
    return FaceSet(np.stack(images) if images else np.empty((0, size, size, 3), np.uint8), table)


def _one(
    read: Callable[[str], np.ndarray],
    geometry: Geometry,
    detector: Detector,
    size: int,
    broken: Broken,
    row: pd.Series,
) -> Face | None:
    known = set(LANDMARK_COLUMNS) <= set(row.index)
    landmarks = row[list(LANDMARK_COLUMNS)].to_numpy(np.float64).reshape(5, 2) if known else None
    try:
        image = read(row["source"])
    except (ValueError, OSError):
        if broken == "skip":
            return None
        raise
    try:
        return aligned(image, landmarks, geometry, size, detector)
    except ValueError as error:
        raise ValueError(f"{row['source']}: {error}") from None


def _digest(collection: Collection) -> str:
    """Hex digest of the listing (not of the photographs: they are read once)."""
    return hashlib.sha256(collection.table.to_csv(index=False).encode()).hexdigest()[:16]
