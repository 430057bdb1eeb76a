"""Training a recogniser: a generator of states; the caller logs, validates, stops.

    for state in train(faces, profile.reference, checkpoint=folder / "checkpoint.safetensors"):
        print(state.step, state.loss)

Everything random at step k (rows, augmentation, dropout) is a pure function of (seed, k), so a run resumed from its
checkpoint continues bit for bit on CPU. The recipe is IDiff-Face's: margin softmax, SGD with momentum 0.9 and weight
decay 5e-4, gradient norm clipped at 5; the learning rate is one cycle (linear up, cosine to 0) instead of drops on
test accuracy.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facetransport import files
from facetransport.companion.profiles import RecogniserTraining
from facetransport.data.faceset import FaceSet
from facetransport.recognition.align import network_input
from facetransport.recognition.augmentation import Augment
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.recognition.margins import Head, make_head
from facetransport.tensors import compact, expanded, mixed_precision

WARMUP = 0.1  # share of the steps in which the learning rate rises
CLIP = 5.0  # gradient norm, as IDiff-Face's evaluation


@dataclass
class State:
    """What the loop knows after ``step`` steps.

    loss: cross entropy of the step's batch; accuracy: its share of images whose largest cosine is at their own
    identity.
    """

    step: int
    loss: float
    accuracy: float
    lr: float
    model: IResNet
    head: Head
    optimizer: torch.optim.Optimizer


def network_config(config: RecogniserTraining) -> IResNetConfig:
    """The shape of the network that a profile's section describes."""
    return IResNetConfig(
        layers=config.layers,  # type: ignore[arg-type]
        widths=config.widths,  # type: ignore[arg-type]
        strides=config.strides,  # type: ignore[arg-type]
        input_size=config.size,
        dim=config.embedding,
        dropout=config.dropout,
    )


def start(config: RecogniserTraining, classes: int, device: str = "cpu") -> State:
    """Network, head and optimiser at step 0, drawn from ``config.seed``."""
    with seeded(config.seed, "start"):
        model = IResNet(network_config(config))
        head = make_head(config.head, classes, config.embedding, config.scale, config.margin)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = head.to(device)
    optimizer = torch.optim.SGD(
        [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    return State(0, math.nan, math.nan, 0.0, model, head, optimizer)


def train(
    faces: FaceSet,
    config: RecogniserTraining,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    every: int = 500,
    augment: nn.Module | None = None,
) -> Iterator[State]:
    """Yield the (same, updated) state after each step, ``config.steps`` in all.

    faces: aligned, any size, at least 2 identities. checkpoint: a file written every ``every`` steps, once the caller
    is done with that step, and resumed from where it exists. augment: of batches, in place of ``Augment``. Raises
    ValueError for a checkpoint of another run, FloatingPointError when the loss is not finite.
    """
    classes, labels = np.unique(faces.identity, return_inverse=True)
    state = start(config, len(classes), device)
    if checkpoint and checkpoint.is_file():
        load_checkpoint(checkpoint, state, identity_of(config, faces))
    if augment is None and config.augment:
        augment = Augment(config.randaugment)
    for step in range(state.step, config.steps):
        rows = batch_rows(step, len(faces), config.batch, config.seed)
        with seeded(config.seed, step):
            images = prepare(faces.tensor(rows).to(device), config.size, augment)
            update(state, config, images, torch.from_numpy(labels[rows]).to(device))
        yield state
        if checkpoint and state.step % every == 0 and state.step < config.steps:
            save_checkpoint(checkpoint, state, identity_of(config, faces))


def prepare(images: Tensor, size: int, augment: nn.Module | None) -> Tensor:
    images = network_input(images, size)
    images = augment(images) if augment else images
    return images.contiguous(memory_format=torch.channels_last)


def update(state: State, config: RecogniserTraining, images: Tensor, labels: Tensor) -> None:
    """One step of SGD."""
    state.model.train()
    state.head.train()
    state.lr = learning_rate(state.step, config.steps, config.lr)
    for group in state.optimizer.param_groups:
        group["lr"] = state.lr
    with mixed_precision(images.device, config.bf16):
        features = state.model(images)
    logits = state.head(features, labels)
    loss = F.cross_entropy(logits, labels)
    guard(loss, state)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.optimizer.param_groups[0]["params"], CLIP)
    state.optimizer.step()
    state.step += 1
    state.loss = float(loss.detach())
    state.accuracy = top1(state.head, features.detach(), labels)


@torch.no_grad()
def top1(head: Head, features: Tensor, labels: Tensor) -> float:
    return float((head.cosine(features.float()).argmax(1) == labels).float().mean())


def guard(loss: Tensor, state: State) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"step {state.step + 1}: the loss is {float(loss.detach())} at learning rate {state.lr:.3g}; "
            "lower lr or the margin, or look for NaN in the images (the last checkpoint is intact)"
        )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: linear from peak / 25 to the peak over the first tenth, then a cosine to 0 (Smith, 2018)."""
    rise = max(1, round(WARMUP * steps))
    if step < rise:
        return peak * (1 / 25 + 24 / 25 * step / rise)
    return peak * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def batch_rows(step: int, n: int, batch: int, seed: int) -> np.ndarray:
    """int64 (min(batch, n),): the images of a step; an epoch is a permutation without its incomplete last batch."""
    batch = min(batch, n)
    epoch, place = divmod(step, n // batch)
    return permutation(n, seed, epoch)[place * batch : (place + 1) * batch]


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


@contextmanager
def seeded(seed: int, place: int | str) -> Iterator[None]:
    """torch's global generator, seeded for one place of the run and restored afterwards (kornia knows no other)."""
    entropy = [seed, place] if isinstance(place, int) else [seed, *place.encode(), 2**31]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng():
        torch.manual_seed(state)
        yield


