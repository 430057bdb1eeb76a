"""Weights: small enough to ship, in files that describe themselves, drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from facetransport.files import replacing

_SCALE = ".int8_scale"  # beside a tensor that `compact` rounded


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


def rounding(smallest: int = 2**14, under: str = "") -> dict[str, Any]:
    """What a model file says of how it may be rounded for shipping: metadata ``small``, for `lighten`."""
    return {"smallest": smallest, "under": under}


def lighten(path: Path) -> None:
    """Round a model file as its ``small`` says: float16, and int8 the matrices whose names begin with ``under``.

    Files without one stay as they are.
    """
    metadata = read_metadata(path)
    how = metadata.pop("small", None)
    if how is not None:
        tensors = load_file(path)
        rounded = {n: v for n, v in tensors.items() if n.startswith(how["under"])}
        save_model(path, half(tensors) | compact(rounded, how["smallest"]), **metadata)


def expanded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``compact`` rounded, in float32 again; the rest as it is."""
    scales = {n.removesuffix(_SCALE): v for n, v in tensors.items() if n.endswith(_SCALE)}
    plain = {n: v for n, v in tensors.items() if not n.endswith(_SCALE)}
    return {n: v.float() * _rows(scales[n], v) if n in scales else v for n, v in plain.items()}


def _rows(scale: Tensor, like: Tensor) -> Tensor:
    """(n,) -> (n, 1, ...), to multiply (n, ...)."""
    return scale.view(-1, *[1] * (like.ndim - 1))


def require_finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor (N, ...) itself; ValueError that names the first row with NaN or inf. Waits for the device."""
    if not tensor.isfinite().all():
        row = int((~tensor.flatten(1).isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{name}: row {row} holds NaN or inf; look at what it was made from")
    return tensor


# ------------------------------------------------------------------------------------------------------ model files


def save_model(path: Path, tensors: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write one self-describing safetensors file, atomically; ``metadata`` is JSON data, one entry per keyword."""
    plain = {n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata={k: json.dumps(v, sort_keys=True) for k, v in metadata.items()})


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file written by ``save_model`` says of itself."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file; train it or name another")
    with safe_open(path, framework="pt") as file:
        return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by ``save_model``; what ``compact`` rounded comes back as float32."""
    metadata = read_metadata(path)
    return expanded(load_file(path)), metadata


# --------------------------------------------------------------------------------------------------- initial weights


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator, seeded while a network is drawn from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
