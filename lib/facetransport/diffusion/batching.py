"""Evaluate a network so that each sample's result does not depend on its neighbours.

Matrix and convolution kernels sum in an order that depends on the batch size, so one sample alone and the same sample
in a batch of eight differ in the last bits. In batches of ONE fixed size, padded by repetition, they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MICRO_BATCH = 16


def in_fixed_batches(function: Callable[..., Tensor], *inputs: Tensor | None, size: int = MICRO_BATCH) -> Tensor:
    """function(*inputs) (B, ...), evaluated ``size`` samples at a time; inputs are (B, ...) or None (passed on)."""
    n = len(next(x for x in inputs if x is not None))
    if n == 0:
        raise ValueError("expected at least one sample, got none")
    parts = [function(*_slice(inputs, start, size))[: n - start] for start in range(0, n, size)]
    return torch.cat(parts)


def _slice(inputs: Sequence[Tensor | None], start: int, size: int) -> list[Tensor | None]:
    return [None if x is None else _padded(x[start : start + size], size) for x in inputs]


def _padded(x: Tensor, size: int) -> Tensor:
    missing = size - len(x)
    return torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x.contiguous()
