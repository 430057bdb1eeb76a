"""From a photograph and its landmarks to the project's one face geometry (`template`), by similarity transforms.

Points are pixels (x right, y down) in the order of ``faceset.LANDMARKS``, the eye on the left of the image first.
"""

from __future__ import annotations

import warnings

import cv2
import numpy as np

from facetransport.data.template import ARCFACE_112, template


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64 (2, 3): rotation, uniform scale and shift from points to points, in least squares (Umeyama, 1991).

    source, target: (P, 2), P >= 2. Mirroring is excluded.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(f"points: expected two equal shapes (P, 2), P >= 2, got {source.shape} and {target.shape}")
    a, b = source - source.mean(0), target - target.mean(0)
    spread = (a**2).sum()
    if not np.isfinite(spread) or spread == 0:
        raise ValueError("source: expected distinct finite points; these are all one point, or NaN")
    c, s = (a * b).sum() / spread, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / spread
    linear = np.array([[c, -s], [s, c]])
    return np.column_stack([linear, target.mean(0) - linear @ source.mean(0)])


def estimate(landmarks: np.ndarray, size: int) -> np.ndarray:
    """float64 (2, 3): from image pixels to the template, by ``insightface.utils.face_align.estimate_norm``.

    landmarks: (5, 2) pixels.
    """
    from insightface.utils.face_align import estimate_norm  # a second of imports: only where it is used

    landmarks = np.asarray(landmarks, np.float32)
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks: expected five finite points (5, 2), got {landmarks.shape}: {landmarks.tolist()}")
    with warnings.catch_warnings():  # insightface 2.1 calls a scikit-image method that is to be renamed
        warnings.simplefilter("ignore", FutureWarning)
        to_112 = np.asarray(estimate_norm(landmarks), np.float64)
    return compose(from_112(size), to_112)


def from_112(size: int) -> np.ndarray:
    """float64 (2, 3): from InsightFace's 112-pixel crop to the template of that size, which has a margin around it."""
    return similarity(ARCFACE_112, template(size))


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W[, 3]) -> uint8 (size, size[, 3]); borders replicated, area-averaged where the warp shrinks.

    matrix: (2, 3), from image pixels to pixels of the result.
    """
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    k = max(1, int(np.ceil(shrink - 1e-6)))
    interpolation = cv2.INTER_LINEAR if k > 1 else cv2.INTER_CUBIC
    inner = np.asarray(matrix) * k + np.array([[0, 0, (k - 1) / 2]] * 2)  # pixel centres of a k times finer grid
    fine = cv2.warpAffine(image, inner, (size * k, size * k), flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA) if k > 1 else fine


def align(image: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) and its five landmarks (5, 2) -> uint8 (size, size, 3) in the template."""
    return warp(image, estimate(landmarks, size), size)


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(..., 2) pixels through a (2, 3) map."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(2, 3): first ``inner``, then ``outer``."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])
