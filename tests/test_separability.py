from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from facetransport.evaluation import separability as s


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(0.5, 0.2, 20_000), -1, 1), np.clip(rng.normal(0.0, 0.15, 30_000), -1, 1)


@pytest.fixture(scope="module")
def counts(scores: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return s.histogram(scores[0]), s.histogram(scores[1])


def test_auc_is_sklearns(scores, counts):
    labels = np.repeat([1, 0], [len(scores[0]), len(scores[1])])
    assert s.ErrorRates.of(*counts).auc() == pytest.approx(roc_auc_score(labels, np.concatenate(scores)), abs=2e-5)


def test_roc_is_sklearns(scores, counts):
    labels = np.repeat([1, 0], [len(scores[0]), len(scores[1])])
    fpr, tpr, _ = roc_curve(labels, np.concatenate(scores))
    for far in (1e-1, 1e-2, 1e-3):
        assert 1 - s.ErrorRates.of(*counts).fnmr_at(far) == pytest.approx(tpr[fpr <= far].max(), abs=3e-3)


def test_eer_of_two_gaussians_is_the_closed_form():
    """EER = Phi(-(mu_g - mu_i) / (sd_g + sd_i)); counts are exact bin probabilities, so there is no sampling error."""
    edges = s.thresholds()
    genuine = np.diff(stats.norm(0.4, 0.12).cdf(edges)) * 1e6
    impostor = np.diff(stats.norm(0.0, 0.08).cdf(edges)) * 1e6
    assert s.ErrorRates.of(genuine, impostor).eer() == pytest.approx(stats.norm.cdf(-0.4 / 0.2), abs=1e-5)
    assert s.ErrorRates.of(genuine, impostor).auc() == pytest.approx(
        stats.norm.cdf(0.4 / np.hypot(0.12, 0.08)), abs=1e-5
    )
    limit = stats.norm(0, 0.08).isf(0.01)
    assert s.ErrorRates.of(genuine, impostor).fnmr_at(0.01) == pytest.approx(stats.norm(0.4, 0.12).cdf(limit), abs=1e-3)


def test_by_hand():
    """Genuine 0.9 0.8 0.3, impostors 0.5 0.1 0.0 -0.2: at a threshold between 0.3 and 0.5, FNMR 1/3, FMR 1/4."""
    genuine, impostor = s.histogram(np.array([0.9, 0.8, 0.3])), s.histogram(np.array([0.5, 0.1, 0.0, -0.2]))
    assert s.ErrorRates.of(genuine, impostor).auc() == pytest.approx(11 / 12)
    assert s.ErrorRates.of(genuine, impostor).fnmr_at(0.0) == pytest.approx(1 / 3)
    assert s.ErrorRates.of(genuine, impostor).fnmr_at(0.25) == pytest.approx(0.0)
    assert 1 / 4 <= s.ErrorRates.of(genuine, impostor).eer() <= 1 / 3
    assert s.fdr(*map(np.float64, (0.5, 0.1, 0.0, 0.2))) == pytest.approx(5.0)


def test_perfect_and_reversed():
    low, high = s.histogram(np.array([-0.5, -0.4])), s.histogram(np.array([0.4, 0.5]))
    assert (
        s.ErrorRates.of(high, low).auc() == 1
        and s.ErrorRates.of(high, low).eer() == 0
        and s.ErrorRates.of(high, low).fnmr_at(0.0) == 0
    )
    assert s.ErrorRates.of(low, high).auc() == 0 and s.ErrorRates.of(low, high).eer() == 1


def test_resamples_at_once_equal_one_by_one(counts):
    both = np.stack([counts[0], counts[0][::-1]]), np.stack([counts[1], counts[1]])
    rates = s.ErrorRates.of(*both)
    alone = [s.ErrorRates.of(both[0][k], both[1][k]) for k in (0, 1)]
    np.testing.assert_allclose(rates.auc(), [r.auc() for r in alone])
    np.testing.assert_allclose(rates.eer(), [r.eer() for r in alone])
    np.testing.assert_allclose(rates.fnmr_at(0.01), [r.fnmr_at(0.01) for r in alone])


def test_best_threshold_is_the_middle_of_the_gap():
    assert s.best_threshold(np.array([0.6, 0.8]), np.array([0.0, 0.2])) == pytest.approx(0.4)
    assert s.balanced_accuracy(np.array([0.6, 0.8]), np.array([0.0, 0.7]), 0.65) == pytest.approx(0.5)


def test_refusals():
    with pytest.raises(ValueError, match="NaN"):
        s.histogram(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match=r"rate in \[0, 1\]"):
        s.ErrorRates.of(np.ones(4), np.ones(4)).fnmr_at(2.0)
    with pytest.raises(ValueError, match="genuine and impostor"):
        s.best_threshold(np.array([]), np.array([0.1]))


def test_a_nan_among_scores_is_refused():
    with pytest.raises(ValueError, match="impostor: row 1 holds NaN or inf"):
        s.best_threshold(np.array([0.5, 0.6]), np.array([0.1, np.nan]))
