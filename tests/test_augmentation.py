from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from facetransport.recognition import augmentation
from facetransport.recognition.augmentation import OPERATIONS, POLICY, Augment, PublishedAugment


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


# ------------------------------------------------------------------------------------- what IDiff-Face trains with


def test_flip_only_is_the_image_or_its_mirror(images):
    many = images.repeat(20, 1, 1, 1)
    out = PublishedAugment()(many)
    mirrored = (out == many.flip(-1)).flatten(1).all(1)
    assert ((out == many).flatten(1).all(1) ^ mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_published_randaugment_keeps_range_and_input_and_is_the_seed_alone(images):
    before, augment = images.clone(), PublishedAugment(4)
    torch.manual_seed(3)
    first = augment(images)
    assert first.shape == images.shape and first.dtype == torch.float32
    assert first.abs().max() <= 1 + 1e-6 and torch.equal(images, before)
    torch.manual_seed(3)
    assert torch.equal(augment(images), first)
    assert not torch.equal(augment(images), first)


def test_published_draws(images, monkeypatch):
    """Every operation as often as any other; magnitudes 1 to the largest, both directions; 4 on each image."""
    seen: dict[str, list[float]] = {name: [] for name in OPERATIONS}

    def spy(name):
        return lambda images, level: seen[name].extend((level * 30).tolist()) or images

    monkeypatch.setattr(augmentation, "OPERATIONS", {name: spy(name) for name in OPERATIONS})
    PublishedAugment(4, magnitude=16)(images[:, :, :1, :1].repeat(250, 1, 1, 1))
    counts = np.array([len(levels) for levels in seen.values()])
    assert counts.sum() == 4 * 4000 and len(counts) == 13
    assert abs(counts - 16000 / 13).max() < 5 * math.sqrt(16000 / 13)
    for levels in seen.values():
        rounded = np.round(levels).astype(int)
        np.testing.assert_allclose(levels, rounded, atol=1e-4)
        assert set(rounded) == {*range(-16, 0), *range(1, 17)}


def pillow(name: str, image: Image.Image, m: float) -> Image.Image:
    """torchvision's definitions on Pillow, which IDiff-Face's augmentation runs on; m: level, signed."""
    match name:
        case "brightness" | "color" | "contrast" | "sharpness":
            return getattr(ImageEnhance, name.title())(image).enhance(1 + 0.9 * m)
        case "posterize":
            return ImageOps.posterize(image, 8 - round(4 * abs(m)))
        case "solarize":
            return ImageOps.solarize(image, 255 * (1 - abs(m)))
        case "auto_contrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "grey":
            return image.convert("L").convert("RGB")
        case "rotate":
            return image.rotate(30 * m)
        case "translate_x":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 150 / 331 * 56 * m, 0, 1, 0))
        case "shear_x":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0.3 * m, 0, 0, 1, 0))
    return image


@pytest.mark.parametrize("m", [-13 / 30, 7 / 30])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_each_operation_is_pillows(images, name, m):
    pixels = ((images + 1) * 127.5).round().byte()
    theirs = [pillow(name, Image.fromarray(p.permute(1, 2, 0).numpy()), m) for p in pixels]
    expected = torch.stack([torch.from_numpy(np.array(t)).permute(2, 0, 1) for t in theirs]).float()
    ours = OPERATIONS[name](pixels.float() / 255, torch.full((len(pixels),), m)) * 255
    difference = (ours - expected).abs()
    # nearest pixels may fall to the other side of a tie; kornia's posterize may round one step (of 4) down
    assert difference.median() < 1.1 and (difference > 4.1).float().mean() < 0.02


def test_constant_pictures_survive_every_operation():
    flat = torch.full((3, 3, 28, 28), 0.3)
    for name, operation in OPERATIONS.items():
        out = operation(flat, torch.full((3,), 16 / 30))
        assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1, name
    torch.testing.assert_close(OPERATIONS["auto_contrast"](flat, torch.ones(3)), flat)


def test_published_refusals():
    with pytest.raises(ValueError, match=r"magnitude in 1..30, got 4 and 31"):
        PublishedAugment(4, magnitude=31)
    with pytest.raises(ValueError, match="operations >= 0"):
        PublishedAugment(-1)
