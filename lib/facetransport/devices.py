"""Where computation happens: the device, its number formats, and the processes that share a run (accelerate's)."""

from __future__ import annotations

import atexit
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import nn

VARIABLE = "FACETRANSPORT_DEVICE"
COMPILE = "FACETRANSPORT_COMPILE"
Share = tuple[int, int]
"""(i, n): the share of job i, 0 to n - 1, of n that make one thing beside each other."""
WHOLE: Share = (0, 1)
PATIENCE = timedelta(days=7)  # of processes that wait while the main one renders
_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # processor features


def several() -> bool:
    """Whether this is one of several processes of a run (``accelerate launch``, ``torchrun``); imports nothing."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@cache
def processes() -> PartialState:
    """accelerate's state: ``process_index``, ``num_processes``, ``is_main_process``, ``wait_for_everyone()``."""
    from accelerate import PartialState

    if not several():
        return PartialState()
    import torch
    import torch.distributed.nn  # its functions' defaults hold the group, and gloo's threads, if it is there first

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)  # left alone, it knows no CPU processes
    atexit.register(state.destroy_process_group)  # while Python lives: gloo's threads abort a process that ends first
    return state


def share() -> Share:
    """What this process does of what all processes of a run make together."""
    return (processes().process_index, processes().num_processes) if several() else WHOLE


def cores() -> int:
    """Processor cores for this process: those a cluster's scheduler leaves it, shared with a run's other processes."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@cache
def device() -> torch.device:
    """FACETRANSPORT_DEVICE where it is set, else accelerate's choice: this process's GPU, or the processor.

    Apple's ``mps`` must be asked for by name: it computes no float64, and nothing of this was tried there.
    """
    if os.environ.get(VARIABLE):
        return _named(os.environ[VARIABLE])
    import torch

    found = processes().device
    return torch.device("cpu") if found.type == "mps" else found


def _named(name: str) -> torch.device:
    import torch

    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{VARIABLE}: expected a device of this machine such as cpu or cuda:0, got {name!r}"
        ) from error


def compiled(model: nn.Module) -> nn.Module:
    """The model as torch.compile has it where FACETRANSPORT_COMPILE names a backend of it (inductor; cudagraphs, which
    captures and replays), else the model itself. They share their weights; sums may differ in their last bits.

    What a backend cannot compile runs as it is, inside of `falling_back`.
    """
    import torch

    backend = os.environ.get(COMPILE)
    if not backend:
        return model
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        raise ValueError(f"{COMPILE}: expected one of {', '.join(torch.compiler.list_backends())}, got {backend!r}")
    return torch.compile(model, backend=backend)  # type: ignore[return-value]


def falling_back() -> AbstractContextManager[None]:
    """What a compiler cannot do runs uncompiled, with a warning in torch's log, instead of failing."""
    if not os.environ.get(COMPILE):
        return nullcontext()
    import torch._dynamo

    return torch._dynamo.config.patch(suppress_errors=True)


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """Autocast to bfloat16, if it is wanted and ``device`` computes in it; elsewhere everything stays float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """What is inside stays in float32, whatever is around it."""
    import torch

    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for it: processors without emulate it, at a fifteenth of float32's speed."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in _BFLOAT16)
