"""Folders of photographs: one folder a person (CASIA, VGGFace2, LFW unpacked), or one person a file (FFHQ)."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from facetransport.data.photographs import Collection, Geometry, Grey, read_file

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff", ".gif", ".jp2")


def people(root: Path, geometry: Geometry = "detect", grey: Grey = "refuse") -> Collection:
    """``root/<person>/<photograph>``, nested as deep as one likes; people in order of their folders' names.

    Columns: identity, source, person (the folder's name).
    """
    files = photographs(root)
    folders = [file.parent.as_posix() for file in files]
    if "." in folders:
        raise ValueError(f"{root}: expected a folder a person, got {files[folders.index('.')]} beside them; see ffhq")
    person, identity = np.unique(folders, return_inverse=True)
    return _collection(root, files, identity, geometry, grey, person=person[identity])


def ffhq(root: Path, geometry: Geometry = "whole", grey: Grey = "refuse") -> Collection:
    """FFHQ's folders, or any others in which each photograph shows another person; in order of their names.

    The default geometry is IDiff-Face's, which trains on FFHQ's own square crops; "detect" aligns them as everything
    else is here.
    """
    files = photographs(root)
    return _collection(root, files, np.arange(len(files)), geometry, grey)


def photographs(root: Path) -> list[Path]:
    """The image files below ``root``, relative to it, by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected one with photographs ({', '.join(SUFFIXES)})")
    found = sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{root}: no photographs in it; expected files ending in {', '.join(SUFFIXES)}")
    return found


def passed_over(root: Path) -> dict[str, int]:
    """How many files below ``root`` are taken for no photographs, by suffix."""
    suffixes = (path.suffix.lower() or "without one" for path in root.rglob("*") if path.is_file())
    return dict(Counter(suffix for suffix in suffixes if suffix not in SUFFIXES))


def _collection(
    root: Path, files: list[Path], identity: np.ndarray, geometry: Geometry, grey: Grey, **columns: np.ndarray
) -> Collection:
    table = pd.DataFrame({"identity": identity, "source": [file.as_posix() for file in files], **columns})
    return Collection(table, partial(read_file, root, grey), geometry)
