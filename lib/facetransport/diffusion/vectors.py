"""Denoisers and other networks for vectors that are described in words: eps = denoiser(z_t, t, tokens).

A feature z is a vector (d,), not a picture; a description is a set of tokens (L, e), one row for each statement, where
rows of zeros are padding and the order of rows means nothing (DiFace, 2312.01367: D in the recogniser's feature space,
prompted by tau(c)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.batching import in_fixed_batches
from facetransport.diffusion.denoisers import MLPBlock
from facetransport.diffusion.schedule import Schedule, eps_from_v
from facetransport.diffusion.unet import sinusoid

FOLD = 8  # channels that the 1-D U-Net folds a vector into: an eighth of the positions, and of the time
TYPICAL = 10  # statements of a description: keeps their sum near unit scale


@dataclass(frozen=True)
class VectorConfig:
    """kind: "mlp" (residual blocks modulated by time and description) or "unet" (1-D U-Net over the vector, folded into
    channels, with cross-attention to the tokens; width: channels of its first level, depth: residual blocks of each).

    dim: d of a feature. token_dim: e of a token.
    """

    kind: Literal["mlp", "unet"]
    dim: int
    token_dim: int
    width: int
    depth: int
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        if self.kind not in _BODIES:
            raise ValueError(f"kind: expected one of {', '.join(_BODIES)}, got {self.kind!r}")
        if self.kind == "unet" and (self.dim % (4 * FOLD) or self.width % 32):
            raise ValueError(f"unet: expected dim and width multiples of 32, got {self.dim}, {self.width}")


class TokenSum(nn.Module):
    """tokens (B, L, e) -> (B, width): a network of each token, summed (Deep Sets, Zaheer et al. 2017).

    A sum, not a mean or attention: independent statements add their evidence. None is the description without tokens.
    """

    def __init__(self, token_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.each, self.total = nn.Sequential(nn.Linear(token_dim, width), nn.SiLU()), nn.Linear(width, width)

    def forward(self, tokens: Tensor | None, like: Tensor) -> Tensor:
        return self.total(like.new_zeros(len(like), self.width) if tokens is None else self._summed(tokens))

    def expected(self, statements: Tensor, weights: Tensor) -> Tensor:
        """(B, width), of descriptions of which it is only known how probable each of S statements is, weights (B, S):
        the mean of ``forward`` over what may have been said; statements: the tokens of each alone, (S, L, e)."""
        return self.total(weights @ self._summed(statements))

    def _summed(self, tokens: Tensor) -> Tensor:
        present = tokens.abs().amax(2, keepdim=True) > 0
        return (self.each(tokens) * present).sum(1) / TYPICAL**0.5


class Described(nn.Module):
    """Vectors from descriptions: tokens (B, L, e), or their sum (B, width) -> (B, out), by residual blocks."""

    def __init__(self, token_dim: int, out: int, width: int, depth: int) -> None:
        super().__init__()
        self.words = TokenSum(token_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.out = nn.Linear(width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        h = tokens if tokens.ndim == 2 else self.words(tokens, tokens)
        for block in self.blocks:
            h = block(h)
        return self.out(F.layer_norm(h, h.shape[-1:]))


class MultiLayer(nn.Module):
    """x (B, dim) -> (B, out) by two hidden layers of ``width`` (LayerNorm, SiLU, dropout)."""

    def __init__(self, dim: int, width: int, out: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [(dim, width), (width, width)]
        self.hidden = nn.Sequential(
            *(m for i, o in layers for m in (nn.Linear(i, o), nn.LayerNorm(o), nn.SiLU(), nn.Dropout(dropout)))
        )
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))


class ResidualBlock(nn.Module):
    """h + W2 SiLU(W1 LN(h)); W2 starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.lin1, self.lin2 = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.lin2.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.lin2(F.silu(self.lin1(self.norm(h))))


