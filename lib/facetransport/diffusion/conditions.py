"""What a denoiser is told: an embedding, and attributes beside it that may be told or not (ID3PM, ID3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from facetransport.diffusion.denoising import dropped


@dataclass(frozen=True)
class Attributes:
    """The second condition: numbers by name, each as a pair (told, standardised value), (0, 0) where it is not told.

    So zeros are null before the projection, as with embeddings, and differ from an attribute that is average.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def fitted(cls, table: pd.DataFrame, names: Sequence[str]) -> Attributes:
        """Of columns (numbers or booleans) of a FaceSet's table."""
        missing = [name for name in names if name not in table]
        if missing:
            raise ValueError(f"attributes: the table has no column {missing[0]!r}; it has {', '.join(map(str, table))}")
        values = table[list(names)].to_numpy(np.float64)
        deviation = np.where(values.std(0) > 0, values.std(0), 1.0)
        return cls(tuple(names), tuple(values.mean(0).tolist()), tuple(deviation.tolist()))

    @property
    def size(self) -> int:
        """Numbers that an image's attributes take in a condition."""
        return 2 * len(self.names)

    def encode(self, told: Mapping[str, float | Sequence[float] | np.ndarray], n: int = 1) -> Tensor:
        """float32 (n, size) of values by name, one for all n rows or one each; a name that is left out is not told."""
        unknown = [name for name in told if name not in self.names]
        if unknown:
            raise ValueError(f"attributes: expected names among {', '.join(self.names)}, got {unknown[0]!r}")
        pairs = torch.zeros(n, len(self.names), 2)
        for i, name in enumerate(self.names):
            if name in told:
                value = torch.from_numpy(np.array(told[name], np.float64))
                pairs[:, i, 0], pairs[:, i, 1] = 1, ((value - self.mean[i]) / self.deviation[i]).float()
        if not torch.isfinite(pairs).all():
            raise ValueError("attributes: expected finite numbers; leave a name out where nothing is known")
        return pairs.flatten(1)


def drop_apart(
    conditions: Tensor, generator: torch.Generator, dim: int, embedding: float, together: float, each: float
) -> Tensor:
    """Conditions (B, dim + 2 A), made null in part: the embedding, all attributes together, and each of those left.

    The null of all is the zero vector before the projection (papers.md 4.11). Apart, so that every subset is learnt.
    """
    y, pairs = conditions[:, :dim], conditions[:, dim:].unflatten(1, (-1, 2))
    chance = torch.rand(len(pairs), pairs.shape[1] + 1, generator=generator, device=pairs.device)
    told = (chance[:, :1] >= together) & (chance[:, 1:] >= each)
    return torch.cat([dropped(y, generator, embedding), (pairs * told[..., None]).flatten(1)], dim=1)
