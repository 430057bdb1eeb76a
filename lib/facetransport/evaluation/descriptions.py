"""Matching descriptions to faces: pairs, verification, identification, and the best that the words allow.

Protocols of DiFace (2312.01367; papers.md 1.6). Caption row i describes image row i; a score says how well caption and
image agree. A genuine pair is a caption with ANOTHER image of its person ("other": nothing of the photograph itself,
such as its smile, leaks into the caption) or with its own image ("same"). Verification fixes its threshold on
validation people; identification ranks a closed gallery of one image per person.

The describer is known (``world.captions.Describer``), so the likelihood ratio of "same person" against "random person"
can be computed for images whose true attributes are known: no matcher that sees only caption and image does better on
average (Neyman and Pearson). What a method reaches of that bound is ``gain_fraction``.

Intervals resample people: pairs of one person are not independent, people are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from facetransport.evaluation import separability as curves
from facetransport.evaluation.protocols import BLOCK, Identification, chunks
from facetransport.evaluation.separability import ErrorRates
from facetransport.evaluation.statistics import Estimate, bootstrap_weights, estimate, weighted_mean
from facetransport.evaluation.statistics import bootstrap as bootstrap_estimate
from facetransport.recognition.recogniser import check_embeddings
from facetransport.world.captions import ABSENT, PRESENT, UNSAID, Describer, one_hot

DECIMALS = 9  # of a score: what ties on paper must not be told apart by the order of a sum
IMPOSSIBLE = 1e-300  # probability of what cannot be said: its logarithm stays finite
RESAMPLED_BINS = 512  # of score histograms in resamples; values on the data are exact


# ------------------------------------------------------------------------------------------------------------- scores


class Scores(Protocol):
    """Whatever scores pairs of a caption and an image."""

    def pairs(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """float64 (P,): the scores of caption_rows[p] with image_rows[p]; int (P,) each."""
        ...


@dataclass(frozen=True)
class Match:
    """Captions against images: score(q, n) = queries[q] @ gallery[n] - offset[q], rounded to ``DECIMALS``.

    queries: float (N, D), one row a caption; gallery: float (M, D), one row an image; offset: float (N,).
    """

    queries: np.ndarray
    gallery: np.ndarray
    offset: np.ndarray

    def __post_init__(self) -> None:
        n, d = self.queries.shape if self.queries.ndim == 2 else (0, 0)
        if not n or self.gallery.ndim != 2 or self.gallery.shape[1] != d or self.offset.shape != (n,):
            got = f"{self.queries.shape}, {self.gallery.shape}, {self.offset.shape}"
            raise ValueError(f"queries, gallery, offset: expected (N, D), (M, D), (N,) with N >= 1, got {got}")
        for name in ("queries", "gallery", "offset"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name}: expected finite values, found NaN or inf")

    def pairs(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """float64 (P,): the scores of caption_rows[p] with image_rows[p]; int (P,) each."""
        queries, images = self.queries[caption_rows], self.gallery[image_rows]
        product = np.einsum("pd,pd->p", queries, images, dtype=np.float64)
        return np.round(product - self.offset[caption_rows], DECIMALS)

    def block(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """float64 (Q, M'): the scores of every caption row (Q,) with every image row (M',)."""
        queries, images = self.queries[caption_rows].astype(np.float64), self.gallery[image_rows].astype(np.float64)
        return np.round(queries @ images.T - self.offset[caption_rows, None], DECIMALS)


@dataclass(frozen=True)
class MixtureMatch:
    """Captions of which it is only known how probable each statement is: score(q, n) = sum_a log sum_k stated[q, a, k]
    ratio[n, a, k], rounded to ``DECIMALS``: the mean, over what may have been said, of its likelihood ratio.

    stated: float (N, A, 3), unsaid, said absent, said present; ratio: float (M, A, 3), P(k | image) / P(k).
    """

    stated: np.ndarray
    ratio: np.ndarray

    def pairs(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """As `Match`."""
        means = np.einsum("pak,pak->pa", self.stated[caption_rows], self.ratio[image_rows])
        return np.round(np.log(means).sum(1), DECIMALS)

    def block(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """As `Match`; a caption at a time, which bounds memory."""
        ratio = self.ratio[image_rows]
        logs = [np.log(np.einsum("ak,mak->ma", self.stated[row], ratio)).sum(1) for row in caption_rows]
        return np.round(np.stack(logs), DECIMALS)


Matched = Match | MixtureMatch


def cosine_match(queries: np.ndarray, gallery: np.ndarray) -> Match:
    """Cosines of unit vectors (N, D) and (M, D), as every method in the recogniser's space has them."""
    return Match(check_embeddings(queries), check_embeddings(gallery), np.zeros(len(queries)))


