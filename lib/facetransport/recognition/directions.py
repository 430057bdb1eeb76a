"""Directions of a recogniser's space, and walks along them (ID3PM's analysis: papers.md 4.8).

    y' = (y + a v) / ||y + a v||           a walk, back on the sphere after each step       walk
    v = principal axis                     where embeddings vary most                       principal
    v = mean(y | yes) - mean(y | no)       where an attribute points                        difference_of_means
    v = weights of a classifier            which way it is told apart best                  logistic
    v = weights of a regression            the same for a number                            ridge
    v minus what others share with it      one attribute, not those that go along with it   orthogonalised

Embeddings are float (N, d) of unit norm; a direction is float32 (d,) of unit norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge

from facetransport.recognition.recogniser import check_embeddings


@dataclass(frozen=True)
class Principal:
    """axes float32 (k, d), orthonormal, by falling variance; deviation (k,): of embeddings along each; explained (k,):
    share of all variance."""

    axes: np.ndarray
    deviation: np.ndarray
    explained: np.ndarray


def principal(embeddings: np.ndarray, k: int) -> Principal:
    """The first k principal axes. An axis has no sign of its own: its largest component is positive here."""
    embeddings = check_embeddings(embeddings)
    most = min(embeddings.shape)
    if not 1 <= k <= most:
        raise ValueError(f"k: expected 1 to {most} for embeddings {embeddings.shape}, got {k}")
    pca = PCA(k, svd_solver="full").fit(embeddings.astype(np.float64))
    axes = pca.components_ * np.sign(pca.components_[np.arange(k), np.abs(pca.components_).argmax(1)])[:, None]
    return Principal(axes.astype(np.float32), np.sqrt(pca.explained_variance_), pca.explained_variance_ratio_)


def difference_of_means(embeddings: np.ndarray, present: np.ndarray) -> np.ndarray:
    """From those without an attribute to those with it. present: bool (N,)."""
    embeddings, present = check_embeddings(embeddings), _both(embeddings, present)
    return unit(embeddings[present].mean(0) - embeddings[~present].mean(0))


def logistic(embeddings: np.ndarray, present: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Weights of a logistic regression, classes weighed equally; strength: of its L2 penalty on unit variances."""
    embeddings, present = check_embeddings(embeddings), _both(embeddings, present)
    scaled = embeddings.astype(np.float64) * embeddings.shape[1] ** 0.5
    model = LogisticRegression(C=1 / strength, class_weight="balanced", max_iter=2000).fit(scaled, present)
    return unit(model.coef_[0])


def ridge(embeddings: np.ndarray, values: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Weights of a ridge regression of numbers (N,), such as ages."""
    embeddings, values = check_embeddings(embeddings), np.asarray(values, np.float64)
    if values.shape != (len(embeddings),) or not np.isfinite(values).all():
        raise ValueError(f"values: expected {len(embeddings)} finite numbers, got {values.shape}")
    return unit(Ridge(alpha=strength).fit(embeddings.astype(np.float64) * embeddings.shape[1] ** 0.5, values).coef_)


def orthogonalised(directions: np.ndarray) -> np.ndarray:
    """float32 (k, d): each direction without what it shares with the span of the others.

    Walking along it leaves the others' coordinates as they are; ValueError where one lies in the others' span.
    """
    directions = np.asarray(directions, np.float64)
    out = []
    for i, direction in enumerate(directions):
        others = np.delete(directions, i, axis=0)
        left = direction - np.linalg.pinv(others) @ (others @ direction) if len(others) else direction
        if np.linalg.norm(left) < 1e-6:
            raise ValueError(f"directions: row {i} lies in the span of the others; leave one of them out")
        out.append(unit(left))
    return np.stack(out)


def walk(embeddings: np.ndarray, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(N, d), (d,), (k,) -> float32 (N, k, d): y + a v for each a, made unit norm. Units of a: of the embeddings."""
    embeddings = check_embeddings(embeddings)
    if np.shape(direction) != (embeddings.shape[1],):
        raise ValueError(f"direction: expected ({embeddings.shape[1]},), got {np.shape(direction)}")
    moved = embeddings[:, None] + np.asarray(steps)[None, :, None] * np.asarray(direction)
    return unit(moved)


def slerp(a: np.ndarray, b: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Great circle from a (d,) to b (d,): float32 (k, d), at equal angles for equal steps of ``shares`` in [0, 1]."""
    a, b = check_embeddings(np.stack([a, b]))
    angle = np.arccos(np.clip(a @ b, -1, 1))
    if np.sin(angle) < 1e-6:
        raise ValueError("a, b: the same or opposite embeddings have no one arc between them")
    shares = np.asarray(shares)[:, None]
    return unit((np.sin((1 - shares) * angle) * a + np.sin(shares * angle) * b) / np.sin(angle))


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32, the last axis of unit norm."""
    vectors = np.asarray(vectors, np.float64)
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if (norm < 1e-12).any():
        raise ValueError("direction: expected one of some length, got the zero vector")
    return (vectors / norm).astype(np.float32)


def _both(embeddings: np.ndarray, present: np.ndarray) -> np.ndarray:
    present = np.asarray(present)
    if present.dtype != bool or present.shape != (len(embeddings),):
        raise ValueError(f"present: expected bool ({len(embeddings)},), got {present.dtype} {present.shape}")
    if present.all() or not present.any():
        raise ValueError("present: expected some with the attribute and some without")
    return present
