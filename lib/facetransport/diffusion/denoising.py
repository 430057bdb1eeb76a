"""The loss that trains a denoiser of codes, whatever the paper."""

from __future__ import annotations

from collections.abc import Callable
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
    if contexts is not None and len(contexts) != len(latents):
        raise ValueError(f"contexts: expected one per latent ({len(latents)}), got {len(contexts)}")
    if prediction not in ("eps", "v"):
        raise ValueError(f"prediction: expected 'eps' or 'v', got {prediction!r}")

    def loss(denoiser: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        device = generator.device
        x0 = pick(latents, rows, device)
        t = uniform_timesteps(len(rows), schedule, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        a = abar_on(schedule, device)[t]
        y = None if contexts is None else drop(pick(contexts, rows, device), generator)
        error = (denoiser(add_noise(x0, noise, a), t, y).float() - noise).square().flatten(1).mean(1)
        return (error / a if prediction == "v" else error).mean()

    return loss


def dropped(contexts: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Contexts (B, d), each replaced by zeros with that probability."""
    if probability == 0:
        return contexts
    kept = torch.rand(len(contexts), generator=generator, device=contexts.device) >= probability
    return contexts * kept[:, None]
