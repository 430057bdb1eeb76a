"""From noise to codes: one ``sample`` for every denoiser, on diffusers' schedulers, with seeds that belong to samples.

The same seed gives the same sample, bit for bit on CPU in float32, alone or in a batch of any size: each sample draws
its own noise, and the network always sees batches of one fixed size (``batching``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facetransport.diffusion.batching import in_fixed_batches
from facetransport.diffusion.guidance import (
    Denoiser,
    gpu_batch_of,
    micro_batch_of,
    require_evaluation_mode,
    schedule_of,
)
from facetransport.diffusion.schedule import STOCHASTIC, Schedule, clean


def sample(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    contexts: Tensor | None,
    solver: str = "dpm++",
    steps: int = 20,
    seeds: Sequence[int] = (0,),
    schedule: Schedule | None = None,
    micro_batch: int | None = None,
    quiet_steps: int = 1,
    temperature: float = 1.0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Codes float32 (B, C, h, w) for B = len(seeds), or vectors (B, d).

    shape: (C, h, w) or (d,). contexts: (B, d), one per seed (or (B, L, e), tokens), or None for the null context.
    solver: "ddpm" (ancestral, sigma_t = sqrt(beta_t)), "ddim" (eta 0), "dpm++" (DPM-Solver++ 2M) or "sde-dpm++" (the
    same for the reverse SDE: noise in every step, as DDPM). A network with ``learned_variance`` returns (B, 2 C, h, w);
    "ddpm" takes its variances, the others its noise alone. schedule: the one that the denoiser was trained with, by
    default the denoiser's own where it says (``denoiser.schedule``), else linear, T = 1000.
    micro_batch: samples per evaluation of the network, by default its own choice; results are bit-equal for one value.
    quiet_steps: how many last DDPM steps add no noise; 1 is DDPM, 2 is what IDiff-Face's published sampler does.
    temperature: deviation of the noise that sampling starts from, 1 as published; below 1 samples keep to what is
    likely, as with low temperatures in Glow (Kingma and Dhariwal 2018, section 6), and vary less.
    callback: called as callback(i, codes) after step i.
    Raises ValueError for an unknown solver, more steps than timesteps, contexts that do not match the seeds, a
    temperature outside (0, 1], a network in training mode (its dropout would act), or codes that end as NaN or inf.
    """
    _check(shape, contexts, seeds, quiet_steps, temperature)
    require_evaluation_mode(denoiser)
    learned = bool(getattr(denoiser, "learned_variance", False)) and solver == "ddpm"
    scheduler = (schedule or schedule_of(denoiser)).scheduler(solver, steps, learned)
    generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
    x = initial_noise(shape, generators) * scheduler.init_noise_sigma * temperature
    x = x.to(contexts.device if contexts is not None else device_of(denoiser))
    for i, t in enumerate(scheduler.timesteps):
        eps = evaluate(denoiser, x, t, contexts, micro_batch)
        eps = eps if learned else eps[:, : shape[0]]
        if solver == "ddpm":
            x = ddpm_step(scheduler, eps, t, x, None if i >= steps - quiet_steps else generators)
        else:
            noise = {"generator": generators} if solver in STOCHASTIC else {}
            x = scheduler.step(eps, t, x, **noise).prev_sample
        if callback:
            callback(i, x)
    if not torch.isfinite(x).all():
        raise ValueError("denoiser: it returned NaN or inf, or codes grew beyond all bounds; look at its weights")
    return x


def sample_seeds(seed: int, identities: Sequence[int], samples: int) -> list[int]:
    """One seed per image, identity by identity; each depends on (seed, identity, sample) only."""
    return [
        int(np.random.SeedSequence((seed, int(i), k)).generate_state(1, np.uint64)[0] >> 1)
        for i in identities
        for k in range(samples)
    ]


def _check(
    shape: Sequence[int], contexts: Tensor | None, seeds: Sequence[int], quiet_steps: int, temperature: float
) -> None:
    if len(shape) not in (1, 3):
        raise ValueError(f"shape: expected (C, h, w) of one code or (d,) of a vector, got {tuple(shape)}")
    if not len(seeds):
        raise ValueError("seeds: expected one per sample, got none")
    if contexts is not None and (contexts.ndim not in (2, 3) or len(contexts) != len(seeds)):
        raise ValueError(f"contexts: expected ({len(seeds)}, d), one per seed, got {tuple(contexts.shape)}")
    if contexts is not None and not torch.isfinite(contexts).all():
        raise ValueError("contexts: expected finite values, found NaN or inf; look at the recogniser's input")
    if quiet_steps < 1:
        raise ValueError(f"quiet_steps: expected at least 1 (the last DDPM step never adds noise), got {quiet_steps}")
    if not 0 < temperature <= 1:
        raise ValueError(
            f"temperature: expected above 0 and at most 1 (the published 1 is the prior), got {temperature}"
        )


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a network lives; CPU for plain functions."""
    parameter = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def initial_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """float32 (B, C, h, w): standard normal, each sample from its own generator."""
    return torch.stack([torch.randn(*shape, generator=g) for g in generators])


@torch.no_grad()
def evaluate(
    denoiser: Denoiser, x: Tensor, t: Tensor, contexts: Tensor | None, micro_batch: int | None = None
) -> Tensor:
    """The denoiser on (B, C, h, w) at one timestep, in batches of fixed sizes (`batching`)."""
    ts = torch.full((len(x),), int(t), dtype=torch.int64, device=x.device)
    size, on_gpu = micro_batch or micro_batch_of(denoiser), micro_batch or gpu_batch_of(denoiser)
    return in_fixed_batches(denoiser, x, ts, contexts, size=size, on_gpu=on_gpu)


def predicted_x0(
    denoiser: Denoiser, x: Tensor, t: int, contexts: Tensor | None, schedule: Schedule | None = None
) -> Tensor:
    """What the denoiser takes codes x_t (B, C, h, w) for: (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), same shape.

    schedule: as for ``sample``. Where abar_t is nearly 0 the estimate is of little use.
    """
    abar = (schedule or schedule_of(denoiser)).alphas_cumprod[t].to(x.device)
    return clean(x, evaluate(denoiser, x, torch.tensor(t), contexts)[:, : x.shape[1]], abar)


def ddpm_step(scheduler: Any, eps: Tensor, t: Tensor, x: Tensor, generators: list[torch.Generator] | None) -> Tensor:
    """An ancestral step (DDPM, Alg. 2); without generators its mean, (x - beta/sqrt(1 - abar) eps)/sqrt(alpha)."""
    if generators is not None:
        return scheduler.step(eps, t, x, generator=generators).prev_sample
    previous = int(scheduler.previous_timestep(t))
    abar = scheduler.alphas_cumprod[int(t)]
    eps = eps[:, : x.shape[1]]  # variances are for the noise
    alpha = abar / (scheduler.alphas_cumprod[previous] if previous >= 0 else 1.0)
    return (x - (1 - alpha) / (1 - abar).sqrt() * eps) / alpha.sqrt()
