"""Augmentation of aligned faces, on whole batches, for training recognisers on CPUs and GPUs alike.

`Augment` trains the recognisers that judge: the ways in which cameras differ (crop, light, colour, blur, resolution,
noise, compression, occlusion) and kornia's RandAugment. `PublishedAugment` is what IDiff-Face trains with on generated
sets: mirror images, with or without its RandAugment. All randomness comes from torch's global generator: the caller
forks and seeds it (`training` does, step by step). Images are float32 (B, 3, H, W) in [-1, 1] before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from kornia import enhance
from kornia.augmentation.auto import RandAugment
from kornia.color import rgb_to_grayscale
from torch import Tensor, nn

# IDiff-Face's operations, as far as kornia has them (no Identity; grey comes from `colour` below). kornia maps
# magnitude 1..29 linearly from the first number to the second (signed ranges: from 0, random sign), so ranges are
# centred on "as it is" where an operation has two directions.
POLICY: list[list[tuple[str, float, float | None]]] = [
    [("shear_x", -0.08, 0.08)],  # times 180 degrees
    [("translate_x", -0.1, 0.1)],  # of the width
    [("rotate", -15.0, 15.0)],
    [("brightness", 0.6, 1.4)],
    [("color", 0.1, 1.9)],
    [("contrast", 0.6, 1.4)],
    [("sharpness", 0.1, 1.9)],
    [("posterize", 4.0, 8.0)],
    [("solarize", 0.7, 1.0)],
    [("auto_contrast", 0, 1)],
    [("equalize", 0, 1)],
]
MAGNITUDES = range(1, 30)


class Augment(nn.Module):
    """Flip, crop, light, colour, sensor; then RandAugment on a share of the batch.

    operations: of RandAugment, 0 for none. share: of the images that RandAugment changes. group: images that share
    RandAugment's choice of operations (kornia draws one choice a call).
    """

    def __init__(self, operations: int = 4, share: float = 0.5, group: int = 32) -> None:
        super().__init__()
        if not 0 <= operations <= len(POLICY):
            raise ValueError(f"operations: expected 0 to {len(POLICY)}, got {operations}")
        if not 0 <= share <= 1 or group < 1:
            raise ValueError(f"share, group: expected share in [0, 1] and group >= 1, got {share}, {group}")
        self.share, self.group = (share if operations else 0.0), group
        self.policies = [RandAugment(operations, m, policy=POLICY) for m in MAGNITUDES] if operations else []

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = (geometry(images) + 1) / 2  # light and sensors work on [0, 1]
        images = sensor(lighting(colour(images)))
        images = self.randaugment(images.clamp_(0, 1))
        return erase(images * 2 - 1)

    def randaugment(self, images: Tensor) -> Tensor:
        """[0, 1] -> [0, 1], in place: every n-th image makes a group, so that a group meets every kind of sensor."""
        groups = math.ceil(len(images) / self.group)
        for first in range(round(self.share * groups)):
            policy = self.policies[int(torch.randint(len(self.policies), ()))]
            images[first::groups] = policy(images[first::groups])
        return images


def uniform(images: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """(B, *shape) uniform numbers, beside the images."""
    return torch.empty(len(images), *shape, device=images.device).uniform_(low, high)


def chance(images: Tensor, p: float) -> Tensor:
    """bool (B, 1, 1, 1), true with probability p."""
    return uniform(images, 0, 1, 1, 1, 1) < p


def geometry(images: Tensor) -> Tensor:
    """Mirror, rotation (12 degrees), scale (0.88 to 1.12), stretch (6 %), shift (5 % of the side): one resampling."""
    angle = uniform(images, -math.pi / 15, math.pi / 15)
    scale = uniform(images, -0.12, 0.12).exp()
    stretch = uniform(images, -0.06, 0.06).exp()
    mirror = torch.where(uniform(images, 0, 1) < 0.5, 1.0, -1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack([cos * stretch * mirror, -sin, sin * stretch * mirror, cos], 1).view(-1, 2, 2)
    theta = torch.cat([linear, uniform(images, -0.1, 0.1, 2, 1)], 2)  # (B, 2, 3), coordinates in [-1, 1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def colour(images: Tensor) -> Tensor:
    """Grey (half of the images, random channel weights), else a random saturation and channel gains; gain and contrast.

    All of it is one affine map of colours for each image.
    """
    weights = torch.tensor([0.3, 0.6, 0.1], device=images.device) + uniform(images, 0, 0.5, 3)
    weights = weights / weights.sum(1, keepdim=True)  # (B, 3)
    saturation = torch.where(uniform(images, 0, 1) < 0.5, 0.0, uniform(images, 0.4, 1.4))[:, None]
    gains = (
        torch.where(saturation == 0, 1.0, uniform(images, -0.2, 0.2, 3).exp()) * uniform(images, -0.35, 0.35, 1).exp()
    )
    mix = (1 - saturation[..., None]) * weights[:, None] + saturation[..., None] * torch.eye(3, device=images.device)
    contrast = uniform(images, -0.4, 0.4, 1).exp()
    bias = (1 - contrast) * gains * images.mean((1, 2, 3))[:, None]
    matrix = mix * (gains * contrast)[..., None]  # (B, 3, 3)
    return torch.baddbmm(bias[..., None], matrix, images.flatten(2)).view_as(images)


def lighting(images: Tensor) -> Tensor:
    """In place: a linear ramp of light across the face, then a curve x + c x (1 - x), brighter or darker mid-tones."""
    axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    ramp = uniform(images, -0.4, 0.4, 1, 1, 1) * axis + uniform(images, -0.3, 0.3, 1, 1, 1) * axis[:, None]
    curve = uniform(images, -0.7, 0.7, 1, 1, 1)
    images = images.mul_(1 + ramp).clamp_(0, 1)
    return images.mul_((1 + curve) - curve * images)


def sensor(images: Tensor) -> Tensor:
    """In place, by quarters: as it is; blurred; low resolution; compressed. Then noise on every other image."""
    quarters = images.split(math.ceil(len(images) / 4))
    for part, spoil in zip(quarters[1:], (blur, low_resolution, compress), strict=False):
        part.copy_(spoil(part))
    noisy = images[::2]
    bank = torch.randn(8, *images.shape[1:], device=images.device)  # shared: normal numbers cost more than convolutions
    choice = torch.randint(len(bank), (len(noisy),), device=images.device)
    noisy.addcmul_(bank[choice], uniform(noisy, 0, 0.06, 1, 1, 1))
    return images


def blur(images: Tensor) -> Tensor:
    """Binomial 5 x 5 blur, mixed with the sharp image by a random share (below 0: sharpened)."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1], device=images.device) / 16
    kernel = (kernel[:, None] * kernel).expand(3, 1, 5, 5)
    soft = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return torch.lerp(images, soft, uniform(images, -0.5, 1, 1, 1, 1))


