"""IDiff-Face's U-Net (Boutros et al., ICCV 2023, arXiv 2308.04995), written from its description.

Parameter names and shapes equal the official network's, so that its published weights load (`official`).

    context y (B, d) --Linear--> (B, c) --CPD--> every residual block (AdaGN) or every attention block (CA)
    t (B,) --sinusoid--> Linear SiLU Linear --> every residual block
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.schedule import Schedule

GROUPS = 32  # of every GroupNorm
TOKENS = 32  # that the projected context is spread over (cross-attention variant)


@dataclass(frozen=True)
class UNetConfig:
    """Knobs of the network; the defaults are the published CA variant, 216,341,187 parameters.

    multipliers: CUMULATIVE factors of the width from level to level: 96, 192, 384, 768.
    attention: whether a level's blocks attend, one per level; the middle always does.
    conditioning: "ca" (cross-attention), "adagn" (context joins the time embedding) or "none" (stage one of two-stage).
    context_dropout: CPD, the dropout probability of each component of the PROJECTED context while training.
    """

    in_channels: int = 3
    initial_channels: int = 96
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    attention: tuple[bool, ...] = (False, True, True, True)
    blocks: int = 2
    head_dim: int = 32
    context_dim: int = 512
    projected_dim: int = 256
    context_dropout: float = 0.25
    conditioning: str = "ca"

    def __post_init__(self) -> None:
        if self.conditioning not in ("ca", "adagn", "none"):
            raise ValueError(f"conditioning: expected 'ca', 'adagn' or 'none', got {self.conditioning!r}")
        if len(self.multipliers) != len(self.attention):
            raise ValueError(
                f"attention: expected one flag for each of {len(self.multipliers)} levels, got {len(self.attention)}"
            )
        if not 0 <= self.context_dropout < 1:
            raise ValueError(f"context_dropout: expected a probability in [0, 1), got {self.context_dropout}")
        for width in self.widths:
            if width % GROUPS or width % self.head_dim:
                raise ValueError(f"initial_channels: width {width} must be a multiple of {GROUPS} and {self.head_dim}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.initial_channels * math.prod(self.multipliers[: i + 1]) for i in range(len(self.multipliers)))


def sinusoid(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """t (B,) -> float32 (B, dim): cosines, then sines, of geometrically spaced frequencies."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _zero(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, 4 dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.lin1 = nn.Linear(dim, 4 * dim)
        self.lin2 = nn.Linear(4 * dim, 4 * dim)

    def forward(self, t: Tensor) -> Tensor:
        return self.lin2(F.silu(self.lin1(sinusoid(t, self.dim).to(self.lin1.weight.dtype))))


class AdaptiveGroupNorm(nn.Module):
    """(1 + scale) GN(h) + shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (1 + scale[:, :, None, None]) * self.norm(h) + shift[:, :, None, None]


class ResidualBlock(nn.Module):
    """x (B, in, h, w), time (B, e), context (B, c) -> (B, out, h, w). The context enters only with AdaGN."""

    def __init__(self, channels: int, out: int, time_dim: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out))
        self.context_emb = nn.Sequential(nn.SiLU(), nn.Linear(context_dim, out)) if context_dim else None
        self.scale_emb = nn.Linear(out, out)
        self.shift_emb = nn.Linear(out, out)
        self.norm2 = AdaptiveGroupNorm(out)
        self.conv2 = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        e = self.time_emb(time)
        if self.context_emb is not None:
            e = e + self.context_emb(context)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h, self.scale_emb(e), self.shift_emb(e))
        return self.conv2(F.silu(h)) + self.shortcut(x)


class Attention(nn.Module):
    """Queries from x (B, C, N), keys and values from tokens (B, D, M) -> (B, C, N); channels first."""

    def __init__(self, channels: int, token_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.to_q = nn.Conv1d(channels, channels, 1)
        self.to_k = nn.Conv1d(token_dim, channels, 1)
        self.to_v = nn.Conv1d(token_dim, channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (self._split(p) for p in (self.to_q(x), self.to_k(tokens), self.to_v(tokens)))  # (B, heads, N|M, d)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scale d^-1/2 = d^-1/4 on q and on k
        return self.proj_out(mixed.transpose(2, 3).reshape(x.shape))

    def _split(self, y: Tensor) -> Tensor:
        return y.unflatten(1, (self.heads, -1)).transpose(2, 3)


class SelfAttentionBlock(nn.Module):
    """AdaGN variant: x + attention(GN(x)); the context is not used."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.attention = Attention(channels, channels, config.head_dim)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.norm(x).flatten(2)
        return x + self.attention(h, h).view_as(x)


