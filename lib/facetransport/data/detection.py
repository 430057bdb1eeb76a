"""Faces in photographs: dlib's HOG detector and its five-point predictor, mapped to the project's template.

The predictor's file comes with the package ``face_recognition_models`` (CC0), which is located, never imported. dlib's
five points are four eye corners and the base of the nose; eye centres follow from them, a mouth does not. The 68-point
predictor of that package is not used: its training data restrict its licence.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import cv2
import dlib
import numpy as np

from facetransport.data.alignment import compose, similarity, transform_points
from facetransport.data.template import template

FIVE_POINTS = "shape_predictor_5_face_landmarks.dat"
CHIP = 150  # pixels: side of the face chip that dlib's recogniser was trained on, padding 0.25
# dlib's mean face (image_transforms/interpolation.h, get_face_chip_details) in a chip: right-hand eye's outer and
# inner corner, left-hand eye's outer and inner corner (left and right in the image), base of the nose
MEAN_FACE = 25 + 100 * np.array(
    [
        [0.8595674595992, 0.2134981538014],
        [0.6460604764104, 0.2289674387677],
        [0.1205750620789, 0.2137274526848],
        [0.3340850613712, 0.2290642403242],
        [0.4901123135679, 0.6277975316475],
    ]
)


def model_file(name: str) -> Path:
    """Where pip put a file of ``face_recognition_models``."""
    try:
        found = [f for f in files("face_recognition_models") or () if f.name == name]
    except PackageNotFoundError:
        found = []
    path = Path(str(found[0].locate())) if found else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: not there; it comes with `pip install face_recognition_models` (weights CC0, 100 MB)"
        )
    return path


def eye_centres(points: np.ndarray) -> np.ndarray:
    """(..., 5, 2) dlib points -> (..., 2, 2): the eye on the left of the image, then the other."""
    return np.stack([points[..., 2:4, :].mean(-2), points[..., 0:2, :].mean(-2)], -2)


def chip_to_template(size: int) -> np.ndarray:
    """float64 (2, 3): from dlib's 150-pixel chip to the template of that size; eye centres meet."""
    return similarity(eye_centres(MEAN_FACE), template(size)[:2])


def to_template(points: np.ndarray, size: int) -> np.ndarray:
    """float64 (2, 3): from image pixels to the template, by dlib's five points (5, 2), as dlib aligns."""
    return compose(chip_to_template(size), similarity(points, MEAN_FACE))


@lru_cache(maxsize=1)
def models() -> tuple[dlib.fhog_object_detector, dlib.shape_predictor]:
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model_file(FIVE_POINTS)))


def detect(image: np.ndarray, upscale: float = 1.0, border: int = 0) -> np.ndarray | None:
    """float64 (5, 2): dlib's points of the largest face in pixels of ``image``, None if there is none.

    image, upscale, border: as for `detect_all`.
    """
    found = detect_all(image, upscale, border)
    return found[0] if found else None


def detect_all(image: np.ndarray, upscale: float = 1.0, border: int = 0) -> list[np.ndarray]:
    """dlib's points of each face, float64 (5, 2) in pixels of ``image``, the largest first.

    image: uint8 (H, W) or (H, W, 3). upscale, border: small faces are enlarged, tight ones given replicated borders
    (pixels of ``image``), for the search alone.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"image: expected uint8 (H, W) or (H, W, 3), got {image.dtype} {image.shape}")
    padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
    large = cv2.resize(padded, None, fx=upscale, fy=upscale, interpolation=cv2.INTER_LINEAR)
    detector, predictor = models()
    boxes = sorted(detector(large, 0), key=lambda box: -box.area())
    enlarge = np.array([[upscale, 0, 0], [0, upscale, 0]]) + (upscale - 1) / 2 * np.array(
        [[0, 0, 1]] * 2
    )  # pixel centres
    back = cv2.invertAffineTransform(enlarge)
    shapes = ([[p.x, p.y] for p in predictor(large, box).parts()] for box in boxes)
    return [transform_points(np.array(points, np.float64), back) - border for points in shapes]
