"""The loss that trains a denoiser of codes, whatever the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from facetransport.diffusion.schedule import Schedule, abar_on, add_noise, uniform_timesteps
from facetransport.training import Loss, pick

Drop = Callable[[Tensor, torch.Generator], Tensor]
"""drop(conditions (B, d), generator) -> the same, some of them replaced by null ones."""


def denoising_loss(
    latents: Tensor | np.ndarray,
    contexts: Tensor | np.ndarray | None,
    schedule: Schedule,
    prediction: str = "eps",
    context_drop: float | Drop = 0.0,
) -> Loss:
    """E w(t) || eps - denoiser(x_t, t, context) ||^2, t uniform (IDiff-Face, Section 3; DDPM eq. 14 for w = 1).

    latents (N, C, h, w) and contexts (N, d), in memory, float16 or float32. prediction: "eps" for w = 1 (the papers),
    "v" for w = 1 / abar_t, which is the plain loss of v = sqrt(abar) eps - sqrt(1 - abar) x_0 for any denoiser.
    context_drop: probability of replacing a sample's context by the null context, the zero vector (0 in IDiff-Face), or
    what else is to be done to contexts.
    """
    drop = context_drop if callable(context_drop) else partial(dropped, probability=context_drop)
    if prediction not in ("eps", "v"):
        raise ValueError(f"prediction: expected 'eps' or 'v', got {prediction!r}")
    draw = noising(latents, contexts, schedule, drop)

    def loss(denoiser: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        drawn = draw(rows, generator)
        error = drawn.error(denoiser(drawn.x_t, drawn.t, drawn.condition))
        return (error / drawn.abar if prediction == "v" else error).mean()

    return loss


@dataclass(frozen=True)
class Noised:
    """A batch of codes on its way to noise. x_0, noise, x_t: (B, C, h, w); t, abar: (B,); condition: (B, d) or None."""

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    abar: Tensor
    condition: Tensor | None

    def error(self, eps: Tensor) -> Tensor:
        """(B,): mean squared error of a prediction of the noise."""
        return (eps.float() - self.noise).square().flatten(1).mean(1)


def noising(
    latents: Tensor | np.ndarray, contexts: Tensor | np.ndarray | None, schedule: Schedule, drop: Drop
) -> Callable[[Tensor, torch.Generator], Noised]:
    """draw(rows, generator) -> what a denoiser is trained on at a step: t, then noise, then what ``drop`` draws."""
    if contexts is not None and len(contexts) != len(latents):
        raise ValueError(f"contexts: expected one per latent ({len(latents)}), got {len(contexts)}")

    def draw(rows: Tensor, generator: torch.Generator) -> Noised:
        device = generator.device
        x_0 = pick(latents, rows, device)
        t = uniform_timesteps(len(rows), schedule, generator)
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        abar = abar_on(schedule, device)[t]
        condition = None if contexts is None else drop(pick(contexts, rows, device), generator)
        return Noised(x_0, noise, add_noise(x_0, noise, abar), t, abar, condition)

    return draw


def dropped(contexts: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Contexts (B, d), each replaced by zeros with that probability."""
    if probability == 0:
        return contexts
    kept = torch.rand(len(contexts), generator=generator, device=contexts.device) >= probability
    return contexts * kept[:, None]
