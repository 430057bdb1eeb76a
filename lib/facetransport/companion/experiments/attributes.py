"""Attributes of the training images as a denoiser's second condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from facetransport.data.faceset import FaceSet
from facetransport.diffusion.conditions import Attributes
from facetransport.evaluation.readers import MIRRORED
from facetransport.generation import Model


def encoded_twice(faces: FaceSet, names: Sequence[str]) -> tuple[Attributes, Tensor]:
    """The attributes of all images, then of all mirror images: float32 (2 N, size)."""
    attributes = Attributes.fitted(faces.table, names)
    values = {name: faces.table[name].to_numpy(np.float64) for name in names}
    mirror = {name: -column if name in MIRRORED else column for name, column in values.items()}
    return attributes, torch.cat([attributes.encode(told, len(faces)) for told in (values, mirror)])


def attributes_of(model: Model) -> Attributes:
    """The second condition of a trained model."""
    return Attributes(**{name: tuple(value) for name, value in model.metadata["attributes"].items()})