class MLPBody(nn.Module):
    """z (B, d) or (B, K, d), t int (B,), tokens (B, L, e) or their sum (B, width) -> as z."""

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        condition = config.width
        self.time = nn.Sequential(nn.Linear(128, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.words = TokenSum(config.token_dim, condition)
        self.merge = nn.Sequential(nn.Linear(2 * condition, condition), nn.SiLU())
        self.inp, self.out = nn.Linear(config.dim, config.width), nn.Linear(config.width, config.dim)
        self.blocks = nn.ModuleList(MLPBlock(config.width, condition) for _ in range(config.depth))
        nn.init.zeros_(self.out.weight)

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        time = self.time(sinusoid(t, 128).to(z.dtype))
        words = tokens if tokens is not None and tokens.ndim == 2 else self.words(tokens, z)
        condition, h = self.merge(torch.cat([time, words], 1)), self.inp(z)
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.layer_norm(h, h.shape[-1:]))


class UNetBody(nn.Module):
    """diffusers' conditional U-Net on a picture one pixel high, of d / 8 positions; tokens are attended to.

    The vector is reshaped to (B, C, L), one reading of DiFace's "UNet structure".
    """

    def __init__(self, config: VectorConfig) -> None:
        from diffusers import UNet2DConditionModel  # seconds to import: only where one is built

        super().__init__()
        self.token_dim, widths = config.token_dim, (config.width, 2 * config.width, 4 * config.width)
        self.unet = UNet2DConditionModel(
            sample_size=(1, config.dim // FOLD),
            in_channels=FOLD,
            out_channels=FOLD,
            block_out_channels=widths,
            layers_per_block=config.depth,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=config.token_dim,
            attention_head_dim=tuple(width // 32 for width in widths),  # heads, in spite of its name
        )

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        if z.ndim == 3:
            each = (part if part is None else part.repeat_interleave(z.shape[1], 0) for part in (t, tokens))
            return self(z.flatten(0, 1), *each).view_as(z)
        tokens = z.new_zeros(len(z), 1, self.token_dim) if tokens is None else tokens
        present = tokens.abs().amax(2) > 0
        folded = z.unflatten(1, (FOLD, 1, -1))
        return self.unet(folded, t, tokens, encoder_attention_mask=present).sample.flatten(1)


_BODIES: dict[str, type[nn.Module]] = {"mlp": MLPBody, "unet": UNetBody}


class VectorDenoiser(nn.Module):
    """eps = denoiser(z_t (B, d), t int (B,), tokens (B, L, e) or None); computes v inside, as `denoisers` do.

    z_t may be (B, K, d), K vectors to a time and a description: the MLP takes in what is said once for all of them.
    """

    abar: Tensor
    micro_batch = 256

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        self.body = _BODIES[config.kind](config)
        self.register_buffer("abar", config.schedule.alphas_cumprod, persistent=False)

    def prompt(self, tokens: Tensor) -> Tensor:
        """tokens (B, L, e) -> what ``forward`` takes in their place and need not compute again at every step: their sum
        (B, width), which it may be already; for the U-Net the tokens themselves."""
        return tokens if self.words is None or tokens.ndim == 2 else self.words(tokens, tokens)

    @property
    def words(self) -> TokenSum | None:
        """What takes in the tokens; None for the U-Net, which attends to them."""
        return self.body.words if isinstance(self.body, MLPBody) else None

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor | None = None) -> Tensor:
        v = self.body(z, t, tokens)
        return eps_from_v(z, v, self.abar[t])


@torch.inference_mode()
def prompts_of(denoiser: VectorDenoiser, tokens: Tensor) -> Tensor:
    """What a denoiser takes in the place of tokens (B, L, e), row by row (B, ...), see ``VectorDenoiser.prompt``.

    In batches of one size, as ``sample`` evaluates the network: a description's prompt is the same in all.
    """
    return in_fixed_batches(denoiser.prompt, tokens.to(denoiser.abar.device), size=denoiser.micro_batch)
