"""Nearest training person and leakage rate, against brute force and against planted copies."""

from __future__ import annotations

import numpy as np
import pytest

from facetransport.evaluation import leakage as module
from facetransport.evaluation.leakage import leakage, nearest


def unit(rng: np.random.Generator, n: int, d: int = 16) -> np.ndarray:
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_nearest_is_brute_force_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, known = unit(rng, 13), unit(rng, 50)
    scores = queries @ known.T
    for block in (1, 120, 2**22):
        monkeypatch.setattr(module, "BLOCK", block)
        place, score = nearest(queries, known)
        np.testing.assert_array_equal(place, scores.argmax(1))
        np.testing.assert_allclose(score, scores.max(1), atol=1e-6)


def test_copies_are_found_and_strangers_are_not() -> None:
    rng = np.random.default_rng(1)
    known, unseen, fresh = unit(rng, 500), unit(rng, 400), unit(rng, 400)
    limit = nearest(unseen, known)[1]
    none = leakage(nearest(fresh, known)[1], limit)
    assert none.rate.low <= 0.01 <= none.rate.high < 0.1 and none.rate.n == 400
    mixed = fresh.copy()
    mixed[:100] = known[:100]
    assert 0.25 <= leakage(nearest(mixed, known)[1], limit).rate.value < 0.29


def test_the_rate_is_the_share_above_the_quantile() -> None:
    found = leakage(np.array([0.1, 0.5, 0.95, 0.999]), np.linspace(0, 1, 101), quantile=0.9)
    assert found.threshold == pytest.approx(0.9)
    assert found.rate.value == 0.5
    assert found.rate.low == pytest.approx(0.0676, abs=1e-3)  # Clopper and Pearson, 2 of 4


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="M above 0"):
        nearest(np.ones((2, 3)), np.ones((0, 3)))
    with pytest.raises(ValueError, match="expected"):
        nearest(np.ones((2, 3)), np.ones((4, 5)))
    with pytest.raises(ValueError, match="both sides"):
        leakage(np.empty(0), np.ones(3))


def test_one_nan_is_no_silent_zero() -> None:
    scores, vectors = np.linspace(0, 1, 50), unit(np.random.default_rng(0), 9)
    spoilt, bad = scores.copy(), vectors.copy()
    spoilt[7], bad[3, 2] = np.nan, np.inf
    for name, arguments in {"generated": (spoilt, scores), "unseen": (scores, spoilt)}.items():
        with pytest.raises(ValueError, match=rf"{name}: row 7 holds NaN or inf; look at what it was made from"):
            leakage(*arguments)
    for name, pair in {"queries": (bad, vectors), "known": (vectors, bad)}.items():
        with pytest.raises(ValueError, match=rf"{name}: row 3 holds NaN or inf"):
            nearest(*pair)
