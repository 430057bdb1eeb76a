"""Number formats: bfloat16 in training where it pays, and weights small enough to ship."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

_SCALE = ".int8_scale"  # beside a tensor that `compact` rounded
_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # processor features


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """Autocast to bfloat16, if it is wanted and ``device`` computes in it; elsewhere everything stays float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for it: processors without emulate it, at a fifteenth of float32's speed."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in _BFLOAT16)


def half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 tensors as float16, for shipping at half the size (networks load them back into float32)."""
    return {n: v.half() if v.dtype == torch.float32 else v for n, v in state.items()}


def compact(state: Mapping[str, Tensor], smallest: int = 2**14) -> dict[str, Tensor]:
    """As ``half``, but matrices and kernels of ``smallest`` numbers or more as int8 with a scale for each output.

    An element is off by at most 1/254 of the largest of its row. ``expanded`` undoes it.
    """
    rounded = {n: v for n, v in state.items() if v.ndim > 1 and v.numel() >= smallest and v.is_floating_point()}
    scales = {n: v.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127 for n, v in rounded.items()}
    whole = {n: (v.float() / _rows(scales[n], v)).round().to(torch.int8) for n, v in rounded.items()}
    rest = half({n: v for n, v in state.items() if n not in rounded})
    return rest | whole | {n + _SCALE: scale for n, scale in scales.items()}


def expanded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``compact`` rounded, in float32 again; the rest as it is."""
    scales = {n.removesuffix(_SCALE): v for n, v in tensors.items() if n.endswith(_SCALE)}
    plain = {n: v for n, v in tensors.items() if not n.endswith(_SCALE)}
    return {n: v.float() * _rows(scales[n], v) if n in scales else v for n, v in plain.items()}


def _rows(scale: Tensor, like: Tensor) -> Tensor:
    """(n,) -> (n, 1, ...), to multiply (n, ...)."""
    return scale.view(-1, *[1] * (like.ndim - 1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator, seeded while a network is drawn from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
