from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from facetransport.evaluation.descriptions import (
    DescriptionVerification,
    Match,
    Pairs,
    attribute_match,
    bayes_match,
    cosine_match,
    draw_pairs,
    gain_fraction,
    identify_descriptions,
    verify_descriptions,
)
from facetransport.evaluation.separability import best_threshold
from facetransport.evaluation.statistics import bootstrap_weights
from facetransport.world.captions import Describer

DESCRIBER = Describer(error=0.1, say_yes=0.7, say_no=0.3)
ALWAYS = np.array([[0.0, 1.0]])


def people_seen(people: int, views: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Identity (N,) and attributes bool (N, 10): eight of the person, related to one another, and two of the view."""
    leaning = rng.normal(size=(people, 1))
    lasting = rng.normal(size=(people, 8)) + leaning > np.linspace(-1, 1.5, 8)
    passing = rng.random((people * views, 2)) < 0.3
    return np.repeat(np.arange(people), views), np.concatenate([np.repeat(lasting, views, 0), passing], 1)


PERSISTENCE = np.concatenate([np.repeat(ALWAYS, 8, 0), np.full((2, 2), 0.3)])  # a view says nothing of another view


def verified(match: Match, identity: np.ndarray, **options) -> DescriptionVerification:
    """Five sets of pairs of the second half of the people, the threshold from the first half."""
    half = np.flatnonzero(identity < (identity.max() + 1) // 2)
    val = draw_pairs(identity[half], 100, 600)
    rest = np.flatnonzero(identity >= (identity.max() + 1) // 2)
    sets = [draw_pairs(identity[rest], seed, 600) for seed in range(5)]
    sets = [Pairs(rest[p.caption], rest[p.image], p.same) for p in sets]
    scores = [match.pairs(p.caption, p.image) for p in sets]
    options = {"bootstrap": 100} | options
    return verify_descriptions(match.pairs(val.caption, val.image), val.same, scores, sets, identity, **options)


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_of_pairs_are_those_of_the_block():
    rng = np.random.default_rng(0)
    match = Match(rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(7, 3)), rng.normal(size=5))
    block = match.block(np.arange(5), np.arange(7))
    np.testing.assert_allclose(block, match.queries @ match.gallery.T - match.offset[:, None], atol=1e-6)
    rows, columns = np.array([4, 0, 0]), np.array([6, 6, 1])
    np.testing.assert_allclose(match.pairs(rows, columns), block[rows, columns], atol=1e-8)
    assert match.pairs(rows, columns).dtype == np.float64


def test_what_ties_on_paper_ties():
    match = Match(np.array([[0.1, 0.2, 0.3]]), np.array([[1.0, 1, 1], [0, 3, 0], [6, 0, 0]]), np.zeros(1))
    assert np.ptp(match.block(np.array([0]), np.arange(3))) == 0 < 0.1 + 0.2 + 0.3 - 0.6


def test_cosines_are_of_unit_vectors():
    match = cosine_match(np.eye(3), np.eye(3)[::-1])
    np.testing.assert_array_equal(match.block(np.arange(3), np.arange(3)), np.eye(3)[::-1])
    with pytest.raises(ValueError, match="unit norm"):
        cosine_match(2 * np.eye(3), np.eye(3))


@pytest.mark.parametrize(
    ("queries", "gallery", "offset", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), np.zeros(2), r"\(2, 3\), \(4, 2\), \(2,\)"),
        (np.ones((2, 3)), np.ones((4, 3)), np.zeros(4), r"expected \(N, D\), \(M, D\), \(N,\)"),
        (np.ones(3), np.ones((4, 3)), np.zeros(3), r"expected \(N, D\)"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), np.zeros(2), "queries: expected finite"),
        (np.ones((2, 3)), np.ones((4, 3)), np.full(2, np.inf), "offset: expected finite"),
    ],
)
def test_a_match_is_checked(queries, gallery, offset, message):
    with pytest.raises(ValueError, match=message):
        Match(queries, gallery, offset)


# -------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("protocol", ["other", "same"])
def test_pairs_are_what_the_protocol_says(protocol):
    identity = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 4))
    pairs = draw_pairs(identity, 3, 240, protocol)
    assert len(pairs) == 240 and pairs.same.sum() == 120
    np.testing.assert_array_equal(identity[pairs.caption] == identity[pairs.image], pairs.same)
    genuine = pairs.caption[pairs.same], pairs.image[pairs.same]
    assert (genuine[0] == genuine[1]).all() == (protocol == "same") != (genuine[0] != genuine[1]).all()
    for chosen in (pairs.same, ~pairs.same):  # every caption once before any comes twice
        np.testing.assert_array_equal(np.sort(pairs.caption[chosen]), np.arange(120))
    again, another = draw_pairs(identity, 3, 240, protocol), draw_pairs(identity, 4, 240, protocol)
    np.testing.assert_array_equal(again.image, pairs.image)
    assert (another.image != pairs.image).any()


def test_images_are_drawn_uniformly():
    identity = np.array([0, 0, 0, 1, 1, 2])
    pairs = draw_pairs(identity, 0, 12_000, "same")
    counts = np.zeros((6, 6))
    np.add.at(counts, (pairs.caption[~pairs.same], pairs.image[~pairs.same]), 1)
    allowed = identity[:, None] != identity
    assert (counts[~allowed] == 0).all()
    np.testing.assert_allclose(counts[allowed], (1000 / np.repeat([3, 4, 5], [9, 8, 5])), rtol=0.2)
    pairs = draw_pairs(identity[:5], 0, 12_000)
    counts = np.zeros((5, 5))
    np.add.at(counts, (pairs.caption[pairs.same], pairs.image[pairs.same]), 1)
    np.testing.assert_allclose(counts[:3, :3], 600 * (1 - np.eye(3)), rtol=0.2)


def test_hard_negatives_share_the_group():
    identity = np.repeat(np.arange(40), 3)
    groups = np.random.default_rng(1).integers(0, 4, 40)[identity]
    groups[identity == 7] = 9  # alone in its group
    hard = draw_pairs(identity, 0, 600, groups=groups)
    assert (groups[hard.caption] == groups[hard.image]).all()
    np.testing.assert_array_equal(identity[hard.caption] == identity[hard.image], hard.same)
    assert 7 not in identity[hard.caption[~hard.same]] and 7 in identity[hard.caption[hard.same]]
    easy = draw_pairs(identity, 0, 600)
    assert (groups[easy.caption] != groups[easy.image]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0, 1], 0, 6), "person 1 has one image"),
        (([0, 0], 0, 6), "at least 2 people, got 1"),
        (([0, 0, 1, 1], 0, 5), "even number of pairs, got 5"),
        (([0, 0, 1, 1], 0, 6, "any"), "'other' or 'same', got 'any'"),
        (([0, 0, 1, 1], 0, 6, "other", [0, 0, 1, 1]), "no group holds two people"),
        (([0, 0, 1, 1], 0, 6, "other", [0, 0, 1]), r"got \(4,\) and \(3,\)"),
    ],
)
def test_pairs_that_cannot_be_drawn(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_pairs(*arguments)


# ------------------------------------------------------------------------------------------------------- verification


def test_numbers_are_those_of_a_plain_count():
    rng = np.random.default_rng(2)
    identity = np.repeat(np.arange(20), 3)
    sets = [draw_pairs(identity, seed, 200) for seed in range(3)]
    scores = [np.round(rng.normal(size=200) + p.same, 1) for p in sets]  # ties
    val_same = np.arange(100) < 50
    val = rng.normal(size=100) + val_same
    got = verify_descriptions(val, val_same, scores, sets, identity, bootstrap=50)
    assert got.threshold == best_threshold(val[val_same], val[~val_same])
    hits = [
        ((s >= got.threshold)[p.same].mean() + (s < got.threshold)[~p.same].mean()) / 2
        for s, p in zip(scores, sets, strict=True)
    ]
    np.testing.assert_allclose(got.sets, hits)
    assert got.accuracy.value == pytest.approx(np.mean(hits)) and got.accuracy.n == 600
    genuine, impostor = ([s[p.same == k] for s, p in zip(scores, sets, strict=True)] for k in (True, False))
    wins = [np.mean((g[:, None] > i) + 0.5 * (g[:, None] == i)) for g, i in zip(genuine, impostor, strict=True)]
    assert got.auc.value == pytest.approx(np.mean(wins))
    assert got.accuracy.low < got.accuracy.value < got.accuracy.high
    assert got.auc.low < got.auc.value < got.auc.high and got.eer.low < got.eer.value < got.eer.high
    assert abs(got.samples.mean() - got.accuracy.value) < 0.02 and got.samples.shape == (50,)


def test_the_bootstrap_counts_people():
    """A resample by hand: a genuine pair as often as its person, an impostor pair as the product."""
    identity = np.repeat(np.arange(6), 2)
    pairs = draw_pairs(identity, 0, 40)
    scores = np.random.default_rng(0).normal(size=40) + pairs.same
    got = verify_descriptions(
        np.array([1.0, 0.0]), np.array([True, False]), [scores], [pairs], identity, bootstrap=8, seed=5
    )
    w = bootstrap_weights(6, 8, 5)[:, identity]
    pair = np.where(pairs.same, w[:, pairs.caption], w[:, pairs.caption] * w[:, pairs.image])
    right = (scores >= 0.5) == pairs.same
    rates = [(pair * right)[:, k].sum(1) / pair[:, k].sum(1) for k in (pairs.same, ~pairs.same)]
    np.testing.assert_allclose(got.samples, np.mean(rates, 0), rtol=1e-6)


def test_the_threshold_never_looks_at_the_test():
    identity = np.repeat(np.arange(10), 2)
    pairs = draw_pairs(identity, 0, 100)
    val_same = np.arange(40) < 20
    val = np.random.default_rng(0).normal(size=40) + 2 * val_same
    here, there = (
        verify_descriptions(val, val_same, [pairs.same + shift], [pairs], identity, bootstrap=10)
        for shift in (0.3, 100.0)
    )
    assert here.threshold == there.threshold and here.accuracy.value == 1 and there.accuracy.value == 0.5
    assert there.auc.value == 1


def test_random_scores_are_chance():
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(200), 3)
    match = Match(rng.normal(size=(600, 8)), rng.normal(size=(600, 8)), rng.normal(size=600))
    got = verified(match, identity)
    assert got.accuracy.low < 0.5 < got.accuracy.high and abs(got.accuracy.value - 0.5) < 0.03
    assert abs(got.auc.value - 0.5) < 0.03 and abs(got.eer.value - 0.5) < 0.03
    found = identify_descriptions(match, np.arange(0, 600, 3), np.arange(1, 600, 3), 20, ranks=(1, 10), bootstrap=100)
    assert abs(found.rank[1].value - 0.05) < 0.02 and found.rank[10].low < 0.5 < found.rank[10].high


def test_intervals_cover():
    """40 worlds whose people differ in how well their pairs score: the interval holds the truth in at least 36."""
    identity, spread = np.repeat(np.arange(50), 3), 0.7
    truth = norm.cdf(0.5 / np.hypot(1, spread)) / 2 + norm.cdf(0.5 / np.sqrt(1 + 2 * spread**2)) / 2
    inside, widths, values = 0, [], []
    for world in range(40):
        rng = np.random.default_rng(world)
        ease, pull = spread * rng.normal(size=(2, 50))
        sets = [draw_pairs(identity, seed, 300) for seed in range(2)]
        scores = []
        for p in sets:
            one, two = identity[p.caption], identity[p.image]
            scores.append(np.where(p.same, 1 + ease[one], pull[one] + pull[two]) + rng.normal(size=300))
        got = verify_descriptions(np.array([1.0, 0]), np.array([True, False]), scores, sets, identity, bootstrap=200)
        inside += got.accuracy.low <= truth <= got.accuracy.high
        widths.append(got.accuracy.high - got.accuracy.low)
        values.append(got.accuracy.value)
    assert inside >= 36
    assert 3 < np.mean(widths) / np.std(values) < 6  # 3.9 for a normal; the pigeonhole bootstrap errs on the wide side


def test_bad_scores_are_refused():
    identity = np.repeat(np.arange(5), 2)
    pairs = draw_pairs(identity, 0, 20)
    val, val_same, test = np.array([1.0, 0]), np.array([True, False]), pairs.same.astype(float)
    with pytest.raises(ValueError, match=r"test_scores: expected one score a pair \(20,\), got \(19,\)"):
        verify_descriptions(val, val_same, [test[:19]], [pairs], identity)
    with pytest.raises(ValueError, match="val_scores: expected genuine and impostor pairs, got 2 and 0"):
        verify_descriptions(val, np.array([True, True]), [test], [pairs], identity)
    with pytest.raises(ValueError, match="test_scores: expected finite"):
        verify_descriptions(val, val_same, [np.full(20, np.nan)], [pairs], identity)
    with pytest.raises(ValueError, match="zip"):
        verify_descriptions(val, val_same, [test, test], [pairs], identity)


# ----------------------------------------------------------------------------------------------------- identification


def test_pure_ties_are_k_of_size():
    match = Match(np.ones((13, 1)), np.ones((13, 1)), np.zeros(13))
    found = identify_descriptions(match, np.arange(13), np.arange(13), 5, ranks=(1, 2, 5), repeats=3, bootstrap=10)
    np.testing.assert_allclose(found.cmc, np.arange(1, 6) / 5, atol=1e-12)
    assert {k: round(v.value, 12) for k, v in found.rank.items()} == {1: 0.2, 2: 0.4, 5: 1.0}
    assert found.rank[1].low == pytest.approx(0.2) == found.rank[1].high and found.rank[1].n == 13


def test_ranks_of_a_known_gallery():
    """Own scores 3, 1, 0 in one gallery: nobody better; one better and one tie; one better and one tie."""
    scores = np.array([[3.0, 1, 2], [5, 1, 1], [0, 9, 0]])
    match = Match(np.eye(3), scores.T, np.zeros(3))
    found = identify_descriptions(match, np.arange(3), np.arange(3), 3, ranks=(1, 2, 3), repeats=2, bootstrap=20)
    np.testing.assert_allclose(found.cmc, [1 / 3, 2 / 3, 1])
    assert [found.rank[k].value for k in (1, 2, 3)] == pytest.approx(found.cmc.tolist())


def test_captions_meet_their_own_image_among_the_right_number():
    """A perfect matcher but for strangers: person k's caption fails only beside person k + 1 (mod 12)."""
    people = 12
    scores = 2 * np.eye(people) + 3 * np.roll(np.eye(people), 1, 1)
    match = Match(np.eye(people), scores.T, np.zeros(people))
    rows = np.arange(people)
    found = identify_descriptions(match, rows, rows, 4, ranks=(1, 2), repeats=400, bootstrap=50)
    assert found.rank[1].value == pytest.approx(1 - 3 / 11, abs=0.02) and found.rank[2].value == 1
    uneven = identify_descriptions(
        match, rows, rows, 5, ranks=(1, 2), repeats=400, bootstrap=50
    )  # 12 = 5 + 5 + 2 (+ 3)
    assert uneven.rank[1].value == pytest.approx(1 - 4 / 11, abs=0.02) and len(uneven.cmc) == 5
    whole = identify_descriptions(match, rows, rows, people, ranks=(1, 2), repeats=1, bootstrap=50)
    assert whole.rank[1].value == 0 and whole.rank[2].value == 1
    shuffled = identify_descriptions(match, rows[::-1], rows[::-1], people, ranks=(2,), repeats=1, bootstrap=50)
    assert shuffled.rank[2].value == 1


@pytest.mark.parametrize(
    ("images", "size", "options", "message"),
    [
        (5, 4, {}, "6 captions, 5 images and size 4"),
        (6, 7, {}, "2 <= size <= people"),
        (6, 1, {}, "2 <= size <= people"),
        (6, 4, {"ranks": (1, 5)}, r"expected 1 to 4 and repeats >= 1, got \(1, 5\)"),
        (6, 4, {"ranks": (1,), "repeats": 0}, "repeats >= 1"),
    ],
)
def test_galleries_that_cannot_be(images, size, options, message):
    match = Match(np.ones((6, 1)), np.ones((6, 1)), np.zeros(6))
    with pytest.raises(ValueError, match=message):
        identify_descriptions(match, np.arange(6), np.arange(images), size, **options)


# -------------------------------------------------------------------------------------------- what the words can hold


@pytest.mark.parametrize("persistence", [None, np.array([[0.0, 1.0], [0.2, 0.6]])])
def test_bayes_is_the_optimum_of_a_world_small_enough_to_list(persistence):
    """All 9 captions x 4 faces, from the definition: half the sum of the larger of the two joint probabilities."""
    share = np.array([4, 1, 2, 3])
    faces = np.array(list(product([False, True], repeat=2)))
    said = np.array(list(product([-1, 0, 1], repeat=2)), np.int8)
    table, keep = DESCRIBER.likelihood_table(), ALWAYS.repeat(2, 0) if persistence is None else persistence
    likelihood = np.ones((9, 4))
    for (q, caption), (n, face) in product(enumerate(said), enumerate(faces)):
        for a in range(2):
            shown = keep[a, int(face[a])]
            likelihood[q, n] *= shown * table[1, caption[a] + 1] + (1 - shown) * table[0, caption[a] + 1]
    face_p = share / share.sum()
    genuine, impostor = likelihood * face_p, (likelihood @ face_p)[:, None] * face_p
    best = np.maximum(genuine, impostor).sum() / 2
    match = bayes_match(DESCRIBER, said, faces, faces.repeat(share, 0), persistence)
    scores = match.block(np.arange(9), np.arange(4))
    np.testing.assert_allclose(scores, np.log(genuine / impostor), atol=1e-8)
    assert (genuine[scores >= 0].sum() + impostor[scores < 0].sum()) / 2 == pytest.approx(best)
    if persistence is None:
        joint = match.block(np.arange(9), np.arange(4)) + match.offset[:, None]
        np.testing.assert_allclose(joint, DESCRIBER.log_likelihood(said, faces), atol=1e-8)


def test_bayes_beats_every_other_reader():
    rng = np.random.default_rng(0)
    identity, attributes = people_seen(300, 3, rng)
    _, population = people_seen(2000, 1, rng)
    said = DESCRIBER.say(attributes, rng)
    bayes = verified(bayes_match(DESCRIBER, said, attributes, population, PERSISTENCE), identity)
    signs, zero = 2.0 * attributes - 1, np.zeros(len(said))
    others = {
        "agreements": Match(np.where(said < 0, 0, 2.0 * said - 1), signs, zero),
        "present": Match((said == 1) * 1.0, attributes * 1.0, zero),
        "no persistence": bayes_match(DESCRIBER, said, attributes, population),
        "independent": attribute_match(DESCRIBER, said, attributes * 1.0, population.mean(0), PERSISTENCE),
    }
    for name, match in others.items():
        other = verified(match, identity)
        assert bayes.accuracy.value > other.accuracy.value - 0.005 and bayes.auc.value > other.auc.value, name
        share = gain_fraction(other, bayes)
        assert 0.3 < share.low < share.value < share.high < 1.05, name
    assert abs(bayes.threshold) < 0.5  # equal priors: the ratio one
    rows = np.flatnonzero(np.arange(900) % 3 == 0)
    ranked = {k: identify_descriptions(m, rows, rows + 1, 50).rank[1].value for k, m in others.items()}
    best = identify_descriptions(bayes_match(DESCRIBER, said, attributes, population, PERSISTENCE), rows, rows + 1, 50)
    assert best.rank[1].value >= max(ranked.values()) - 0.01 and best.rank[1].value > ranked["present"]


def test_hard_negatives_need_the_evidence_of_their_group():
    """Where impostors share an attribute, naming it proves nothing: the exact ratio knows, the easy one does not."""
    rng = np.random.default_rng(3)
    population = rng.random((4000, 4)) < 0.5
    faces = np.array(list(product([False, True], repeat=4)))
    said = np.array(list(product([-1, 0, 1], repeat=4)), np.int8)
    rows, group = np.flatnonzero(np.ones(81)), np.zeros(81, int)
    hard = bayes_match(DESCRIBER, said, faces, population, None, group, population[:, 0].astype(int))
    easy = bayes_match(DESCRIBER, said, faces, population[~population[:, 0]])
    np.testing.assert_allclose(hard.offset, easy.offset)
    named = rows[(said[:, 1:] == -1).all(1) & (said[:, 0] == 0)]
    women = np.flatnonzero(~faces[:, 0])
    silent = DESCRIBER.likelihood_table()[:, 0]
    expected = np.log(silent[faces[women, 1:].astype(int)]).sum(1) - np.log(
        silent[population[~population[:, 0], 1:].astype(int)].prod(1).mean()
    )
    np.testing.assert_allclose(hard.block(named, women)[0], expected, atol=1e-8)  # nothing left of the first attribute


def test_certain_beliefs_are_bayes_of_independent_attributes():
    rng = np.random.default_rng(0)
    faces = np.array(list(product([False, True], repeat=3)))
    said = DESCRIBER.say(faces, rng)
    keep = np.array([[0.0, 1.0], [0.1, 0.7], [0.5, 0.5]])
    exact = bayes_match(DESCRIBER, said, faces, faces, keep)  # all faces once: independent, each attribute half present
    soft = attribute_match(DESCRIBER, said, faces * 1.0, np.full(3, 0.5), keep)
    np.testing.assert_allclose(soft.offset, exact.offset)
    np.testing.assert_allclose(soft.block(np.arange(8), np.arange(8)), exact.block(np.arange(8), np.arange(8)))
    blank = attribute_match(DESCRIBER, said, np.full((2, 3), 0.5), np.full(3, 0.5), keep)
    np.testing.assert_array_equal(blank.block(np.arange(8), np.arange(2)), 0)  # who believes the prior learns nothing


def test_infallible_describers_stay_finite():
    faces = np.eye(3, dtype=bool)
    said = np.ones((1, 3), np.int8)  # of nobody
    match = bayes_match(
        Describer(error=0, say_yes=1, say_no=1), np.concatenate([said, faces.astype(np.int8)]), faces, faces
    )
    scores = match.block(np.arange(4), np.arange(3))
    np.testing.assert_allclose(np.diag(scores[1:]), np.log(3), atol=1e-8)
    assert (scores[1:][~np.eye(3, dtype=bool)] < -1000).all()


def test_gains_are_paired():
    identity = np.repeat(np.arange(40), 3)
    rng = np.random.default_rng(0)
    face = rng.normal(size=(40, 6))[identity]
    match = Match(face + rng.normal(size=face.shape), face, np.zeros(120))
    bound = verified(match, identity)
    itself = gain_fraction(bound, bound)
    assert (itself.value, itself.low, itself.high) == (1, 1, 1) and itself.n == bound.accuracy.n
    with pytest.raises(ValueError, match="same"):
        gain_fraction(bound, verified(match, identity, seed=1))
    silent = gain_fraction(*[verified(match, identity, bootstrap=0)] * 2)
    assert silent.value == 1 and np.isnan(silent.low)
    useless = verified(Match(np.ones((120, 1)), np.ones((120, 1)), np.zeros(120)), identity)
    with pytest.raises(ValueError, match="above chance, got 0.5000"):
        gain_fraction(bound, useless)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"said": np.full((2, 3), 2)}, "of -1, 0, 1"),
        ({"said": np.zeros((2, 4))}, r"said: expected \(N, 3\)"),
        ({"attributes": np.zeros((2, 3))}, "attributes: expected bool"),
        ({"population": np.zeros((5, 2), bool)}, r"population: expected \(R, 3\), got \(5, 2\)"),
        ({"population": np.zeros((0, 3), bool)}, "population: expected bool"),
        ({"persistence": np.zeros((3, 3))}, r"persistence: expected probabilities \(3, 2\)"),
        ({"persistence": np.full((3, 2), 1.5)}, "persistence"),
        ({"groups": np.zeros(2)}, "groups, population_groups: expected"),
        ({"groups": np.ones(2), "population_groups": np.zeros(5)}, "nobody of group 1"),
    ],
)
def test_bayes_refuses(change, message):
    good = {
        "said": np.zeros((2, 3), np.int8),
        "attributes": np.zeros((4, 3), bool),
        "population": np.zeros((5, 3), bool),
    }
    with pytest.raises(ValueError, match=message):
        bayes_match(DESCRIBER, **(good | change))


@pytest.mark.parametrize(
    ("probabilities", "prior", "message"),
    [
        (np.full((2, 3), 0.5), np.full(2, 0.5), r"got \(2, 3\), \(2,\)"),
        (np.full((2, 3), 1.5), np.full(3, 0.5), "probabilities: expected values in 0..1"),
        (np.full((2, 3), 0.5), np.full(3, np.nan), "prior: expected values in 0..1"),
    ],
)
def test_attribute_match_refuses(probabilities, prior, message):
    with pytest.raises(ValueError, match=message):
        attribute_match(DESCRIBER, np.zeros((1, 3), np.int8), probabilities, prior)
