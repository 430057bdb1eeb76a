"""What DiFace has to beat: matchers in closed form, the Bayes bound, trained ones of the smoke profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diface_world import (
    CANDID,
    OF_REFINEMENT,
    OTHER,
    A,
    D,
    anything,
    contrast,
    crowd,
    everything,
    randomised,
    said_tokens,
)
from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import diface as experiment
from facetransport.companion.experiments.diface import (
    BASELINES,
    MODEL,
    baseline_recipe,
    load_baseline,
    load_pixels,
    pixels_recipe,
)
from facetransport.companion.profiles import DiFace, Profile
from facetransport.evaluation import described, matchers
from facetransport.evaluation.described import Faces, Tau
from facetransport.evaluation.matchers import Bayes, Classifier, Contrastive, DualEncoder, Regression, Seen
from facetransport.tensors import read_model
from facetransport.world import captions
from facetransport.world.captions import Describer

# ----------------------------------------------------------------------------------------------------------- matchers

AGREE = torch.eye(A).repeat_interleave(2, 0) * torch.tensor([-1.0, 1]).repeat(A)[:, None]  # one-hot -> -1, 0, +1


class Read(nn.Module):
    """What was said as a vector of -1, 0, +1: the best that regression can do where nothing else is known."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.sum(1) @ AGREE


def agreement(said: np.ndarray, faces: Faces) -> np.ndarray:
    """Cosine of what was said, as -1, 0 and +1, with the attributes, as -1 and +1."""
    words, signs = np.choose(said + 1, (0, -1, 1)), np.where(faces.attributes, 1, -1)
    return words @ signs.T / np.sqrt((words**2).sum(1, keepdims=True) * A)