# -------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pairs:
    """caption: int64 (P,), row of the caption; image: int64 (P,), row of the image; same: bool (P,), of one person."""

    caption: np.ndarray
    image: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


def draw_pairs(
    identity: np.ndarray, seed: int, n: int = 6000, protocol: str = "other", groups: np.ndarray | None = None
) -> Pairs:
    """n pairs of caption i (it describes image i) and an image; the first half genuine, the others impostors.

    identity: int (N,). protocol: "other" (genuine images are other images of the person) or "same" (the described one).
    groups: int (N,), such as gender and age band: hard negatives, impostors come from the caption's group.

    Every caption is drawn once before any is drawn twice; images are drawn uniformly among those that qualify. Captions
    without anybody else in their group draw no impostor. ValueError: a person with one image under "other", or nobody
    to tell apart.
    """
    identity = np.asarray(identity)
    groups = np.zeros(len(identity), np.int64) if groups is None else np.asarray(groups)
    check_pairs(identity, n, protocol, groups)
    rng = np.random.default_rng(seed)
    caption = cycle(np.arange(len(identity)), n // 2, rng)
    image = caption if protocol == "same" else another_of_the_person(identity, caption, rng)
    accused, other = impostors(identity, groups, n // 2, rng)
    same = np.arange(n) < n // 2
    return Pairs(np.concatenate([caption, accused]), np.concatenate([image, other]), same)


def check_pairs(identity: np.ndarray, n: int, protocol: str, groups: np.ndarray) -> None:
    if identity.ndim != 1 or groups.shape != identity.shape:
        raise ValueError(f"identity, groups: expected (N,) each, got {identity.shape} and {groups.shape}")
    if n < 2 or n % 2:
        raise ValueError(f"n: expected an even number of pairs, got {n}")
    if protocol not in ("other", "same"):
        raise ValueError(f"protocol: expected 'other' or 'same', got {protocol!r}")
    people, images = np.unique(identity, return_counts=True)
    if len(people) < 2:
        raise ValueError(f"identity: expected at least 2 people, got {len(people)}")
    if protocol == "other" and images.min() < 2:
        lonely = people[np.argmin(images)]
        raise ValueError(f"identity: person {lonely} has one image; leave such people out or use protocol='same'")


def cycle(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """int64 (n,): rows in random order, each once before any comes again."""
    return np.concatenate([rng.permutation(rows) for _ in range(-(-n // len(rows)))])[:n]


def another_of_the_person(identity: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 (n,): for every row another row of its person."""
    order = np.argsort(identity, kind="stable")
    place = np.argsort(order)  # of a row in the order
    first, count = spans(identity[order], identity[rows])
    step = rng.integers(1, count)
    return order[first + (place[rows] - first + step) % count]


def impostors(
    identity: np.ndarray, groups: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """int64 (n,), (n,): caption rows, and for each an image row of another person of its group, uniformly."""
    group, person = np.unique(groups, return_inverse=True)[1], np.unique(identity, return_inverse=True)[1]
    key = group * (person.max() + 1) + person  # people of a group lie side by side
    order = np.argsort(key, kind="stable")
    start, size = spans(group[order], group)
    own, mine = spans(key[order], key)
    eligible = np.flatnonzero(size > mine)
    if not len(eligible):
        raise ValueError("groups: no group holds two people, so there is no impostor; use coarser groups")
    rows = cycle(eligible, n, rng)
    place = start[rows] + rng.integers(0, (size - mine)[rows])
    return rows, order[np.where(place >= own[rows], place + mine[rows], place)]  # step over the caption's own images


def spans(ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value begins in a sorted array, and how often it is there."""
    first = np.searchsorted(ordered, values)
    return first, np.searchsorted(ordered, values, "right") - first


# ------------------------------------------------------------------------------------------------------- verification


@dataclass(frozen=True)
class DescriptionVerification:
    """Verification at a threshold of other people, averaged over sets of test pairs.

    accuracy: balanced, mean of true match and true non-match rate. sets: (S,), accuracy of each set of pairs.
    threshold: fixed on validation; a score that reaches it is a match. samples: (bootstrap,), accuracy of the
    resamples, drawn with ``seed``: two verifications of the same pairs and seed are paired (``gain_fraction``).
    """

    accuracy: Estimate
    eer: Estimate
    auc: Estimate
    sets: np.ndarray
    threshold: float
    seed: int
    samples: np.ndarray = field(repr=False)


def verify_descriptions(
    val_scores: np.ndarray,
    val_same: np.ndarray,
    test_scores: Sequence[np.ndarray],
    test_pairs: Sequence[Pairs],
    identity: np.ndarray,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> DescriptionVerification:
    """Verify test pairs at the threshold that is best (balanced accuracy) on validation pairs.

    val_scores, val_same: (V,) scores and labels of validation pairs. test_scores: S arrays (P,), of test_pairs.
    identity: int (N,), whose image a row of the test set is. Values are means over the S sets.

    Intervals: people are drawn with replacement; a genuine pair counts as often as its person, an impostor pair as the
    product of its two people's counts, pooled over the sets; the threshold stays. This is Owen's pigeonhole bootstrap
    (2007), which errs on the wide side.
    """
    val_same = check_scores(val_scores, val_same, "val_scores")
    same = [check_scores(s, p.same, "test_scores") for s, p in zip(test_scores, test_pairs, strict=True)]
    threshold = curves.best_threshold(val_scores[val_same], val_scores[~val_same])
    sets = np.array([balanced(s >= threshold, truth) for s, truth in zip(test_scores, same, strict=True)])
    exact = [ErrorRates.of(*exact_histograms(s, truth)) for s, truth in zip(test_scores, same, strict=True)]
    genuine, impostor, k = resampled_histograms(test_scores, test_pairs, threshold, identity, bootstrap, seed)
    rates = ErrorRates.of(genuine, impostor)
    samples, n = 1 - (rates.fmr[:, k] + rates.fnmr[:, k]) / 2, sum(map(len, same))
    return DescriptionVerification(
        accuracy=estimate(sets.mean(), samples, n),
        eer=estimate(np.mean([e.eer() for e in exact]), rates.eer(), n),
        auc=estimate(np.mean([e.auc() for e in exact]), rates.auc(), n),
        sets=sets,
        threshold=threshold,
        seed=seed,
        samples=samples,
    )


def check_scores(scores: np.ndarray, same: np.ndarray, name: str) -> np.ndarray:
    same = np.asarray(same, bool)
    if scores.shape != same.shape or same.ndim != 1:
        raise ValueError(f"{name}: expected one score a pair {same.shape}, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name}: expected finite scores, found NaN or inf")
    if same.all() or not same.any():
        raise ValueError(f"{name}: expected genuine and impostor pairs, got {same.sum()} and {(~same).sum()}")
    return same


def balanced(match: np.ndarray, same: np.ndarray) -> float:
    """Balanced accuracy of decisions bool (P,)."""
    return float(match[same].mean() + 1 - match[~same].mean()) / 2


def exact_histograms(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Genuine and impostor counts with a bin for each distinct score."""
    bins, places = np.unique(scores, return_inverse=True)
    return np.bincount(places[same], minlength=len(bins)), np.bincount(places[~same], minlength=len(bins))


def resampled_histograms(
    scores: Sequence[np.ndarray],
    pairs: Sequence[Pairs],
    threshold: float,
    identity: np.ndarray,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Genuine and impostor histograms (resamples, bins) of the pooled pairs, and the bin that starts at the threshold.

    Bins are quantiles of all scores, so that their resolution lies where the scores are.
    """
    pooled, same = np.concatenate(scores), np.concatenate([p.same for p in pairs])
    edges = np.union1d(np.quantile(pooled, np.linspace(0, 1, RESAMPLED_BINS)[1:-1], method="lower"), threshold)
    bins = np.searchsorted(edges, pooled, "right")
    person = np.unique(identity, return_inverse=True)[1]
    left, right = (person[np.concatenate([getattr(p, rows) for p in pairs])] for rows in ("caption", "image"))
    counts = bootstrap_weights(int(person.max()) + 1, resamples, seed).T.astype(np.float32)
    genuine = weighted_histograms(bins[same], len(edges) + 1, counts, left[same])
    impostor = weighted_histograms(bins[~same], len(edges) + 1, counts, left[~same], right[~same])
    return genuine, impostor, int(np.searchsorted(edges, threshold)) + 1


def weighted_histograms(
    bins: np.ndarray, size: int, counts: np.ndarray, left: np.ndarray, right: np.ndarray | None = None
) -> np.ndarray:
    """float64 (R, size): how often each bin is met when pairs count as their people do, counts (people, R)."""
    falls = csr_array((np.ones(len(bins), np.float32), (bins, np.arange(len(bins)))), (size, len(bins)))
    step = max(1, BLOCK // len(bins))
    parts = [counts[:, start : start + step] for start in range(0, counts.shape[1], step)]
    weighted = [falls @ (part[left] if right is None else part[left] * part[right]) for part in parts]
    return np.concatenate([np.zeros((size, 0)), *weighted], axis=1).T.astype(np.float64)


def gain_fraction(method: DescriptionVerification, bound: DescriptionVerification) -> Estimate:
    """(accuracy - 1/2) / (bound's accuracy - 1/2): the share of what the words allow that a method reaches.

    The interval is paired: both were resampled with the same people (same pairs, seed and number of resamples).
    """
    drawn = [(v.accuracy.n, v.seed, len(v.samples)) for v in (method, bound)]
    if drawn[0] != drawn[1]:
        raise ValueError(f"method, bound: expected the same (pairs, seed, resamples), got {drawn[0]} and {drawn[1]}")
    if bound.accuracy.value <= 0.5:
        raise ValueError(f"bound: expected an accuracy above chance, got {bound.accuracy.value:.4f}")
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = (method.samples - 0.5) / (bound.samples - 0.5)
    return estimate((method.accuracy.value - 0.5) / (bound.accuracy.value - 0.5), samples, method.accuracy.n)


# ----------------------------------------------------------------------------------------------------- identification


def identify_descriptions(
    match: Matched,
    caption_rows: np.ndarray,
    image_rows: np.ndarray,
    size: int,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    repeats: int = 10,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Identification:
    """Closed-set identification in galleries of exactly ``size`` people, averaged over random partitions of the people.

    caption_rows, image_rows: int (P,), one caption and one image of each of P people, in the same order of people.
    The last gallery of a partition is filled up with people of the others, who are searched for only in their own.

    Ties count exactly: with b images better and t others equal, a caption finds its image among the k first with
    probability clip((k - b) / (t + 1), 0, 1), as if ties were broken at random. cmc: (size,), over people and
    partitions. rank: intervals over people; a person's value is the mean over the partitions.
    """
    people = len(caption_rows)
    if people != len(image_rows) or not 2 <= size <= people:
        got = f"{people} captions, {len(image_rows)} images and size {size}"
        raise ValueError(f"caption_rows, image_rows: expected one each a person and 2 <= size <= people, got {got}")
    if repeats < 1 or not ranks or not all(1 <= k <= size for k in ranks):
        raise ValueError(f"ranks: expected 1 to {size} and repeats >= 1, got {tuple(ranks)} and {repeats}")
    rng = np.random.default_rng(seed)
    drawn = [partition_places(match, caption_rows, image_rows, size, rng) for _ in range(repeats)]
    better, ties = np.array(drawn).transpose(1, 0, 2)  # (repeats, P) each
    within = {k: np.clip((k - better) / (ties + 1), 0, 1).mean(0) for k in ranks}
    unit = np.arange(people)
    rank = {k: bootstrap_estimate(weighted_mean(v, unit), people, bootstrap, seed, people) for k, v in within.items()}
    return Identification(tied_cmc(better, ties, size), rank)


def partition_places(
    match: Matched, captions: np.ndarray, images: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """int64 (P,) each: how many images are better than a person's own in its gallery, and how many others tie."""
    order = rng.permutation(len(captions))
    better, ties = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    for start in range(0, len(order), size):
        probes = order[start : start + size]
        fill = rng.choice(order[:start], size - len(probes), replace=False) if len(probes) < size else probes[:0]
        better[probes], ties[probes] = places(match, captions[probes], images[np.concatenate([probes, fill])])
    return better, ties


def places(match: Matched, captions: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (Q,) each: how many images are better than, or tie with, a caption's own, which is images[q]."""
    better, ties = np.empty(len(captions), np.int64), np.empty(len(captions), np.int64)
    for start, part in chunks(captions, len(images)):
        scores, rows = match.block(part, images), slice(start, start + len(part))
        own = scores[np.arange(len(part)), start + np.arange(len(part)), None]
        better[rows], ties[rows] = (scores > own).sum(1), (scores == own).sum(1) - 1
    return better, ties


def tied_cmc(better: np.ndarray, ties: np.ndarray, size: int) -> np.ndarray:
    """float64 (size,): mean probability of a place among the k first; a place is uniform over better + 1 .. + ties."""
    share = (1 / (ties + 1)).ravel()
    starts = np.bincount(better.ravel(), share, size + 1)
    ends = np.bincount((better + ties + 1).ravel(), share, size + 1)
    return (starts - ends)[:size].cumsum().cumsum() / better.size


# -------------------------------------------------------------------------------------------- what the words can hold


def bayes_match(
    describer: Describer,
    said: np.ndarray,
    attributes: np.ndarray,
    population: np.ndarray,
    persistence: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    population_groups: np.ndarray | None = None,
) -> Match:
    """The log-likelihood ratio of "the caption is of this image's person" against "of a random person".

    Exact where the caption is of the gallery image itself; of another image, where attributes that vary between images
    of a person do so independently of each other given the gallery image (nearly: nobody smiles and frowns at once).

    said: int (N, A) in {-1 unsaid, 0, 1}. attributes: bool (M, A), the images' true ones. population: bool (R, A),
    attributes of images of people to whom the caption could belong instead.
    persistence: float (A, 2), P(present in the described image | absent, present in the gallery image of the person);
    None where the caption is of the gallery image itself.
    groups, population_groups: int (N,), (R,): where impostors come from the caption's group (hard negatives), "a random
    person" is one of that group; the image shows the group, so knowing it takes nothing from the caption.
    """
    attributes, population = check_attributes(attributes, "attributes"), check_attributes(population, "population")
    said = check_said(said, attributes.shape[1])
    if population.shape[1] != attributes.shape[1]:
        raise ValueError(f"population: expected (R, {attributes.shape[1]}), got {population.shape}")
    symbols, offset = symbol_logs(describer, persistence, attributes.shape[1]), np.empty(len(said))
    for captions, people in by_group(len(said), len(population), groups, population_groups):
        offset[captions] = log_mean_likelihood(said[captions], population[people], symbols)
    return Match(one_hot(said), describer.log_evidence(attributes, persistence), offset)


def attribute_match(
    describer: Describer,
    said: np.ndarray,
    probabilities: np.ndarray,
    prior: np.ndarray,
    persistence: np.ndarray | None = None,
) -> Matched:
    """The same ratio by naive Bayes for images of which a classifier only believes the attributes.

    probabilities: float (M, A), of presence, in 0..1. prior: float (A,), share of people who have the attribute. said
    may be float (N, A, 2), how probable it is that absence, presence is stated (`MixtureMatch`).
    """
    probabilities, prior = np.asarray(probabilities, np.float64), np.asarray(prior, np.float64)
    if probabilities.ndim != 2 or prior.shape != probabilities.shape[1:]:
        raise ValueError(f"probabilities, prior: expected (M, A) and (A,), got {probabilities.shape}, {prior.shape}")
    for name, values in (("probabilities", probabilities), ("prior", prior)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: expected values in 0..1, got {values.min()} to {values.max()}")
    symbols = symbol_logs(describer, persistence, len(prior))
    logs, anybody = mixed(symbols, probabilities), mixed(symbols, prior[None])[0]
    if np.ndim(said) == 3:
        ratio = np.exp(logs - anybody).reshape(len(logs), -1, 3)
        return MixtureMatch(with_unsaid(said, len(prior)), ratio)
    queries = one_hot(check_said(said, len(prior)))
    return Match(queries, logs, queries @ anybody)


def symbol_logs(describer: Describer, persistence: np.ndarray | None, attributes: int) -> np.ndarray:
    """float64 (2, A, 3): log P(unsaid, said absent, said present | the gallery image's attribute absent, present)."""
    absent_present = np.repeat([[False], [True]], attributes, axis=1)
    return describer.log_evidence(absent_present, persistence).reshape(2, attributes, 3)


def mixed(symbols: np.ndarray, present: np.ndarray) -> np.ndarray:
    """float64 (M, 3 A): log-probabilities of symbols where an attribute is present with probability (M, A)."""
    absent_row, present_row = np.exp(symbols)
    probabilities = (1 - present[..., None]) * absent_row + present[..., None] * present_row
    return np.log(np.maximum(probabilities, IMPOSSIBLE)).reshape(len(present), -1)


def log_mean_likelihood(said: np.ndarray, population: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """float64 (N,): of captions (N, A) over a population (R, A); symbols: (2, A, 3)."""
    if_absent, if_present = symbols[:, np.arange(said.shape[1]), said + 1]  # (N, A) each, of what was said
    always, change = if_absent.sum(1), if_present - if_absent
    people, evidence = population.astype(np.float64).T, np.empty(len(said))
    for start, part in chunks(change, len(population)):
        evidence[start : start + len(part)] = log_mean_exp(part @ people)
    return always + evidence


def log_mean_exp(logs: np.ndarray) -> np.ndarray:
    """float64 (N,), over columns, overwriting the input: scipy's logsumexp copies and takes five times as long."""
    highest = logs.max(1)
    logs -= highest[:, None]
    return np.log(np.exp(logs, out=logs).mean(1)) + highest


def by_group(
    captions: int, people: int, groups: np.ndarray | None, population_groups: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of captions and of the population that belong together; all of them without groups."""
    if groups is None and population_groups is None:
        return [(np.arange(captions), np.arange(people))]
    shapes = [None if g is None else np.shape(g) for g in (groups, population_groups)]
    if groups is None or population_groups is None or shapes != [(captions,), (people,)]:
        raise ValueError(f"groups, population_groups: expected ({captions},) and ({people},), got {shapes}")
    missing = np.setdiff1d(groups, population_groups)
    if len(missing):
        raise ValueError(f"population_groups: nobody of group {missing[0]}, which a caption is of")
    return [(np.flatnonzero(groups == g), np.flatnonzero(population_groups == g)) for g in np.unique(groups)]


def check_said(said: np.ndarray, attributes: int) -> np.ndarray:
    said = np.asarray(said)
    if said.ndim != 2 or said.shape[1] != attributes or not np.isin(said, (UNSAID, ABSENT, PRESENT)).all():
        raise ValueError(f"said: expected (N, {attributes}) of -1, 0, 1, got {said.dtype} {said.shape}")
    return said.astype(np.int64)


def with_unsaid(stated: np.ndarray, attributes: int) -> np.ndarray:
    """float64 (N, A, 3): how probable it is that an attribute is left unsaid, said to be absent, to be present, of the
    last two, (N, A, 2); ValueError where these are no probabilities."""
    stated = np.asarray(stated, np.float64)
    unsaid = 1 - stated.sum(2, keepdims=True)
    if stated.shape[1:] != (attributes, 2) or not (stated >= 0).all() or not (unsaid > -1e-3).all():
        raise ValueError(f"said: expected probabilities (N, {attributes}, 2) of sum 1 at most, got {stated.shape}")
    return np.concatenate([np.maximum(unsaid, 0), stated], 2)


def check_attributes(attributes: np.ndarray, name: str) -> np.ndarray:
    attributes = np.asarray(attributes)
    if attributes.dtype != bool or attributes.ndim != 2 or not attributes.size:
        raise ValueError(f"{name}: expected bool (rows, A), not empty, got {attributes.dtype} {attributes.shape}")
    return attributes
