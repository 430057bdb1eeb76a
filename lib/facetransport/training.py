"""One training loop for every network of this package: a generator of states.

    for state in train(model, loss, n=len(data), config=config, checkpoint=folder / "checkpoint.safetensors"):
        print(state.step, float(state.loss))          # the caller logs, plots, stops

Everything random at step k is a pure function of (seed, k, part): the rows of the batch, the noise, the dropout masks.
A checkpoint therefore holds tensors, the step and the configuration, and a resumed run continues bit for bit on CPU.

A step's batch is divided into ``config.parts`` micro-batches, which the processes of a run share: part j is computed by
process j modulo their number. So memory and processes may change between runs of one configuration, and results do not.
Nothing in a step waits for the device: losses are tensors on it until somebody reads them.
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from facetransport import devices
from facetransport.tensors import read_metadata, read_model, save_model

Loss = Callable[[nn.Module, Tensor, torch.Generator, int], "Tensor | Mapping[str, Tensor]"]
"""loss(model, rows int64 (B,), generator, step) -> scalar, or scalars by name of which "loss" is minimised.

rows index the caller's data; the batch is computed, and random numbers are drawn, on ``generator.device``.
"""

_UNKNOWN = {"loss": math.nan, "gradient_norm": math.nan}
log = logging.getLogger(__name__)
CHECK = 100  # steps between looks at whether numbers are finite, where a look costs a wait


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. batch: of all parts and processes. ema: decay of the averaged weights, 0 for none.

    decay: how lr falls after ``warmup`` steps: "constant", "cosine" (to 0 at ``steps``), "restarts" (IDiff-Face's
    warm restarts: cosine cycles of 10k, 20k, 40k, 80k steps) or "onecycle" (from lr / 25 up over a tenth of the steps,
    then a cosine to 0: Smith, 2018). clip: of the gradient's norm. bf16: mixed precision, on devices that have it.
    parts: micro-batches of a step; more take less memory, and batch norm sees a part at a time. With several processes
    1 becomes one for each, so results then depend on their number; a multiple of it makes them the same for all.
    """

    steps: int
    batch: int
    lr: float
    seed: int
    ema: float = 0.999
    warmup: int = 0
    decay: Literal["constant", "cosine", "restarts", "onecycle"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    bf16: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9  # of sgd
    parts: int = 1

    def __post_init__(self) -> None:
        if self.decay not in ("constant", "cosine", "restarts", "onecycle"):
            raise ValueError(f"decay: expected 'constant', 'cosine', 'restarts' or 'onecycle', got {self.decay!r}")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer: expected 'adamw' or 'sgd', got {self.optimizer!r}")
        if min(self.steps, self.batch) < 1 or self.lr <= 0:
            raise ValueError(f"expected steps, batch and lr above 0, got {self.steps}, {self.batch}, {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a decay in [0, 1), got {self.ema}")
        if not 1 <= self.parts <= self.batch:
            raise ValueError(f"parts: expected 1 to {self.batch}, the batch, got {self.parts}")


@dataclass
class State:
    """What training yields after each step. ``model`` and ``ema`` are live: copy what must not change.

    loss, gradient_norm, named: scalars on the device, of all parts; float() waits for it; the checkpoint's where a run
    was killed after its last step. ema: the averaged network, in evaluation mode; without an average (decay 0) the
    network itself, in training mode until the last step, then in evaluation mode.
    """

    step: int  # steps done, 1 .. config.steps
    loss: Tensor
    lr: float
    gradient_norm: Tensor
    model: nn.Module
    ema: nn.Module
    named: dict[str, Tensor] = field(default_factory=dict)  # what a loss says beside "loss"


class EMA:
    """Averaged weights: a <- d a + (1 - d) w, with d = min(decay, 1 - (1 + k)^-0.75) at update k = 0, 1, ...

    This is the average IDiff-Face intended; its published code multiplies by 0 and so keeps the weights as they are,
    which is what decay 0 does here: no copy. Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False) if decay else model

    def decay_at(self, k: int) -> float:
        return min(self.decay, 1 - (1 + k) ** -0.75)

    @torch.no_grad()
    def update(self, model: nn.Module, k: int) -> None:
        if self.model is model:
            return
        averaged: list[Tensor] = list(self.model.parameters())
        new = [w.detach() for w in model.parameters()]
        torch._foreach_lerp_(averaged, new, 1 - self.decay_at(k))
        for kept, fresh in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(fresh)


# --------------------------------------------------------------------------------------------- what a step is made of


def lr_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of step 0, 1, ..."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return config.lr * _decay_at(step, config)


def _decay_at(step: int, config: TrainingConfig) -> float:
    if config.decay == "constant":
        return 1.0
    if config.decay == "onecycle":
        rise = max(1, round(0.1 * config.steps))
        rising = 1 / 25 + 24 / 25 * step / rise
        return rising if step < rise else _cosine((step - rise) / max(1, config.steps - rise))
    if config.decay == "cosine":
        return _cosine((step - config.warmup) / max(1, config.steps - config.warmup))
    cycle = 10_000
    while step >= cycle:
        step, cycle = step - cycle, 2 * cycle
    return _cosine(step / cycle)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


def rows_at(step: int, n: int, batch: int, seed: int) -> np.ndarray:
    """int64 (batch,): the rows of step 0, 1, ... when every epoch is a fresh permutation of n rows."""
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), n)
    return np.concatenate([_permutation(n, seed, int(e))[places[epochs == e]] for e in np.unique(epochs)])


@contextmanager
def _part_randomness(seed: int, step: int, part: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator for the part of a step, and the ambient one (dropout, kornia) seeded while it lasts."""
    ambient, explicit = (int(s) for s in np.random.SeedSequence((seed, step, part)).generate_state(2, np.uint64) >> 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(ambient)
        yield torch.Generator(device).manual_seed(explicit)


def pick(data: Tensor | np.ndarray, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of an array, on the device where they are needed; float16 becomes float32.

    Data that lives there is indexed there; other data (memory maps of images) is sent, without waiting on GPUs.
    """
    if isinstance(data, np.ndarray):
        picked = torch.from_numpy(np.require(data[rows.numpy()], requirements=["C", "W"]))
        picked = picked.pin_memory() if device.type == "cuda" else picked
    else:
        picked = data[rows.to(data.device, non_blocking=True)]
    picked = picked.to(device, non_blocking=True)
    return picked.float() if picked.dtype == torch.float16 else picked


@overload
def resident(data: Tensor, device: torch.device, share: float = ...) -> Tensor: ...
@overload
def resident(data: np.ndarray, device: torch.device, share: float = ...) -> Tensor | np.ndarray: ...
def resident(data: Tensor | np.ndarray, device: torch.device, share: float = 0.25) -> Tensor | np.ndarray:
    """The data on a GPU, where it takes at most ``share`` of what is free there; else as it is, for `pick` to send."""
    if device.type != "cuda" or data.nbytes > share * torch.cuda.mem_get_info(device)[0]:
        return data
    return torch.as_tensor(np.asarray(data) if isinstance(data, np.ndarray) else data).to(device)


# ------------------------------------------------------------------------------------------------------------ the loop


def train(
    model: nn.Module,
    loss: Loss,
    n: int,
    config: TrainingConfig,
    checkpoint: Path | None = None,
    every: int = 1000,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> Iterator[State]:
    """Train ``model`` on n rows of data; yield a State after every step.

    checkpoint: written every ``every`` steps, once the caller is done with that step, and at the end; when it exists,
    training continues from it (bit for bit on CPU in the same build of torch). identity: plain JSON data that says what
    else must be the same for that, such as a digest of the data. device: by default `devices.device`.
    A SIGTERM, by which a cluster's scheduler says that the time is up, has the present step written to the checkpoint
    and then ends the program (SystemExit).
    Raises FloatingPointError naming the step when loss or gradient stop being finite (the network's weights stay those
    of the step before), ValueError when the checkpoint belongs to another configuration, network or data, or when the
    parts of a step cannot be shared by the processes of this run.
    """
    if n < 1:
        raise ValueError("n: expected at least one row of training data, got none")
    device, (mine, parts) = device or devices.device(), _shared(config)
    model = model.to(device).train()
    optimizer, ema, guard = _optimizer(model, config), EMA(model, config.ema), Guard(device)
    about = {"training": asdict(config), "identity": dict(identity or {})}
    start = load_checkpoint(checkpoint, model, ema, optimizer, about) if checkpoint and checkpoint.is_file() else 0
    if checkpoint and start == config.steps:  # killed after the last step: there is only the model to hand over
        last = {name: torch.tensor(value) for name, value in read_metadata(checkpoint).get("last", _UNKNOWN).items()}
        value, norm = last.pop("loss"), last.pop("gradient_norm")
        yield State(start, value, lr_at(start - 1, config), norm, model, ema.model.eval(), last)
    runs = devices.compiled(model)
    with _heeding(signal.SIGTERM, checkpoint is not None) as asked:
        for step in range(start, config.steps):
            model.train()
            with devices.falling_back():
                named, norm = _one_step(runs, optimizer, loss, n, config, step, mine, parts, guard)
            ema.update(model, step)
            done, last = step + 1, {**named, "gradient_norm": norm}
            averaged = ema.model.eval() if done == config.steps else ema.model
            yield State(done, named.pop("loss"), lr_at(step, config), norm, model, averaged, named)
            ending = _agreed(asked, done, device)
            if done % CHECK == 0 or done % every == 0 or done == config.steps or ending:
                guard.look()
            if checkpoint and (done % every == 0 or done == config.steps or ending) and _is_main():
                save_checkpoint(checkpoint, model, ema, optimizer, about, done, last)
            if ending:
                log.warning("asked to end (SIGTERM) after step %d, which is kept: run the same command again", done)
                raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _heeding(number: signal.Signals, wanted: bool) -> Iterator[list[int]]:
    """A list that the signal adds to, in place of ending the program; only the main thread may say so."""
    asked: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(number, lambda *_: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(number, before)


def _agreed(asked: list[int], done: int, device: torch.device) -> bool:
    """Whether to end after a step: all processes after the same one, so they ask each other, every ``CHECK`` steps."""
    if not devices.several():
        return bool(asked)
    if done % CHECK:
        return False
    number = torch.tensor(float(len(asked)), device=device)
    sum_over_processes([number])
    return bool(number)


def _shared(config: TrainingConfig) -> tuple[range, int]:
    """Which parts of each step this process computes, and of how many: at least one for each process."""
    if not devices.several():
        return range(config.parts), config.parts
    rank, world = devices.processes().process_index, devices.processes().num_processes
    parts = world if config.parts == 1 else config.parts
    if parts % world:
        raise ValueError(f"parts: expected a multiple of {world}, the processes of this run, got {config.parts}")
    return range(rank, parts, world), parts


def _is_main() -> bool:
    return not devices.several() or devices.processes().is_main_process


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":  # fused, what `Guard.hold` needs, is a tenth slower on processors
        return torch.optim.SGD(trainable, momentum=config.momentum, fused=trainable[0].device.type != "cpu", **shared)
    return torch.optim.AdamW(trainable, betas=config.betas, fused=True, **shared)


def _one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    n: int,
    config: TrainingConfig,
    step: int,
    mine: Sequence[int],
    parts: int,
    guard: Guard,
) -> tuple[dict[str, Tensor], Tensor]:
    """One update; returns the loss and what else it names, means over all parts, and the norm of the gradient before
    clipping."""
    rows = torch.from_numpy(rows_at(step, n, config.batch, config.seed))
    for group in optimizer.param_groups:
        group["lr"] = lr_at(step, config)
    named, statistics = dict[str, Tensor](), _Statistics(model, parts)
    for part in mine:
        with _part_randomness(config.seed, step, part, guard.device) as generator:
            with devices.mixed_precision(guard.device, config.bf16):
                found = loss(model, rows[part::parts], generator, step)
            scalars = {"loss": found} if isinstance(found, Tensor) else dict(found)
            guard.see(scalars["loss"], "loss", step)
            if part == mine[0]:
                optimizer.zero_grad()  # not before the forward pass: the backward pass takes up the memory at once
            (scalars["loss"] / parts).backward()
        statistics.add()
        for name, value in scalars.items():
            named[name] = named.get(name, 0) + value.detach() / parts
    statistics.settle()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    sum_over_processes([*gradients, *named.values()])
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip if config.clip is not None else math.inf)
    guard.see(norm, "gradient", step)
    guard.hold(optimizer)
    optimizer.step()
    return named, norm


class Guard:
    """Notices numbers that are not finite; on GPUs without waiting, by skipping every update from then on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bad = torch.zeros((), device=device)  # 1 from the first such number on ...
        self.first = torch.zeros((), device=device)  # ... at this step, 1, 2, ...
        self.what = "loss or gradient"

    def see(self, value: Tensor, what: str, step: int) -> None:
        """Look at a scalar."""
        if self.device.type == "cpu":
            if not math.isfinite(found := float(value.detach())):
                raise _not_finite(f"{what} is {found}", step + 1)
            return
        bad = (~torch.isfinite(value.detach())).float()
        self.first = torch.where(self.bad > 0, self.first, bad * (step + 1))
        self.bad = torch.maximum(self.bad, bad)

    def hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Fused optimizers leave weights and moments as they are where this flag is up."""
        if self.device.type != "cpu":
            optimizer.found_inf = self.bad  # type: ignore[attr-defined]

    def look(self) -> None:
        """Wait for the device, and raise FloatingPointError if anything was not finite."""
        if float(self.bad):
            raise _not_finite(f"{self.what} is not finite", int(self.first))


def _not_finite(what: str, step: int) -> FloatingPointError:
    return FloatingPointError(
        f"{what} at step {step}; the weights are those of step {step - 1}. Lower lr (or a margin), clip harder, or "
        "look for NaN in the data"
    )


class _Statistics:
    """Running statistics of batch norm: each part starts from the step's, and their mean is kept, of all processes."""

    def __init__(self, model: nn.Module, parts: int) -> None:
        self.parts = parts
        self.buffers = [b for b in model.buffers() if b.is_floating_point()] if parts > 1 else []
        self.before = [b.clone() for b in self.buffers]
        self.mean = [torch.zeros_like(b) for b in self.buffers]

    def add(self) -> None:
        for buffer, before, mean in zip(self.buffers, self.before, self.mean, strict=True):
            mean.add_(buffer, alpha=1 / self.parts)
            buffer.copy_(before)

    def settle(self) -> None:
        sum_over_processes(self.mean)
        for buffer, mean in zip(self.buffers, self.mean, strict=True):
            buffer.copy_(mean)


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes of this run, in one exchange."""
    if not devices.several() or not tensors:
        return
    devices.processes()  # they know of each other from here on
    flat = torch.cat([t.detach().flatten().float() for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(summed.view_as(tensor))


# ------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: Any,
    about: Mapping[str, Any],
    step: int,
    last: Mapping[str, Tensor],
) -> None:
    """Model, EMA, optimiser moments, step, configuration and what the last step said, in one safetensors file,
    replaced atomically."""
    tensors = {f"model.{n}": v for n, v in model.state_dict().items()}
    if ema.model is not model:
        tensors |= {f"ema.{n}": v for n, v in ema.model.state_dict().items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{n}": v for n, v in moments.items()}
    save_model(path, tensors, step=step, last={name: float(value) for name, value in last.items()}, **about)


def load_checkpoint(path: Path, model: nn.Module, ema: EMA, optimizer: Any, about: Mapping[str, Any]) -> int:
    """Restore everything from a checkpoint; returns the steps done. ValueError when it belongs to another run."""
    tensors, metadata = read_model(path)
    ours = {k: v for part in json.loads(json.dumps(about)).values() for k, v in part.items()}
    theirs = {k: v for part in about for k, v in metadata.get(part, {}).items()}
    if theirs != ours:
        raise ValueError(f"{path}: a checkpoint of another run ({_difference(theirs, ours)}); delete it to start anew")
    try:
        model.load_state_dict(_under("model.", tensors))
        if ema.model is not model:
            ema.model.load_state_dict(_under("ema.", tensors))
    except RuntimeError as error:
        raise ValueError(f"{path}: written by another network ({error}); delete it to start anew") from None
    moments: dict[int, dict[str, Tensor]] = {}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in _under("optimizer.", tensors).items():
        i, key = name.split(".", 1)
        like = trained[int(i)]  # fused optimizers walk through memory: moments lie as their weights do
        moments.setdefault(int(i), {})[key] = torch.empty_like(like).copy_(value) if value.ndim else value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name}: {theirs.get(name)} there, {ours.get(name)} here" for name in names)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


class TrainingLog:
    """Appends step, loss (and what else it names), learning rate, gradient norm and samples per second to a CSV.

    ``lines`` times in all; between lines nothing waits for the device. extra: columns that `write` is given numbers of.
    """

    def __init__(self, path: Path, config: TrainingConfig, lines: int = 200, extra: Sequence[str] = ()) -> None:
        self.path, self.config, self.every, self.extra = path, config, max(1, config.steps // lines), extra
        self.sums: dict[str, Tensor] = {}
        self.count, self.time = 0, time.perf_counter()

    def write(self, state: State, **numbers: float) -> None:
        """Note a state; the line written now and then holds means since the last one. Only the main process writes."""
        for name, value in {"loss": state.loss, **state.named}.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        if state.step % self.every and state.step != self.config.steps and not numbers:
            return
        if _is_main():
            self._line(state, numbers)
        self.sums, self.count, self.time = {}, 0, time.perf_counter()

    def _line(self, state: State, numbers: Mapping[str, float]) -> None:
        means = {name: f"{float(total) / self.count:.5f}" for name, total in self.sums.items()}
        rate = self.count * self.config.batch / (time.perf_counter() - self.time)
        row = {"step": state.step, **means, "lr": f"{state.lr:.2e}"}
        row |= {"gradient_norm": f"{float(state.gradient_norm):.3f}", "samples_per_second": f"{rate:.0f}"}
        row |= {name: f"{numbers[name]:.4f}" if name in numbers else "" for name in self.extra}
        new = not self.path.is_file()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([*[list(row)] * new, list(row.values())])
