"""One training loop for every network of this package that is not a recogniser: a generator of states.

    for state in train(model, loss, n=len(data), config=config, checkpoint=folder / "checkpoint.safetensors"):
        print(state.step, state.loss)          # the caller logs, plots, stops

Everything random at step k is a pure function of (seed, k): the rows of the batch, the noise, the dropout masks. A
checkpoint therefore holds tensors, the step and the configuration, and a resumed run continues bit for bit on CPU.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facetransport.diffusion.schedule import Schedule, add_noise, uniform_timesteps
from facetransport.files import replacing
from facetransport.tensors import expanded, mixed_precision

Loss = Callable[[nn.Module, Tensor, torch.Generator, int], Tensor]
"""loss(model, rows int64 (B,), generator, step) -> scalar; rows index the caller's data."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. batch: of all processes together. ema: decay of the averaged weights, 0 for none.

    decay: how lr falls after ``warmup`` steps: "constant", "cosine" (to 0 at ``steps``) or "restarts" (IDiff-Face's
    warm restarts: cosine cycles of 10k, 20k, 40k, 80k steps). bf16: mixed precision, on devices that have it.
    """

    steps: int
    batch: int
    lr: float
    seed: int
    ema: float = 0.999
    warmup: int = 0
    decay: Literal["constant", "cosine", "restarts"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.decay not in ("constant", "cosine", "restarts"):
            raise ValueError(f"decay: expected 'constant', 'cosine' or 'restarts', got {self.decay!r}")
        if min(self.steps, self.batch) < 1 or self.lr <= 0:
            raise ValueError(f"expected steps, batch and lr above 0, got {self.steps}, {self.batch}, {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a decay in [0, 1), got {self.ema}")


@dataclass
class State:
    """What training yields after each step. ``model`` and ``ema`` are live: copy what must not change."""

    step: int  # steps done, 1 .. config.steps
    loss: float
    lr: float
    gradient_norm: float
    model: nn.Module
    ema: nn.Module


class EMA:
    """Averaged weights: a <- d a + (1 - d) w, with d = min(decay, 1 - (1 + k)^-0.75) at update k = 0, 1, ...

    This is the average IDiff-Face intended; its published code multiplies by 0 and so keeps a copy (decay=0 here).
    Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, k: int) -> float:
        return min(self.decay, 1 - (1 + k) ** -0.75)

    @torch.no_grad()
    def update(self, model: nn.Module, k: int) -> None:
        for a, w in zip(self.model.parameters(), model.parameters(), strict=True):
            a.lerp_(w.detach().to(a.dtype), 1 - self.decay_at(k))
        for kept, new in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(new)


def lr_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of step 0, 1, ..."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return config.lr * _decay_at(step, config)


