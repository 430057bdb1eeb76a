"""Worse images, by a stated amount: how a recogniser's embedding, and what is made of it, bear them.

Images are float32 (B, 3, H, W) in [-1, 1] before and after; severity 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

KINDS = ("blur", "noise", "occlusion", "low_light")


def degrade(images: Tensor, kind: str, severity: float, generator: torch.Generator) -> Tensor:
    """Images by a severity in [0, 1]; at 1: blur of 5 % of the side (standard deviation), noise of 0.5 of the range's
    half, half of the image's area hidden by a grey square, light down to a sixteenth with the sensor's noise left.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not 0 <= severity <= 1:
        raise ValueError(f"severity: expected 0 to 1, got {severity}")
    if severity == 0:
        return images
    return _CHANGES[kind](images, severity, generator).clamp(-1, 1)


def _blur(images: Tensor, severity: float, _: torch.Generator) -> Tensor:
    sigma = 0.05 * severity * images.shape[-1]
    return gaussian_blur2d(images, 2 * int(3 * sigma + 1) + 1, (sigma, sigma), "replicate")


def _noise(images: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    return images + 0.5 * severity * torch.randn(images.shape, generator=generator).to(images.device)


def _occlusion(images: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    height, width = images.shape[-2:]
    side = round((0.5 * severity * height * width) ** 0.5)
    top, left = (torch.randint(0, n - side + 1, (len(images),), generator=generator) for n in (height, width))
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows >= top[:, None]) & (rows < top[:, None] + side)
    across = (columns >= left[:, None]) & (columns < left[:, None] + side)
    hidden = (down[:, :, None] & across[:, None, :])[:, None].to(images.device)
    return torch.where(hidden, 0.0, images)


def _low_light(images: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    light = (images + 1) / 2 * 2 ** (-4 * severity)
    return 2 * (light + 0.02 * severity * torch.randn(light.shape, generator=generator).to(light.device)) - 1


_CHANGES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "blur": _blur,
    "noise": _noise,
    "occlusion": _occlusion,
    "low_light": _low_light,
}
