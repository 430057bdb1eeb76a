"""Alignment of finished images: measured, mended, and every failure listed."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import pandas as pd
import pytest

from facetransport.data import aligning, orl
from facetransport.data.aligning import Detector, align_faceset
from facetransport.data.alignment import transform_points
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet
from facetransport.data.template import template

SIZE = 64


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    """Photographs in the template, then one turned and shifted out of it, then noise: two people."""
    aligned = [orl.align(orl.read(path), SIZE) for _, _, path in islice(orl.photographs(), 4)]
    images = [found[0] for found in aligned if found is not None]
    turned = cv2.warpAffine(images[0], shift(12, 5, -4), (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return FaceSet(np.stack([*images, turned, noise]), pd.DataFrame({"identity": [0, 0, 1, 1, 0, 1]}))


def shift(degrees: float, x: float, y: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    return matrix + np.array([[0, 0, x], [0, 0, y]])


def test_faces_in_the_template_pass_and_every_other_image_is_listed(faces: FaceSet) -> None:
    checked, failures = align_faceset(faces, aligning.dlib_detector(), tolerance=3)
    assert failures["row"].tolist() == [4, 5]
    assert failures["identity"].tolist() == [0, 1]
    assert failures["reason"].tolist() == ["too far", "no face found"]
    assert failures["distance"][0] > 5 and np.isnan(failures["distance"][1])
    np.testing.assert_array_equal(checked.images, faces.images)
    assert checked.table["off_template"][:4].max() < 3


def test_realigned_faces_are_in_the_template(faces: FaceSet) -> None:
    aligned, failures = align_faceset(faces, aligning.dlib_detector(), tolerance=3, realign=True)
    assert failures["row"].tolist() == [5]
    np.testing.assert_array_equal(aligned.images[[0, 1, 2, 3, 5]], faces.images[[0, 1, 2, 3, 5]])
    again, left = align_faceset(aligned, aligning.dlib_detector(), tolerance=3)
    assert left["row"].tolist() == [5]
    inner = slice(16, 48)
    error = abs(again.images[4].astype(float) - faces.images[0])[inner, inner].mean()
    assert error < 0.5 * abs(faces.images[4].astype(float) - faces.images[0])[inner, inner].mean()


@pytest.mark.parametrize(
    ("on_failure", "rows"),
    [("keep", [0, 1, 2, 3, 4, 5]), ("drop_image", [0, 1, 2, 3, 4]), ("drop_identity", [0, 1, 4])],
)
def test_failures_are_kept_or_dropped_as_asked(faces: FaceSet, on_failure, rows: list[int]) -> None:
    result, failures = align_faceset(faces, known_points([4]), 3, realign=True, on_failure=on_failure)
    assert len(result) == len(rows) and len(failures) == 1
    assert result.identity.tolist() == faces.identity[rows].tolist()


def known_points(far: list[int], move: np.ndarray | None = None) -> Detector:
    """Finds the template in each image in turn, moved in the far ones; nothing in the sixth."""
    rows = iter(range(6))

    def find(image: np.ndarray) -> np.ndarray | None:
        row = next(rows)
        points = transform_points(template(SIZE), shift(20, 6, 0) if move is None else move)
        return None if row == 5 else points if row in far else template(SIZE)

    return Detector(find, template)


def test_known_landmarks_follow_their_image(faces: FaceSet) -> None:
    out = transform_points(template(SIZE), shift(20, 6, 0)).ravel()
    rows = [out if row == 4 else template(SIZE).ravel() for row in range(6)]
    labelled = FaceSet(faces.images, faces.table.join(pd.DataFrame(rows, columns=list(LANDMARK_COLUMNS))))
    aligned, _ = align_faceset(labelled, known_points([4]), 3, realign=True)
    np.testing.assert_allclose(aligned.landmarks, np.broadcast_to(template(SIZE), (6, 5, 2)), atol=1e-3)


def test_what_is_no_face_stays_too_far(faces: FaceSet) -> None:
    """Points in a line can't be brought to the template; the image stays as it was."""
    flat = np.array([[1.0, 0, 0], [0, 0, 30]])
    aligned, failures = align_faceset(faces, known_points([2], flat), 3, realign=True)
    assert failures["row"].tolist() == [2, 5] and failures["reason"][0] == "too far"
    np.testing.assert_array_equal(aligned.images, faces.images)


class FakeInsightFace:
    """What SCRFD answers: boxes with a score, five points each; it is given BGR."""

    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.seen = image
        if not image.any():
            return np.zeros((0, 5)), np.zeros((0, 5, 2))
        points = np.stack([template(SIZE) + 40, template(SIZE) + 8]).astype(np.float32)
        return np.array([[60, 60, 80, 80, 0.9], [20, 20, 60, 60, 0.6]]), points


def test_insightface_finds_the_central_face() -> None:
    model = FakeInsightFace()
    detect = aligning.insightface_detector(model, border=8)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert detect.find(image) is None
    image[..., 0] = 200
    np.testing.assert_allclose(detect.find(image), template(SIZE), atol=1e-5)
    assert model.seen.shape == (80, 80, 3) and model.seen[..., 2].all() and not model.seen[..., 0].any()
    _, failures = align_faceset(FaceSet(image[None], pd.DataFrame({"identity": [0]})), detect, 1)
    assert failures.empty


def test_refusals(faces: FaceSet) -> None:
    detect = aligning.dlib_detector()
    with pytest.raises(ValueError, match="tolerance"):
        align_faceset(faces, detect, float("nan"))
    with pytest.raises(ValueError, match="on_failure: expected 'keep'"):
        align_faceset(faces, detect, 3, on_failure="resize")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square"):
        align_faceset(FaceSet(faces.images[:, :50], faces.table), detect, 3)
    with pytest.raises(ValueError, match="at least one"):
        align_faceset(faces.select(slice(0, 0)), detect, 3)