def _decay_at(step: int, config: TrainingConfig) -> float:
    if config.decay == "constant":
        return 1.0
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
    positions = np.arange(step * batch, (step + 1) * batch)
    return np.array([_permutation(n, seed, int(p // n))[p % n] for p in positions])


@contextmanager
def _step_randomness(seed: int, step: int, rank: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator for the step, and the ambient one (dropout) seeded while it lasts, from (seed, step, rank)."""
    ambient, explicit = (int(s) for s in np.random.SeedSequence((seed, step, rank)).generate_state(2, np.uint64) >> 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(ambient)
        yield torch.Generator(device).manual_seed(explicit)


def train(
    model: nn.Module,
    loss: Loss,
    n: int,
    config: TrainingConfig,
    checkpoint: Path | None = None,
    every: int = 1000,
    accelerator: Accelerator | None = None,
) -> Iterator[State]:
    """Train ``model`` on n rows of data; yield a State after every step.

    checkpoint: written every ``every`` steps and at the end; when it exists, training continues from it (bit for bit on
    CPU in the same build of torch). accelerator: device and processes; by default the best device here.
    Raises FloatingPointError naming the step when loss or gradient stop being finite (weights stay as they were),
    ValueError when the checkpoint belongs to another configuration or network.
    """
    if n < 1:
        raise ValueError("n: expected at least one row of training data, got none")
    accelerator = accelerator or Accelerator()
    model, optimizer = accelerator.prepare(model.train(), _optimizer(model, config))
    plain = accelerator.unwrap_model(model)
    ema = EMA(plain, config.ema)
    start = load_checkpoint(checkpoint, plain, ema, optimizer, config) if checkpoint and checkpoint.is_file() else 0
    if start == config.steps:  # killed after the last step: there is only the model to hand over
        yield State(start, math.nan, lr_at(start - 1, config), math.nan, plain, ema.model)
    for step in range(start, config.steps):
        value, norm = _one_step(model, optimizer, loss, n, config, step, accelerator)
        ema.update(plain, step)
        done = step + 1
        if checkpoint and (done % every == 0 or done == config.steps) and accelerator.is_main_process:
            save_checkpoint(checkpoint, plain, ema, optimizer, config, done)
        yield State(done, value, lr_at(step, config), norm, plain, ema.model)


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def _one_step(
    model: nn.Module,
    optimizer: Any,
    loss: Loss,
    n: int,
    config: TrainingConfig,
    step: int,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """One update; returns the loss and the gradient's norm before clipping."""
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    rows = torch.from_numpy(rows_at(step, n, config.batch, config.seed)[rank::world])
    for group in optimizer.param_groups:
        group["lr"] = lr_at(step, config)
    optimizer.zero_grad()
    with _step_randomness(config.seed, step, rank, device) as generator:
        with mixed_precision(device, config.bf16):
            value = loss(model, rows, generator, step)
        _require_finite(float(value.detach()), "loss", step)
        accelerator.backward(value)
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip if config.clip is not None else math.inf)
    _require_finite(float(norm), "gradient", step)
    optimizer.step()
    return float(value.detach()), float(norm)


def _require_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{what} is {value} at step {step + 1}; the weights are those of step {step}. Lower lr, clip harder, or "
            "look for NaN in the data"
        )


# ------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path: Path, model: nn.Module, ema: EMA, optimizer: Any, config: TrainingConfig, step: int) -> None:
    """Model, EMA, optimiser moments, step and configuration in one safetensors file, replaced atomically."""
    tensors = {f"model.{n}": v for n, v in model.state_dict().items()}
    tensors |= {f"ema.{n}": v for n, v in ema.model.state_dict().items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{n}": v for n, v in moments.items()}
    save_model(path, tensors, step=step, training=asdict(config))


def load_checkpoint(path: Path, model: nn.Module, ema: EMA, optimizer: Any, config: TrainingConfig) -> int:
    """Restore everything from a checkpoint; returns the steps done. ValueError when it belongs to another run."""
    tensors, metadata = read_model(path)
    expected = json.loads(json.dumps(asdict(config)))
    if metadata.get("training") != expected:
        raise ValueError(f"{path}: written by another training configuration; remove it to start anew")
    try:
        model.load_state_dict(_under("model.", tensors))
        ema.model.load_state_dict(_under("ema.", tensors))
    except RuntimeError as error:
        raise ValueError(f"{path}: written by another network ({error}); remove it to start anew") from None
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        i, key = name.split(".", 1)
        moments.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def save_model(path: Path, tensors: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write one self-describing safetensors file, atomically; ``metadata`` is JSON data, one entry per keyword."""
    plain = {n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata={k: json.dumps(v, sort_keys=True) for k, v in metadata.items()})


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by ``save_model``; what ``compact`` rounded comes back as float32."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file; train it or name another")
    with safe_open(path, framework="pt") as file:
        metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    return expanded(load_file(path)), metadata


class TrainingLog:
    """Appends step, loss, learning rate, gradient norm and samples per second to a CSV, ``lines`` times in all."""

    def __init__(self, path: Path, config: TrainingConfig, lines: int = 200) -> None:
        self.path, self.config, self.every = path, config, max(1, config.steps // lines)
        self.losses: list[float] = []
        self.time = time.perf_counter()
        if not path.is_file():
            self._append(["step", "loss", "lr", "gradient_norm", "samples_per_second"])

    def write(self, state: State) -> None:
        """Note a state; the line written now and then holds the mean loss since the last one."""
        self.losses.append(state.loss)
        if state.step % self.every and state.step != self.config.steps:
            return
        now = time.perf_counter()
        rate = len(self.losses) * self.config.batch / (now - self.time)
        loss = sum(self.losses) / len(self.losses)
        self._append([state.step, f"{loss:.5f}", f"{state.lr:.2e}", f"{state.gradient_norm:.3f}", f"{rate:.0f}"])
        self.losses, self.time = [], now

    def _append(self, row: list[object]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


# ---------------------------------------------------------------------------------------------------- denoising


def denoising_loss(
    latents: Tensor,
    contexts: Tensor | None,
    schedule: Schedule,
    prediction: str = "eps",
    context_drop: float = 0.0,
) -> Loss:
    """E w(t) || eps - denoiser(x_t, t, context) ||^2, t uniform (IDiff-Face, Section 3; DDPM eq. 14 for w = 1).

    latents (N, C, h, w) and contexts (N, d), in memory, float16 or float32. prediction: "eps" for w = 1 (the papers),
    "v" for w = 1 / abar_t, which is the plain loss of v = sqrt(abar) eps - sqrt(1 - abar) x_0 for any denoiser.
    context_drop: probability of replacing a sample's context by the null context, the zero vector (0 in IDiff-Face).
    """
    if contexts is not None and len(contexts) != len(latents):
        raise ValueError(f"contexts: expected one per latent ({len(latents)}), got {len(contexts)}")
    if prediction not in ("eps", "v"):
        raise ValueError(f"prediction: expected 'eps' or 'v', got {prediction!r}")
    abar = schedule.alphas_cumprod

    def loss(denoiser: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        device = generator.device
        x0 = latents[rows].to(device).float()
        t = uniform_timesteps(len(rows), schedule, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        a = abar.to(device)[t]
        y = None if contexts is None else _drop(contexts[rows].to(device).float(), context_drop, generator)
        error = (denoiser(add_noise(x0, noise, a), t, y).float() - noise).square().flatten(1).mean(1)
        return (error / a if prediction == "v" else error).mean()

    return loss


def _drop(contexts: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    if probability == 0:
        return contexts
    kept = torch.rand(len(contexts), generator=generator, device=contexts.device) >= probability
    return contexts * kept[:, None]
