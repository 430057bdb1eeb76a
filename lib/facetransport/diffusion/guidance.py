"""Guidance wraps a denoiser and returns a denoiser, so that methods compose and there is one ``sample``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from facetransport.devices import mixed_precision
from facetransport.diffusion.batching import GPU_BATCH, MICRO_BATCH
from facetransport.diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""eps (B, C, h, w) = denoiser(x_t (B, C, h, w), t int64 (B,), context (B, d) or None)."""


def schedule_of(denoiser: Denoiser) -> Schedule:
    """The schedule a denoiser was trained with (its ``schedule``), else the papers' linear one."""
    return getattr(denoiser, "schedule", None) or Schedule()


def micro_batch_of(denoiser: Denoiser) -> int:
    """Samples per evaluation: the network's own choice (its ``micro_batch``), else ``MICRO_BATCH``."""
    return getattr(denoiser, "micro_batch", MICRO_BATCH)


def gpu_batch_of(denoiser: Denoiser) -> int:
    """The same on a GPU, where there are so many: its ``gpu_batch``, else ``GPU_BATCH``."""
    return getattr(denoiser, "gpu_batch", GPU_BATCH)


def require_evaluation_mode(denoiser: Denoiser) -> None:
    """Refuse a network in training mode: its dropout (CPD) would act, silently."""
    if isinstance(denoiser, nn.Module) and denoiser.training:
        raise ValueError("denoiser: in training mode, where context dropout acts; call denoiser.eval() before sampling")


class Guided:
    """A denoiser that calls another one: keeps its schedule and batches. Subclasses say how in ``__call__``."""

    def __init__(self, denoiser: Denoiser) -> None:
        require_evaluation_mode(denoiser)
        self.denoiser, self.schedule = denoiser, schedule_of(denoiser)
        self.micro_batch, self.gpu_batch = micro_batch_of(denoiser), gpu_batch_of(denoiser)
        self.learned_variance = bool(getattr(denoiser, "learned_variance", False))


class InBfloat16(Guided):
    """A network's products in bfloat16, where the device has it; what is made of its outputs stays in float32. Its
    images lie as tensor cores take them (channels last); the network itself stays as it is."""

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        with mixed_precision(x.device, wanted=True):
            return self.denoiser(x, t, context).float()


def with_variance(noise: Tensor, output: Tensor) -> Tensor:
    """Predicted noise (B, C, ...) with what a network of learned variances says of them in its other C channels."""
    return torch.cat([noise, output[:, noise.shape[1] :]], dim=1) if output.shape[1] > noise.shape[1] else noise


class ClassifierFree(Guided):
    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__(denoiser)
        self.scale = scale

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        unconditional = self.denoiser(x, t, None)
        if context is None or self.scale == 0:
            return unconditional
        conditional, noise = self.denoiser(x, t, context), slice(x.shape[1])
        guided = unconditional[:, noise] + self.scale * (conditional[:, noise] - unconditional[:, noise])
        return with_variance(guided, conditional)


def classifier_free(denoiser: Denoiser, scale: float) -> Denoiser:
    """eps = (1 - s) eps(x, t, null) + s eps(x, t, context) (Ho and Salimans 2022; IDiff-Face's unused CFG sampler).

    scale s = 1 is the conditional model itself (one call), 0 the unconditional one; above 1 exaggerates the condition.
    The null context is None. Needs a network trained with whole contexts dropped (``context_drop``); without a context
    the guided denoiser is the unconditional one. Only noise is guided: learned variances are the condition's.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale: expected a finite number of at least 0, got {scale}")
    return denoiser if scale == 1 else ClassifierFree(denoiser, scale)


class SeparateScales(Guided):
    def __init__(self, denoiser: Denoiser, dim: int, scale: float, attribute_scale: float) -> None:
        super().__init__(denoiser)
        self.dim, self.scale, self.attribute_scale = dim, scale, attribute_scale

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            return self.denoiser(x, t, None)
        told, whose = self.denoiser(x, t, context), self._without_attributes(context)
        if self.scale == self.attribute_scale == 1:
            return told
        given, identity, nothing = (
            e[:, : x.shape[1]] for e in (told, self.denoiser(x, t, whose), self.denoiser(x, t, None))
        )
        noise = nothing + self.scale * (identity - nothing) + self.attribute_scale * (given - identity)
        return with_variance(noise, told)

    def _without_attributes(self, context: Tensor) -> Tensor:
        return torch.cat([context[:, : self.dim], torch.zeros_like(context[:, self.dim :])], dim=1)


def separate_scales(denoiser: Denoiser, dim: int, scale: float, attribute_scale: float) -> Denoiser:
    """eps(null) + s (eps(y) - eps(null)) + s_a (eps(y, a) - eps(y)): two conditions, each with its scale.

    A context is an embedding y, its first ``dim`` numbers, and attributes a, of which zeros are none (ID3PM; the
    order of the conditions as in InstructPix2Pix, Brooks et al. 2023, eq. 3). Scales of 1: the conditional model.
    """
    for name, value in (("scale", scale), ("attribute_scale", attribute_scale)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    return SeparateScales(denoiser, dim, scale, attribute_scale)
