"""Numbers with their uncertainty: bootstrap over identities, intervals over seeds. Arrays only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

LEVEL = 0.95
BLOCK = 2**22  # numbers held at once


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """The array itself; ValueError that names the first row with NaN or inf, which comparisons would pass over."""
    values = np.asarray(values)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad.reshape(len(values), -1).any(1)))
        raise ValueError(f"{name}: row {row} holds NaN or inf; look at what it was made from")
    return values


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and how many things (pairs, probes, seeds) it was taken from.

    low, high: NaN where no interval was asked for.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int | None = None

    def record(self) -> dict[str, float | int | None]:
        """Keyword arguments of ``results.Run.record``: NaN bounds become None."""
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        bounds = "" if np.isnan(self.low) else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{bounds}"


def bootstrap_weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """float64 (resamples, n): how often each of n units is drawn when n are drawn with replacement."""
    return np.concatenate([np.empty((0, n)), *_in_parts(n, resamples, seed)])


def _in_parts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """``bootstrap_weights``, a block of at most ``BLOCK`` numbers at a time."""
    if n < 1 or resamples < 0:
        raise ValueError(f"n, resamples: expected n >= 1 and resamples >= 0, got {n}, {resamples}")
    step = max(1, BLOCK // n)
    if resamples <= step:
        yield _drawn(n, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield _counts(n, min(step, resamples - start), rng)


@lru_cache(maxsize=4)
def _drawn(n: int, resamples: int, seed: int) -> np.ndarray:
    """Of one block, kept: many numbers are resampled with the same people."""
    weights = _counts(n, resamples, np.random.default_rng(seed))
    weights.setflags(write=False)
    return weights


def _counts(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile_interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of bootstrap samples (Efron and Tibshirani, 1993, section 13.3), undefined ones left out."""
    samples = np.asarray(samples, np.float64)
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(value: float, samples: np.ndarray, n: int | None = None) -> Estimate:
    """An estimate from its value on the data and its values on bootstrap resamples."""
    return Estimate(float(value), *percentile_interval(samples), n)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    resamples: int = 1000,
    seed: int = 0,
    count: int | None = None,
) -> Estimate:
    """Estimate of a statistic of n weighted units (identities).

    statistic: (R, n) weights -> (R,) values; a row of ones is the data as they are.
    """
    value = finite("statistic", np.asarray(statistic(np.ones((1, n)))))[0]
    samples = [np.asarray(statistic(weights)) for weights in _in_parts(n, resamples, seed)]
    return estimate(value, np.concatenate(samples) if samples else np.empty(0), count)


def weighted_mean(values: np.ndarray, unit: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of values (N,) as a statistic of unit weights; unit: int (N,), whose identity a value is."""
    total = np.bincount(unit, finite("values", values))
    count = np.bincount(unit, minlength=len(total)).astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (weights @ total) / (weights @ count)

    return statistic


def joined(by_seed: Sequence[float], people: float) -> Estimate:
    """Mean of a few runs on the same people, for people and seeds together: the interval's half is the root of the sum
    of two squares, of ``people``, half the interval over them, and of half of Student's over the seeds, if there are
    several."""
    if len(by_seed) == 1:
        return Estimate(by_seed[0], by_seed[0] - people, by_seed[0] + people, 1)
    seeds = mean_over_seeds(by_seed)
    half = float(np.hypot(people, seeds.high - seeds.value))
    return Estimate(seeds.value, seeds.value - half, seeds.value + half, seeds.n)


def normal_half(resampled: np.ndarray) -> float:
    """Half of the normal interval from values on bootstrap resamples (R,)."""
    return float(stats.norm.ppf((1 + LEVEL) / 2) * np.std(resampled, ddof=1))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of a few runs with Student's t interval."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"values: expected at least 2 finite numbers, one per seed, got {array.tolist()}")
    half = stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Estimate(float(array.mean()), float(array.mean() - half), float(array.mean() + half), len(array))
