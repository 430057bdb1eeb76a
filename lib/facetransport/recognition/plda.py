"""Probabilistic LDA (Prince and Elder, ICCV 2007): how embeddings vary between people, and between photographs of one.

    y_ij = mu + b_i + w_ij,   b_i ~ N(0, B),   w_ij ~ N(0, W)             image j of person i
    E[b_i | y_i1..y_in] = B (B + W / n)^-1 (mean_j y_ij - mu)             what n photographs say of the person

Known in speaker recognition as enrolment of i-vectors. Covariances are estimated by moments, not by EM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facetransport.recognition.recogniser import check_embeddings
from facetransport.tensors import require_finite


@dataclass(frozen=True)
class Plda:
    """mean float64 (d,); between, within float64 (d, d): covariances of b and of w."""

    mean: Tensor
    between: Tensor
    within: Tensor

    @classmethod
    def of(cls, population: Tensor, within: Tensor) -> Plda:
        """From one embedding each of many people, (N, d), and the covariance within one, such as `within_covariance`:
        B is what is left of the covariance of the former."""
        total = torch.cov(require_finite("population", population).double().T)
        require_finite("within", within)
        if within.shape != total.shape:
            raise ValueError(
                f"within: expected {tuple(total.shape)}, as the population has it, got {tuple(within.shape)}"
            )
        return cls(population.double().mean(0), total - within.double(), within.double())

    def enrol(self, embeddings: np.ndarray, identity: np.ndarray) -> np.ndarray:
        """One embedding a person, float32 (K, d), unit norm: mu + E[b_i | their rows of (N, d)], in ascending order of
        ``identity`` int (N,). Against `recogniser.enrol`, the mean direction, what pose and light put in is left out.
        """
        embeddings = check_embeddings(embeddings)
        if embeddings.shape[1] != len(self.mean):
            raise ValueError(f"embeddings: expected (N, {len(self.mean)}), got {embeddings.shape}")
        people, place, count = np.unique(identity, return_inverse=True, return_counts=True)
        if len(place) != len(embeddings):
            raise ValueError(f"identity: expected one label for each of {len(embeddings)} embeddings, got {len(place)}")
        away = torch.zeros(len(people), len(self.mean), dtype=torch.float64)
        away.index_add_(0, torch.from_numpy(place), torch.from_numpy(embeddings).double() - self.mean)
        gains = {n: self._gain(n) for n in set(count.tolist())}
        told = torch.stack([gains[n] @ sums / n for n, sums in zip(count.tolist(), away, strict=True)])
        return check_embeddings(F.normalize(self.mean + told, dim=1).float().numpy())

    def _gain(self, photographs: int) -> Tensor:
        """B (B + W / n)^-1, (d, d); directions in which nothing varies are left out."""
        positive = root(self.between)
        between = positive @ positive.T
        return between @ torch.linalg.pinv(between + self.within / photographs, hermitian=True, rtol=1e-9)


def within_covariance(embeddings: np.ndarray, identity: np.ndarray) -> Tensor:
    """Pooled covariance of embeddings (N, d) around the mean of their identity (N,): float64 (d, d)."""
    away, count = _around_means(embeddings, identity)
    people = round(float((1 / count).sum()))
    if len(away) <= people:
        raise ValueError(f"identity: expected several images of some of {people} people, got {len(away)}")
    return away.T @ away / (len(away) - people)


def deviations(embeddings: np.ndarray, identity: np.ndarray) -> Tensor:
    """How photographs of one person differ, by example: w of embeddings (N, d) of identities (N,), float64 (N, d).

    How far it is from the person's mean, times sqrt(n / (n - 1)) of n images: their covariance is that within people.
    ValueError where somebody has one image.
    """
    away, count = _around_means(embeddings, identity)
    if (count < 2).any():
        raise ValueError(f"identity: expected several images of everyone, got one of {int((count < 2).sum())} people")
    return away * (count / (count - 1)).sqrt()[:, None]


def _around_means(embeddings: np.ndarray, identity: np.ndarray) -> tuple[Tensor, Tensor]:
    """float64 (N, d): away from the mean of the identity, and (N,): how many images that has."""
    require_finite("embeddings", torch.from_numpy(np.asarray(embeddings)))
    _, place, count = np.unique(identity, return_inverse=True, return_counts=True)
    means = np.stack([embeddings[place == i].mean(0) for i in range(len(count))])
    away = torch.from_numpy((embeddings - means[place]).astype(np.float64))
    return away, torch.from_numpy(count[place]).double()


def root(covariance: Tensor) -> Tensor:
    """The symmetric root R, R R = covariance (d, d), its negative directions taken as 0.

    It is unique: what is drawn with it does not depend on the signs of eigenvectors, which rounding decides.
    """
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def leading_axes(covariance: Tensor) -> Tensor:
    """The leading principal axes, float32 (k, d), as many as are in effect: k = (sum l)^2 / sum l^2 of the eigenvalues.

    The largest component of each is positive: the sign that a solver gives is rounding's.
    """
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    k = max(2, round(float(values.sum() ** 2 / values.square().sum())))
    kept = axes[:, -k:].T
    largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
    return (kept * largest.sign()).float()
