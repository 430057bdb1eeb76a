"""Guidance wraps a denoiser and returns a denoiser, so that methods compose and there is one ``sample``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from facetransport.diffusion.batching import MICRO_BATCH
from facetransport.diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""eps (B, C, h, w) = denoiser(x_t (B, C, h, w), t int64 (B,), context (B, d) or None)."""


def schedule_of(denoiser: Denoiser) -> Schedule:
    """The schedule a denoiser was trained with (its ``schedule``), else the papers' linear one."""
    return getattr(denoiser, "schedule", None) or Schedule()


def micro_batch_of(denoiser: Denoiser) -> int:
    """Samples per evaluation: the network's own choice (its ``micro_batch``), else ``MICRO_BATCH``."""
    return getattr(denoiser, "micro_batch", MICRO_BATCH)


def require_evaluation_mode(denoiser: Denoiser) -> None:
    """Refuse a network in training mode: its dropout (CPD) would act, silently."""
    if isinstance(denoiser, nn.Module) and denoiser.training:
        raise ValueError("denoiser: in training mode, where context dropout acts; call denoiser.eval() before sampling")


class Guided:
    """A denoiser that calls another one: keeps its schedule and batches. Subclasses say how in ``__call__``."""

    def __init__(self, denoiser: Denoiser) -> None:
        require_evaluation_mode(denoiser)
        self.denoiser, self.schedule = denoiser, schedule_of(denoiser)
        self.micro_batch = micro_batch_of(denoiser)


class ClassifierFree(Guided):
    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__(denoiser)
        self.scale = scale

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        unconditional = self.denoiser(x, t, None)
        if context is None or self.scale == 0:
            return unconditional
        return unconditional + self.scale * (self.denoiser(x, t, context) - unconditional)


def classifier_free(denoiser: Denoiser, scale: float) -> Denoiser:
    """eps = (1 - s) eps(x, t, null) + s eps(x, t, context) (Ho and Salimans 2022; IDiff-Face's unused CFG sampler).

    scale s = 1 is the conditional model itself (one call), 0 the unconditional one; above 1 exaggerates the condition.
    The null context is None. Needs a network trained with whole contexts dropped (``context_drop``); without a context
    the guided denoiser is the unconditional one.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale: expected a finite number of at least 0, got {scale}")
    return denoiser if scale == 1 else ClassifierFree(denoiser, scale)
