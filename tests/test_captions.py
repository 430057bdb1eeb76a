"""The describer: its likelihood is the frequency of what it says, and Bayes on it is calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from facetransport.data.captions import ABSENT, PHRASES, PRESENT, UNSAID, Describer, to_text


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


def test_text_mentions_what_was_said_and_only_that():
    names = ["Male", "Eyeglasses", "Full_Beard"]
    sentence = to_text(np.array([[PRESENT, PRESENT, UNSAID]]), names, np.random.default_rng(0))[0]
    assert any(way in sentence.lower() for way in PHRASES["Male"][0])
    assert any(way in sentence for way in PHRASES["Eyeglasses"][0])
    assert "beard" not in sentence
    assert to_text(np.full((1, 3), UNSAID), names, np.random.default_rng(0)) == ["A person."]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="error"):
        Describer(error=1.5)
    with pytest.raises(ValueError, match="bool"):
        Describer().say(np.zeros((2, 3)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected"):
        Describer().log_likelihood(np.zeros((1, 2), np.int8), np.zeros((1, 3), bool))
    with pytest.raises(ValueError, match="no phrases"):
        to_text(np.zeros((1, 1), np.int8), ["Moustachioed"], np.random.default_rng(0))
