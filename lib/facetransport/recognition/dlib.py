"""dlib's face recogniser as a black box: a ResNet-29 trained on 3 million real photographs (King, 2017; weights CC0).

Its raw embeddings are not of unit norm and lie in a narrow cone (cosine of two strangers about 0.9): they are centred,
divided by their deviation, then normalised, with the statistics of a stated FaceSet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from facetransport.data.detection import model_file
from facetransport.data.faceset import FaceSet, to_uint8
from facetransport.files import replacing
from facetransport.recognition.dlib_network import WEIGHTS, describe

DIM = 128


class DlibRecogniser:
    """Black box `Recogniser`; never differentiable.

    mean, std: float (128,), statistics of raw embeddings (see `fit_centre`); without them embeddings are only
    normalised, and all cosines are near 0.9.
    """

    name = "dlib"
    dim = DIM

    def __init__(self, mean: np.ndarray | None = None, std: np.ndarray | None = None) -> None:
        self.mean = statistic(mean, "mean", 0.0)
        self.std = statistic(std, "std", 1.0)
        if (self.std <= 0).any():
            raise ValueError("std: expected 128 positive numbers; fit on at least two different images")
        model_file(WEIGHTS)  # a missing file is said here, not at the first image

    @classmethod
    def fitted(cls, faces: FaceSet) -> DlibRecogniser:
        """Centred and scaled on a FaceSet (about 10 ms an image on one core)."""
        return cls(*fit_centre(cls().raw(np.asarray(faces.images))))

    def save(self, path: Path, **metadata: str) -> None:
        """Write the statistics as safetensors."""
        with replacing(path) as temporary:
            save_file({"mean": self.mean, "std": self.std}, temporary, metadata)

    def raw(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, 128): dlib's own embeddings, of images uint8 (B, S, S, 3) in the template."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise ValueError(
                f"images: expected uint8 (B, S, S, 3), got {images.dtype} {images.shape}; align, repeat grey 3 times"
            )
        return describe(images)

    def centred(self, raw: np.ndarray) -> np.ndarray:
        """Raw embeddings (B, 128) -> centred, scaled, unit norm."""
        scaled = (raw - self.mean) / self.std
        return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)

    def embed(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [-1, 1], aligned -> float32 (B, 128), unit norm, detached, on the images' device."""
        return torch.from_numpy(self.centred(self.raw(to_uint8(images)))).to(images.device)


def statistic(value: np.ndarray | None, name: str, default: float) -> np.ndarray:
    array = np.full(DIM, default, np.float32) if value is None else np.asarray(value, np.float32)
    if array.shape != (DIM,) or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected {DIM} finite numbers, got shape {array.shape}")
    return array


def fit_centre(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (128,) mean and deviation of raw embeddings (N, 128), N >= 2."""
    raw = np.asarray(raw)
    if raw.ndim != 2 or raw.shape[1] != DIM or len(raw) < 2:
        raise ValueError(f"raw: expected (N, {DIM}) with N >= 2, got {raw.shape}")
    if not np.isfinite(raw).all():
        raise ValueError("raw: found NaN or inf")
    return raw.mean(0).astype(np.float32), raw.std(0).astype(np.float32)


def load(path: Path) -> DlibRecogniser:
    """dlib with the statistics of a file that `DlibRecogniser.save` wrote."""
    found = load_file(path)
    return DlibRecogniser(found["mean"], found["std"])
