"""Tensors of foreign checkpoints (.ckpt, .pt, .pth, .safetensors), read without running or believing them.

A pickle's instructions can be many thousand times smaller than what they build: dictionaries that hold each other,
tensors that repeat one number, names with absurd counts. What a file can honestly hold follows from its size.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"  # a dictionary key in LDM's own files
DEEPEST, MOST = 16, 200_000  # levels of dictionaries, and entries in all of them; published files have 5 and 2,000
REPEATED = 4  # times a file's size that its tensors may take, because names may share numbers


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; names of nested dictionaries are joined by dots. All are on the CPU and dense.

    Raises FileNotFoundError, ValueError where the file is damaged, names code to run (it is not run), has no tensors,
    or says that it holds more than fits into it.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of published weights")
    try:
        held = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
        tensors = dict(_flat(held, count()))
        _require_honest(tensors, path.stat().st_size)
    except Exception as error:  # damaged bytes raise whatever they run into
        raise ValueError(f"{path}: {_complaint(error)}") from error
    if not tensors:
        raise ValueError(f"{path}: expected a state dict (names with tensors), got a {type(held).__name__} without any")
    return tensors


class _Inert:
    """Stands for Lightning's callback class, which old checkpoints name but no weight needs."""


class _Refused(ValueError):
    """What is wrong with a file that could be read."""


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > REPEATED * path.stat().st_size:
            raise _Refused(f"its parts would unpack to {claimed:,} bytes; torch.save does not compress")
    with torch.serialization.safe_globals([(_Inert, CALLBACK)]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _complaint(error: Exception) -> str:
    if isinstance(error, _Refused):
        return f"refused: {error}; save the state dict alone, torch.save(model.state_dict(), ...), or a .safetensors"
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return (
            f"refused: the file asks to load {named[1]}, and a file that may load more than tensors may run anything; "
            "have who wrote it save the state dict alone, torch.save(model.state_dict(), ...), or a .safetensors"
        )
    first = str(error).strip().split("\n")[0]
    return f"cannot be read ({type(error).__name__}: {first}); damaged, incomplete or of another format: copy it anew"


def _flat(held: Any, counted: Iterator[int], prefix: str = "", level: int = 0) -> Iterator[tuple[str, Tensor]]:
    if level > DEEPEST:
        raise _Refused(f"dictionaries within dictionaries, more than {DEEPEST} levels of them")
    for key, value in held.items() if isinstance(held, Mapping) else ():
        if next(counted) >= MOST:
            raise _Refused(f"more than {MOST:,} entries in its dictionaries")
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _flat(value, counted, f"{prefix}{key}.", level + 1)


def _require_honest(tensors: Mapping[str, Tensor], size: int) -> None:
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _Refused(f"{name} is not a dense tensor with numbers ({tensor.layout}, {tensor.device.type})")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise _Refused(f"{name} has the shape {tuple(tensor.shape)} but fewer numbers (an expanded tensor)")
    claimed = sum(t.numel() * t.element_size() for t in tensors.values())
    if claimed > REPEATED * size:
        raise _Refused(f"its tensors would take {claimed:,} bytes, the file has {size:,}")


def require_numbers(state: Mapping[str, Tensor], source: str) -> None:
    """What becomes a network: finite real numbers; whole numbers only where a scalar counts batches or updates."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() and tensor.ndim:
            raise ValueError(f"{source}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected float numbers")
        if not tensor.isfinite().all():
            raise ValueError(
                f"{source}: {name} holds NaN or infinite numbers; expected a trained network, copy it anew"
            )


def require_fit(expected: Mapping[str, Sequence[int]], state: Mapping[str, Tensor], source: str, what: str) -> None:
    """Names and shapes of a state dict against those of the network that it seems to be. source: the file."""
    problems = _problems(expected, state)
    if problems:
        raise ValueError(
            f"{source}: looks like {what}, but {len(problems)} tensors do not fit: {'; '.join(problems[:4])}; "
            "expected the published names and shapes: take the whole file, as published"
        )


def _problems(expected: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting: missing, unexpected, wrong shape; one phrase per tensor."""
    missing = [f"missing {n}" for n in expected if n not in state]
    unexpected = [f"unexpected {n}" for n in state if n not in expected]
    shared = [n for n in expected if n in state and tuple(state[n].shape) != tuple(expected[n])]
    return missing + unexpected + [f"{n} is {tuple(state[n].shape)}, expected {tuple(expected[n])}" for n in shared]
