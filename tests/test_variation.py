"""Variation of generated and authentic people: by hand, by brute force, by construction."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from facetransport.evaluation import variation
from facetransport.evaluation.protocols import verify_pairs
from facetransport.evaluation.variation import authentic_variation, diversity, draw_pairs, five_modes, vendi_score


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------------- within generated people


def test_diversity_by_hand() -> None:
    """Person 0: two orthogonal images; person 1: three equal ones; person 2: opposite ones."""
    e = np.eye(4)
    found = diversity(np.stack([e[0], e[2], e[1], e[2], e[2], e[3], -e[3]]), np.array([5, 7, 5, 7, 7, 9, 9]))
    assert found.distance.value == pytest.approx((1 + 0 + 2) / 3) and found.distance.n == 3
    assert found.vendi.value == pytest.approx((2 + 1 + 1) / 3)
    assert found.distance.low == pytest.approx(0) and found.distance.high == pytest.approx(2)


def test_distance_is_the_mean_over_pairs_and_the_trace_of_the_covariance(rng) -> None:
    x = unit(rng.standard_normal((7, 5)) + 1)
    pairs = [1 - x[i] @ x[j] for i in range(7) for j in range(7) if i != j]
    assert variation.within_distance(x) == pytest.approx(np.mean(pairs))
    assert variation.within_distance(x) == pytest.approx(np.trace(np.cov(x.T)))


def test_vendi_counts_different_images(rng) -> None:
    assert vendi_score(np.eye(6)) == pytest.approx(6)
    assert vendi_score(np.repeat(np.eye(6)[:2], 5, 0)) == pytest.approx(2)
    assert 1 < vendi_score(unit(rng.standard_normal((8, 4)))) < 4


def test_intervals_come_from_people_not_from_images(rng) -> None:
    labels = np.repeat(np.arange(40), 6)
    shifts = np.repeat(np.linspace(0.5, 3, 40), 6)[:, None]
    few = diversity(unit(rng.standard_normal((240, 8)) + shifts), labels)
    assert few.distance.low < few.distance.value < few.distance.high and few.distance.n == 40
    spread = np.std(
        [variation.within_distance(p) for p in variation.by_identity(unit(shifts * np.eye(8)[0] + 1), labels)]
    )
    assert few.distance.high - few.distance.low > 0.02 > spread


# ------------------------------------------------------------------------------------- variations of authentic images


def test_authentic_variation_by_hand() -> None:
    """Image 0 varies into itself and something orthogonal, image 1 into itself twice; nothing is shared."""
    e = np.eye(4)
    found = authentic_variation(e[:2], np.stack([[e[0], e[2]], [e[1], e[1]]]), np.array([3, 8]))
    assert found.genuine.tolist() == [1, 0, 1, 1] and found.impostor.tolist() == [0, 0, 0, 0]
    assert found.similarity.value == pytest.approx(0.75)
    assert found.distance.value == pytest.approx(0.5)
    assert (found.similarity.low, found.similarity.high) == pytest.approx((0.5, 1.0))


def test_copies_are_separable_and_strangers_are_not(rng) -> None:
    real, labels = unit(rng.standard_normal((300, 16))), np.repeat(np.arange(150), 2)
    noise = rng.standard_normal((300, 4, 16))
    near = authentic_variation(real, unit(real[:, None] + 0.1 * noise), labels, resamples=50)
    far = authentic_variation(real, unit(noise), labels, resamples=50)
    assert near.eer.value < 0.001 and near.similarity.value > 0.9
    assert far.eer.value == pytest.approx(0.5, abs=0.05) and abs(far.similarity.value) < 0.03
    again = authentic_variation(real, unit(noise), labels, resamples=50)
    assert np.array_equal(again.impostor, far.impostor)
    assert not np.array_equal(authentic_variation(real, unit(noise), labels, 50, seed=1).impostor, far.impostor)


def test_someone_else_is_uniform_over_the_others(rng) -> None:
    people = np.array([2, 0, 1, 0, 2, 2])
    drawn = np.stack([variation.someone_else(people, rng) for _ in range(3000)])
    assert (people[drawn] != people).all()
    for row in range(6):
        others = np.flatnonzero(people != people[row])
        share = (drawn[:, row][:, None] == others).mean(0)
        np.testing.assert_allclose(share, 1 / len(others), atol=0.04)


# ----------------------------------------------------------------------------------- LFW's protocol with variations


def test_five_modes_by_hand() -> None:
    """Rows 0 and 1 are one person (a genuine pair), 0 and 2 are two (an impostor pair)."""
    real, varied = np.eye(6)[:3], np.eye(6)[[0, 4, 0]]
    modes = five_modes(real, varied, np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    assert {name: p.scores.tolist() for name, p in modes.items()} == {
        "real_real": [0, 0],
        "variation_variation": [0, 1],
        "real_variation": [0, 1],
        "variation_real": [0, 0],
        "real_own_variation": [1, 1],
    }


def test_modes_and_pairs_are_what_verification_takes(rng) -> None:
    people = np.repeat(np.arange(30), 6)
    real = unit(unit(rng.standard_normal((30, 32)))[people] + 0.05 * rng.standard_normal((180, 32)))
    modes = five_modes(real, unit(rng.standard_normal((180, 32))), *draw_pairs(people, 30))
    accuracy = {name: verify_pairs(*pairs).accuracy.value for name, pairs in modes.items()}
    assert accuracy["real_real"] > 0.99
    assert all(abs(accuracy[m] - 0.5) < 0.1 for m in accuracy if m != "real_real")


def test_pairs_are_lfws(rng) -> None:
    people = rng.permutation(np.repeat(np.arange(40), 5))
    left, right, same = draw_pairs(people, 12, folds=10, seed=3)
    assert np.array_equal(same, np.tile(np.repeat([True, False], 12), 10))
    assert np.array_equal(people[left] == people[right], same) and (left != right).all()
    assert len({frozenset(p) for p in zip(left.tolist(), right.tolist(), strict=True)}) == 240
    folds = [set(people[np.concatenate([left, right])[np.tile(np.arange(240) // 24, 2) == f]]) for f in range(10)]
    assert sum(len(f) for f in folds) == len(set.union(*folds)) <= 40
    assert np.array_equal(draw_pairs(people, 12, seed=3)[0], left)
    assert not np.array_equal(draw_pairs(people, 12, seed=4)[0], left)


def test_pairs_are_those_that_listing_all_would_draw(rng) -> None:
    """The definition, in memory quadratic in the people, draws the same pairs from the same seed."""
    people = rng.permutation(np.repeat(np.arange(23), rng.integers(1, 6, 23)))
    left, right, same = draw_pairs(people, 5, folds=4, seed=8)
    again, want = np.random.default_rng(8), []
    fold = again.permutation(np.arange(23) % 4)[people]
    for f in range(4):
        rows = np.flatnonzero(fold == f)
        pairs = rows[np.stack(np.triu_indices(len(rows), 1))]
        mates = people[pairs[0]] == people[pairs[1]]
        want += [pairs[:, again.choice(np.flatnonzero(kind), 5, replace=False)] for kind in (mates, ~mates)]
    assert np.array_equal(np.stack([left, right]), np.concatenate(want, 1))
    assert np.array_equal(same, people[left] == people[right])


def test_memory_does_not_grow_with_the_square(rng) -> None:
    tracemalloc.start()
    draw_pairs(np.repeat(np.arange(20_000), 2), 300)
    assert vendi_score(unit(rng.standard_normal((5_000, 8)))) < 8
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_bad_input_is_refused() -> None:
    e = np.eye(4)
    with pytest.raises(ValueError, match="at least 2 images of each identity, 7 has 1"):
        diversity(e[:3], np.array([5, 7, 5]))
    with pytest.raises(ValueError, match="unit norm"):
        diversity(2 * e, np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="unit norm"):
        diversity(np.full((4, 4), np.nan), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="labels"):
        diversity(e, np.zeros(3))
    with pytest.raises(ValueError, match="2 or more in the middle"):
        authentic_variation(e, e[:, None], np.arange(4))
    with pytest.raises(ValueError, match="at least 2 people"):
        authentic_variation(e, np.stack([e, e], 1), np.zeros(4))
    with pytest.raises(ValueError, match="one of each image"):
        five_modes(e, e[:3], np.array([0]), np.array([1]), np.array([True]))
    with pytest.raises(ValueError, match="equal lengths"):
        five_modes(e, e, np.array([0]), np.array([1, 2]), np.array([True]))
    with pytest.raises(ValueError, match=r"2 to 2 folds for 4 people"):
        draw_pairs(np.arange(4).repeat(3), 2, folds=4)
    with pytest.raises(ValueError, match="at most 6, the pairs of a fold, got 7"):
        draw_pairs(np.arange(4).repeat(3), 7, folds=2)
