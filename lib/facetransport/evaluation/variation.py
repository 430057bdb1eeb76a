"""How much do images of one generated person differ, and are they still that person? Arrays only.

Embeddings are float (N, d) of unit norm, compared by cosine; labels are int (N,). Three measurements of IDiff-Face
(Boutros et al., 2023): variation within generated people, variations of authentic images against the image that they
were conditioned on, and LFW's protocol with variations in the place of images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from facetransport.evaluation import separability as curves
from facetransport.evaluation.statistics import Estimate, bootstrap, weighted_mean

# ------------------------------------------------------------------------------------------- within generated people


@dataclass(frozen=True)
class Diversity:
    """Means over identities, with bootstrap intervals over identities.

    distance: 1 - cosine over all pairs of an identity, equal to the trace of its (unbiased) covariance.
    vendi: effective number of different images of an identity, 1 to its number of images (Friedman and Dieng, 2023);
    comparable between sets with the same number of images of each identity.
    """

    distance: Estimate
    vendi: Estimate


def diversity(embeddings: np.ndarray, labels: np.ndarray, resamples: int = 1000, seed: int = 0) -> Diversity:
    """Variation within identities; each needs at least 2 images."""
    people = by_identity(*_checked(embeddings, labels))
    distance = np.array([within_distance(rows) for rows in people])
    vendi = np.array([vendi_score(rows) for rows in people])
    return Diversity(_mean(distance, resamples, seed), _mean(vendi, resamples, seed))


def by_identity(embeddings: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """(n_i, d) for each identity, n_i >= 2."""
    order = np.argsort(labels, kind="stable")
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(f"labels: expected at least 2 images of each identity, {names[counts.argmin()]} has 1")
    return np.split(embeddings[order], np.cumsum(counts)[:-1])


def within_distance(embeddings: np.ndarray) -> float:
    """Mean of 1 - cosine over the pairs of different rows of (n, d)."""
    n = len(embeddings)
    total = np.square(embeddings.sum(0)).sum()  # of all n * n cosines
    return float(1 - (total - np.square(embeddings).sum()) / (n * (n - 1)))


def vendi_score(embeddings: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of the cosine matrix divided by n (Friedman and Dieng, 2023)."""
    small = embeddings if len(embeddings) <= embeddings.shape[1] else embeddings.T  # both have the same eigenvalues
    values = np.linalg.eigvalsh(small @ small.T / len(embeddings))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


# ------------------------------------------------------------------------------------- variations of authentic images


@dataclass(frozen=True)
class AuthenticVariation:
    """Authentic images against variations of them. Intervals: bootstrap over the authentic people.

    similarity: cosine of an image and its own variations; distance: 1 - cosine among the variations of an image;
    eer: of own variations (genuine) against variations of other people (impostors).
    genuine, impostor: float64 (N * K,), the cosines.
    """

    similarity: Estimate
    distance: Estimate
    eer: Estimate
    genuine: np.ndarray = field(repr=False)
    impostor: np.ndarray = field(repr=False)


def authentic_variation(
    real: np.ndarray, variations: np.ndarray, labels: np.ndarray, resamples: int = 1000, seed: int = 0
) -> AuthenticVariation:
    """real: (N, d), labels: (N,) whose images they are, at least 2 people; variations: (N, K, d), K >= 2 of each image.

    The impostors of an image are the variations of one random image of someone else (seed).
    """
    real, labels = _checked(real, labels)
    variations = np.asarray(variations, np.float64)
    if variations.ndim != 3 or (len(variations), variations.shape[2]) != real.shape or variations.shape[1] < 2:
        raise ValueError(f"variations: expected {real.shape} with 2 or more in the middle, got {variations.shape}")
    _unit("variations", variations)
    unit = np.unique(labels, return_inverse=True)[1]
    others = someone_else(unit, np.random.default_rng(seed))
    genuine = np.einsum("nd,nkd->nk", real, variations)
    impostor = np.einsum("nd,nkd->nk", real, variations[others])
    distance = np.array([within_distance(rows) for rows in variations])
    return AuthenticVariation(
        similarity=_mean(genuine.mean(1), resamples, seed, unit),
        distance=_mean(distance, resamples, seed, unit),
        eer=_eer(genuine, impostor, unit, resamples, seed),
        genuine=genuine.ravel(),
        impostor=impostor.ravel(),
    )


