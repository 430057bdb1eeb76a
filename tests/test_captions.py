"""The describer: its likelihood is the frequency of what it says, and Bayes on it is calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from facetransport.world.captions import ABSENT, PRESENT, UNSAID, Describer, one_hot, persistence


def test_likelihood_table_is_the_frequency_of_what_is_said():
    describer = Describer(error=0.1, say_yes=0.7, say_no=0.2)
    rng = np.random.default_rng(0)
    for truth in (False, True):
        said = describer.say(np.full((200_000, 1), truth), rng)
        frequency = [(said == s).mean() for s in (UNSAID, ABSENT, PRESENT)]
        np.testing.assert_allclose(frequency, describer.likelihood_table()[int(truth)], atol=0.005)


def test_log_likelihood_is_the_product_over_attributes():
    describer = Describer(0.05, 0.6, 0.1)
    rng = np.random.default_rng(1)
    attributes = rng.random((5, 7)) < 0.4
    said = describer.say(attributes[:3], rng)
    table = describer.likelihood_table()
    by_hand = [
        [np.log([table[int(a), s + 1] for a, s in zip(face, row, strict=True)]).sum() for face in attributes]
        for row in said
    ]
    np.testing.assert_allclose(describer.log_likelihood(said, attributes), by_hand)


def test_bayes_posterior_over_a_gallery_is_calibrated():
    """Among queries where Bayes gives its best guess probability p, it is right about p of the time."""
    describer = Describer(0.1, 0.5, 0.1)
    rng = np.random.default_rng(2)
    gallery = rng.random((20, 12)) < 0.5
    truth = rng.integers(0, 20, 4000)
    log = describer.log_likelihood(describer.say(gallery[truth], rng), gallery)
    posterior = np.exp(log - log.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    assert abs((posterior.argmax(1) == truth).mean() - posterior.max(1).mean()) < 0.03


def test_a_perfect_describer_rules_the_others_out():
    describer = Describer(error=0, say_yes=1, say_no=1)
    attributes = np.eye(4, dtype=bool)
    log = describer.log_likelihood(describer.say(attributes, np.random.default_rng(0)), attributes)
    assert np.isfinite(log).all() and (log.argmax(1) == np.arange(4)).all() and (log.diagonal() == 0).all()


# ------------------------------------------------------------------------------------------- captions of another image


def test_likelihood_of_another_image_is_the_mixture_by_hand():
    describer = Describer(0.1, 0.6, 0.2)
    said = np.array([[PRESENT, UNSAID, ABSENT]], np.int8)
    gallery = np.array([[True, False, True], [False, True, False]])
    stays = np.array([[0.3, 0.8], [0.0, 1.0], [0.25, 0.5]])
    # P(said yes), P(unsaid), P(said no) for the described image present, absent
    yes, unsaid, no = (0.54, 0.06), (0.44, 0.76), (0.02, 0.18)
    first = (0.8 * yes[0] + 0.2 * yes[1]) * unsaid[1] * (0.5 * no[0] + 0.5 * no[1])
    second = (0.3 * yes[0] + 0.7 * yes[1]) * unsaid[0] * (0.25 * no[0] + 0.75 * no[1])
    np.testing.assert_allclose(np.exp(describer.log_likelihood(said, gallery, stays)), [[first, second]])


def test_without_change_the_mixture_is_the_plain_likelihood():
    describer, rng = Describer(), np.random.default_rng(3)
    attributes = rng.random((6, 5)) < 0.5
    said = describer.say(attributes, rng)
    identity = np.tile([0.0, 1.0], (5, 1))
    plain_likelihood = describer.log_likelihood(said, attributes)
    np.testing.assert_array_equal(describer.log_likelihood(said, attributes, identity), plain_likelihood)


def test_likelihood_of_another_image_is_the_frequency():
    """Gallery image -> described image (by persistence) -> caption: the share of each symbol."""
    describer, rng = Describer(0.1, 0.7, 0.2), np.random.default_rng(4)
    stays = np.array([[0.2, 0.9]])
    for state in (False, True):
        described = rng.random((200_000, 1)) < stays[0, int(state)]
        said = describer.say(described, rng)
        symbols = np.array([[UNSAID], [ABSENT], [PRESENT]], np.int8)
        likelihood = np.exp(describer.log_likelihood(symbols, np.array([[state]]), stays))[:, 0]
        np.testing.assert_allclose([(said == s).mean() for s in symbols[:, 0]], likelihood, atol=0.005)


def test_evidence_is_the_likelihood_as_one_product():
    describer, rng = Describer(), np.random.default_rng(5)
    attributes = rng.random((4, 6)) < 0.5
    evidence = describer.log_evidence(attributes)
    np.testing.assert_allclose(np.exp(evidence.reshape(4, 6, 3)).sum(2), 1)
    np.testing.assert_allclose(
        evidence.reshape(4, 6, 3)[0, 0], np.log(describer.likelihood_table()[int(attributes[0, 0])])
    )
    np.testing.assert_array_equal(one_hot(np.array([[UNSAID, PRESENT, ABSENT]])), [[1, 0, 0, 0, 0, 1, 0, 1, 0]])


def test_persistence_counts_pairs_and_smooths_only_what_varies():
    gallery = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    described = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    expected = [[0.5 / 2, 2.5 / 4], [0, 1], [0, 1]]  # the second and the third never differ
    np.testing.assert_allclose(persistence(described, gallery), expected)


def test_persistence_is_recovered_from_many_pairs():
    rng = np.random.default_rng(6)
    gallery = rng.random((100_000, 2)) < 0.4
    described = rng.random(gallery.shape) < np.where(gallery, [0.7, 0.9], [0.1, 0.3])
    np.testing.assert_allclose(persistence(described, gallery), [[0.1, 0.7], [0.3, 0.9]], atol=0.01)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="persistence: expected probabilities"):
        Describer().log_likelihood(np.zeros((1, 3), np.int8), np.zeros((1, 3), bool), np.full((3, 2), 1.5))
    with pytest.raises(ValueError, match="persistence: expected probabilities"):
        Describer().log_evidence(np.zeros((1, 3), bool), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="same pairs"):
        persistence(np.zeros((2, 3), bool), np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="error"):
        Describer(error=1.5)
    with pytest.raises(ValueError, match="bool"):
        Describer().say(np.zeros((2, 3)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected"):
        Describer().log_likelihood(np.zeros((1, 2), np.int8), np.zeros((1, 3), bool))
