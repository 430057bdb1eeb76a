"""Verification, identification and separability of embeddings, with 95 % bootstrap intervals over identities.

Embeddings are float (N, d) of unit norm, labels int (N,). Similarities are cosines, computed in blocks of at most
``BLOCK`` scores and kept as histograms (resolution 2 / 4000), so that memory stays fixed up to a million embeddings.

Bootstrap: identities fall into at most ``GROUPS`` groups at random; groups are drawn with replacement, a genuine score
counts as often as its group was drawn, an impostor score as the product of its two groups' counts (Bolle et al., 2004,
"subsets" bootstrap): pairs of one person are not independent, people are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from facetransport.evaluation import separability as curves
from facetransport.evaluation.separability import ErrorRates
from facetransport.evaluation.statistics import Estimate, bootstrap_weights, estimate, mean_over_seeds, weighted_mean
from facetransport.evaluation.statistics import bootstrap as bootstrap_estimate
from facetransport.recognition.recogniser import check_embeddings

GROUPS = 64
BLOCK = 2**22  # scores held at once
STRIP = 2**18  # of impostors at once: stays in the processor's cache
TOGETHER = 32  # resamples, likewise


# ------------------------------------------------------------------------------------------------------- separability


@dataclass(frozen=True)
class Separability:
    """Genuine against impostor scores of a set as IDiff-Face reports them (pyeer's definitions).

    genuine, impostor: int64 (bins,), histograms of cosines; their bins' edges are ``thresholds``.
    fmr100, fmr1000: lowest FNMR with FMR <= 1 %, 0.1 %. tar: true accept rate by false accept rate.
    """

    auc: Estimate
    eer: Estimate
    fmr100: Estimate
    fmr1000: Estimate
    fdr: Estimate
    genuine_mean: Estimate
    genuine_std: Estimate
    impostor_mean: Estimate
    impostor_std: Estimate
    tar: dict[float, Estimate]
    genuine: np.ndarray = field(repr=False)
    impostor: np.ndarray = field(repr=False)

    @property
    def thresholds(self) -> np.ndarray:
        """float64 (bins + 1,)."""
        return curves.thresholds(len(self.genuine))

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """FMR and TAR (bins + 1,) at every threshold."""
        rates = ErrorRates.of(self.genuine, self.impostor)
        return rates.fmr, 1 - rates.fnmr

    def table(self) -> pd.DataFrame:
        """One row per number: name, value, low, high, n."""
        named = {k: v for k, v in vars(self).items() if isinstance(v, Estimate)}
        named |= {f"tar@{far:g}": v for far, v in self.tar.items()}
        return pd.DataFrame([{"name": k, **vars(v)} for k, v in named.items()])


def separability(
    embeddings: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    *,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    max_impostors: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Separability:
    """All pairs of a set, or all pairs of a probe and a gallery image where a gallery is given.

    max_impostors: draw about that many impostor pairs (the same share of rows and of columns) instead of
    all; genuine pairs are always all. seed: of grouping, drawing and bootstrap.
    """
    pairs = PairScores(embeddings, labels, gallery, gallery_labels, seed)
    genuine, genuine_moments = pairs.genuine()
    impostor, impostor_moments = pairs.impostor(max_impostors)
    weights = np.concatenate([np.ones((1, len(genuine))), bootstrap_weights(len(genuine), bootstrap, seed)])
    pair_weights = pairs.pair_weights(weights)
    filled = genuine.any(0) | impostor.any(0)  # of the bins: nothing changes at the others
    g, gm = weights @ genuine[:, filled], weights @ genuine_moments
    i, im = fast_sum(pair_weights, impostor[:, filled]), pair_weights @ impostor_moments
    n, m = int(g[0].sum()), int(i[0].sum())
    (g_mean, g_std), (i_mean, i_std) = mean_std(gm), mean_std(im)
    at = [partial(ErrorRates.fnmr_at, fmr=fmr) for fmr in (1e-2, 1e-3, *fars)]
    auc, eer, fnmr100, fnmr1000, *fnmr = measured(g, i, [ErrorRates.auc, ErrorRates.eer, *at])

    def result(values: np.ndarray, count: int = n + m) -> Estimate:
        return estimate(values[0], values[1:], count)

    return Separability(
        auc=result(auc),
        eer=result(eer),
        fmr100=result(fnmr100),
        fmr1000=result(fnmr1000),
        fdr=result(curves.fdr(g_mean, g_std, i_mean, i_std)),
        genuine_mean=result(g_mean, n),
        genuine_std=result(g_std, n),
        impostor_mean=result(i_mean, m),
        impostor_std=result(i_std, m),
        tar={far: result(1 - missed) for far, missed in zip(fars, fnmr, strict=True)},
        genuine=genuine.sum(0),
        impostor=impostor.sum(0),
    )


def fast_sum(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """weights @ counts, the first row (the data as they are) exact, resamples in single precision."""
    return np.concatenate([weights[:1] @ counts, weights[1:].astype(np.float32) @ counts.astype(np.float32)])


def measured(
    genuine: np.ndarray, impostor: np.ndarray, measures: Sequence[Callable[[ErrorRates], np.ndarray]]
) -> list[np.ndarray]:
    """Each measure (R,) of histograms (R, bins), ``TOGETHER`` at a time: their rates stay in the processor's cache."""
    parts = (slice(k, k + TOGETHER) for k in range(0, len(genuine), TOGETHER))
    found = [
        [measure(rates) for measure in measures] for rates in (ErrorRates.of(genuine[p], impostor[p]) for p in parts)
    ]
    return [np.concatenate(of_one) for of_one in zip(*found, strict=True)]


def mean_std(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, 3) of count, sum, sum of squares -> means and deviations (R,)."""
    count, total, squares = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


class PairScores:
    """Histograms and moments of all pairs, by group (genuine) and by pair of groups (impostor)."""

    def __init__(
        self,
        embeddings: np.ndarray,
        labels: np.ndarray,
        gallery: np.ndarray | None,
        gallery_labels: np.ndarray | None,
        seed: int,
        folds: int = 1,
    ) -> None:
        self.within = gallery is None
        embeddings, labels = check_set(embeddings, labels)
        other, other_labels = (embeddings, labels) if gallery is None else check_set(gallery, gallery_labels, "gallery")
        if other.shape[1] != embeddings.shape[1]:
            raise ValueError(f"gallery: expected dimension {embeddings.shape[1]}, got {other.shape[1]}")
        identities = np.union1d(labels, other_labels)
        require_two(identities)
        self.rng = np.random.default_rng(seed)
        group = deal(len(identities), folds, self.rng)
        self.groups = int(group.max()) + 1
        self.rows = Grouped(embeddings, np.searchsorted(identities, labels), group)
        self.columns = self.rows if self.within else Grouped(other, np.searchsorted(identities, other_labels), group)
        self.blocks = [(a, b) for a in range(self.groups) for b in range(a, self.groups)]
        self.place = np.zeros((self.groups, self.groups), np.int64)  # of two groups' block
        for k, (a, b) in enumerate(self.blocks):
            self.place[a, b] = self.place[b, a] = k

    def genuine(self) -> tuple[np.ndarray, np.ndarray]:
        """Histograms (groups, bins) and moments (groups, 3) of pairs of one identity."""
        counts, moments = np.zeros((self.groups, curves.BINS)), np.zeros((self.groups, 3))
        for identity, rows in self.rows.by_identity.items():
            columns = self.columns.by_identity.get(identity)
            if columns is None:
                continue
            group = self.rows.group[identity]
            for scores in self.genuine_scores(rows, columns):
                tally(scores, counts[group], moments[group])
        if not counts.sum():
            raise ValueError(
                "labels: no genuine pair; expected at least one identity with two images (or a probe and its mate)"
            )
        return counts, moments

    def genuine_scores(self, rows: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
        for start, part in chunks(rows, len(columns)):
            scores = self.rows.embeddings[part] @ self.columns.embeddings[columns].T
            yield scores[np.triu_indices(len(part), start + 1, len(columns))] if self.within else scores.ravel()

    def impostor(self, most: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Histograms (blocks, bins) and moments (blocks, 3) of pairs of two identities."""
        counts, moments = np.zeros((len(self.blocks), curves.BINS)), np.zeros((len(self.blocks), 3))
        total = len(self.rows.embeddings) * len(self.columns.embeddings) / (2 if self.within else 1)
        share = 1.0 if most is None else min(1.0, np.sqrt(most / total))
        for group in range(self.groups):
            first = self.columns.bounds[group] if self.within else 0  # within a set a pair is met once
            columns = self.sample(np.arange(first, len(self.columns.embeddings)), share)
            for _, part in chunks(self.sample(self.rows.of(group), share), len(columns), STRIP):
                strip, of_strip = self.strip(group, part, columns)
                counts[self.place[group]] += strip
                moments[self.place[group]] += of_strip
        return counts, moments

    def sample(self, rows: np.ndarray, share: float) -> np.ndarray:
        if share == 1 or not len(rows):
            return rows
        return np.sort(self.rng.choice(rows, max(1, round(share * len(rows))), replace=False))

    def strip(self, group: int, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the impostor pairs of some rows of a group: histograms (groups, bins) and moments (groups, 3), by the
        group of the column."""
        scores = self.rows.embeddings[rows] @ self.columns.embeddings[columns].T
        other = self.columns.group[self.columns.identity[columns]]  # ascending, as embeddings are
        own = slice(*np.searchsorted(other, (group, group + 1)))
        bins = curves.score_bins(scores) + other * curves.BINS
        left_out = ~self.different(rows, columns[own])
        bins[:, own][left_out], scores[:, own][left_out] = self.groups * curves.BINS, 0  # one bin for all of these
        counts = np.bincount(bins.ravel(), minlength=self.groups * curves.BINS + 1)[:-1].reshape(self.groups, -1)
        sums, squares = scores.sum(0, np.float64), np.einsum("ij,ij->j", scores, scores, dtype=np.float64)
        by_group = [np.bincount(other, part, minlength=self.groups) for part in (sums, squares)]
        return counts, np.stack([counts.sum(1), *by_group], axis=1)

    def different(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """bool (rows, columns): pairs of two identities; within a set each once."""
        apart = self.rows.identity[rows][:, None] != self.columns.identity[columns]
        return apart & (rows[:, None] < columns) if self.within else apart

    def pair_weights(self, weights: np.ndarray) -> np.ndarray:
        """(R, groups) -> (R, blocks): the product of two groups' weights; a group's own weight for pairs inside it."""
        a, b = np.array(self.blocks).T
        return np.where(a == b, weights[:, a], weights[:, a] * weights[:, b])


def deal(identities: int, folds: int, rng: np.random.Generator) -> np.ndarray:
    """int64 (identities,): the group of each; at most GROUPS in all, as many to each fold: group = fold + folds * k."""
    fold = rng.permutation(np.arange(identities) % folds)
    order = np.argsort(fold, kind="stable")
    place = np.empty(identities, np.int64)  # of an identity in its fold
    place[order] = np.concatenate([np.arange(n) for n in np.bincount(fold)])
    return fold + folds * (place % max(1, GROUPS // folds))


class Grouped:
    """Embeddings sorted by group and identity, with the rows of each."""

    def __init__(self, embeddings: np.ndarray, identity: np.ndarray, group: np.ndarray) -> None:
        order = np.lexsort((identity, group[identity]))
        self.embeddings = np.ascontiguousarray(embeddings[order], np.float32)
        self.identity, self.group = identity[order], group
        self.bounds = np.searchsorted(group[self.identity], np.arange(group.max() + 2))
        found, starts = np.unique(self.identity, return_index=True)
        counts = np.bincount(self.identity)
        self.by_identity = {int(i): np.arange(s, s + counts[i]) for i, s in zip(found, starts, strict=True)}

    def of(self, group: int) -> np.ndarray:
        return np.arange(self.bounds[group], self.bounds[group + 1])


def chunks(rows: np.ndarray, columns: int, most: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of rows such that part x columns stays within ``most`` scores, each with the place of its first row."""
    step = max(1, most // max(1, columns))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def tally(scores: np.ndarray, counts: np.ndarray, moments: np.ndarray) -> None:
    """Add scores to a histogram (bins,) and to count, sum, sum of squares (3,), in place."""
    if scores.size:
        counts += curves.histogram(scores)
        wide = scores.astype(np.float64)
        moments += (scores.size, wide.sum(), (wide**2).sum())


# ------------------------------------------------------------------------------------------------------- verification


@dataclass(frozen=True)
class Verification:
    """k-fold verification. folds: accuracy of each; thresholds: of each, chosen without its people; resampled:
    accuracy on each resample of the people, of which there is none where they are not known. Resample r is of the same
    people for all embeddings of one set."""

    accuracy: Estimate
    folds: np.ndarray
    thresholds: np.ndarray
    n_genuine: int
    n_impostor: int
    resampled: np.ndarray


def verify(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    folds: int = 10,
    centre: bool = False,
    max_impostors: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Verification:
    """LFW-style verification with folds of people, on all pairs (``max_impostors``: as for `separability`).

    Identities are dealt to folds at random (seed). A fold is tested on every pair in which one of its people takes
    part, at the threshold that is best on the pairs in which none of them does. Accuracy is the mean of the true match
    and the true non-match rate (balanced: what LFW's equal numbers of genuine and impostor pairs measure), averaged
    over folds. Resamples draw people within folds and keep the thresholds.

    centre: subtract the mean embedding of the other folds' people first and normalise again: for images of another
    world than the recogniser was trained in, whose embeddings share a direction. Like the threshold, the mean never
    sees the people under test.
    """
    people = len(np.unique(labels))
    if not 2 <= folds <= max(2, people):
        raise ValueError(f"folds: expected 2 to {people}, the number of identities, got {folds}")
    embeddings, labels = check_set(embeddings, labels)
    fold = (deal(people, folds, np.random.default_rng(seed)) % folds)[np.unique(labels, return_inverse=True)[1]]
    how = folds, bootstrap, seed, max_impostors
    plain = None if centre else FoldScores(embeddings, labels, *how)
    tested = []
    for f in range(folds):
        scores = plain or FoldScores(centred(embeddings, fold != f), labels, *how)
        tested.append(scores.test(f))
    samples, limits = np.array([t[0] for t in tested]), np.array([t[1] for t in tested])
    mean, n, m = samples.mean(0), scores.n_genuine, scores.n_impostor
    return Verification(estimate(mean[0], mean[1:], n + m), samples[:, 0], limits, n, m, mean[1:])


def centred(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Embeddings minus the mean of some rows, unit norm again."""
    moved = embeddings - embeddings[rows].mean(0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


class FoldScores:
    """Histograms of all pairs by group of identities, where group % folds is the fold."""

    def __init__(
        self, embeddings: np.ndarray, labels: np.ndarray, folds: int, resamples: int, seed: int, most: int | None
    ) -> None:
        pairs = PairScores(embeddings, labels, None, None, seed, folds)
        self.genuine, self.impostor = pairs.genuine()[0], pairs.impostor(most)[0]
        self.n_genuine, self.n_impostor = int(self.genuine.sum()), int(self.impostor.sum())
        self.fold = np.arange(pairs.groups) % folds
        self.first, self.second = self.fold[np.array(pairs.blocks).T]
        drawn = weights_within(self.fold, resamples, seed)
        self.weights = np.concatenate([np.ones((1, pairs.groups)), drawn])  # first the data as they are
        self.pair_weights = pairs.pair_weights(self.weights)

    def test(self, f: int) -> tuple[np.ndarray, float]:
        """Accuracies (1 + resamples,) of a fold, and the threshold, best on the pairs without its people."""
        mine, touched = self.fold == f, (self.first == f) | (self.second == f)
        k = best_bin(self.genuine[~mine].sum(0), self.impostor[~touched].sum(0))
        match = share(self.weights[:, mine], self.genuine[mine], slice(k, None))
        apart = share(self.pair_weights[:, touched], self.impostor[touched], slice(0, k))
        return (match + apart) / 2, float(curves.thresholds()[k])


def weights_within(fold: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """float64 (resamples, groups): groups drawn with replacement inside each fold."""
    weights = np.empty((resamples, len(fold)))
    for f in np.unique(fold):
        weights[:, fold == f] = bootstrap_weights(int((fold == f).sum()), resamples, seed + int(f))
    return weights


def best_bin(genuine: np.ndarray, impostor: np.ndarray) -> int:
    """The threshold (as a bin's lower edge) of the best balanced accuracy; the middle one where several are."""
    if not genuine.sum() or not impostor.sum():
        raise ValueError("folds: no genuine or no impostor pair outside of one fold; use fewer folds or more images")
    rates = ErrorRates.of(genuine, impostor)
    error = rates.fmr + rates.fnmr
    best = np.flatnonzero(error <= error.min() + 1e-12)
    return int(best[len(best) // 2])


def share(weights: np.ndarray, counts: np.ndarray, bins: slice) -> np.ndarray:
    """(R,): the weighted share of counts (units, bins) that fall into ``bins``; ValueError where a fold has no pair."""
    total = weights @ counts.sum(1)
    if not total[0]:
        raise ValueError(
            "folds: a fold has no genuine or no impostor pair; use fewer folds or more images per identity"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ counts[:, bins].sum(1)) / total


def verify_pairs(left: np.ndarray, right: np.ndarray, same: np.ndarray, *, folds: int = 10) -> Verification:
    """Verification on given pairs (LFW and the other InsightFace ``.bin`` sets): folds are consecutive, as LFW's are.

    left, right: (P, d) embeddings; same: bool (P,). The interval is Student's over folds, within [0, 1];
    identities are not known.
    """
    left, right, same = check_embeddings(left), check_embeddings(right), np.asarray(same, bool)
    if left.shape != right.shape or len(same) != len(left):
        raise ValueError(f"pairs: expected equal lengths, got {left.shape}, {right.shape} and {len(same)} labels")
    if not 2 <= folds <= len(same) // 2:
        raise ValueError(f"folds: expected 2 to {len(same) // 2} for {len(same)} pairs, got {folds}")
    scores = np.einsum("nd,nd->n", left, right)
    fold = np.arange(len(same)) * folds // len(same)
    each, limits = np.empty(folds), np.empty(folds)
    for f in range(folds):
        rest, mine = fold != f, fold == f
        limits[f] = curves.best_threshold(scores[rest & same], scores[rest & ~same])
        each[f] = np.mean((scores[mine] >= limits[f]) == same[mine])
    mean = mean_over_seeds(each.tolist())
    accuracy = replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high), n=len(same))
    return Verification(accuracy, each, limits, int(same.sum()), int((~same).sum()), np.empty(0))


# ----------------------------------------------------------------------------------------------------- identification


@dataclass(frozen=True)
class Identification:
    """Closed-set identification. cmc: (gallery,), share of probes with a mate among the k nearest images."""

    cmc: np.ndarray
    rank: dict[int, Estimate]


def identify(
    probes: np.ndarray,
    probe_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    bootstrap: int = 1000,
    seed: int = 0,
) -> Identification:
    """Rank-k identification (CMC): every probe's identity must be in the gallery.

    A probe's rank is 1 plus the number of gallery images of other people that score at least as high as its best mate.
    """
    probes, probe_labels, gallery, gallery_labels = check_search(probes, probe_labels, gallery, gallery_labels)
    missing = np.setdiff1d(probe_labels, gallery_labels)
    if len(missing):
        raise ValueError(f"probe_labels: identity {missing[0]} is not in the gallery; use identify_open for open sets")
    rank = search(probes, probe_labels, gallery, gallery_labels)[0]
    unit = np.unique(probe_labels, return_inverse=True)[1]
    cmc = np.bincount(rank, minlength=len(gallery) + 2)[1:].cumsum() / len(rank)
    estimates = {
        k: bootstrap_estimate(weighted_mean(rank <= k, unit), unit.max() + 1, bootstrap, seed, len(rank)) for k in ranks
    }
    return Identification(cmc[: len(gallery)], estimates)


def identify_open(
    probes: np.ndarray,
    probe_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    fars: Sequence[float] = (1e-1, 1e-2),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[float, Estimate]:
    """Open-set identification: detection and identification rate (rank 1) by false alarm rate (Phillips et al., 2011).

    Probes whose identity is not in the gallery raise the alarms: the threshold is the lowest at which at most ``far``
    of them have any gallery image at or above it. Resamples draw mated and unmated people; the threshold is chosen
    anew.
    """
    probes, probe_labels, gallery, gallery_labels = check_search(probes, probe_labels, gallery, gallery_labels)
    mated = np.isin(probe_labels, gallery_labels)
    if not mated.any() or mated.all():
        raise ValueError("probe_labels: expected people inside and outside of the gallery, got only one kind")
    rank, mate, top = search(probes, probe_labels, gallery, gallery_labels)
    inside, outside = (
        np.unique(probe_labels[mated], return_inverse=True)[1],
        np.unique(probe_labels[~mated], return_inverse=True)[1],
    )
    found = grouped(np.where(rank[mated] == 1, mate[mated], -1.0), inside)
    alarms = grouped(top[~mated], outside)
    return {far: detection(found, alarms, far, int(mated.sum()), bootstrap, seed) for far in fars}


def detection(found: np.ndarray, alarms: np.ndarray, far: float, n: int, resamples: int, seed: int) -> Estimate:
    """DIR at a false alarm rate from per-identity histograms (identities, bins)."""
    w = np.concatenate([np.ones((1, len(found))), bootstrap_weights(len(found), resamples, seed)])
    v = np.concatenate([np.ones((1, len(alarms))), bootstrap_weights(len(alarms), resamples, seed + 1)])
    rates = 1 - ErrorRates.of(w @ found, v @ alarms).fnmr_at(far)
    return estimate(rates[0], rates[1:], n)


def grouped(scores: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """float64 (units, bins): a histogram for each of at most GROUPS groups of identities."""
    units = min(GROUPS, int(unit.max()) + 1)
    flat = (unit % units) * curves.BINS + curves.score_bins(scores)
    return np.bincount(flat, minlength=units * curves.BINS).reshape(units, -1).astype(np.float64)


def search(
    probes: np.ndarray, probe_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) each: rank of the best mate, its score (-inf without one), and the highest score of all."""
    rank = np.empty(len(probes), np.int64)
    mate, top = np.empty(len(probes), np.float32), np.empty(len(probes), np.float32)
    for start, part in chunks(np.arange(len(probes)), len(gallery)):
        rows = slice(start, start + len(part))
        scores = probes[rows] @ gallery.T
        own = probe_labels[rows][:, None] == gallery_labels
        mate[rows] = np.where(own, scores, -np.inf).max(1)
        top[rows] = scores.max(1)
        rank[rows] = 1 + (~own & (scores >= mate[rows][:, None])).sum(1)
    return rank, mate, top


# -------------------------------------------------------------------------------------------------------------- checks


def check_set(
    embeddings: np.ndarray, labels: np.ndarray | None, name: str = "embeddings"
) -> tuple[np.ndarray, np.ndarray]:
    if labels is None:
        raise ValueError(f"{name}: expected labels beside it, got none")
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    if len(embeddings) == 0:
        raise ValueError(f"{name}: expected at least one embedding, got none")
    if labels.shape != (len(embeddings),):
        raise ValueError(f"{name}: {len(embeddings)} embeddings but labels of shape {labels.shape}; expected one each")
    return check_embeddings(embeddings).astype(np.float32, copy=False), labels


def check_search(
    probes: np.ndarray, probe_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    probes, probe_labels = check_set(probes, probe_labels, "probes")
    gallery, gallery_labels = check_set(gallery, gallery_labels, "gallery")
    require_two(np.unique(gallery_labels))
    if probes.shape[1] != gallery.shape[1]:
        raise ValueError(f"gallery: expected dimension {probes.shape[1]}, got {gallery.shape[1]}")
    return probes, probe_labels, gallery, gallery_labels


def require_two(identities: np.ndarray) -> None:
    if len(identities) < 2:
        raise ValueError("labels: expected at least 2 identities (there is no impostor pair otherwise), got 1")