def someone_else(unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 (N,): for each row one row of another unit, uniformly."""
    order = np.argsort(unit, kind="stable")
    counts = np.bincount(unit)
    if len(counts) < 2:
        raise ValueError("labels: expected at least 2 people (there is no impostor otherwise), got 1")
    after = np.cumsum(counts)[unit]  # where the next unit begins in ``order``
    return order[(after + rng.integers(0, len(unit) - counts[unit])) % len(unit)]


def _eer(genuine: np.ndarray, impostor: np.ndarray, unit: np.ndarray, resamples: int, seed: int) -> Estimate:
    g, i = (_histograms(scores, unit) for scores in (genuine, impostor))
    return bootstrap(
        lambda w: curves.ErrorRates.of(w @ g, w @ i).eer(), len(g), resamples, seed, genuine.size + impostor.size
    )


def _histograms(scores: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """float64 (units, bins) from scores (N, K)."""
    flat = unit[:, None] * curves.BINS + curves.score_bins(scores)
    counts = np.bincount(flat.ravel(), minlength=(unit.max() + 1) * curves.BINS)
    return counts.reshape(-1, curves.BINS).astype(np.float64)


# ----------------------------------------------------------------------------------- LFW's protocol with variations


class Pairs(NamedTuple):
    """Embeddings (P, d) to compare and whether both are the same person, bool (P,): arguments of verification."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """(P,): cosines."""
        return np.einsum("nd,nd->n", self.left, self.right)


def five_modes(
    real: np.ndarray, variations: np.ndarray, left: np.ndarray, right: np.ndarray, same: np.ndarray
) -> dict[str, Pairs]:
    """A list of pairs compared in five ways: with images, with variations of them, and across.

    real, variations: (N, d), where row i of ``variations`` was conditioned on row i of ``real``. left, right: int (P,),
    rows to compare; same: bool (P,). In the last mode, genuine pairs compare a left image with its own variation;
    impostor pairs compare it with the right one's.
    """
    real, variations = np.asarray(real), np.asarray(variations)
    left, right, same = np.asarray(left), np.asarray(right), np.asarray(same, bool)
    if real.ndim != 2 or real.shape != variations.shape:
        raise ValueError(f"variations: expected one of each image {real.shape}, got {variations.shape}")
    if not left.shape == right.shape == same.shape or left.ndim != 1:
        raise ValueError(f"left, right, same: expected equal lengths, got {left.shape}, {right.shape}, {same.shape}")
    return {
        "real_real": Pairs(real[left], real[right], same),
        "variation_variation": Pairs(variations[left], variations[right], same),
        "real_variation": Pairs(real[left], variations[right], same),
        "variation_real": Pairs(variations[left], real[right], same),
        "real_own_variation": Pairs(real[left], variations[np.where(same, left, right)], same),
    }


def draw_pairs(
    labels: np.ndarray, each: int, folds: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LFW-style pairs of rows: left, right, int64 (P,) and same, bool (P,), P = folds * 2 * each.

    People are dealt to folds at random; a fold holds ``each`` different genuine pairs, then as many impostor pairs, all
    among its own people. Folds follow one another, as LFW's do.
    """
    unit = np.unique(labels, return_inverse=True)[1]
    people = int(unit.max()) + 1
    if each < 1 or not 2 <= folds <= people // 2:
        raise ValueError(f"expected each >= 1 and 2 to {people // 2} folds for {people} people, got {each} and {folds}")
    rng = np.random.default_rng(seed)
    fold = rng.permutation(np.arange(people) % folds)[unit]
    drawn = [_pairs_of_fold(np.flatnonzero(fold == f), unit, each, rng) for f in range(folds)]
    left, right = np.concatenate(drawn, 1)
    return left, right, unit[left] == unit[right]


def _pairs_of_fold(rows: np.ndarray, unit: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """int64 (2, 2 * each): genuine pairs, then impostors."""
    person = np.unique(unit[rows], return_inverse=True)[1]
    places = np.split(np.argsort(person, kind="stable"), np.cumsum(np.bincount(person))[:-1])  # of each person
    rank = np.empty(len(rows), np.int64)  # of a row among its person's
    rank[np.concatenate(places)] = np.concatenate([np.arange(len(p)) for p in places])
    mates = np.bincount(person)[person] - 1 - rank  # rows of the same person behind a row
    others = np.arange(len(rows))[::-1] - mates
    most = int(min(mates.sum(), others.sum()))
    if most < each:
        raise ValueError(f"each: expected at most {most}, the pairs of a fold, got {each}; use fewer folds")
    (one, k), (other, m) = (_drawn(behind, each, rng) for behind in (mates, others))
    mate = [places[person[i]][rank[i] + 1 + step] for i, step in zip(one, k, strict=True)]
    stranger = [_skipping(places[person[i]], i + 1 + step, i) for i, step in zip(other, m, strict=True)]
    return rows[np.stack([np.concatenate([one, other]), np.array([*mate, *stranger])])]


def _drawn(behind: np.ndarray, each: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``each`` different pairs of all, which are counted and not listed: the first row of each, and which of those
    behind it (``behind`` says how many there are) is the second."""
    ends = behind.cumsum()
    pair = rng.choice(int(ends[-1]), each, replace=False)
    first = np.searchsorted(ends, pair, side="right")
    return first, pair - (ends - behind)[first]


def _skipping(own: np.ndarray, place: int, behind: int) -> int:
    """The place after stepping over one's own rows (ascending) behind a row."""
    for row in own[own > behind]:
        place += row <= place
    return place


# -------------------------------------------------------------------------------------------------------------- shared


def _mean(values: np.ndarray, resamples: int, seed: int, unit: np.ndarray | None = None) -> Estimate:
    unit = np.arange(len(values)) if unit is None else unit
    return bootstrap(weighted_mean(values, unit), int(unit.max()) + 1, resamples, seed, len(values))


def _checked(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ValueError(f"expected embeddings (N, d) and labels (N,), got {embeddings.shape} and {labels.shape}")
    _unit("embeddings", embeddings)
    return embeddings, labels


def _unit(name: str, embeddings: np.ndarray) -> None:
    norms = np.linalg.norm(embeddings, axis=-1)
    if not (abs(norms - 1) < 1e-3).all():  # NaN is not
        raise ValueError(
            f"{name}: expected unit norm, found {norms.min():.4g} to {norms.max():.4g}; divide by the norm"
        )
