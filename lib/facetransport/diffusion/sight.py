"""What a recogniser would see of a code, without decoding it: learnt from codes and embeddings of their images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.autoencoder import Residual
from facetransport.training import Loss, pick


class Distilled(nn.Module):
    """sight(codes (B, C, h, w)) -> unit vectors (B, dim): a tenth of the cost of decoder and recogniser."""

    def __init__(self, shape: Sequence[int], dim: int, width: int, depth: int) -> None:
        super().__init__()
        channels, *sides = shape
        layers = [nn.Conv2d(channels, width, 1), *(Residual(width) for _ in range(depth)), nn.Conv2d(width, 32, 1)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * sides[0] * sides[1], dim))

    def forward(self, codes: Tensor) -> Tensor:
        return F.normalize(self.layers(codes).float(), dim=1)


def distilling_loss(codes: Tensor, embeddings: Tensor, noise: float = 0.3) -> Loss:
    """1 - cos of what is seen of codes (N, C, h, w), half of them blurred by noise, and embeddings (N, d): for `train`.

    Estimates x^_0 are not codes of images; noise of a deviation up to ``noise`` keeps the reader from being fooled.
    """

    def loss(sight: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        z, y = (pick(data, rows, generator.device) for data in (codes, embeddings))
        spread = noise * torch.rand(len(z), 1, 1, 1, generator=generator, device=z.device)
        z = z + spread * torch.randn(z.shape, generator=generator, device=z.device)
        return (1 - (sight(z) * y).sum(1)).mean()

    return loss
