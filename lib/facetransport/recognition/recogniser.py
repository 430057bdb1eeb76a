"""The protocol every recogniser follows: ``embed(images) -> unit vectors``.

White box recognisers (`iresnet`) are differentiable modules; black boxes (`dlib`, `onnx`) detach. ID3 needs a white
box, ID3PM must refuse one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from facetransport.data.faceset import FaceSet

Progress = Callable[[Iterable[range]], Iterable[range]]


@runtime_checkable
class Recogniser(Protocol):
    """Maps aligned faces to embeddings that are compared by cosine."""

    name: str
    dim: int

    def embed(self, images: Tensor) -> Tensor:
        """float32 (B, 3, H, W), RGB in [-1, 1], aligned to the template -> float32 (B, dim), unit norm."""
        ...


def is_white_box(recogniser: Any) -> bool:
    """Whether gradients flow through ``embed`` (a torch module)."""
    return isinstance(recogniser, torch.nn.Module)


def embed_faceset(
    recogniser: Recogniser, faceset: FaceSet, batch_size: int | None = None, progress: Progress | None = None
) -> np.ndarray:
    """float32 (N, dim), unit norm: the embeddings of a FaceSet, in batches, without gradients.

    batch_size: by default 256 on a GPU, else 64, whose maps stay in a processor's cache.
    progress: wraps the iterable of batches (``tqdm`` for a bar).
    """
    if not len(faceset):
        raise ValueError("faceset: expected at least one image, got none")
    device = device_of(recogniser)
    size = (64 if device.type == "cpu" else 256) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {size}")
    batches: Iterable[range] = [range(i, min(i + size, len(faceset))) for i in range(0, len(faceset), size)]
    out = np.empty((len(faceset), recogniser.dim), np.float32)
    with torch.inference_mode():
        for rows in progress(batches) if progress else batches:
            chunk = slice(rows.start, rows.stop)
            out[chunk] = recogniser.embed(faceset.tensor(chunk).to(device)).float().cpu().numpy()
    return check_embeddings(out)


def enrol(embeddings: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """One embedding a person from several: float32 (K, d), the mean of each identity's (N, d) rows, made unit norm.

    Rows are in ascending order of ``identity`` int (N,), as ``np.unique`` gives it.
    """
    embeddings = check_embeddings(embeddings)
    people, place = np.unique(identity, return_inverse=True)
    if len(place) != len(embeddings):
        raise ValueError(f"identity: expected one label for each of {len(embeddings)} embeddings, got {len(place)}")
    sums = np.zeros((len(people), embeddings.shape[1]), np.float32)
    np.add.at(sums, place, embeddings)
    return check_embeddings(sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12))


def device_of(recogniser: Any) -> torch.device:
    """Where a white box lives; black boxes take CPU tensors."""
    parameter = next(recogniser.parameters(), None) if is_white_box(recogniser) else None
    return torch.device("cpu") if parameter is None else parameter.device


def check_embeddings(embeddings: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
    """The embeddings themselves, if finite (N, d) of unit norm; else ValueError that names the first bad row."""
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings: expected (N, d), got {embeddings.shape}")
    norms = np.linalg.norm(embeddings, axis=1)
    if not np.isfinite(norms).all():
        row = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(f"embeddings: row {row} holds NaN or inf; the recogniser or its input diverged")
    wrong = np.flatnonzero(abs(norms - 1) > tolerance)
    if len(wrong):
        raise ValueError(
            f"embeddings: expected unit norm, row {wrong[0]} has {norms[wrong[0]]:.4g}; divide by the norm"
        )
    return embeddings