# ------------------------------------------------------------------------------------------------------ checkpoints


def identity_of(config: RecogniserTraining, faces: FaceSet) -> dict[str, Any]:
    """What must agree for a checkpoint to be continued: configuration and data (their number and labels)."""
    data = _digest([len(faces), *faces.images.shape[1:], np.bincount(faces.identity % 2**20).tolist()])
    return json.loads(json.dumps({"config": asdict(config), "data": data}))


def _digest(numbers: list[int]) -> str:
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()


def save_checkpoint(path: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Write network, head, optimiser and step as one safetensors file, atomically."""
    metadata = {"identity": json.dumps(identity), "step": str(state.step)}
    with files.replacing(path) as temporary:
        save_file(checkpoint_tensors(state), temporary, metadata)


def checkpoint_tensors(state: State) -> dict[str, Tensor]:
    parts = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    parts |= {f"head.{k}": v for k, v in state.head.state_dict().items()}
    for i, slots in state.optimizer.state_dict()["state"].items():
        parts |= {f"optimizer.{i}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
    return {name: value.contiguous() for name, value in parts.items()}


def load_checkpoint(path: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Continue ``state`` where the file left off; ValueError if it belongs to another configuration or other data."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    theirs = json.loads(metadata["identity"])
    if theirs != identity:
        raise ValueError(
            f"{path}: a checkpoint of another run ({difference(theirs, identity)}); delete it to start anew"
        )
    tensors = load_file(path)
    state.model.load_state_dict(under(tensors, "model."))
    state.head.load_state_dict(under(tensors, "head."))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in under(tensors, "optimizer.").items():
        index, key = name.split(".")
        slots.setdefault(int(index), {})[key] = value
    whole = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})
    state.step = int(metadata["step"])


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    a, b = {**theirs["config"], "data": theirs["data"]}, {**ours["config"], "data": ours["data"]}
    return ", ".join(f"{k}: {a.get(k)} there, {b.get(k)} here" for k in b if a.get(k) != b.get(k)) or "other fields"


# ------------------------------------------------------------------------------------------------------ model files


def save_model(path: Path, model: IResNet, small: bool = False, **metadata: Any) -> None:
    """One safetensors file that describes itself: the network's shape, and ``metadata`` as JSON.

    small: rounded as ``tensors.compact`` does, a quarter of the size.
    """
    state = compact(model.state_dict()) if small else model.state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    text = {name: json.dumps(value) for name, value in {"config": asdict(model.config), **metadata}.items()}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, text)


def load_model(path: Path) -> IResNet:
    """The IResNet of a file written by `save_model`, in inference mode."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a recogniser's safetensors (`make train` makes the shipped ones)"
        )
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ValueError(
            f"{path}: no 'config' in its metadata; expected a file written by recognition.training.save_model"
        )
    model = IResNet(IResNetConfig(**json.loads(metadata["config"])))
    model.load_state_dict(expanded(load_file(path)))
    return model.eval()


def due(step: int, steps: int, every: int) -> bool:
    return step % every == 0 or step == steps


class Log:
    """Appends to a CSV of step, loss, accuracy, learning rate, images per second, validation accuracy."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch
        self.step: int | None = None  # of the last row written by this process
        self.time = time.perf_counter()
        if not path.is_file():
            self.append(["step", "loss", "accuracy", "lr", "images_per_second", "val_accuracy"])

    def append(self, row: list[object]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)

    def write(self, state: State, val: float | None) -> None:
        now = time.perf_counter()
        rate = "" if self.step is None else f"{(state.step - self.step) * self.batch / (now - self.time):.0f}"
        self.step, self.time = state.step, now
        numbers = (f"{state.loss:.4f}", f"{state.accuracy:.4f}", f"{state.lr:.5f}", rate)
        self.append([state.step, *numbers, "" if val is None else f"{val:.4f}"])
