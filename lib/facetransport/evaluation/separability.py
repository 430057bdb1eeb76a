"""How well genuine scores stand apart from impostor scores. Arrays only; a larger score means "the same person".

Scores are cosines in [-1, 1] and are held as histograms, so that memory does not grow with their number: ``BINS`` bins
resolve a cosine to 2 / BINS. Counts are (..., bins): one histogram, or those of all bootstrap resamples at once.
Definitions follow pyeer, which IDiff-Face used: a comparison matches when its score reaches the threshold; FMR is the
share of impostors that match, FNMR the share of genuine pairs that do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facetransport.evaluation.statistics import finite

BINS = 4000


def score_bins(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """int64, the bin of each cosine; NaN is refused."""
    scores = np.asarray(scores)
    if not np.isfinite(scores).all():
        raise ValueError("scores: found NaN or inf; embeddings must be finite")
    return np.clip(((scores + 1) * (bins / 2)).astype(np.int64), 0, bins - 1)


def histogram(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """int64 (bins,): counts of cosines of any shape."""
    return np.bincount(score_bins(scores, bins).ravel(), minlength=bins)


def thresholds(bins: int = BINS) -> np.ndarray:
    """float64 (bins + 1,): the edges at which FMR and FNMR are taken; the last one lets nothing match."""
    return np.linspace(-1, 1, bins + 1)


@dataclass(frozen=True)
class ErrorRates:
    """fmr, fnmr: float64 (..., bins + 1), at every threshold; NaN where there are no scores."""

    fmr: np.ndarray
    fnmr: np.ndarray

    @classmethod
    def of(cls, genuine: np.ndarray, impostor: np.ndarray) -> ErrorRates:
        """From counts (..., bins)."""
        return cls(1 - below(impostor), below(genuine))

    def auc(self) -> np.ndarray:
        """(...): probability that a genuine score exceeds an impostor's, ties (one bin) counting half."""
        return 1 - np.trapezoid(self.fmr, self.fnmr, axis=-1)

    def eer(self) -> np.ndarray:
        """(...): the error rate where FMR = FNMR, interpolated between the two thresholds that enclose it."""
        gap = self.fnmr - self.fmr  # rises from -1 to 1
        k = np.argmax(gap >= 0, axis=-1)[..., None]
        after, before = np.take_along_axis(gap, k, -1), np.take_along_axis(gap, k - 1, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(after > before, -before / (after - before), 0)
        low, high = np.take_along_axis(self.fmr, k - 1, -1), np.take_along_axis(self.fmr, k, -1)
        return (low + share * (high - low))[..., 0]

    def fnmr_at(self, fmr: float) -> np.ndarray:
        """(...): the lowest FNMR with FMR <= fmr: FMR100 is ``fmr=0.01``, FMR1000 ``fmr=0.001``; TAR is 1 minus it."""
        if not 0 <= fmr <= 1:
            raise ValueError(f"fmr: expected a rate in [0, 1], got {fmr}")
        k = np.argmax(self.fmr <= fmr + 1e-12, axis=-1)[..., None]
        return np.take_along_axis(self.fnmr, k, -1)[..., 0]


def below(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    cumulative = np.concatenate([np.zeros_like(counts[..., :1]), counts.cumsum(-1)], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cumulative / cumulative[..., -1:]


def fdr(
    genuine_mean: np.ndarray, genuine_std: np.ndarray, impostor_mean: np.ndarray, impostor_std: np.ndarray
) -> np.ndarray:
    """Fisher discriminant ratio (mu_g - mu_i)^2 / (sd_g^2 + sd_i^2)."""
    return (genuine_mean - impostor_mean) ** 2 / (genuine_std**2 + impostor_std**2)


def best_threshold(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """The threshold of the highest balanced accuracy on scores (G,), (I,), midway between two scores."""
    if not len(genuine) or not len(impostor):
        raise ValueError(f"scores: expected genuine and impostor ones, got {len(genuine)} and {len(impostor)}")
    genuine, impostor = (
        np.sort(finite(name, scores).astype(np.float64))
        for name, scores in (("genuine", genuine), ("impostor", impostor))
    )
    edges = np.unique(np.concatenate([genuine, impostor]))
    accuracy = balanced_accuracy(genuine, impostor, edges)
    k = int(np.argmax(accuracy))
    return float((edges[k] + edges[k - 1]) / 2) if k else float(edges[0])


def balanced_accuracy(genuine: np.ndarray, impostor: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Mean of the true match and true non-match rates at thresholds, from sorted scores (G,), (I,)."""
    match = 1 - np.searchsorted(genuine, threshold) / len(genuine)
    reject = np.searchsorted(impostor, threshold) / len(impostor)
    return (match + reject) / 2
