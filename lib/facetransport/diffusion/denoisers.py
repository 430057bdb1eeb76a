"""Denoisers for the laptop: codes of about 512 numbers, contract of the U-Net: eps = denoiser(x_t, t, context).

Inside, a network computes v, from contexts of unit variance per component; the denoiser returns eps (`eps_from_v`), so
that samplers and guidance see noise predictions, as in the papers. All but the U-Net share: a sinusoid of t, CPD on the
projected context, and modulation of each block by both (adaptive layer norm, gates that start at zero: Peebles and Xie
2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.adm import ADM, ADMConfig
from facetransport.diffusion.ldm import LDM, LDMConfig
from facetransport.diffusion.schedule import Schedule, eps_from_v
from facetransport.diffusion.unet import UNet, UNetConfig, project_context, sinusoid


@dataclass(frozen=True)
class DenoiserConfig:
    """kind: "mlp" (residual MLP on the flattened code), "mixer" or "transformer" (tokens = positions of the code).

    shape: (C, h, w) of the code. width, depth: of the blocks. context_dim: of the embedding; projected_dim: after the
    projection, where CPD acts with probability context_dropout. attributes: numbers of a second condition, which
    follow the embedding in a context. null_projected: as for ``unet.project_context``.
    """

    kind: Literal["mlp", "mixer", "transformer"]
    shape: tuple[int, int, int]
    width: int
    depth: int
    context_dim: int
    projected_dim: int = 256
    context_dropout: float = 0.25
    schedule: Schedule = Schedule()
    attributes: int = 0
    null_projected: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _BODIES:
            raise ValueError(f"kind: expected one of {', '.join(_BODIES)}, got {self.kind!r}")
        if not 0 <= self.context_dropout < 1:
            raise ValueError(f"context_dropout: expected a probability in [0, 1), got {self.context_dropout}")


class Modulation(nn.Module):
    """condition (B, e) -> shift, scale, gate, each (B, width); zero at first, so that blocks start as identity."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, 3 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor, tokens: bool) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.linear(condition).chunk(3, dim=-1)
        shift, scale, gate = (p[:, None] for p in parts) if tokens else parts
        return shift, scale, gate


class MLPBlock(nn.Module):
    """h + gate * W2 SiLU(W1 ((1 + scale) LN(h) + shift)), over the last axis."""

    def __init__(self, width: int, condition: int, expansion: int = 1) -> None:
        super().__init__()
        self.modulation = Modulation(condition, width)
        self.lin1 = nn.Linear(width, expansion * width)
        self.lin2 = nn.Linear(expansion * width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition, h.ndim == 3)
        u = (1 + scale) * F.layer_norm(h, h.shape[-1:]) + shift
        return h + gate * self.lin2(F.silu(self.lin1(u)))


class TokenMixing(nn.Module):
    """MLP-mixer's mixing across tokens (Tolstikhin et al. 2021): h (B, N, width) -> same."""

    def __init__(self, tokens: int, width: int, condition: int) -> None:
        super().__init__()
        self.modulation = Modulation(condition, width)
        self.lin1 = nn.Linear(tokens, 4 * tokens)
        self.lin2 = nn.Linear(4 * tokens, tokens)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition, True)
        u = ((1 + scale) * F.layer_norm(h, h.shape[-1:]) + shift).transpose(1, 2)
        return h + gate * self.lin2(F.silu(self.lin1(u))).transpose(1, 2)