class CrossAttentionBlock(nn.Module):
    """CA variant: self-attention, cross-attention to context tokens, feed-forward; ONE GroupNorm serves all three."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        dim = config.projected_dim
        self.x_proj_in = nn.Conv2d(channels, channels, 1)
        self.x_proj_out = _zero(nn.Conv2d(channels, channels, 1))
        self.self_attention = Attention(channels, channels, config.head_dim)
        self.c_proj_in = nn.Linear(dim, dim * TOKENS)
        self.cross_attention = Attention(channels, dim, config.head_dim)
        self.x_norm = nn.GroupNorm(GROUPS, channels)
        self.c_norm = nn.GroupNorm(GROUPS, dim)
        self.ff = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.c_norm(self.c_proj_in(context).unflatten(1, (-1, TOKENS)))  # (B, c, TOKENS)
        h = self.x_proj_in(x).flatten(2)  # (B, C, h w)
        normed = self.x_norm(h)
        h = h + self.self_attention(normed, normed)
        h = h + self.cross_attention(self.x_norm(h), tokens)
        h = h + self.ff(self.x_norm(h).transpose(1, 2)).transpose(1, 2)
        return x + self.x_proj_out(h.view_as(x))


class Block(nn.Module):
    """A residual block and, where the level attends, attention."""

    def __init__(self, channels: int, out: int, attends: bool, config: UNetConfig) -> None:
        super().__init__()
        context_dim = config.projected_dim if config.conditioning == "adagn" else None
        self.res = ResidualBlock(channels, out, 4 * config.initial_channels, context_dim)
        self.attn = _attention_block(out, config) if attends else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        h = self.res(x, time, context)
        return h if self.attn is None else self.attn(h, context)


def _attention_block(channels: int, config: UNetConfig) -> nn.Module:
    return (CrossAttentionBlock if config.conditioning == "ca" else SelfAttentionBlock)(channels, config)


class Resample(nn.Module):
    """Halve (conv 3x3, stride 2) or double (transposed conv 4x4, stride 2) the sides."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.conv: nn.Module = (
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
            if up
            else nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        return self.conv(x)


class Middle(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        context_dim = config.projected_dim if config.conditioning == "adagn" else None
        self.res1 = ResidualBlock(channels, channels, 4 * config.initial_channels, context_dim)
        self.attn = _attention_block(channels, config)
        self.res2 = ResidualBlock(channels, channels, 4 * config.initial_channels, context_dim)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        return self.res2(self.attn(self.res1(x, time, context), context), time, context)


class UNet(nn.Module):
    """eps = UNet(x_t, t, context): the denoiser of IDiff-Face, Section 3 (and its Figure of the architecture).

    x_t (B, C, h, w) float, sides multiples of 2^(levels-1); t (B,) int; context (B, d) unit norm, or None for the null
    context, which is the zero vector AFTER the projection. A row of zeros is null too. Returns (B, C, h, w).
    """

    def __init__(self, config: UNetConfig, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.config = config
        self.schedule = schedule or Schedule()
        width = config.initial_channels
        self.image_proj = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.time_emb = TimeEmbedding(width)
        conditional = config.conditioning != "none"
        self.context_emb = nn.Linear(config.context_dim, config.projected_dim) if conditional else None
        self.cpd = nn.Dropout(config.context_dropout)
        self.down, skips = _descend(config)
        self.middle = Middle(config.widths[-1], config)
        self.up = _ascend(config, skips)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.final = _zero(nn.Conv2d(width, config.in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        c, time = self.project(context, x), self.time_emb(t)
        h = self.image_proj(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, time, c)
            skips.append(h)
        h = self.middle(h, time, c)
        for layer in self.up:
            h = layer(h if isinstance(layer, Resample) else torch.cat([h, skips.pop()], dim=1), time, c)
        return self.final(F.silu(self.norm(h)))

    def project(self, context: Tensor | None, x: Tensor) -> Tensor | None:
        """context (B, d) -> CPD(W context + b) (B, c); None -> zeros, the null context."""
        if self.context_emb is None:
            return None
        return project_context(self.context_emb, self.cpd, context, x)


def project_context(
    linear: nn.Linear, cpd: nn.Dropout, context: Tensor | None, x: Tensor, null_projected: bool = False
) -> Tensor:
    """Contextual partial dropout (IDiff-Face, Section 3): CPD(W y + b), (B, d) -> (B, c); off in evaluation mode.

    Survivors are scaled by 1 / (1 - p). Null contexts are None or a row of zeros. They become zero vectors; with
    null_projected (ID3PM) they are projected like others, and become b.
    """
    if context is None:
        context = x.new_zeros(len(x), linear.in_features)
    if context.shape != (len(x), linear.in_features):
        raise ValueError(
            f"context: expected ({len(x)}, {linear.in_features}), got {tuple(context.shape)}; "
            "embed with the recogniser that the network was trained on"
        )
    projected = cpd(linear(context))
    return projected if null_projected else projected * context.any(dim=1, keepdim=True)


def _descend(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Layers of the downward path, and the channels of the stem's and every layer's output."""
    layers, skips = nn.ModuleList(), [config.initial_channels]
    for level, width in enumerate(config.widths):
        for _ in range(config.blocks):
            layers.append(Block(skips[-1], width, config.attention[level], config))
            skips.append(width)
        if level < len(config.widths) - 1:
            layers.append(Resample(width, up=False))
            skips.append(width)
    return layers, skips


def _ascend(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """One block more per level than on the way down; the last one leaves the width of the level below."""
    layers, channels = nn.ModuleList(), config.widths[-1]
    for level in reversed(range(len(config.widths))):
        for i in range(config.blocks + 1):
            last = i == config.blocks
            out = config.widths[level] // config.multipliers[level] if last else config.widths[level]
            layers.append(Block(channels + skips.pop(), out, config.attention[level], config))
            channels = out
        if level > 0:
            layers.append(Resample(channels, up=True))
    return layers
