"""CelebA (Liu et al., ICCV 2015) as its authors hand it out: aligned images, attributes, identities, landmarks.

img_align_celeba/000001.jpg ...     list_attr_celeba.txt     identity_CelebA.txt     list_eval_partition.txt
list_landmarks_align_celeba.txt     captions.json (CelebA-Dialog's, where it is there)
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from facetransport.data.faceset import LANDMARK_COLUMNS
from facetransport.data.photographs import Collection, Grey, read_file

IMAGES = "img_align_celeba"
Split = Literal["train", "val", "test"]  # 0, 1, 2 in the list of partitions; no person is in two


def celeba(root: Path, split: Split | None = None, grey: Grey = "refuse") -> Collection:
    """One split, or all. Columns: identity (CelebA's number), source, 40 attributes (bool, CelebA's names), landmarks
    in pixels of the aligned images, and ``caption`` where CelebA-Dialog's captions.json is there."""
    if split is not None and split not in get_args(Split):
        raise ValueError(f"split: expected one of {', '.join(get_args(Split))}, got {split!r}")
    table = _lines(root / "identity_CelebA.txt", ["identity"])
    for part in (_attributes(root), _landmarks(root)):
        table = _joined(table, part, root)
    if split is not None:
        parts = _joined(table, _lines(root / "list_eval_partition.txt", ["split"]), root)["split"]
        table = table[parts == get_args(Split).index(split)]
    if not len(table):
        raise ValueError(f"{root}: no photograph in split {split}; expected CelebA's own lists")
    table = table.join(_captions(root))
    return Collection(table.rename_axis("source").reset_index(), partial(read_file, root / IMAGES, grey), "landmarks")


def _joined(table: pd.DataFrame, part: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Columns side by side; ValueError where a photograph has no line in the other list."""
    missing = table.index.difference(part.index)
    if len(missing):
        names = f"{', '.join(map(str, part.columns[:2]))} ..."
        raise ValueError(f"{root}: {missing[0]} (of {len(missing)}) has no line in the list with columns {names}")
    return table.join(part)


def _attributes(root: Path) -> pd.DataFrame:
    path = root / "list_attr_celeba.txt"
    table = _lines(path, _header(path))
    if not table.isin([-1, 1]).all(axis=None):
        raise ValueError(f"{path}: expected -1 or 1 under each attribute; fetch it again")
    return table == 1


def _landmarks(root: Path) -> pd.DataFrame:
    """CelebA's order is ours: the eye on the left of the image first."""
    path = root / "list_landmarks_align_celeba.txt"
    if len(_header(path)) != len(LANDMARK_COLUMNS):
        raise ValueError(f"{path}: expected five points a line, got columns {_header(path)}")
    return _lines(path, list(LANDMARK_COLUMNS)).astype("float32")


def _captions(root: Path) -> pd.DataFrame:
    path = root / "captions.json"
    if not path.is_file():
        return pd.DataFrame()
    said = json.loads(path.read_text(encoding="utf-8"))
    return pd.DataFrame({"caption": {name: entry["overall_caption"] for name, entry in said.items()}})


def _header(path: Path) -> list[str]:
    """Names in the second line; the first counts the photographs."""
    _require(path)
    with path.open(encoding="utf-8") as file:
        file.readline()
        return file.readline().split()


def _lines(path: Path, names: list[str]) -> pd.DataFrame:
    """Whole numbers by photograph: ``000001.jpg 1 -1 ...``, under two lines of header or none."""
    _require(path)
    with path.open(encoding="utf-8") as file:
        skip = 0 if "." in file.readline().split()[0] else 2
    try:
        table = pd.read_csv(path, sep=r"\s+", skiprows=skip, header=None, index_col=0, names=["source", *names])
        return table.astype("int64")
    except ValueError as error:
        raise ValueError(f"{path}: expected a photograph and {len(names)} whole numbers a line: {error}") from None


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; it comes with CelebA (Anno folder), beside {IMAGES}/")
