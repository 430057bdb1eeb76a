"""Reproduction, checked: every number of one result folder against the same number of another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from facetransport.companion.results import SPEED

RTOL = 1e-3
SMALLEST = 1e-2  # numbers nearer to 0 are compared as if they were this large: 1e-5 apart at RTOL
SLACK = 0.15  # of the width of a number's own interval: training and drawing anew on another processor move it so far
ENDS = 2  # times as far its ends: the deviation of ten folds is known to a quarter, so each end to an eighth
KINDS = ("equal", "within", "outside", "missing")


@dataclass(frozen=True)
class Comparison:
    """table: one row a number, columns notebook, name, part (value, low, high), a, b, difference (relative), kind."""

    table: pd.DataFrame
    rtol: float

    @property
    def counted(self) -> pd.DataFrame:
        """Without what depends on the machine."""
        return self.table[~self.table["name"].str.startswith(SPEED)]

    @property
    def reproduced(self) -> bool:
        """Whether every number is there on both sides, equal within the tolerance."""
        return bool(self.counted["kind"].isin(["equal", "within"]).all())

    def report(self) -> str:
        """What is outside or missing, how many numbers are what, and the verdict."""
        kinds = self.counted["kind"].value_counts()
        wrong = self.counted[~self.counted["kind"].isin(["equal", "within"])]
        lines = [f"  {row.kind:8} {row.notebook} {row.name} {row.part}: {row.a} -> {row.b}" for row in _rows(wrong)]
        counts = ", ".join(f"{kinds.get(kind, 0)} {kind}" for kind in KINDS)
        speeds = self.table[self.table["name"].str.startswith(SPEED) & (self.table["part"] == "value")]
        lines += [f"  machine  {row.notebook} {row.name}: {_shown(row.a)} -> {_shown(row.b)}" for row in _rows(speeds)]
        tolerance = f"tolerance {self.rtol:g}, relative, or {SLACK:g} of an interval"
        lines += [f"numbers: {counts} ({tolerance}); of the machine, not counted: {len(speeds)}"]
        return "\n".join([*lines, "reproduced" if self.reproduced else "NOT reproduced"])


def _shown(number: float | None) -> str:
    return "-" if number is None or pd.isna(number) else f"{number:.4g}"


def _rows(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples(index=False))


def compare(a: Path, b: Path, rtol: float = RTOL) -> Comparison:
    """Compare two folders of results (figures/<profile>, its results/, or one JSON file each).

    Within the tolerance is what differs by ``rtol``, relatively, or SLACK of the 95 % interval of a; an end by ENDS
    times that. A number is its notebook, its name and one of value, low, high. Raises FileNotFoundError where nothing
    was recorded.
    """
    if not rtol >= 0:
        raise ValueError(f"rtol: expected at least 0, got {rtol}")
    left, right = numbers(a), numbers(b)
    keys = [*left, *(key for key in right if key not in left)]
    rows = [(*key, left.get(key), right.get(key), *_judged(key, left, right, rtol)) for key in keys]
    columns = ["notebook", "name", "part", "a", "b", "difference", "kind"]
    return Comparison(pd.DataFrame(rows, columns=columns), rtol)


Key = tuple[str, str, str]


def numbers(place: Path) -> dict[Key, float | None]:
    """(notebook, name, part) -> number, of a folder or a file of results."""
    folder = place / "results" if (place / "results").is_dir() else place
    paths = [place] if place.is_file() else sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{place}: no results; expected figures/<profile>, its results folder or a .json of it")
    paths += sorted((place / "speed").glob("*.json"))
    found: dict[Key, float | None] = {}
    for path in paths:
        for record in _records(path):
            found |= {(path.stem, record["name"], part): record[part] for part in ("value", "low", "high")}
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(records, list) and all({"name", "value", "low", "high"} <= set(r) for r in records):
            return records
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path}: expected a JSON list of records with name, value, low and high, as notebooks write it")


def _judged(
    key: Key, left: dict[Key, float | None], right: dict[Key, float | None], rtol: float
) -> tuple[float | None, str]:
    """Relative difference, and its kind."""
    if key not in left or key not in right:
        return None, "missing"
    a, b = left[key], right[key]
    if a is None or b is None:
        return None, "equal" if a == b else "outside"
    difference = abs(a - b) / max(abs(a), abs(b), SMALLEST)
    low, high = (left.get((*key[:2], part)) for part in ("low", "high"))
    slack = 0 if low is None or high is None else SLACK * (high - low) * (1 if key[2] == "value" else ENDS)
    near = difference <= rtol or abs(a - b) <= slack
    return difference, "equal" if a == b else "within" if near else "outside"
