from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from facetransport.evaluation import protocols
from facetransport.evaluation.protocols import identify, identify_open, separability, verify, verify_pairs


def people(identities: int, views: int, noise: float, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one random centre per identity, shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(identities), views))
    return unit(
        rng.standard_normal((identities, dim))[labels] + noise * rng.standard_normal((len(labels), dim))
    ), labels


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def all_pairs(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.triu_indices(len(labels), 1)
    return (embeddings[i] * embeddings[j]).sum(1), labels[i] == labels[j]


# -------------------------------------------------------------------------------------------------------- separability


@pytest.mark.parametrize("identities", [5, 100])  # fewer and more than the bootstrap's groups
def test_separability_is_that_of_all_pairs(identities):
    embeddings, labels = people(identities, 6, 0.9)
    scores, same = all_pairs(embeddings, labels)
    found = separability(embeddings, labels, bootstrap=0)
    assert found.auc.value == pytest.approx(roc_auc_score(same, scores), abs=2e-4)
    assert (found.genuine.sum(), found.impostor.sum()) == (same.sum(), (~same).sum())
    assert found.genuine_mean.value == pytest.approx(scores[same].mean(), abs=1e-6)
    assert found.impostor_std.value == pytest.approx(scores[~same].std(), abs=1e-6)
    gap = (scores[same].mean() - scores[~same].mean()) ** 2
    assert found.fdr.value == pytest.approx(gap / (scores[same].var() + scores[~same].var()), abs=1e-4)
    assert found.tar[1e-2].value == pytest.approx(1 - found.fmr100.value)


def test_separability_does_not_depend_on_blocks(monkeypatch):
    embeddings, labels = people(20, 6, 0.9)
    whole = separability(embeddings, labels, bootstrap=10)
    monkeypatch.setattr(protocols, "BLOCK", 7)
    parts = separability(embeddings, labels, bootstrap=10)
    np.testing.assert_array_equal(whole.genuine, parts.genuine)
    np.testing.assert_array_equal(whole.impostor, parts.impostor)
    assert whole.auc == parts.auc


def test_separability_across_two_sets_meets_probe_and_gallery_only():
    probes, labels = people(12, 5, 0.8)
    gallery, gallery_labels = people(12, 3, 0.8, seed=0)[0], people(12, 3, 0.8, seed=0)[1]
    scores = probes @ gallery.T
    same = labels[:, None] == gallery_labels
    found = separability(probes, labels, gallery, gallery_labels, bootstrap=0)
    assert found.auc.value == pytest.approx(roc_auc_score(same.ravel(), scores.ravel()), abs=2e-4)
    assert found.genuine.sum() == same.sum() and found.impostor.sum() == (~same).sum()


def test_a_sample_of_impostors_keeps_the_answer():
    embeddings, labels = people(60, 10, 0.9)
    every, some = (
        separability(embeddings, labels, bootstrap=0),
        separability(embeddings, labels, bootstrap=0, max_impostors=30_000),
    )
    assert 20_000 < some.impostor.sum() < 40_000 < every.impostor.sum()
    assert some.genuine.sum() == every.genuine.sum()
    assert some.auc.value == pytest.approx(every.auc.value, abs=5e-3)


def test_a_sample_of_impostors_keeps_the_accuracy():
    embeddings, labels = people(60, 10, 0.9)
    every, some = (verify(embeddings, labels, bootstrap=0, max_impostors=most) for most in (None, 30_000))
    assert 20_000 < some.n_impostor < 40_000 < every.n_impostor and some.n_genuine == every.n_genuine
    assert some.accuracy.value == pytest.approx(every.accuracy.value, abs=5e-3)


def test_interval_covers_what_new_people_give():
    """95 % intervals over 40 people against the AUC of 2000 people of the same kind: most of 20 must cover it."""
    truth = separability(*people(2000, 4, 1.0, seed=999), bootstrap=0, max_impostors=200_000).auc.value
    found = [separability(*people(40, 4, 1.0, seed=s), bootstrap=200).auc for s in range(20)]
    assert sum(f.low <= truth <= f.high for f in found) >= 15
    assert all(f.low < f.value < f.high for f in found)


def test_seed_decides_the_interval_alone():
    embeddings, labels = people(30, 4, 0.9)
    a, b, c = (separability(embeddings, labels, bootstrap=50, seed=s).auc for s in (0, 0, 1))
    assert a == b and a.value == c.value and a.low != c.low


def test_table_and_roc():
    found = separability(*people(10, 4, 0.5), bootstrap=5, fars=(0.1,))
    assert {"auc", "eer", "fmr100", "fmr1000", "fdr", "tar@0.1"} <= set(found.table()["name"])
    fmr, tar = found.roc()
    assert fmr[0] == 1 and fmr[-1] == 0 and (np.diff(tar) <= 0).all() and len(fmr) == len(found.thresholds)


# -------------------------------------------------------------------------------------------------------- verification


def test_verification_of_separable_and_of_random_people():
    assert verify(*people(30, 4, 0.05), bootstrap=20).accuracy.value == 1
    rng = np.random.default_rng(0)
    nothing = verify(unit(rng.standard_normal((400, 16))), np.repeat(np.arange(100), 4), bootstrap=200)
    assert nothing.accuracy.value == pytest.approx(0.5, abs=0.04)
    assert nothing.accuracy.low < nothing.accuracy.value < nothing.accuracy.high


def test_verification_of_gaussian_scores_is_the_closed_form():
    """Scores are nearly normal with equal deviations: accuracy is Phi of half the distance of their means."""
    rng = np.random.default_rng(0)
    n, dim = 300, 256
    labels = np.repeat(np.arange(n), 2)
    embeddings = unit(rng.standard_normal((n, dim))[labels] + 2.5 * rng.standard_normal((2 * n, dim)))
    scores, same = all_pairs(embeddings, labels)
    distance = (scores[same].mean() - scores[~same].mean()) / scores[~same].std()
    assert verify(embeddings, labels, bootstrap=0).accuracy.value == pytest.approx(
        stats.norm.cdf(distance / 2), abs=0.03
    )


def test_threshold_of_a_fold_ignores_its_people():
    """One fold's people are made hard: its own threshold must stay what the others say, theirs may move."""
    embeddings, labels = people(20, 4, 0.3)
    before = verify(embeddings, labels, folds=5, bootstrap=0)
    fold = np.random.default_rng(0).permutation(np.arange(20) % 5)
    rng = np.random.default_rng(1)
    hard = np.isin(labels, np.flatnonzero(fold == 2))
    changed = embeddings.copy()
    changed[hard] = unit(rng.standard_normal((hard.sum(), 16)))
    after = verify(changed, labels, folds=5, bootstrap=0)
    assert after.thresholds[2] == before.thresholds[2]
    assert after.folds[2] < before.folds[2] - 0.1
    assert (np.delete(after.thresholds, 2) != np.delete(before.thresholds, 2)).any()


def test_centring_mends_a_shared_direction_and_never_sees_the_fold():
    embeddings, labels = people(30, 4, 0.6)
    cone = unit(embeddings + 3 * np.eye(16)[0])  # a narrow cone, as of images from another world
    plain, mended = (verify(cone, labels, centre=c, bootstrap=0) for c in (False, True))
    assert mended.accuracy.value > plain.accuracy.value
    assert mended.accuracy.value == pytest.approx(verify(embeddings, labels, bootstrap=0).accuracy.value, abs=0.02)
    fold = np.random.default_rng(0).permutation(np.arange(30) % 10)
    changed = cone.copy()
    changed[np.isin(labels, np.flatnonzero(fold == 3))] *= -1  # the people of fold 3 move: their threshold must not
    assert verify(changed, labels, centre=True, bootstrap=0).thresholds[3] == mended.thresholds[3]


def test_given_pairs_by_hand():
    """LFW's folds are consecutive; a fold's threshold separates the other's pairs and errs on one of its own."""
    right = unit(np.array([[c, np.sqrt(1 - c * c)] for c in (0.9, 0.8, 0.1, 0.7, 0.9, 0.3, 0.1, 0.2)]))
    left = unit(np.repeat([[1.0, 0.0]], 8, axis=0))
    same = np.array([True, True, False, False] * 2)
    found = verify_pairs(left, right, same, folds=2)
    np.testing.assert_allclose(found.thresholds, [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(found.folds, [0.75, 0.75])
    assert (found.n_genuine, found.n_impostor) == (4, 4)


def test_the_interval_of_pairs_stays_a_probability():
    same = np.array([True, False] * 4)
    left, right = angles(*[0] * 8), angles(0, 90, 0, 90, 0, 90, 80, 90)  # one fold of two fails on its genuine pairs
    found = verify_pairs(left, right, same, folds=4).accuracy
    assert 0 < found.low < found.value < 1 and found.high == 1.0


# ------------------------------------------------------------------------------------------------------ identification


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return unit(np.stack([np.cos(radians), np.sin(radians)], 1))


def test_ranks_by_hand():
    """Gallery people at 0, 40, 90 degrees. Person 0 at 10: rank 1. Person 1 at 15: rank 2. Person 2 at 5: rank 3."""
    found = identify(angles(10, 15, 5), np.array([0, 1, 2]), angles(0, 40, 90), np.array([0, 1, 2]), ranks=(1, 2, 3))
    np.testing.assert_allclose(found.cmc, [1 / 3, 2 / 3, 1])
    assert [found.rank[k].value for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_ties_count_against_the_probe():
    found = identify(angles(0), np.array([0]), angles(10, 10), np.array([0, 1]), ranks=(1, 2), bootstrap=0)
    assert found.rank[1].value == 0 and found.rank[2].value == 1


def test_best_of_several_mates_counts():
    found = identify(angles(10), np.array([0]), angles(90, 12, 20), np.array([0, 0, 1]), ranks=(1,), bootstrap=0)
    assert found.rank[1].value == 1


def test_open_set_by_hand():
    """Strangers' best scores are cos 60 and cos 20: at FAR 0.5 the threshold is above the one, at 0 above both."""
    gallery, gallery_labels = angles(0, 180), np.array([0, 1])
    probes, labels = angles(10, 200, 170 + 20 + 25, 60, 20), np.array([0, 1, 1, 8, 9])
    found = identify_open(probes, labels, gallery, gallery_labels, fars=(0.5, 0.0))
    assert found[0.5].value == pytest.approx(1.0)  # cos 10, cos 20, cos 35 all pass 0.5
    assert found[0.0].value == pytest.approx(1 / 3)  # only cos 10 passes cos 20


def test_search_does_not_depend_on_blocks(monkeypatch):
    probes, labels = people(10, 6, 0.7)
    whole = identify(probes[:40], labels[:40], probes, labels, bootstrap=0)
    monkeypatch.setattr(protocols, "BLOCK", 5)
    np.testing.assert_array_equal(whole.cmc, identify(probes[:40], labels[:40], probes, labels, bootstrap=0).cmc)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("protocol", [separability, verify])
class TestRefusals:
    def test_empty(self, protocol):
        with pytest.raises(ValueError, match="at least one embedding|number of identities"):
            protocol(np.empty((0, 4), np.float32), np.empty(0, int))

    def test_one_identity(self, protocol):
        with pytest.raises(ValueError, match="at least 2 identities|number of identities"):
            protocol(angles(0, 10, 20), np.zeros(3, int))

    def test_nan(self, protocol):
        embeddings, labels = people(20, 3, 0.5)
        embeddings[7, 2] = np.nan
        with pytest.raises(ValueError, match="row 7 holds NaN"):
            protocol(embeddings, labels)

    def test_not_unit(self, protocol):
        embeddings, labels = people(20, 3, 0.5)
        with pytest.raises(ValueError, match="unit norm, row 0 has 2"):
            protocol(2 * embeddings, labels)

    def test_lengths(self, protocol):
        embeddings, labels = people(20, 3, 0.5)
        with pytest.raises(ValueError, match="60 embeddings but labels of shape"):
            protocol(embeddings, labels[:-1])

    def test_no_genuine_pair(self, protocol):
        with pytest.raises(ValueError, match="no genuine pair"):
            protocol(people(20, 1, 0.5)[0], np.arange(20))


def test_identification_refuses_what_it_cannot_answer():
    gallery, labels = angles(0, 40), np.array([0, 1])
    with pytest.raises(ValueError, match="identity 5 is not in the gallery"):
        identify(angles(3), np.array([5]), gallery, labels)
    with pytest.raises(ValueError, match="inside and outside"):
        identify_open(angles(3), np.array([0]), gallery, labels)
    with pytest.raises(ValueError, match="expected dimension 16, got 2"):
        identify(people(2, 1, 0.1)[0], labels, gallery, labels)
    with pytest.raises(ValueError, match="equal lengths"):
        verify_pairs(angles(0, 1), angles(0), np.array([True, False]), folds=2)
