"""Latent diffusion's U-Net (Rombach et al. 2022), diffusers' implementation, told embedding and attributes as tokens.

tokens = (MLP_y(y), MLP_s(s)), each of three layers, ReLU      attended to at every resolution but the finest (ID3)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facetransport.diffusion.schedule import Schedule


@dataclass(frozen=True)
class LDMConfig:
    """Defaults: ID3's as far as it is known (papers.md 3.2, 3.3) on codes of 128 pixels. attributes: numbers of the
    second condition, which follow the embedding in a context; hidden, token: widths of the projection."""

    channels: int = 3
    size: int = 32
    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    context_dim: int = 512
    attributes: int = 8
    hidden: tuple[int, int] = (512, 256)
    token: int = 768


class LDM(nn.Module):
    """eps = denoiser(x_t, t, context); x_t (B, C, h, w), t int (B,), context (B, d or d + attributes) or None (null).

    The null of each condition is the zero vector before its projection.
    """

    micro_batch = 16

    def __init__(self, config: LDMConfig, schedule: Schedule) -> None:
        from diffusers import UNet2DConditionModel  # seconds to import: only where one is built

        super().__init__()
        self.config, self.schedule = config, schedule
        sizes = (config.context_dim, config.attributes) if config.attributes else (config.context_dim,)
        self.projections = nn.ModuleList(_projection(size, config) for size in sizes)
        deeper = len(config.multipliers) - 1
        self.unet = UNet2DConditionModel(
            sample_size=config.size,
            in_channels=config.channels,
            out_channels=config.channels,
            block_out_channels=tuple(config.width * m for m in config.multipliers),
            layers_per_block=config.blocks,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * deeper),
            up_block_types=(*["CrossAttnUpBlock2D"] * deeper, "UpBlock2D"),
            norm_num_groups=min(32, config.width),
            cross_attention_dim=config.token,
            attention_head_dim=tuple(max(1, config.width * m // 32) for m in config.multipliers),  # heads, in truth
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.unet(x, t, self.tokens(context, x)).sample

    def tokens(self, context: Tensor | None, x: Tensor) -> Tensor:
        """(B, 1 or 2, token)."""
        dim, more = self.config.context_dim, self.config.attributes
        told = x.new_zeros(len(x), dim + more)
        if context is not None:
            if context.shape[1] not in (dim, dim + more):
                raise ValueError(f"context: expected (B, {dim}) or (B, {dim + more}), got {tuple(context.shape)}")
            told[:, : context.shape[1]] = context
        y, s = told[:, :dim] * dim**0.5, told[:, dim:]  # components of unit variance
        return torch.stack([project(part) for project, part in zip(self.projections, (y, s), strict=False)], dim=1)


def _projection(size: int, config: LDMConfig) -> nn.Sequential:
    first, second = config.hidden
    layers = [nn.Linear(size, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, config.token)]
    return nn.Sequential(*layers)