def low_resolution(images: Tensor) -> Tensor:
    """Shrunk to 35 to 80 % of the side and back; one factor a call."""
    size = images.shape[-1]
    small = max(8, int(size * float(torch.empty(()).uniform_(0.35, 0.8))))
    shrunk = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
    return F.interpolate(shrunk, size=(size, size), mode="bilinear")


def compress(images: Tensor) -> Tensor:
    """What JPEG loses: 8 x 8 cosine coefficients, rounded to steps that grow with frequency; quality per image."""
    if images.shape[-1] % 8:
        return images
    dct, steps = cosine_basis(str(images.device))
    b, c, h, w = images.shape
    blocks = images.reshape(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    step = steps * uniform(images, 0.01, 0.08, 1, 1, 1, 1, 1)
    coefficients = ((dct @ blocks @ dct.T) / step).round() * step
    return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(b, c, h, w)


@lru_cache(maxsize=4)
def cosine_basis(device: str) -> tuple[Tensor, Tensor]:
    """(8, 8) orthonormal DCT-II, and steps that grow with frequency (about JPEG's luminance table / 16)."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) * math.sqrt(2 / 8)
    dct[0] /= math.sqrt(2)
    return dct, 1 + 0.6 * (k[:, None] + k)


def erase(images: Tensor) -> Tensor:
    """A rectangle (sides 10 to 45 %) of one random grey on a third of the images: glasses, hands, hair."""
    axis = torch.linspace(0, 1, images.shape[-1], device=images.device)
    x0, y0 = uniform(images, -0.1, 0.9, 1, 1, 1), uniform(images, -0.1, 0.9, 1, 1, 1)
    x1, y1 = x0 + uniform(images, 0.1, 0.45, 1, 1, 1), y0 + uniform(images, 0.1, 0.45, 1, 1, 1)
    rows = (axis > y0) & (axis < y1) & chance(images, 1 / 3)  # (B, 1, 1, H)
    inside = rows.transpose(2, 3) & (axis > x0) & (axis < x1)  # (B, 1, H, W)
    return torch.where(inside, uniform(images, -1, 1, 1, 1, 1), images)


# ------------------------------------------------------------------------------------- what IDiff-Face trains with


class PublishedAugment(nn.Module):
    """Mirror half of the images; then RandAugment on all of them, as IDiff-Face trains on generated sets.

    operations: of RandAugment on each image, 0 for none ("no augmentation" in the paper; 4 in "+RandAugment").
    magnitude: the largest, of ``BINS``. Every image draws its own operations, with replacement, and a magnitude from 1
    to the largest for each. kornia's RandAugment makes one draw for a whole call, adds where PIL multiplies
    (brightness) and knows neither identity nor grey, so its primitives are composed here.
    """

    def __init__(self, operations: int = 0, magnitude: int = 16) -> None:
        super().__init__()
        if operations < 0 or not 1 <= magnitude <= BINS:
            raise ValueError(f"expected operations >= 0 and magnitude in 1..{BINS}, got {operations} and {magnitude}")
        self.operations, self.magnitude = operations, magnitude

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = torch.where(chance(images, 0.5), images.flip(-1), images)
        if self.operations == 0:
            return images
        images = ((images + 1) / 2).clamp_(0, 1)
        for _ in range(self.operations):
            self.apply_one_each(images)
        return images * 2 - 1

    def apply_one_each(self, images: Tensor) -> None:
        """One operation on every image, [0, 1] -> [0, 1], in place."""
        n, device = len(images), images.device
        choice = torch.randint(len(OPERATIONS), (n,), device=device)
        level = torch.randint(1, self.magnitude + 1, (n,), device=device) / BINS
        level = torch.where(uniform(images, 0, 1) < 0.5, level, -level)
        for k, operation in enumerate(OPERATIONS.values()):
            rows = (choice == k).nonzero().flatten()
            if len(rows):
                images[rows] = operation(images[rows], level[rows])


def shear(images: Tensor, level: Tensor) -> Tensor:
    """Along x by 0.3 of y, measured from the top edge."""
    s = 0.3 * level
    return warp(images, torch.stack([1 + 0 * s, s, s, 0 * s, 1 + 0 * s, 0 * s], 1))


def translate(images: Tensor, level: Tensor) -> Tensor:
    """Along x by 150 / 331 of the width."""
    x = 2 * 150 / 331 * level
    return warp(images, torch.stack([1 + 0 * x, 0 * x, x, 0 * x, 1 + 0 * x, 0 * x], 1))


def rotate(images: Tensor, level: Tensor) -> Tensor:
    """About the middle by 30 degrees."""
    angle = math.pi / 6 * level
    cos, sin = angle.cos(), angle.sin()
    return warp(images, torch.stack([cos, -sin, 0 * cos, sin, cos, 0 * cos], 1))


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Nearest pixels and black outside, as torchvision's default. matrix: (B, 6), output to input coordinates."""
    grid = F.affine_grid(matrix.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "nearest", "zeros", align_corners=False)


def posterize(images: Tensor, level: Tensor) -> Tensor:
    """To 8 - 4 = 4 bits."""
    return enhance.posterize(images, 8 - (4 * level.abs()).round().int())


def auto_contrast(images: Tensor, level: Tensor) -> Tensor:
    """Every channel stretched to [0, 1], constant ones left alone; no magnitude."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, enhance.normalize_min_max(images), images)


BINS = 30
# What each of them does is said at magnitude BINS (level 1); a level's sign is a direction where there are two.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda images, level: images,
    "shear_x": shear,
    "translate_x": translate,
    "rotate": rotate,
    "brightness": lambda images, level: enhance.adjust_brightness_accumulative(images, 1 + 0.9 * level),
    "color": lambda images, level: enhance.adjust_saturation_with_gray_subtraction(images, 1 + 0.9 * level),
    "contrast": lambda images, level: enhance.adjust_contrast_with_mean_subtraction(images, 1 + 0.9 * level),
    "sharpness": lambda images, level: enhance.sharpness(images, 1 + 0.9 * level),
    "posterize": posterize,
    "solarize": lambda images, level: enhance.solarize(images, 1 - level.abs()),
    "auto_contrast": auto_contrast,
    "equalize": lambda images, level: enhance.equalize(images),
    "grey": lambda images, level: rgb_to_grayscale(images).expand_as(images),
}
