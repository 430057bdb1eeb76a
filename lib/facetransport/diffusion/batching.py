"""Evaluate a network so that each sample's result does not depend on its neighbours.

Matrix and convolution kernels sum in an order that depends on the batch size, so one sample alone and the same sample
in a batch of eight differ in the last bits. In batches of ONE fixed size, padded by repetition, they do not.

A GPU stands idle between batches of a processor's size: there, what fills large batches is evaluated in these, and only
the rest in small ones. On a GPU the last bits may therefore depend on how many samples there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MICRO_BATCH, GPU_BATCH = 16, 256


def in_fixed_batches(
    function: Callable[..., Tensor], *inputs: Tensor | None, size: int = MICRO_BATCH, on_gpu: int = GPU_BATCH
) -> Tensor:
    """function(*inputs) (B, ...), evaluated ``size`` samples at a time; inputs are (B, ...) or None (passed on).

    on_gpu: samples at a time of tensors on a GPU, as long as there are so many; not used where ``size`` is larger.
    """
    first = next(x for x in inputs if x is not None)
    if len(first) == 0:
        raise ValueError("expected at least one sample, got none")
    large = on_gpu if on_gpu > size and _on_gpu(first) else size
    full = len(first) // large * large
    spans = [(start, large) for start in range(0, full, large)]
    spans += [(start, size) for start in range(full, len(first), size)]
    return torch.cat([function(*_slice(inputs, *span))[: len(first) - span[0]] for span in spans])


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _slice(inputs: Sequence[Tensor | None], start: int, size: int) -> list[Tensor | None]:
    return [None if x is None else _padded(x[start : start + size], size) for x in inputs]


def _padded(x: Tensor, size: int) -> Tensor:
    missing = size - len(x)
    return torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x.contiguous()
