"""FaceSets as files that other people's code reads: folders of images, InsightFace's RecordIO, WebDataset."""

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

from facetransport.data import recordio
from facetransport.data.faceset import FaceSet
from facetransport.data.template import crop_box
from facetransport.files import replacing

CROP = 112  # pixels of InsightFace's training images
QUALITY = 95  # of JPEGs
PER_TAR = 10_000  # images a WebDataset shard


def imagefolder(faces: FaceSet, out: Path) -> Path:
    """``out/<identity>/<number>.png``, lossless, as the FaceSet has them; the table beside them as ``table.csv``."""
    _require_new(out)
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
    _require_new(out)
    people, label = np.unique(faces.identity, return_inverse=True)
    order = np.argsort(label, kind="stable")
    images = ((int(label[row]), _jpeg(_crop(faces.images[row]))) for row in order)
    out.mkdir(parents=True, exist_ok=True)
    recordio.write(out / "train.rec", images, np.bincount(label))
    (out / "property").write_text(f"{len(people)},{CROP},{CROP}\n", encoding="utf-8")
    return out


def webdataset(faces: FaceSet, out: Path) -> Path:
    """Tar files ``out/000000.tar``, ... of PER_TAR images: ``<number>.jpg`` beside ``<number>.json``, its row."""
    _require_new(out)
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(faces), PER_TAR):
        rows = range(first, min(first + PER_TAR, len(faces)))
        with replacing(out / f"{first // PER_TAR:06d}.tar") as temporary, tarfile.open(temporary, "w") as tar:
            for row in rows:
                _add(tar, f"{row:09d}.jpg", _jpeg(faces.images[row]))
                _add(tar, f"{row:09d}.json", json.dumps(_plain(faces.table.iloc[row])).encode())
    return out


FORMATS: dict[str, Callable[[FaceSet, Path], Path]] = {
    "imagefolder": imagefolder,
    "recordio": rec,
    "webdataset": webdataset,
}


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: holds something already; expected a new or an empty folder")


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
