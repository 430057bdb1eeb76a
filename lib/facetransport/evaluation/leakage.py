"""Are generated people copies of training people? Embeddings only: float (N, d) of unit norm, compared by cosine.

A generated face always resembles some training face, and so does the face of a stranger, the more so the more people
there are to resemble. The yardstick is therefore how near people that training never saw come to its nearest person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from facetransport.evaluation.statistics import LEVEL, Estimate, finite

BLOCK = 2**22  # scores held at once


def nearest(queries: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N,), float32 (N,): the nearest of ``known`` (M, d) to each of ``queries`` (N, d), and its cosine."""
    if queries.ndim != 2 or known.ndim != 2 or queries.shape[1] != known.shape[1] or not len(known):
        raise ValueError(f"expected (N, d) and (M, d) with M above 0, got {queries.shape} and {known.shape}")
    finite("queries", queries), finite("known", known)
    place, score = np.empty(len(queries), np.int64), np.empty(len(queries), np.float32)
    step = max(1, BLOCK // len(known))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = queries[rows] @ known.T
        place[rows], score[rows] = scores.argmax(1), scores.max(1)
    return place, score


@dataclass(frozen=True)
class Leakage:
    """rate: share of generated people nearer to a training person than ``threshold``; exact binomial interval."""

    rate: Estimate
    threshold: float


def leakage(generated: np.ndarray, unseen: np.ndarray, quantile: float = 0.99) -> Leakage:
    """Nearest-training-person cosines (N,) of generated people against those (K,) of people training never saw.

    The threshold is the quantile of the unseen, who pass it in 1 - quantile of cases: that rate means no leakage.
    """
    if not len(generated) or not len(unseen) or not 0 < quantile < 1:
        raise ValueError(
            f"expected scores on both sides, 0 < quantile < 1; got {len(generated)}, {len(unseen)}, {quantile}"
        )
    finite("generated", generated)
    threshold = float(np.quantile(finite("unseen", unseen), quantile))
    hits = int((np.asarray(generated) > threshold).sum())
    low, high = stats.binomtest(hits, len(generated)).proportion_ci(LEVEL)
    return Leakage(Estimate(hits / len(generated), float(low), float(high), len(generated)), threshold)
