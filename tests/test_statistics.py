from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from facetransport.evaluation.statistics import (
    Estimate,
    bootstrap,
    bootstrap_weights,
    mean_over_seeds,
    percentile_interval,
    weighted_mean,
)


def test_weights_are_resamples_of_n_from_n():
    weights = bootstrap_weights(7, 500, seed=0)
    assert weights.shape == (500, 7)
    assert (weights.sum(1) == 7).all()
    assert abs(weights.mean() - 1) < 1e-12
    np.testing.assert_array_equal(weights, bootstrap_weights(7, 500, seed=0))
    assert not np.array_equal(weights, bootstrap_weights(7, 500, seed=1))


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).standard_normal(400)
    found = bootstrap(weighted_mean(values, np.arange(400)), 400, 4000, seed=1, count=400)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)
    assert found.n == 400


def test_units_not_values_are_drawn():
    """Ten copies of each value carry no more information than one: the interval must not shrink."""
    values = np.random.default_rng(0).standard_normal(50)
    once = bootstrap(weighted_mean(values, np.arange(50)), 50, seed=1)
    copies = bootstrap(weighted_mean(np.repeat(values, 10), np.repeat(np.arange(50), 10)), 50, seed=1)
    assert copies.low == pytest.approx(once.low) and copies.high == pytest.approx(once.high)


def test_many_units_take_no_more_memory_and_the_same_resamples(monkeypatch):
    values = np.arange(50.0)

    def mean(weights):
        return weights @ values / weights.sum(1)

    whole = bootstrap(mean, 50, 40, seed=3)
    monkeypatch.setattr("facetransport.evaluation.statistics.BLOCK", 350)
    assert bootstrap(mean, 50, 40, seed=3) == whole
    assert np.array_equal(bootstrap_weights(50, 40, 3), np.random.default_rng(3).multinomial(50, [0.02] * 50, 40))
    tracemalloc.start()
    bootstrap(lambda w: w[:, 0], 40, 2_000, 0)
    monkeypatch.undo()
    bootstrap(lambda w: w[:, 0], 100_000, 100, 0)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_what_is_undefined_on_the_data_is_refused():
    with pytest.raises(ValueError, match="statistic: row 0 holds NaN or inf"):
        bootstrap(lambda w: np.full(len(w), np.nan), 3)


def test_no_resamples_leave_the_interval_open():
    found = bootstrap(weighted_mean(np.array([1.0, 3.0]), np.array([0, 1])), 2, 0)
    assert found.value == 2 and np.isnan(found.low) and np.isnan(found.high)
    assert found.record() == {"value": 2.0, "low": None, "high": None, "n": None}


def test_interval_leaves_undefined_resamples_out():
    assert percentile_interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)


def test_mean_over_seeds_is_students():
    found = mean_over_seeds([0.9, 0.92, 0.94])
    low, high = stats.t.interval(0.95, 2, loc=0.92, scale=stats.sem([0.9, 0.92, 0.94]))
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 3)
    assert str(Estimate(0.5, 0.4, 0.6)) == "0.5000 [0.4000, 0.6000]"


def test_refusals():
    with pytest.raises(ValueError, match="at least 2 finite numbers"):
        mean_over_seeds([0.9])
    with pytest.raises(ValueError, match="n >= 1"):
        bootstrap_weights(0, 10, 0)
