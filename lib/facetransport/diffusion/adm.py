"""ADM's U-Net (Dhariwal and Nichol 2021), diffusers' implementation, told an embedding as ID3PM tells it.

emb = time MLP(sinusoid t) + W y + b [+ W_a a]      modulates every residual block by scale and shift
out = (eps, v): v mixes two logarithms of variances, learnt by `hybrid_loss` (Nichol and Dhariwal 2021, eq. 15, 16)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.denoising import Drop, noising
from facetransport.diffusion.schedule import Schedule, abar_on
from facetransport.training import Loss


@dataclass(frozen=True)
class ADMConfig:
    """Defaults: ID3PM's at 64 pixels (papers.md 4.3). attributes: numbers of a second condition after the embedding."""

    channels: int = 3
    size: int = 64
    width: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    head_dim: int = 64
    dropout: float = 0.1
    context_dim: int = 512
    attributes: int = 0


class ADM(nn.Module):
    """eps and v = ADM(x_t, t, context): (B, 2 C, h, w), of which guidance and solvers take the first C.

    x_t (B, C, h, w); context (B, d + attributes), an embedding of unit norm, or None. The null condition is the zero
    vector BEFORE the projection (papers.md 4.11). Attention at all levels but the finest.
    """

    learned_variance = True

    def __init__(self, config: ADMConfig, schedule: Schedule | None = None) -> None:
        from diffusers import UNet2DModel  # seconds to import: only where one is built

        super().__init__()
        self.config, self.schedule = config, schedule or Schedule(kind="cosine")
        below, emb = len(config.multipliers) - 1, 4 * config.width
        self.network = UNet2DModel(
            sample_size=config.size,
            in_channels=config.channels,
            out_channels=2 * config.channels,
            layers_per_block=config.blocks,
            block_out_channels=tuple(config.width * m for m in config.multipliers),
            down_block_types=("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * below),
            up_block_types=(*["AttnUpBlock2D"] * below, "ResnetUpsampleBlock2D"),
            attention_head_dim=config.head_dim,
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
            dropout=config.dropout,
            class_embed_type="identity",
        )
        self.context_emb = nn.Linear(config.context_dim, emb)
        self.attribute_emb = nn.Linear(config.attributes, emb, bias=False) if config.attributes else None

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.network(x, t, class_labels=self.condition(context, x)).sample

    def condition(self, context: Tensor | None, x: Tensor) -> Tensor:
        """W y + b + W_a a, (B, 4 width)."""
        dim = self.config.context_dim
        if context is None:
            context = x.new_zeros(len(x), dim)
        if context.shape[1] not in (dim, dim + self.config.attributes):
            raise ValueError(
                f"context: expected (B, {dim}) or (B, {dim + self.config.attributes}), got {context.shape}"
            )
        c = self.context_emb(context[:, :dim] * dim**0.5)
        if self.attribute_emb is None or context.shape[1] == dim:
            return c
        return c + self.attribute_emb(context[:, dim:])


def hybrid_loss(images: Tensor, conditions: Tensor, schedule: Schedule, drop: Drop) -> Loss:
    """L_simple + L_vlb T / 1000, named "simple" and "vlb" (Nichol and Dhariwal 2021, eq. 16, as ADM scales).

    images: (N, C, h, w) in [-1, 1]; conditions: (N, d). The second half of the network's output gets L_vlb alone: the
    mean in it is held fixed.
    """

    draw = noising(images, conditions, schedule, drop)

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        drawn = draw(rows, generator)
        eps, v = network(drawn.x_t, drawn.t, drawn.condition).float().chunk(2, dim=1)
        simple = drawn.error(eps).mean()
        bound = variational_bound(drawn.x_0, drawn.x_t, drawn.t, eps.detach(), v, schedule)
        vlb = bound.mean() * schedule.timesteps / 1000
        return {"loss": simple + vlb, "simple": simple.detach(), "vlb": vlb.detach()}

    return loss


def variational_bound(x0: Tensor, x: Tensor, t: Tensor, eps: Tensor, v: Tensor, schedule: Schedule) -> Tensor:
    """L_t in bits per dimension, (B,): KL(q(x_{t-1} | x_t, x_0) || p) at t > 0, -log p(x_0 | x_1) at t = 0.

    log variance of p = w log beta_t + (1 - w) log betatilde_t with w = (v + 1) / 2 (eq. 15). At t = 0, x_0 counts as
    256 grey levels (DDPM, eq. 13).
    """
    abar = abar_on(schedule, x.device).double()
    before = F.pad(abar[:-1], (1, 0), value=1.0)
    beta = 1 - abar / before
    posterior = beta * (1 - before) / (1 - abar)
    posterior[0] = posterior[1]  # it is 0 there
    b, low, a, p = (_column(values[t], x) for values in (beta, posterior, abar, before))
    w = (v + 1) / 2
    log_variance = w * b.log() + (1 - w) * low.log()
    guess = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
    true_mean, mean = (_posterior_mean(z, x, a, p, b) for z in (x0, guess))
    kl = 0.5 * (log_variance - low.log() + (low.log() - log_variance).exp() - 1)
    kl = kl + 0.5 * (true_mean - mean).square() * (-log_variance).exp()
    likelihood = _discretised(x0, mean, 0.5 * log_variance)
    nats = torch.where((t == 0).view(-1, *[1] * (x.ndim - 1)), -likelihood, kl)
    return nats.flatten(1).mean(1) / torch.log(torch.tensor(2.0, device=x.device))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _posterior_mean(x0: Tensor, x: Tensor, abar: Tensor, before: Tensor, beta: Tensor) -> Tensor:
    """DDPM, eq. 7."""
    return (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - abar)


def _discretised(x0: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """log of a Gaussian's mass on the grey level of x_0; the outermost levels take the tails."""
    scale = (-log_deviation).exp()
    up, down = (torch.special.ndtr(scale * (x0 - mean + side / 255)) for side in (1, -1))
    up, down = torch.where(x0 > 0.999, 1.0, up), torch.where(x0 < -0.999, 0.0, down)
    return (up - down).clamp(min=1e-12).log()
