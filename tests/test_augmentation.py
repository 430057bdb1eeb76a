from __future__ import annotations

import math

import pytest
import torch

from facetransport.recognition import augmentation
from facetransport.recognition.augmentation import POLICY, Augment


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth coloured pictures: (16, 3, 56, 56) in [-1, 1]."""
    low = torch.rand(16, 3, 5, 5) * 2 - 1
    return torch.nn.functional.interpolate(low, size=(56, 56), mode="bilinear")


@pytest.mark.parametrize("operations", [0, 2, 4])
def test_keeps_shape_and_range_and_input(images, operations):
    before = images.clone()
    out = Augment(operations)(images)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert out.abs().max() <= 1 + 1e-5 and torch.isfinite(out).all()
    torch.testing.assert_close(images, before)


def test_randomness_is_the_seed_alone(images):
    augment = Augment(4)
    torch.manual_seed(3)
    first = augment(images)
    torch.rand(5)
    torch.manual_seed(3)
    torch.testing.assert_close(augment(images), first, rtol=0, atol=0)
    torch.manual_seed(4)
    assert (augment(images) - first).abs().mean() > 0.05


def test_every_image_changes_but_stays_itself(images):
    """Augmented batches must still correlate most with their own originals, or labels would be noise."""
    flat = (images - images.mean((1, 2, 3), keepdim=True)).mean(1).flatten(1)
    plain, votes = Augment(0), torch.zeros(16, 16)
    for _ in range(20):
        out = plain(images)
        out = torch.stack([out, out.flip(-1)])  # whichever way it was mirrored
        centred = (out - out.mean((2, 3, 4), keepdim=True)).mean(2).flatten(2)
        cosine = torch.nn.functional.normalize(centred, dim=2) @ torch.nn.functional.normalize(flat, dim=1).T
        votes += cosine.amax(0)
    assert (votes.argmax(1) == torch.arange(16)).float().mean() > 0.8
    assert (plain(images) - images).flatten(1).abs().mean(1).min() > 0.01


def test_half_of_the_images_turn_grey(images):
    many = images.repeat(40, 1, 1, 1)
    out = augmentation.colour((many + 1) / 2)
    grey = (out - out[:, :1]).abs().amax((1, 2, 3)) < 1e-4
    assert 0.4 < grey.float().mean() < 0.6


def test_geometry_mirrors_half_and_moves_little():
    """A bright dot near the middle goes at most as far as 12 degrees, 12 %, 6 % and 5 % can take it."""
    images = torch.full((400, 3, 56, 56), -1.0)
    images[:, :, 26:30, 40:44] = 1
    out = augmentation.geometry(images)[:, 0] + 1
    columns = (out * torch.arange(56.0)).sum((1, 2)) / out.sum((1, 2))
    rows = (out * torch.arange(56.0)[:, None]).sum((1, 2)) / out.sum((1, 2))
    assert 0.4 < (columns < 27.5).float().mean() < 0.6
    reach = torch.where(columns < 27.5, 55 - columns, columns)
    assert (reach - 41.5).abs().max() < 14 * 0.2 + 0.05 * 56 + 1.5
    assert (rows - 27.5).abs().max() < 14 * math.sin(math.pi / 15) * 1.2 + 0.05 * 56 + 1.5


def test_compression_is_an_orthonormal_transform_rounded(monkeypatch):
    images = torch.rand(2, 3, 16, 16)
    monkeypatch.setattr(augmentation, "uniform", lambda x, low, high, *shape: torch.full((len(x), *shape), 1e-6))
    torch.testing.assert_close(
        augmentation.compress(images), images, atol=1e-4, rtol=0
    )  # a step of nothing loses nothing
    monkeypatch.setattr(augmentation, "uniform", lambda x, low, high, *shape: torch.full((len(x), *shape), 100.0))
    assert augmentation.compress(images).abs().max() < 1e-5  # an endless step leaves nothing


def test_blur_and_low_resolution_remove_detail():
    stripes = torch.zeros(4, 3, 56, 56)
    stripes[..., ::2] = 1
    assert augmentation.low_resolution(stripes).std() < 0.5 * stripes.std()
    soft = torch.stack([augmentation.blur(stripes).std() for _ in range(20)])
    assert soft.min() < 0.5 * stripes.std()


def test_erasing_covers_a_third_of_the_images():
    images = torch.full((600, 3, 56, 56), 2.0)  # outside of any grey that it draws
    changed = (augmentation.erase(images) != 2).any(1).float().mean((1, 2))
    assert 0.2 < (changed > 0).float().mean() < 0.45 and changed.max() < 0.25


def test_any_size_that_jpeg_blocks_do_not_fit_works():
    assert Augment(2)(torch.rand(5, 3, 28, 28) * 2 - 1).shape == (5, 3, 28, 28)
    assert Augment(2)(torch.rand(1, 3, 30, 30) * 2 - 1).shape == (1, 3, 30, 30)


def test_refusals():
    with pytest.raises(ValueError, match=f"0 to {len(POLICY)}"):
        Augment(99)
    with pytest.raises(ValueError, match="share"):
        Augment(2, share=2)
