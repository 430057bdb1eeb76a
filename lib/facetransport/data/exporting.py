"""FaceSets as files that other people's code reads: folders, InsightFace's RecordIO and ``.bin``, WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from facetransport.data import recordio, verification_bin
from facetransport.data.faceset import FaceSet
from facetransport.data.template import crop_box
from facetransport.files import replacing, require_new_folder

CROP = 112  # pixels of InsightFace's training images
QUALITY = 95  # of JPEGs
PER_TAR = 10_000  # images a WebDataset shard


def imagefolder(faces: FaceSet, out: Path) -> Path:
    """``out/<identity>/<number>.png``, lossless, as the FaceSet has them; the table beside them as ``table.csv``."""
    require_new_folder(out)
    for number, (identity, image) in enumerate(zip(faces.identity, faces.images, strict=True)):
        folder = out / f"{identity:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:08d}.png")
    faces.table.to_csv(out / "table.csv", index=False)
    return out


def rec(faces: FaceSet, out: Path) -> Path:
    """``train.rec``, ``train.idx`` and ``property`` in the folder ``out``: arcface_torch trains on it.

    JPEGs of the 112-pixel crops in the middle of the images, person by person, labels 0, 1, ... in order of identity.
    Written in a stream: memory does not grow with the set.
    """
    require_new_folder(out)
    people, label = np.unique(faces.identity, return_inverse=True)
    order = np.argsort(label, kind="stable")
    images = ((int(label[row]), _jpeg(_crop(faces.images[row]))) for row in order)
    out.mkdir(parents=True, exist_ok=True)
    recordio.write(out / "train.rec", images, np.bincount(label))
    (out / "property").write_text(f"{len(people)},{CROP},{CROP}\n", encoding="utf-8")
    return out


def webdataset(faces: FaceSet, out: Path) -> Path:
    """Tar files ``out/000000.tar``, ... of PER_TAR images: ``<number>.jpg`` beside ``<number>.json``, its row."""
    require_new_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(faces), PER_TAR):
        rows = range(first, min(first + PER_TAR, len(faces)))
        with replacing(out / f"{first // PER_TAR:06d}.tar") as temporary, tarfile.open(temporary, "w") as tar:
            for row in rows:
                _add(tar, f"{row:09d}.jpg", _jpeg(faces.images[row]))
                _add(tar, f"{row:09d}.json", json.dumps(_plain(faces.table.iloc[row])).encode())
    return out


def verification(faces: FaceSet, out: Path, pairs: int = 6000, seed: int = 0, folds: int = 10) -> Path:
    """InsightFace's verification set ``out`` (``.bin``) of that many pairs, LFW's way: in each of the consecutive folds
    as many genuine as impostor pairs, none of them twice, and nobody in two folds.

    JPEGs of the 112-pixel crops. ValueError where the set does not hold so many pairs.
    """
    if out.exists():
        raise ValueError(f"{out}: exists; name a new file, or remove it first")
    rows, same = draw_pairs(faces.identity, pairs, seed, folds)
    known = {row: _jpeg(_crop(faces.images[row])) for row in np.unique(rows).tolist()}
    verification_bin.write(out, [known[row] for row in rows.ravel().tolist()], same)
    return out


def draw_pairs(identity: np.ndarray, pairs: int, seed: int, folds: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """int (P, 2) rows and bool (P,) whether they show one person; arguments as for `verification`."""
    if pairs < 2 * folds or pairs % (2 * folds):
        raise ValueError(f"pairs: expected a multiple of {2 * folds}, half of each fold genuine, got {pairs}")
    rng, each = np.random.default_rng(seed), pairs // (2 * folds)
    people = np.array_split(rng.permutation(np.unique(identity)), folds)
    drawn = [draw(np.flatnonzero(np.isin(identity, fold)), identity, each, rng) for fold in people for draw in _DRAWS]
    return np.concatenate(drawn), np.tile(np.repeat([True, False], each), folds)


def _genuine(rows: np.ndarray, identity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    of_one = [rows[identity[rows] == person] for person in np.unique(identity[rows])]
    every = [np.stack([own[i] for i in np.triu_indices(len(own), 1)], 1) for own in of_one]
    return _some(np.concatenate([*every, np.empty((0, 2), int)]), count, "genuine", rng)


def _impostor(rows: np.ndarray, identity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """From more draws than are needed: nearly all of them are of two people."""
    tried = np.sort(rng.choice(rows, (20 * count + 100, 2)), axis=1) if len(rows) else np.empty((0, 2), int)
    tried = np.unique(tried, axis=0)
    return _some(tried[identity[tried[:, 0]] != identity[tried[:, 1]]], count, "impostor", rng)


_DRAWS = (_genuine, _impostor)


def _some(found: np.ndarray, count: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    if len(found) < count:
        raise ValueError(f"pairs: a fold has {len(found)} {kind} pairs for {count}; ask for fewer, or of a larger set")
    return found[rng.choice(len(found), count, replace=False)]


FORMATS: dict[str, Callable[[FaceSet, Path], Path]] = {
    "imagefolder": imagefolder,
    "recordio": rec,
    "webdataset": webdataset,
}


def _crop(image: np.ndarray) -> Image.Image:
    """What a recogniser sees of it, at InsightFace's size."""
    box = crop_box(image.shape[0])
    crop = Image.fromarray(np.ascontiguousarray(image[box, box]))
    return crop if crop.width == CROP else crop.resize((CROP, CROP), Image.Resampling.BICUBIC)


def _jpeg(image: np.ndarray | Image.Image) -> bytes:
    out = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)  # no time, no owner: the same set, the same bytes
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def _plain(row: pd.Series) -> dict[str, Any]:
    return {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
