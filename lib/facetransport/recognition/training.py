"""Training a recogniser on the one loop (`facetransport.training`): network and margin softmax learn together.

    learner = Learner.drawn(network, head, classes, seed)
    for state in train(learner, recogniser_loss(faces, network.input_size), len(faces), config, checkpoint):
        print(state.step, float(state.loss), float(state.named["accuracy"]))

The recipe is IDiff-Face's (`published`): SGD with momentum 0.9 and weight decay 5e-4, gradient norm clipped at 5; the
learning rate is one cycle instead of drops on test accuracy.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.devices import full_precision
from facetransport.recognition.align import network_input
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.recognition.margins import Head, make_head
from facetransport.tensors import read_model, rounding, save_model, seeded
from facetransport.training import Loss, TrainingConfig, pick

CLIP = 5.0  # gradient norm, as IDiff-Face's evaluation


@dataclass(frozen=True)
class HeadConfig:
    """The margin softmax. kind: "cosface", "arcface" or "adaface"; scale s and margin m as in their papers."""

    kind: str = "cosface"
    scale: float = 64.0
    margin: float = 0.35


class Learner(nn.Module):
    """What is trained: the network that stays, and a head whose weights (classes, d) are one vector a person.

    Every process holds the whole head: weights, gradient and momentum take 12 d bytes a person, logits 4 bytes a person
    and image. At d = 512, 100,000 people are 0.6 GB, and a million, 6 GB, are where this stops (no partial FC).
    """

    def __init__(self, network: IResNet, head: Head) -> None:
        super().__init__()
        self.network, self.head = network.to(memory_format=torch.channels_last), head  # type: ignore[call-overload]

    @classmethod
    def drawn(cls, network: IResNetConfig, head: HeadConfig, classes: int, seed: int) -> Learner:
        """Untrained, its weights drawn from ``seed``."""
        with seeded(seed):
            return cls(IResNet(network), make_head(head.kind, classes, network.dim, head.scale, head.margin))

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """float (B, 3, S, S) and int64 (B,) -> cross-entropy, and the share nearest to their own class."""
        features = self.network(images).float()
        with full_precision(images.device):  # cosines in float32
            loss = F.cross_entropy(self.head(features, labels), labels)
            with torch.no_grad():
                accuracy = (self.head.cosine(features).argmax(1) == labels).float().mean()
        return {"loss": loss, "accuracy": accuracy}


def classes_of(faces: FaceSet) -> np.ndarray:
    """int64 (N,): 0, 1, ... for each identity in ascending order."""
    return np.unique(faces.identity, return_inverse=True)[1]


def recogniser_loss(faces: FaceSet, size: int, augment: nn.Module | None = None) -> Loss:
    """Cross-entropy of a `Learner` under its margin softmax, and "accuracy", on images of the FaceSet.

    size: pixels of the network's input. augment: of batches (B, 3, size, size); draws from the ambient generator.
    """
    labels = torch.from_numpy(classes_of(faces))

    def loss(learner: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        device = generator.device
        with full_precision(device):
            images = prepare(to_tensor(pick(faces.images, rows, device)), size, augment)
        return learner(images, pick(labels, rows, device))

    return loss


def prepare(images: Tensor, size: int, augment: nn.Module | None) -> Tensor:
    images = network_input(images, size)
    images = augment(images) if augment else images
    return images.contiguous(memory_format=torch.channels_last)


def published(steps: int, batch: int, lr: float, seed: int, **changes: Any) -> TrainingConfig:
    """IDiff-Face's recipe (papers.md 2.6), but for the learning rate's one cycle; changes: of `TrainingConfig`."""
    recipe: dict[str, Any] = {"weight_decay": 5e-4, "momentum": 0.9, "decay": "onecycle", "clip": CLIP, "ema": 0.0}
    return TrainingConfig(steps, batch, lr, seed, optimizer="sgd", **(recipe | changes))


def digest_of(faces: FaceSet) -> str:
    """Hex digest of a FaceSet's size and labels: what a checkpoint is checked for (`training.train`, identity)."""
    hasher = hashlib.sha256(repr(faces.images.shape).encode())
    hasher.update(faces.identity.tobytes())
    return hasher.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------ model files


def save_network(path: Path, model: IResNet, small: bool = False, **metadata: Any) -> None:
    """One safetensors file that describes itself: the network's shape, and ``metadata`` as JSON.

    small: it may be rounded for shipping (`tensors.lighten`), to a quarter of the size.
    """
    metadata |= {"small": rounding()} if small else {}
    save_model(path, model.state_dict(), config=asdict(model.config), **metadata)


def load_network(path: Path) -> IResNet:
    """The IResNet of a file written by `save_network`, in inference mode."""
    tensors, metadata = read_model(path)
    if "config" not in metadata:
        raise ValueError(f"{path}: no 'config' in its metadata; expected a file written by save_network")
    model = IResNet(IResNetConfig(**metadata["config"]))
    model.load_state_dict(tensors)
    return model.eval()
