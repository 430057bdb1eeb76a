"""Are generated faces where the template says? Found, measured, brought back when asked; each failure is listed.

IDiff-Face's published code resizes a whole identity to the recogniser's input when one of its images fails, and says
nothing. Here nothing is resized: a face that cannot be aligned is kept as it is or dropped, as the caller says, and is
a row of a frame either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from facetransport.data import shards
from facetransport.data.alignment import similarity, transform_points, warp
from facetransport.data.detection import Detector
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet, digest_of
from facetransport.devices import WHOLE, Share

OFF, ROW = "off_template", "row"  # columns: pixels from the template, place in the set that was aligned
TOLERANCE = 0.04  # sides of an image: 9 of 10 renders are within it by dlib's points, which are no better than that
PART = 256  # images that a shard holds, or a little more: those of one person stay together
Failing = Literal["keep", "drop_image", "drop_identity"]


def align_faceset(
    faceset: FaceSet,
    detect: Detector,
    tolerance: float,
    realign: bool = False,
    on_failure: Failing = "keep",
) -> tuple[FaceSet, pd.DataFrame]:
    """The faces of a set that are in the template, and a frame of those that are not.

    tolerance: pixels of these images that landmarks may be off the template, on average. realign: faces further off
    are moved there by a similarity transform; it fails where they are still off, being no proper face. on_failure: what
    becomes of failures, each of them unchanged: kept, dropped, or dropped with all images of their identity.
    Returns the set, its table with a column ``off_template`` (pixels, after realignment; NaN without a face), and the
    failures: row (in ``faceset``), identity, reason ("no face found" or "too far"), distance (pixels).
    Memory: realigned sets are held whole; `align_into` takes any size.
    """
    _check(faceset, tolerance, on_failure)
    target = detect.target(faceset.images.shape[1])
    points = [detect.find(np.asarray(x)) for x in tqdm(faceset.images, unit="face", desc="aligning", disable=None)]
    off = np.array([_distance(p, target) for p in points])
    moves = {}
    for row, found in enumerate(points):
        if realign and found is not None and off[row] > tolerance:
            moves[row] = similarity(found, target)
            off[row] = _distance(transform_points(found, moves[row]), target)
    failed = ~(off <= tolerance)  # NaN too
    moved = _moved(faceset, {row: move for row, move in moves.items() if not failed[row]})
    result = FaceSet(moved.images, moved.table.assign(**{OFF: off}))
    return result.select(_kept(faceset.identity, failed, on_failure)), _failures(faceset, off, failed)


def align_into(
    folder: Path,
    source: Path,
    detect: Detector,
    tolerance: float,
    on_failure: Failing = "drop_image",
    identities: int | None = None,
    workers: int | None = None,
    share: Share = WHOLE,
) -> tuple[FaceSet, pd.DataFrame] | None:
    """`align_faceset`, realigning, of the FaceSet in the folder ``source``, of any size: in shards, on every core, into
    ``folder``; resumes where a kill stopped it.

    The table gains ``off_template`` and ``row``, the place in ``source``; people come in order of identity.
    identities: how many people stay, the first ones; what is drawn beyond them is spare for those who fail (papers.md
    2.5: 10,050 for 10,000). share: (i, n) aligns every n-th shard, as one of n jobs on one folder; the last to end
    joins them, the others return None. ValueError where fewer people are left than asked for.
    """
    faces = FaceSet.load(source)
    _check(faces, tolerance, on_failure)
    plan = {"detector": detect.name, "tolerance": tolerance, "on_failure": on_failure, "identities": identities}
    plan |= digest_of(source)
    if not shards.claim(folder, plan):
        make = partial(_align_part, source, detect, tolerance, on_failure)
        parts = _whole_people(faces.identity)
        sizes, first = [len(part) for part in parts], partial(_rows_of_first, identities)
        if shards.build(folder, parts, sizes, make, workers, f"aligning {folder.name}", share, first) is None:
            return None
    aligned = FaceSet.load(folder)
    return aligned, _lost(faces, aligned, detect, tolerance)


def _whole_people(identity: np.ndarray) -> list[np.ndarray]:
    """Rows of consecutive people, about PART of them together."""
    order = np.argsort(identity, kind="stable")
    people = np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
    part = np.cumsum([len(rows) for rows in people]) // PART
    return [np.concatenate([people[i] for i in np.flatnonzero(part == number)]) for number in np.unique(part)]


def _align_part(source: Path, detect: Detector, tolerance: float, on_failure: Failing, rows: np.ndarray) -> FaceSet:
    faces = FaceSet.load(source).select(rows)
    numbered = FaceSet(faces.images, faces.table.assign(**{ROW: rows}))
    return align_faceset(numbered, detect, tolerance, True, on_failure)[0]


def _rows_of_first(identities: int | None, table: pd.DataFrame) -> int:
    """How many rows the first people have, all of them without a number."""
    if identities is None:
        return len(table)
    starts = np.unique(table["identity"], return_index=True)[1]
    if not 1 <= identities <= len(starts):
        raise ValueError(
            f"identities: expected 1 to {len(starts)}, as many people as could be aligned, got {identities}; "
            "draw more to spare, or ask for fewer"
        )
    return len(table) if identities == len(starts) else int(starts[identities])


def _lost(faces: FaceSet, aligned: FaceSet, detect: Detector, tolerance: float) -> pd.DataFrame:
    """The failures of `align_faceset`: of what was kept nevertheless, and of what is gone, looked at again."""
    kept = _failures(aligned, aligned.table[OFF].to_numpy(), ~(aligned.table[OFF].to_numpy() <= tolerance))
    kept = kept.assign(row=aligned.table[ROW].to_numpy()[kept["row"]])
    gone = np.setdiff1d(np.arange(len(faces)), aligned.table[ROW])
    if not len(gone):
        return kept
    failures = align_faceset(faces.select(gone), detect, tolerance, True)[1]
    lost = failures.assign(row=gone[failures["row"]])
    return pd.concat([kept, lost]).sort_values("row", ignore_index=True) if len(kept) else lost


def _check(faceset: FaceSet, tolerance: float, on_failure: str) -> None:
    height, width = faceset.images.shape[1:3]
    if not len(faceset) or height != width:
        raise ValueError(f"faceset: expected at least one square image, got {faceset.images.shape}")
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected pixels above 0, got {tolerance}")
    if on_failure not in ("keep", "drop_image", "drop_identity"):
        raise ValueError(f"on_failure: expected 'keep', 'drop_image' or 'drop_identity', got {on_failure!r}")


def _distance(points: np.ndarray | None, target: np.ndarray) -> float:
    return np.nan if points is None else float(np.linalg.norm(points - target, axis=1).mean())


def _moved(faceset: FaceSet, moves: Mapping[int, np.ndarray]) -> FaceSet:
    """Some images warped, with the landmarks that their rows hold."""
    if not moves:
        return faceset
    images, table = np.array(faceset.images), faceset.table.copy()
    for row, move in moves.items():
        images[row] = warp(images[row], move, images.shape[1])
    if set(LANDMARK_COLUMNS) <= set(table):
        known = faceset.landmarks.copy()
        for row, move in moves.items():
            known[row] = transform_points(known[row], move)
        table[list(LANDMARK_COLUMNS)] = known.reshape(len(known), -1)
    return FaceSet(images, table)


def _kept(identity: np.ndarray, failed: np.ndarray, on_failure: str) -> np.ndarray:
    """bool (N,)"""
    if on_failure == "keep":
        return np.ones(len(failed), bool)
    return ~failed if on_failure == "drop_image" else ~np.isin(identity, identity[failed])


def _failures(faceset: FaceSet, off: np.ndarray, failed: np.ndarray) -> pd.DataFrame:
    rows = np.flatnonzero(failed)
    reasons = np.where(np.isnan(off[rows]), "no face found", "too far")
    return pd.DataFrame({"row": rows, "identity": faceset.identity[rows], "reason": reasons, "distance": off[rows]})
