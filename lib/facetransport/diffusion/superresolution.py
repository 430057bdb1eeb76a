"""Super-resolution by diffusion: the large image given the small one (ID3PM's second stage; Saharia et al. 2021, SR3).

    x_0 = unshuffle(large - bicubic(small)) / scale        what the small image does not hold     residuals
    eps_theta(x_t, t, small)                               the small image is concatenated        SuperResolution
    small + noise in training                              drawn images are not quite renders     conditioning_noise

Pixels are folded by `FOLD` into channels, so that convolutions run on small maps; small images are contexts, flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet, to_uint8
from facetransport.diffusion.denoising import denoising_loss
from facetransport.diffusion.sampling import device_of, sample, sample_seeds
from facetransport.diffusion.schedule import Schedule, eps_from_v
from facetransport.training import Loss

FOLD = 4
BATCH = 32  # images drawn at a time
AUGMENT = 0.1  # largest deviation of the noise on small images in training


@dataclass(frozen=True)
class SuperResolutionConfig:
    """small, large: sides in pixels. scale: deviation of the residuals."""

    small: int
    large: int
    width: int
    scale: float
    schedule: Schedule = Schedule(kind="cosine")

    def __post_init__(self) -> None:
        if self.large <= self.small or self.large % (4 * FOLD):
            raise ValueError(f"large: expected a multiple of {4 * FOLD} above small = {self.small}, got {self.large}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a folded residual."""
        return 3 * FOLD**2, self.large // FOLD, self.large // FOLD


class SuperResolution(nn.Module):
    """eps = network(x_t, t, small): x_t (B, *config.shape), small (B, 3 small^2), flat images in [-1, 1]."""

    abar: Tensor
    micro_batch = BATCH

    def __init__(self, config: SuperResolutionConfig) -> None:
        from diffusers import UNet2DModel  # seconds to import: only where one is built

        super().__init__()
        self.config, self.schedule = config, config.schedule
        channels, side, _ = config.shape
        self.network = UNet2DModel(
            sample_size=side,
            in_channels=2 * channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=(config.width, 2 * config.width),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift",
        )
        self.register_buffer("abar", config.schedule.alphas_cumprod, persistent=False)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            raise ValueError("context: expected the small images, flat; a large image without one is not drawn here")
        small = context.view(-1, 3, self.config.small, self.config.small)
        v = self.network(torch.cat([x, folded(bicubic(small, self.config.large))], dim=1), t).sample
        return eps_from_v(x, v, self.abar[t])


def bicubic(images: Tensor, side: int) -> Tensor:
    """(B, 3, s, s) -> (B, 3, side, side)."""
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)


def folded(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3 FOLD^2, H / FOLD, W / FOLD)."""
    return F.pixel_unshuffle(images, FOLD)


def residuals(small: Tensor, large: Tensor) -> Tensor:
    """What bicubic enlargement misses, folded: small (B, 3, s, s), large (B, 3, S, S) of the same views."""
    return folded(large - bicubic(small, large.shape[-1]))


def conditioning_noise(contexts: Tensor, generator: torch.Generator, most: float = AUGMENT) -> Tensor:
    """Small images with noise of a random deviation up to ``most`` (conditioning augmentation, Ho et al. 2021)."""
    level = most * torch.rand(len(contexts), 1, generator=generator, device=contexts.device)
    return contexts + level * torch.randn(contexts.shape, generator=generator, device=contexts.device)


def superresolution_loss(x0: Tensor, small: Tensor, schedule: Schedule) -> Loss:
    """E || v - v_theta ||^2 of scaled residuals x0 (N, *shape), given small images (N, 3 s^2), flat."""
    return denoising_loss(x0, small, schedule, "v", conditioning_noise)


@torch.no_grad()
def enlarge(network: SuperResolution, faces: FaceSet, seed: int, steps: int = 10, temperature: float = 1.0) -> FaceSet:
    """A FaceSet of the same images at ``large`` pixels; image i depends on (seed, i) and itself only."""
    config, device = network.config, device_of(network)
    if faces.images.shape[1:3] != (config.small, config.small):
        raise ValueError(f"faces: expected images of {config.small} x {config.small}, got {faces.images.shape}")
    seeds, parts = sample_seeds(seed, range(len(faces)), 1), []
    for i in range(0, len(faces), BATCH):
        small = faces.tensor(slice(i, i + BATCH)).to(device)
        x = sample(
            network, config.shape, small.flatten(1), "ddim", steps, seeds[i : i + BATCH], temperature=temperature
        )
        missed = F.pixel_shuffle(x * config.scale, FOLD)
        parts.append(to_uint8((bicubic(small, config.large) + missed).clamp(-1, 1)))
    table = faces.table.drop(columns=list(LANDMARK_COLUMNS), errors="ignore")  # they are in the small image's pixels
    return FaceSet(np.concatenate(parts), table)
