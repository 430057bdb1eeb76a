"""The forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (DDPM, Ho et al. 2020, eq. 4), by diffusers."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # ours -> diffusers'
SOLVERS = ("ddpm", "ddim", "dpm++", "sde-dpm++")
STOCHASTIC = ("ddpm", "sde-dpm++")  # draw noise in every step, not only at the start


@dataclass(frozen=True)
class Schedule:
    """Noise levels t = 0 .. timesteps - 1. The default is the four papers': linear betas 1e-4 .. 0.02, T = 1000."""

    timesteps: int = 1000
    kind: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.timesteps < 2:
            raise ValueError(f"timesteps: expected at least 2, got {self.timesteps}")

    @property
    def alphas_cumprod(self) -> Tensor:
        """float32 (timesteps,): abar_t."""
        from diffusers import DDPMScheduler  # seconds to import: only where one is built

        return DDPMScheduler(**self._arguments()).alphas_cumprod

    def scheduler(self, solver: str, steps: int, learned_variance: bool = False) -> Any:
        """diffusers' scheduler of a solver (one of SOLVERS), timesteps set, for noise predictions.

        learned_variance: "ddpm" reads variances from the other half of the network's output.

        For "ddim" choose steps that divide ``timesteps``: diffusers strides by timesteps // steps even where its
        timesteps lie further apart, and then lands beside the path.
        """
        if solver not in SOLVERS:
            raise ValueError(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}")
        # at T steps diffusers' DPM-Solver++ meets a timestep twice: NaN
        most = self.timesteps - solver.endswith("dpm++")
        if not 1 <= steps <= most:
            raise ValueError(f"steps: expected 1..{most} ({solver}, T = {self.timesteps}), got {steps}")
        scheduler = self._build(solver, learned_variance)
        with warnings.catch_warnings():  # diffusers' DPM-Solver makes arrays of tensors as numpy 1 did
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            scheduler.set_timesteps(steps)
        return scheduler

    def _build(self, solver: str, learned_variance: bool) -> Any:
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

        if solver == "ddpm":  # sigma_t = sqrt(beta_t), as IDiff-Face samples
            kind = "learned_range" if learned_variance else "fixed_large"
            return DDPMScheduler(**self._arguments(), clip_sample=False, variance_type=kind)
        if solver == "ddim":
            spacing = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
            return DDIMScheduler(**self._arguments(), clip_sample=False, **spacing)
        kind = {"dpm++": "dpmsolver++", "sde-dpm++": "sde-dpmsolver++"}[solver]
        return DPMSolverMultistepScheduler(**self._arguments(), algorithm_type=kind, solver_order=2)

    def _arguments(self) -> dict[str, Any]:
        data = asdict(self)
        return {"num_train_timesteps": data.pop("timesteps"), "beta_schedule": KINDS[data.pop("kind")], **data}


@lru_cache(maxsize=16)
def abar_on(schedule: Schedule, device: torch.device) -> Tensor:
    """``schedule.alphas_cumprod`` where it is used, sent there once."""
    return schedule.alphas_cumprod.to(device)


def add_noise(x0: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """x0, noise (B, ...); abar (B,) -> x_t, as the module's first line says."""
    abar = abar.view(-1, *[1] * (x0.ndim - 1))
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise


def clean(x: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """x_t, eps (B, ...); abar (B,) -> x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar)."""
    abar = abar.view(-1, *[1] * (x.ndim - 1))
    return (x - (1 - abar).sqrt() * eps) / abar.sqrt()


def eps_from_v(x: Tensor, v: Tensor, abar: Tensor) -> Tensor:
    """x_t, v (B, ...); abar (B,) -> eps = sqrt(1 - abar) x_t + sqrt(abar) v (Salimans and Ho 2022, appendix D)."""
    abar = abar.view(-1, *[1] * (x.ndim - 1))
    return (1 - abar).sqrt() * x + abar.sqrt() * v


def uniform_timesteps(n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """int64 (n,), uniform on 0 .. timesteps - 1."""
    return torch.randint(schedule.timesteps, (n,), generator=generator, device=generator.device)