@pytest.mark.parametrize("matcher", [Regression(Read(), Tau()), Contrastive(Read(), nn.Identity(), Tau())])
def test_regression_and_dual_encoder_compare_by_cosine(matcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    faces, said = crowd(5), anything(16)[:-1]
    scores = everything(matcher.match(said, faces, seed=0))
    np.testing.assert_allclose(scores, agreement(said, faces), atol=1e-6)
    monkeypatch.setattr(matchers, "CHUNK", 4)
    np.testing.assert_allclose(everything(matcher.match(said, faces, seed=0)), scores, atol=1e-6)


class Sure(nn.Module):
    """Attributes of a feature of ``crowd``, as logits."""

    def forward(self, features: Tensor) -> Tensor:
        return 60 * features


def test_sure_attributes_are_scored_by_likelihood() -> None:
    """log P(said | attributes) - sum over attributes of log P(said of it), by the share of people who have it; read off
    features or off pixels."""
    faces, known, said, describer = crowd(5), crowd(50, seed=1), anything(15), Describer(0.1, 0.6, 0.2)
    prior, persistence = known.attributes.mean(0), known.persistence
    absent, present = np.exp(describer.log_evidence(np.repeat([[False], [True]], A, 1), persistence))
    anyone = np.log((1 - prior.repeat(3)) * absent + prior.repeat(3) * present)
    expected = (
        describer.log_likelihood(said, faces.attributes, persistence) - (captions.one_hot(said) @ anyone)[:, None]
    )
    features, pixels = Classifier(Sure(), prior, persistence, describer), Seen(1.0 * faces.attributes, known, describer)
    for matcher in (features, pixels):
        np.testing.assert_allclose(everything(matcher.match(said, faces, seed=0)), expected, atol=1e-6)


def test_doubtful_statements_are_scored_by_the_mean_ratio_of_what_may_have_been_said() -> None:
    """One attribute is said to be present or left unsaid: P(T | I) / P(T) = sum_k p(k | T) P(k | I) / P(k)."""
    faces, known, describer = crowd(5), crowd(50, seed=1), Describer(0.1, 0.6, 0.2)
    matcher = Classifier(Sure(), known.attributes.mean(0), known.persistence, describer)
    certain = np.full((2, A), captions.UNSAID, np.int8)
    certain[1, 1] = captions.PRESENT
    ratios = np.exp(everything(matcher.match(certain, faces, seed=0)))
    stated = 0.3 * described.probable(certain)[1:]
    scores = everything(matcher.match(stated, faces, seed=0))
    np.testing.assert_allclose(np.exp(scores), 0.7 * ratios[:1] + 0.3 * ratios[1:], rtol=1e-6)
    rows = np.arange(1), np.arange(len(faces))
    pairs = matcher.match(stated, faces, seed=0).pairs(np.zeros(len(faces), int), rows[1])
    np.testing.assert_array_equal(pairs, scores[0])


def test_certain_statements_score_as_such() -> None:
    faces, known, said = crowd(5), crowd(50, seed=1), anything(15)
    words = randomised(DualEncoder(2 * A, D, 16, 1))
    for matcher in (
        Classifier(Sure(), known.attributes.mean(0), known.persistence, CANDID),
        Regression(words.words, Tau()),
        Contrastive(words.words, nn.Identity(), Tau()),
    ):
        scores = [everything(matcher.match(each, faces, seed=0)) for each in (said, described.probable(said))]
        np.testing.assert_allclose(scores[1], scores[0], atol=2e-5)


@pytest.mark.parametrize("stated", [np.full((2, A, 2), 0.6), np.full((2, A, 2), -0.1), np.zeros((2, A + 1, 2))])
def test_what_are_no_probabilities_is_refused(stated: np.ndarray) -> None:
    known = crowd(50, seed=1)
    with pytest.raises(ValueError, match="said: expected probabilities"):
        Classifier(Sure(), known.attributes.mean(0), known.persistence, CANDID).match(stated, crowd(5), seed=0)


def test_a_network_without_a_sum_is_told_the_likeliest() -> None:
    stated = np.array([[[0.1, 0.2], [0.1, 0.5], [0.6, 0.3]]])
    assert described.likeliest(stated).tolist() == [[captions.UNSAID, captions.PRESENT, captions.ABSENT]]
    names = ("Male", "Eyeglasses", "Bald")
    told = [described.heard(nn.Identity(), Tau(), said, names, 0) for said in (stated, described.likeliest(stated))]
    assert torch.equal(*told)


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("hard", [False, True])
def test_bayes_is_the_likelihood_ratio(elsewhere: bool, hard: bool) -> None:
    faces, known, describer = crowd(6), crowd(300, 1, seed=1), Describer(0.1, 0.6, 0.2)
    said = described.captions_of(faces, describer, 0)
    persistence = known.persistence if elsewhere else None
    own, others = (describer.log_likelihood(said, x.attributes, persistence) for x in (faces, known))
    meant = faces.groups[:, None] == known.groups if hard else np.ones_like(others, bool)
    anyone = np.log((np.exp(others) * meant).sum(1) / meant.sum(1))
    scores = everything(Bayes(describer, known, elsewhere, hard).match(said, faces, seed=0))
    np.testing.assert_allclose(scores, own - anyone[:, None], atol=1e-6)


def test_dual_encoder_learns_by_contrast() -> None:
    network, tokens, features = randomised(DualEncoder(2 * A, D, 16, 1)), said_tokens(6), torch.randn(6, D)
    words, images, scale = network.words(tokens), network.images(features), network.log_scale.exp()
    expected = (contrast(words, images, scale) + contrast(images, words, scale)) / 2
    torch.testing.assert_close(network(tokens, features), expected)


# ---------------------------------------------------------------------------------------------------------- recipes

OF_DENOISER = {"denoiser", "token_drop", "schedule", "timesteps"}


@pytest.mark.parametrize("name", [f.name for f in fields(DiFace) if f.name != "text"])
def test_keys_change_with_what_matters_and_with_nothing_else(smoke: Profile, name: str) -> None:
    other = replace(smoke, diface=replace(smoke.diface, **{name: OTHER[name]}))

    def moves(build: Callable[[Profile], Recipe]) -> bool:
        return build(smoke).key != build(other).key

    for kind in BASELINES:
        moved = moves(partial(baseline_recipe, kind=kind))
        assert moved == (name not in OF_REFINEMENT | OF_DENOISER | {"pixel_steps"})
    assert moves(pixels_recipe) == (name == "pixel_steps")


def test_unknown_baselines_are_refused(smoke: Profile, smoke_store: Store) -> None:
    for call in (lambda: baseline_recipe(smoke, "gan"), lambda: load_baseline(smoke, smoke_store, "gan")):
        with pytest.raises(ValueError, match="kind: expected one of regression, contrastive, classifier, got 'gan'"):
            call()


# ------------------------------------------------------------------------------------------------- the smoke profile


@pytest.fixture(scope="module")
def gallery(smoke: Profile, smoke_store: Store) -> Faces:
    return experiment.load_faces(smoke, smoke_store, "gallery")


@pytest.mark.parametrize("kind", BASELINES)
def test_files_describe_themselves(smoke: Profile, smoke_store: Store, gallery: Faces, kind: str) -> None:
    facts = read_model(smoke_store.get(baseline_recipe(smoke, kind)) / MODEL)[1]
    assert (facts["step"], facts["dim"]) == (smoke.diface.steps, smoke.reference.embedding)
    known = len(gallery.names)
    assert (facts["attributes"], *np.shape(facts["prior"]), *np.shape(facts["persistence"])) == (known, known, known, 2)


@pytest.mark.parametrize("kind", ["diface", "regression", "contrastive", "classifier"])
def test_trained_matchers_score_every_face(smoke: Profile, smoke_store: Store, gallery: Faces, kind: str) -> None:
    matcher = experiment.load(smoke, smoke_store) if kind == "diface" else load_baseline(smoke, smoke_store, kind)
    said = described.captions_of(gallery, CANDID, 0)
    scores = everything(matcher.match(said, gallery, seed=0))
    assert scores.shape == (len(gallery), len(gallery)) and scores.std() > 0
    assert np.array_equal(everything(matcher.match(said, gallery, seed=0)), scores)


@pytest.mark.parametrize("method", ["pixels", "classifier", "maps"])
def test_beliefs_are_those_of_the_matcher(smoke: Profile, smoke_store: Store, gallery: Faces, method: str) -> None:
    beliefs = experiment.load_beliefs(smoke, smoke_store, "gallery", method)
    assert beliefs.shape == gallery.attributes.shape and 0 <= beliefs.min() < beliefs.max() <= 1
    if method == "pixels":
        assert np.array_equal(beliefs, load_pixels(smoke, smoke_store, "gallery").present)
    else:
        encoder = {"classifier": "reference"}.get(method, method)
        seen = experiment.load_faces(smoke, smoke_store, "gallery", encoder)
        assert np.array_equal(beliefs, load_baseline(smoke, smoke_store, "classifier", encoder).present(seen))


def test_maps_hold_the_feature_beside_what_the_encoder_saw_before(smoke: Profile, smoke_store: Store) -> None:
    plain, both = (experiment.load_faces(smoke, smoke_store, "val", e).embeddings for e in ("reference", "maps"))
    assert both.shape[1] > plain.shape[1]
    feature, earlier = both[:, : plain.shape[1]], both[:, plain.shape[1] :]
    np.testing.assert_allclose(feature * 2**0.5, plain, atol=2e-3)
    np.testing.assert_allclose((earlier**2).sum(1), 0.5, atol=2e-3)


@pytest.mark.parametrize("role", ["val", "gallery"])
def test_attributes_read_off_pixels_are_probabilities_of_each_photograph(
    smoke: Profile, smoke_store: Store, role: str
) -> None:
    faces, seen = experiment.load_faces(smoke, smoke_store, role), load_pixels(smoke, smoke_store, role)
    assert seen.present.shape == faces.attributes.shape and seen.population.names == faces.names
    assert 0 <= seen.present.min() < seen.present.max() <= 1 and (seen.present.std(0) > 0).any()
    scores = everything(seen.match(described.captions_of(faces, CANDID, 0), faces, seed=0))
    assert scores.shape == (len(faces), len(faces)) and np.ptp(scores) > 0
