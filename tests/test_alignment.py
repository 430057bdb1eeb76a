from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from insightface.utils import face_align

from facetransport.data import alignment
from facetransport.data.template import ARCFACE_112, crop_box, template
from facetransport.recognition import align


def scattered(angle: float = 20, scale: float = 2.3, shift: tuple[float, float] = (150, 90)) -> np.ndarray:
    """The five points of a face somewhere in a photograph."""
    matrix = cv2.getRotationMatrix2D((56, 56), angle, scale)
    matrix[:, 2] += np.array(shift)
    return alignment.transform_points(ARCFACE_112, matrix)


def photograph(points: np.ndarray) -> np.ndarray:
    image = np.full((480, 640, 3), 40, np.uint8)
    for (x, y), colour in zip(points, np.eye(5, 3) * 150 + 90, strict=True):
        cv2.circle(image, (round(x * 16), round(y * 16)), 5 * 16, colour.tolist(), -1, cv2.LINE_AA, 4)
    return image


@pytest.mark.parametrize("size", [64, 112, 128, 256])
def test_landmarks_go_to_the_template(size):
    matrix = alignment.estimate(scattered(), size)
    np.testing.assert_allclose(alignment.transform_points(scattered(), matrix), template(size), atol=0.01)


def test_the_middle_of_128_is_insightfaces_crop():
    points = scattered() + np.random.default_rng(0).normal(
        0, 2, (5, 2)
    )  # no exact similarity: least squares must agree too
    ours = alignment.estimate(points, 128)
    with pytest.warns(FutureWarning):
        theirs = face_align.estimate_norm(points.astype(np.float32), 112)
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], atol=1e-6)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2] + 8, atol=1e-3)


def test_similarity_is_insightfaces():
    points = scattered() + np.random.default_rng(1).normal(0, 3, (5, 2))
    with pytest.warns(FutureWarning):
        theirs = face_align.estimate_norm(points.astype(np.float32), 112)
    np.testing.assert_allclose(alignment.similarity(points, face_align.arcface_dst), theirs, atol=1e-3)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.3])
def test_round_trip_of_pixels_under_one_pixel(scale):
    """Discs drawn at the landmarks of a photograph must be found at the template's points of the crop."""
    points = scattered(scale=scale)
    crop = alignment.align(photograph(points), points, 256).astype(float)
    for (x, y), colour in zip(template(256), np.eye(5, 3) * 150 + 90, strict=True):
        if scale < 1:
            break
        disc = (abs(crop - colour).sum(-1) < 120) & (
            np.hypot(*np.mgrid[:256, :256] - np.array([y, x])[:, None, None]) < 16
        )
        rows, columns = np.nonzero(disc)
        assert np.hypot(columns.mean() - x, rows.mean() - y) < 1
    back = alignment.transform_points(template(256), cv2.invertAffineTransform(alignment.estimate(points, 256)))
    assert np.hypot(*(back - points).T).max() < 1


def test_shrinking_does_not_alias():
    """Fine stripes average to grey instead of beating."""
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    small = alignment.warp(stripes, np.array([[0.21, 0, 0], [0, 0.21, 0]]), 64)
    naive = cv2.warpAffine(stripes, np.array([[0.21, 0, 0], [0, 0.21, 0]]), (64, 64))
    assert small[8:-8, 8:-8].std() < 0.2 * naive[8:-8, 8:-8].std() and abs(small.mean() - 127.5) < 5


def test_warp_keeps_pixel_centres():
    """A centred blob stays centred at every shrink factor."""
    image = np.zeros((96, 96), np.uint8)
    cv2.circle(image, (48, 48), 9, 255, -1)
    for scale in (0.3, 0.5, 0.9, 1.7):
        found = alignment.warp(image, np.array([[scale, 0, 32 - 48 * scale], [0, scale, 32 - 48 * scale]]), 64).astype(
            float
        )
        rows, columns = np.mgrid[:64, :64]
        assert (found * columns).sum() / found.sum() == pytest.approx(32, abs=0.15)
        assert (found * rows).sum() / found.sum() == pytest.approx(32, abs=0.15)


def test_crop_and_network_input():
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(align.recogniser_crop(images), images[..., 4:60, 4:60])
    assert crop_box(128) == slice(8, 120)
    assert align.network_input(images, 56).shape == (2, 3, 56, 56)
    assert torch.equal(align.network_input(images, 56), images[..., 4:60, 4:60])
    assert align.network_input(images, 112).shape == (2, 3, 112, 112)
    assert torch.equal(align.network_input(images, 64, margin=False), images)
    ramp = torch.linspace(0, 1, 128).expand(1, 3, 128, 128)
    torch.testing.assert_close(
        align.resize(ramp, 64)[0, 0, 0, 8:-8], torch.linspace(0, 1, 128).view(64, 2).mean(1)[8:-8]
    )


def test_refusals():
    with pytest.raises(ValueError, match="five finite points"):
        alignment.estimate(np.full((5, 2), np.nan), 64)
    with pytest.raises(ValueError, match="distinct finite points"):
        alignment.similarity(np.zeros((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="two equal shapes"):
        alignment.similarity(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="multiple of 16"):
        align.recogniser_crop(torch.zeros(1, 3, 50, 50))
