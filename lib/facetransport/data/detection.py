"""Faces in photographs and their landmarks, mapped to the project's template: by dlib, or by an ONNX detector.

dlib's HOG detector and its five-point predictor are the default. The predictor's file comes with the package
``face_recognition_models`` (CC0), which is located, never imported. dlib's five points are four eye corners and the
base of the nose; eye centres follow from them, a mouth does not. The 68-point predictor of that package is not used:
its training data restrict its licence. InsightFace's detectors come by the user's path (`facetransport.zoo`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np

from facetransport import zoo
from facetransport.data.alignment import compose, similarity, transform_points
from facetransport.data.template import template
from facetransport.files import file_digest

FIVE_POINTS = "shape_predictor_5_face_landmarks.dat"
SIDE = 250  # pixels that smaller photographs are enlarged to for the search: dlib finds faces of 80 and more
SEARCHED = 640  # pixels: side of what an ONNX detector looks at, where its file leaves that open; InsightFace's default
MARGIN = 4  # an image gets a fourth of its side as a border for an ONNX detector: they miss faces that fill it
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


@dataclass(frozen=True)
class Detector:
    """Finds a face's landmarks, and knows where they lie in an aligned image. Travels to other processes.

    find: uint8 (H, W, 3), RGB -> (P, 2) pixels (x right, y down), None where there is no face.
    target: side of an aligned image -> (P, 2), the places of the same points in it.
    name: tells it from other ones, for what is noted of a set.
    """

    find: Callable[[np.ndarray], np.ndarray | None]
    target: Callable[[float], np.ndarray]
    name: str = "detector"


def dlib_detector(upscale: float = 3.0, border: int = 16) -> Detector:
    """dlib's HOG detector and five points (eye corners, base of the nose). Arguments as for `detect`."""
    return Detector(partial(detect, upscale=upscale, border=border), _dlib_target, f"dlib, {upscale:g}, {border}")


def _dlib_target(size: float) -> np.ndarray:
    return transform_points(MEAN_FACE, chip_to_template(int(size)))


def _find_enlarged(image: np.ndarray) -> np.ndarray | None:
    return detect(image, max(1.0, SIDE / min(image.shape[:2])))


DLIB = Detector(_find_enlarged, _dlib_target, "dlib")  # in photographs of any size: small ones are enlarged


def insightface_detector(model: Any, border: int = 0) -> Detector:
    """An InsightFace detector (SCRFD or RetinaFace, prepared; or a ``FaceAnalysis``): the face nearest to the centre.

    border: pixels replicated around the image, for the search alone; these detectors miss faces that fill an image.
    """
    return Detector(partial(_find_central, getattr(model, "det_model", model), border), template)


def onnx_detector(path: Path) -> Detector:
    """`insightface_detector` of a file (SCRFD or RetinaFace, such as buffalo_l/det_10g.onnx), opened in each process
    when it is first asked. FileNotFoundError or ValueError where the file is not one."""
    _opened(path)
    return Detector(partial(_find_by_file, path), template, file_digest(path))


def _find_by_file(path: Path, image: np.ndarray) -> np.ndarray | None:
    return _find_central(_opened(path), max(image.shape[:2]) // MARGIN, image)


@lru_cache(maxsize=1)
def _opened(path: Path) -> Any:
    """The published files take one image at a time: it is processes that share the work."""
    model = zoo.load(path, "a detector of an InsightFace pack, such as buffalo_l/det_10g.onnx", threads=1)
    if getattr(model, "taskname", None) != "detection" or not getattr(model, "use_kps", False):
        raise ValueError(f"{path}: expected a detector with five landmarks (SCRFD or RetinaFace), got another network")
    model.prepare(0, input_size=(SEARCHED, SEARCHED))
    return model


def _find_central(model: Any, border: int, image: np.ndarray) -> np.ndarray | None:
    padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
    boxes, points = model.detect(np.ascontiguousarray(padded[:, :, ::-1]))  # BGR
    if not len(boxes):
        return None
    centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
    middle = np.array([padded.shape[1], padded.shape[0]]) / 2
    return points[np.linalg.norm(centres - middle, axis=1).argmin()].astype(np.float64) - border


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
