"""Are generated faces where the template says? Found, measured, brought back when asked; each failure is listed.

IDiff-Face's published code resizes a whole identity to the recogniser's input when one of its images fails, and says
nothing. Here nothing is resized: a face that cannot be aligned is kept as it is or dropped, as the caller says, and is
a row of a frame either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from facetransport.data import detection
from facetransport.data.alignment import similarity, transform_points, warp
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet
from facetransport.data.template import template

OFF = "off_template"  # the column of distances


@dataclass(frozen=True)
class Detector:
    """Finds a face's landmarks, and knows where they lie in an aligned image.

    find: uint8 (H, W, 3), RGB -> (P, 2) pixels (x right, y down), None where there is no face.
    target: side of an aligned image -> (P, 2), the places of the same points in it.
    """

    find: Callable[[np.ndarray], np.ndarray | None]
    target: Callable[[float], np.ndarray]


def dlib_detector(upscale: float = 3.0, border: int = 16) -> Detector:
    """dlib's HOG detector and five points (eye corners, base of the nose). Arguments as for ``detection.detect``."""
    return Detector(partial(detection.detect, upscale=upscale, border=border), _dlib_target)


def _dlib_target(size: float) -> np.ndarray:
    return transform_points(detection.MEAN_FACE, detection.chip_to_template(int(size)))


def insightface_detector(model: Any, border: int = 0) -> Detector:
    """An InsightFace detector (SCRFD or RetinaFace, prepared; or a ``FaceAnalysis``): the face nearest to the centre.

    border: pixels replicated around the image, for the search alone; these detectors miss faces that fill an image.
    """
    return Detector(partial(_find_central, getattr(model, "det_model", model), border), template)


def _find_central(model: Any, border: int, image: np.ndarray) -> np.ndarray | None:
    padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
    boxes, points = model.detect(padded[:, :, ::-1])  # BGR
    if not len(boxes):
        return None
    centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
    middle = np.array([padded.shape[1], padded.shape[0]]) / 2
    return points[np.linalg.norm(centres - middle, axis=1).argmin()].astype(np.float64) - border


def align_faceset(
    faceset: FaceSet,
    detect: Detector,
    tolerance: float,
    realign: bool = False,
    on_failure: Literal["keep", "drop_image", "drop_identity"] = "keep",
) -> tuple[FaceSet, pd.DataFrame]:
    """The faces of a set that are in the template, and a frame of those that are not.

    tolerance: pixels of these images that landmarks may be off the template, on average. realign: faces further off
    are moved there by a similarity transform; it fails where they are still off, being no proper face. on_failure: what
    becomes of failures, each of them unchanged: kept, dropped, or dropped with all images of their identity.
    Returns the set, its table with a column ``off_template`` (pixels, after realignment; NaN without a face), and the
    failures: row (in ``faceset``), identity, reason ("no face found" or "too far"), distance (pixels).
    Memory: realigned sets are held whole; identities do not depend on each other, so large ones can go in slices.
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