class TokenAttention(nn.Module):
    """Self-attention over tokens: h (B, N, width) -> same; heads of 64 where the width allows."""

    def __init__(self, tokens: int, width: int, condition: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.modulation = Modulation(condition, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition, True)
        u = (1 + scale) * F.layer_norm(h, h.shape[-1:]) + shift
        q, k, v = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in self.qkv(u).chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return h + gate * self.out(mixed)


class FlatBody(nn.Module):
    """The code as one vector through residual MLP blocks: x (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, config: DenoiserConfig, condition: int) -> None:
        super().__init__()
        size = config.shape[0] * config.shape[1] * config.shape[2]
        self.inp = nn.Linear(size, config.width)
        self.blocks = nn.ModuleList(MLPBlock(config.width, condition) for _ in range(config.depth))
        self.out = nn.Linear(config.width, size)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inp(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.layer_norm(h, h.shape[-1:])).view_as(x)


class TokenBody(nn.Module):
    """Positions as tokens; each layer mixes tokens (mixer or attention), then channels: x (B, C, h, w) -> same."""

    def __init__(self, config: DenoiserConfig, condition: int) -> None:
        super().__init__()
        channels, tokens = config.shape[0], config.shape[1] * config.shape[2]
        mixing = TokenMixing if config.kind == "mixer" else TokenAttention
        self.inp = nn.Linear(channels, config.width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, config.width))
        layers: list[nn.Module] = []
        for _ in range(config.depth):
            layers += [mixing(tokens, config.width, condition), MLPBlock(config.width, condition, expansion=4)]
        self.blocks = nn.ModuleList(layers)
        self.out = nn.Linear(config.width, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inp(x.flatten(2).transpose(1, 2)) + self.place  # (B, h w, width)
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.layer_norm(h, h.shape[-1:])).transpose(1, 2).reshape(x.shape)


_BODIES: dict[str, type[nn.Module]] = {"mlp": FlatBody, "mixer": TokenBody, "transformer": TokenBody}


class Denoiser(nn.Module):
    """eps = denoiser(x_t, t, context); x_t (B, C, h, w), t int (B,), context (B, d) unit norm or None (null).

    With attributes a context is (B, d + attributes); theirs are projected apart and added, zeros add nothing.
    """

    abar: Tensor
    micro_batch = 128  # in sampling: three times as fast as 16 on two cores

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = config.schedule
        condition = config.projected_dim
        self.time = nn.Sequential(nn.Linear(128, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.context_emb = nn.Linear(config.context_dim, config.projected_dim)
        self.attribute_emb = nn.Linear(config.attributes, condition, bias=False) if config.attributes else None
        self.cpd = nn.Dropout(config.context_dropout)
        self.merge = nn.Sequential(nn.Linear(2 * condition, condition), nn.SiLU())
        self.body = _BODIES[config.kind](config, condition)
        self.register_buffer("abar", config.schedule.alphas_cumprod, persistent=False)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        once = context is None and not self.training and _are_one(t)
        told = slice(1 if once else None)  # one row does for all
        c = self.condition(context, x[told])
        time = self.time(sinusoid(t[told], 128).to(x.dtype))
        v = self.body(x, self.merge(torch.cat([time, c], dim=1)))
        return eps_from_v(x, v, self.abar[t])

    def condition(self, context: Tensor | None, x: Tensor) -> Tensor:
        """What the blocks are told beside the time: (B, projected_dim)."""
        second, dim = self.attribute_emb, self.config.context_dim
        y = context if context is None or second is None else context[:, :dim]
        c = project_context(self.context_emb, self.cpd, _unit_variance(y), x, self.config.null_projected)
        if context is None or second is None or context.shape[1] == dim:
            return c
        return c + second(context[:, dim:])


def _are_one(t: Tensor) -> bool:
    """Whether these are all one time; on a GPU, where to ask is to wait, never."""
    return not t.is_cuda and not torch.compiler.is_compiling() and bool((t == t[0]).all())


class Velocity(nn.Module):
    """A U-Net that computes v from contexts of unit variance, as the laptop's other networks do; returns eps like them.

    Predicting eps, as published, weighs high noise by abar_t, nearly nothing, and only there is the context all that is
    known; ours, trained so for minutes, did not look at it (notebook 08).
    """

    abar: Tensor
    micro_batch = 256  # in sampling: three to four times as fast as 16 on two cores

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.schedule = network.schedule
        self.register_buffer("abar", network.schedule.alphas_cumprod, persistent=False)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return eps_from_v(x, self.network(x, t, _unit_variance(context)), self.abar[t])


def _unit_variance(context: Tensor | None) -> Tensor | None:
    """Unit vectors (B, d), each component scaled to a variance of 1."""
    return None if context is None else context * context.shape[-1] ** 0.5


def build(
    kind: str,
    shape: tuple[int, int, int],
    width: int,
    depth: int,
    context_dim: int,
    projected_dim: int,
    cpd: float,
    schedule: Schedule,
    prediction: str = "eps",
    attributes: int = 0,
    null_projected: bool = False,
) -> nn.Module:
    """A denoiser by name: the laptop's, or a paper's: IDiff-Face's U-Net ("unet_ca", "unet_adagn"), ID3PM's ("adm") and
    ID3's ("ldm"); depth = blocks per level.

    prediction: what a U-Net computes inside, "eps" as published or "v"; the others always compute v.
    """
    if kind == "adm":
        size, conditions = shape[1], (context_dim, attributes)
        return ADM(ADMConfig(shape[0], size, width, (1, 2, 3, 4), depth, 64, 0.1, *conditions), schedule)
    if kind == "ldm":
        return LDM(LDMConfig(shape[0], shape[1], width, (1, 2, 2, 2), depth, context_dim, attributes), schedule)
    second = {"attributes": attributes, "null_projected": null_projected}
    if not kind.startswith("unet_"):
        return Denoiser(DenoiserConfig(kind, shape, width, depth, context_dim, projected_dim, cpd, schedule, **second))  # type: ignore[arg-type]
    if any(second.values()):
        raise ValueError(f"kind: {kind} takes no second condition; expected mlp, mixer or transformer")
    levels = 4 if shape[1] >= 32 else 2
    multipliers, attention = (1, 2, 2, 2)[:levels], (False, True, True, True)[:levels]
    config = UNetConfig(shape[0], width, multipliers, attention, depth, 32, context_dim, projected_dim, cpd, kind[5:])
    network = UNet(config, schedule)
    return Velocity(network) if prediction == "v" else network
