"""What attributes an image shows, read off its pixels by a network trained on renders: for judging generated images.

A generator that was told a pose or an age is checked by somebody else: the reader had no part in its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.diffusion.sampling import device_of
from facetransport.recognition.align import network_input
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.training import Loss, pick

BATCH = 256
MIRRORED = ("yaw", "roll")  # attributes that change sign in a mirror


class ReaderNetwork(nn.Module):
    """float32 (B, 3, S, S) in [-1, 1] -> (B, A): an IResNet and one matrix."""

    def __init__(self, config: IResNetConfig, attributes: int) -> None:
        super().__init__()
        self.backbone, self.out = IResNet(config), nn.Linear(config.dim, attributes)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.backbone(network_input(images, self.backbone.config.input_size)))


def reader_loss(images: np.ndarray | Tensor, targets: Tensor, names: Sequence[str]) -> Loss:
    """Squared error of standardised attributes (N, A) of images uint8 (N, H, W, 3); half of them mirrored in a step."""
    signs = mirror_signs(names)

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        device = generator.device
        x, told = to_tensor(pick(images, rows, device)), pick(targets, rows, device)
        flip = torch.rand(len(rows), generator=generator, device=device) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(-1), x)
        told = torch.where(flip[:, None], told * signs.to(device), told)
        return (network(x).float() - told).square().mean()

    return loss


def mirror_signs(names: Sequence[str]) -> Tensor:
    """float32 (A,): -1 for what turns the other way in a mirror. Their means are taken to be 0."""
    return torch.tensor([-1.0 if name in MIRRORED else 1.0 for name in names])


def standardised(table: pd.DataFrame, names: Sequence[str]) -> tuple[Tensor, list[float], list[float]]:
    """float32 (N, A) of columns of a table, and the means and deviations that were taken out."""
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"names: the table has no column {missing[0]!r}; expected columns of the FaceSet's table")
    values = table[list(names)].to_numpy(np.float64)
    mean = np.where(np.isin(names, MIRRORED), 0.0, values.mean(0))
    deviation = np.where(values.std(0) > 0, values.std(0), 1.0)
    return torch.from_numpy(((values - mean) / deviation).astype(np.float32)), mean.tolist(), deviation.tolist()


@dataclass(frozen=True)
class AttributeReader:
    """names, mean, deviation: of the attributes it was trained on; booleans are read as numbers, about 0 and 1."""

    network: nn.Module
    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @torch.inference_mode()
    def read(self, faces: FaceSet) -> pd.DataFrame:
        """One row an image, one column an attribute, in its own unit (degrees, years, 0 to 1)."""
        device = device_of(self.network)
        batches = (faces.tensor(slice(i, i + BATCH)).to(device) for i in range(0, len(faces), BATCH))
        found = torch.cat([self.network(images).float().cpu() for images in batches]).numpy()
        return pd.DataFrame(found * self.deviation + self.mean, columns=list(self.names))
