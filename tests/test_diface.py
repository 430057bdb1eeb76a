"""DiFace: descriptions as tokens, rough estimates, refinement, faces, the smoke model end to end."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diface_world import (
    CANDID,
    NAMES,
    OF_REFINEMENT,
    OF_THE_VIEW,
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
from facetransport.companion import artifacts, cli, evaluating
from facetransport.companion import search as searching
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface as experiment
from facetransport.companion.experiments import diface_study, recognisers, roles
from facetransport.companion.experiments.recognisers import load_dlib
from facetransport.companion.profiles import DiFace, Profile
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.text import WordEncoder, minilm_folder
from facetransport.diffusion.transport import ExactDenoiser, Mixture
from facetransport.diffusion.vectors import VectorConfig, VectorDenoiser
from facetransport.evaluation import described
from facetransport.evaluation.described import People, Tau
from facetransport.evaluation.matchers import Classifier, Regression
from facetransport.papers import diface
from facetransport.papers.diface import Model, Refinement
from facetransport.recognition.recogniser import embed_faceset
from facetransport.tensors import read_model
from facetransport.world import grammar, rendered
from facetransport.world.captions import ABSENT, PRESENT, UNSAID, Describer


def statements(tokens: Tensor) -> list[set[bytes]]:
    """The rows of each description, but for padding, as a set."""
    return [{row.numpy().tobytes() for row in rows if row.any()} for rows in tokens]


@pytest.fixture
def section(smoke: Profile) -> DiFace:
    """Settings for ``crowd``, whose descriptions need no language."""
    return replace(smoke.diface, tokens="statements", samples=3)


@pytest.fixture
def untrained(section: DiFace) -> Model:
    denoiser = randomised(VectorDenoiser(VectorConfig("mlp", D, 2 * A, 32, 1, Schedule(50))))
    return Model(denoiser, randomised(Refinement(D, 16)), experiment.settings_of(section))


# ----------------------------------------------------------------------------------------------------------- tokens


def test_every_statement_is_said_by_one_of_its_phrases() -> None:
    names = NAMES[:10]  # of all it would take a minute and a half
    said = anything(6)[:, : len(names)]
    tokens = Tau("clauses").of(names)(said, np.random.default_rng(1))
    assert tokens.shape == (6, (said != UNSAID).sum(1).max(), 384)
    ways = {(a, v): [p.text for p in grammar.phrase_bank(names) if p[:2] == (a, v)] for a, v in ((0, 1), (9, 0))}
    states = {key: described.text_encoder().clause_states(texts) for key, texts in ways.items()}
    for row, found in zip(said, tokens, strict=True):
        assert len(statements(found[None])[0]) == (row != UNSAID).sum()
        for (attribute, value), phrases in states.items():
            spoken = bool((found[:, None] == phrases).all(2).any())
            assert spoken == (row[attribute] == value)


def test_every_phrase_is_as_likely() -> None:
    names = ("Bangs", "Male", "Double_Chin")
    said = np.tile(np.array([UNSAID, PRESENT, UNSAID], np.int8), (6000, 1))
    tokens = Tau("clauses").of(names)(said, np.random.default_rng(0))
    ways = [p.text for p in grammar.phrase_bank(names) if (p.attribute, p.value) == (1, PRESENT)]
    spoken = (tokens[:, 0, None] == described.text_encoder().clause_states(ways)).all(2)  # (6000, ways)
    torch.testing.assert_close(spoken.float().mean(0), torch.full((len(ways),), 1 / len(ways)), atol=0.03, rtol=0)


def test_statements_are_one_hot_at_unit_scale() -> None:
    said = anything(20)
    tokens = said_tokens(20)
    for row, found in zip(said, tokens, strict=True):
        told = np.flatnonzero(row != UNSAID)
        expected = torch.zeros(tokens.shape[1], 2 * A)
        expected[np.arange(len(told)), 2 * told + row[told]] = 1
        assert torch.equal(found, expected * (2 * A) ** 0.5)


def test_descriptions_that_say_nothing_are_one_row_of_zeros() -> None:
    nothing = Tau("statements").of(NAMES)(np.full((3, A), UNSAID, np.int8), np.random.default_rng(0))
    assert nothing.shape == (3, 1, 2 * A) and not nothing.any()


def test_bad_descriptions_and_tokens_are_refused() -> None:
    tokeniser, rng = Tau("statements").of(NAMES), np.random.default_rng(0)
    with pytest.raises(ValueError, match=rf"said: expected statements \(B, {A}\), got \(2, 5\)"):
        tokeniser(np.zeros((2, 5), np.int8), rng)
    with pytest.raises(ValueError, match=rf"said: expected statements \(B, {A}\), got \({A},\)"):
        tokeniser(np.zeros(A, np.int8), rng)
    with pytest.raises(ValueError, match="tokens: expected one of statements, clauses, text, captions, got 'letters'"):
        Tau("letters")
    with pytest.raises(ValueError, match=r"names: no words for \['Hat'\]"):
        Tau("clauses").of(("Hat",))
    with pytest.raises(ValueError, match=r"names: no words for \['Hat'\]"):
        Tau("text").of(("Hat",))
    with pytest.raises(ValueError, match="encoder: clip reads tokens text or captions, not 'clauses'"):
        Tau("clauses", Path("clip"))


def test_a_text_is_its_word_pieces_as_the_encoder_sees_them() -> None:
    said = anything(5)
    tokens = Tau("text").of(NAMES)(said, np.random.default_rng(3))
    texts = grammar.describe(said, NAMES, np.random.default_rng(3))
    assert len(set(texts)) == 5 and torch.equal(tokens, WordEncoder(minilm_folder())(texts).to(tokens))
    with pytest.raises(ValueError, match=rf"said: expected statements \(B, {A}\), got \(2, 5\)"):
        Tau("text").of(NAMES)(np.zeros((2, 5), np.int8), np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------- rough estimates


class TwoPoints(ExactDenoiser):
    """The best denoiser of two tight clusters in 4-D; a token holds log P(c | cluster), which tokens sum."""

    config = SimpleNamespace(dim=4)

    def __init__(self) -> None:
        super().__init__(Mixture([0.5, 0.5], [[1.0, 1, -1, 1], [-1, 1, 1, -1]], [1e-4, 1e-4]))

    def prompt(self, tokens: Tensor) -> Tensor:
        return tokens.sum(1).exp()


def told_of_two(share: float) -> tuple[Tensor, Tensor]:
    """Two tokens that leave the first cluster this share, and E[z | c]."""
    evidence = torch.tensor([share, 1 - share]).log()
    half = torch.stack([0.3 * evidence, 0.7 * evidence])
    return half[None], TwoPoints().world.mean(evidence.exp()).float()


@pytest.mark.parametrize("share", [0.5, 0.8, 0.1])
def test_one_step_is_regression(share: float) -> None:
    """From t = T the best denoiser says E[z | c], whatever the noise: what plain regression learns."""
    tokens, mean = told_of_two(share)
    found = diface.rough_estimates(TwoPoints(), tokens, 1, 200, seed=0)
    assert found.shape == (1, 200, 4)
    torch.testing.assert_close(found, mean.expand(1, 200, 4), atol=0.03, rtol=0)
    torch.testing.assert_close(found[0].mean(0), mean, atol=2e-3, rtol=0)


def test_more_steps_commit_to_a_cluster_by_its_share() -> None:
    tokens, mean = told_of_two(0.8)
    found = diface.rough_estimates(TwoPoints(), tokens, 50, 500, seed=0)[0]
    distance = torch.cdist(found, TwoPoints().world.means.float())
    assert distance.amin(1).max() < 0.2
    assert float((distance.argmin(1) == 0).float().mean()) == pytest.approx(0.8, abs=0.05)
    torch.testing.assert_close(found.mean(0), mean, atol=0.1, rtol=0)


def test_an_estimate_depends_on_its_seed_place_and_description_only(
    untrained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, tokens = untrained.denoiser, said_tokens(5)
    whole = diface.rough_estimates(denoiser, tokens, 3, 4, seed=1)
    assert whole.shape == (5, 4, D) and whole.dtype == torch.float32
    assert torch.equal(diface.rough_estimates(denoiser, tokens[:3], 3, 4, seed=1), whole[:3])
    assert torch.equal(diface.rough_estimates(denoiser, tokens, 3, 2, seed=1), whole[:, :2])
    others = diface.rough_estimates(denoiser, torch.cat([tokens[:2].flip(0), tokens[2:]]), 3, 4, seed=1)
    assert torch.equal(others[2:], whole[2:]) and not torch.equal(others[:2], whole[:2])
    assert not torch.equal(diface.rough_estimates(denoiser, tokens, 3, 4, seed=2), whole)
    assert not torch.equal(whole[:, 0], whole[:, 1])
    monkeypatch.setattr(diface, "CHUNK", 2)
    assert torch.equal(diface.rough_estimates(denoiser, tokens, 3, 4, seed=1), whole)


def test_guidance_exaggerates_what_the_words_change(untrained: Model) -> None:
    """One step is affine in the noise prediction, so scale s takes c - null s times."""
    denoiser, tokens = untrained.denoiser, said_tokens(4)
    told, null, one, three = (
        diface.rough_estimates(denoiser, x, 1, 2, 0, s)
        for x, s in ((tokens, 1), (0 * tokens, 1), (tokens, 1.0), (tokens, 3.0))
    )
    assert torch.equal(one, told)
    torch.testing.assert_close(three, null + 3 * (told - null), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(told[:3], null[:3], atol=1e-2)


# --------------------------------------------------------------------------------------------------------- training


def test_training_describes_another_photograph(section: DiFace) -> None:
    faces = crowd(30)
    told = replace(section, error=0.0, say_yes=1.0, say_no=1.0)
    tokens = described.describing(faces, experiment.tau_of(told), experiment.describer_of(told))(
        torch.tensor([7, 2, 80]), torch.Generator().manual_seed(0)
    )
    assert torch.equal(tokens[:, :, 1::2].sum(1).bool(), torch.from_numpy(faces.elsewhere[[7, 2, 80]]))
    assert (faces.elsewhere[[7, 2, 80]] != faces.attributes[[7, 2, 80]]).any()


def test_every_step_describes_anew(section: DiFace) -> None:
    say = described.describing(crowd(4), experiment.tau_of(section), experiment.describer_of(section))
    rows, draw = torch.arange(12), lambda seed: torch.Generator().manual_seed(seed)
    first, second = say(rows, draw(3)), say(rows, draw(4))
    assert statements(first) != statements(second)
    assert torch.equal(say(rows, draw(3)), first)


def test_captions_depend_on_faces_and_seed_only() -> None:
    faces, describer = crowd(10), Describer(0.1, 0.5, 0.3)
    said = described.captions_of(faces, describer, 3)
    np.random.default_rng(0).random()
    assert np.array_equal(described.captions_of(faces, describer, 3), said)
    assert not np.array_equal(described.captions_of(faces, describer, 4), said)
    assert np.array_equal(described.captions_of(faces, CANDID, 3), faces.attributes)


class Witness(nn.Module):
    """Keeps what a loss asked it, and answers noise(z_t, t)."""

    def __init__(self, noise: Any) -> None:
        super().__init__()
        self.noise, self.asked = noise, []

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        self.asked.append((z, t, tokens))
        return self.noise(z, t)


ABAR = Schedule(50).alphas_cumprod


def noise_in(z: Tensor, t: Tensor, z0: Tensor) -> Tensor:
    a = ABAR[t][:, None]
    return (z - a.sqrt() * z0) / (1 - a).sqrt()


def ones(rows: Tensor, generator: torch.Generator) -> Tensor:
    return torch.ones(len(rows), 3, 2)


def test_who_knows_the_noise_has_no_loss() -> None:
    z0, rows = torch.randn(6), torch.arange(40)
    loss = diface.denoiser_loss(z0.expand(40, 6), ones, Schedule(50), 0.0)
    perfect = loss(Witness(lambda z, t: noise_in(z, t, z0)), rows, torch.Generator().manual_seed(0), 0)
    assert float(perfect) < 1e-6


def test_loss_is_that_of_v() -> None:
    """|| eps error ||^2 / abar_t, at timesteps of all levels, of the rows that were asked for."""
    z0, rows = torch.arange(400.0)[:, None].expand(400, 6) / 200, torch.arange(100, 400)
    loss, seen = diface.denoiser_loss(z0, ones, Schedule(50), 0.0), Witness(lambda z, t: 0.3 * z)
    value = loss(seen, rows, torch.Generator().manual_seed(0), 0)
    z, t, tokens = seen.asked[0]
    noise = noise_in(z, t, z0[rows])
    assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(value, (((0.3 * z - noise) ** 2).mean(1) / ABAR[t]).mean())
    assert set(t.tolist()) >= {0, 49} and tokens.all()


def test_whole_descriptions_are_dropped_at_their_rate() -> None:
    loss, seen = diface.denoiser_loss(torch.zeros(4000, 2), ones, Schedule(50), 0.3), Witness(lambda z, t: z)
    loss(seen, torch.arange(4000), torch.Generator().manual_seed(0), 0)
    tokens = seen.asked[0][2].flatten(1)
    dropped = (tokens == 0).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert (tokens[~dropped] == 1).all()


# ------------------------------------------------------------------------------------------------------- refinement


def test_a_new_refinement_moves_all_features_alike() -> None:
    z, new = torch.randn(4, 3, D), Refinement(D, 16)
    torch.testing.assert_close(new(z), z + new.change.out.bias)
    assert randomised(Refinement(D, 16))(z).sub(z).flatten(0, 1).std(0).min() > 1e-5


@pytest.mark.parametrize("refine_gallery", [False, True])
@pytest.mark.parametrize("kind", ["cosine", "infonce"])
def test_refinement_loss_by_hand(refine_gallery: bool, kind: str) -> None:
    """Nine people, described twice each: row 13 is the second description of person 4."""
    rough, features, rows = torch.randn(18, 3, D), torch.randn(9, D), torch.tensor([13, 0, 7])
    refinement = randomised(Refinement(D, 16))
    loss = diface.refinement_loss(rough, features, 2.5, refine_gallery, kind)
    found = torch.stack([torch.stack([refinement(z) for z in rough[row]]).mean(0) for row in rows])
    target = features[[4, 0, 7]]
    mate = refinement(target) if refine_gallery else target
    same, cosine = torch.ones(3), nn.CosineEmbeddingLoss()
    genuine, impostor = cosine(found, mate, same), cosine(found, mate[[2, 0, 1]], -same)
    contrasted = (contrast(found, mate, 16) + contrast(mate, found, 16)) / 2
    compared = {"cosine": genuine + impostor, "infonce": contrasted}[kind]
    expected = compared + 2.5 * ((found - target) ** 2).mean()
    torch.testing.assert_close(loss(refinement, rows, torch.Generator(), 0), expected)
    assert impostor > 0


def test_half_precision_estimates_are_trained_on_as_they_are() -> None:
    rough, features = torch.randn(4, 2, D).half(), torch.randn(4, D)
    refinement, rows = randomised(Refinement(D, 16)), torch.arange(4)
    whole, half = (diface.refinement_loss(x, features, 1.0, False) for x in (rough.float(), rough))
    assert torch.equal(*(loss(refinement, rows, torch.Generator(), 0) for loss in (whole, half)))


# -------------------------------------------------------------------------------------------------------- the model


def test_features_are_the_mean_direction_of_refined_estimates(untrained: Model) -> None:
    tokens, settings = said_tokens(5), untrained.settings
    rough = diface.rough_estimates(untrained.denoiser, tokens, settings.steps, 3, seed=4)
    for refinement in (untrained.refinement, None):
        found = replace(untrained, refinement=refinement).refine(untrained.rough(tokens, seed=4))
        refined = [rough[:, k] if refinement is None else refinement(rough[:, k]) for k in range(3)]
        torch.testing.assert_close(found, F.normalize(sum(refined), dim=1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_the_gallery_is_refined_when_asked(untrained: Model) -> None:
    embeddings = crowd(3).embeddings
    assert np.array_equal(untrained.gallery(embeddings), embeddings)
    refining = replace(untrained, settings=replace(untrained.settings, refine_gallery=True))
    refined = refining.gallery(embeddings)
    expected = F.normalize(untrained.refinement(torch.from_numpy(embeddings) * D**0.5), dim=1)
    np.testing.assert_allclose(refined, expected.detach(), atol=1e-5)
    assert refined.dtype == np.float32 and np.abs(refined - embeddings).max() > 0.01
    rough_only = replace(refining, refinement=None)
    np.testing.assert_allclose(rough_only.gallery(embeddings), embeddings, atol=1e-6)


@pytest.mark.parametrize("refine_gallery", [False, True])
def test_scores_are_cosines_of_features_and_gallery(untrained: Model, refine_gallery: bool) -> None:
    model = replace(untrained, settings=replace(untrained.settings, refine_gallery=refine_gallery))
    faces, said = crowd(4), anything(12)
    scores = everything(model.match(said, faces, seed=6))
    tokens = Tau("statements").of(NAMES)(said, np.random.default_rng(6))
    expected = model.refine(model.rough(tokens, seed=6)).numpy() @ model.gallery(faces.embeddings).T
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.array_equal(everything(model.match(said, faces, seed=6)), scores)
    assert not np.allclose(everything(model.match(said, faces, seed=7)), scores, atol=1e-3)


def test_certain_statements_and_those_only_probable_are_asked_alike(untrained: Model) -> None:
    """Weights of 0 and 1 are what is said; the mean over two readings lies between them."""
    faces, said = crowd(4), anything(12)
    scores = everything(untrained.match(said, faces, seed=6))
    np.testing.assert_allclose(everything(untrained.match(described.probable(said), faces, seed=6)), scores, atol=2e-5)
    doubtful = everything(untrained.match(0.5 * described.probable(said), faces, seed=6))
    assert np.abs(doubtful - scores).max() > 1e-3 and np.isfinite(doubtful).all()


def test_models_with_one_denoiser_ask_it_once(untrained: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    infonce = replace(untrained, settings=replace(untrained.settings, refine_gallery=True))
    models = {"R": untrained, "R on both": infonce, "no R": replace(untrained, refinement=None)}
    faces, said, asked = crowd(4), anything(12), []
    alone = {name: everything(model.match(said, faces, seed=6)) for name, model in models.items()}
    draw = diface.rough_estimates
    monkeypatch.setattr(diface, "rough_estimates", lambda *how: asked.append(how) or draw(*how))
    together = diface.match_all(models, said, faces, seed=6)
    assert len(asked) == 1 and list(together) == list(models)
    for name, match in together.items():
        assert np.array_equal(everything(match), alone[name])


@pytest.mark.parametrize("other", ["denoiser", "samples"])
def test_models_that_ask_otherwise_are_not_matched_together(untrained: Model, other: str) -> None:
    changed = {
        "denoiser": lambda: replace(untrained, denoiser=deepcopy(untrained.denoiser)),
        "samples": lambda: replace(untrained, settings=replace(untrained.settings, samples=9)),
    }
    with pytest.raises(ValueError, match="one denoiser, asked in one way, got several in a, b"):
        diface.match_all({"a": untrained, "b": changed[other]()}, anything(12), crowd(4), seed=0)


def test_features_are_scaled_to_unit_variance() -> None:
    unit = F.normalize(torch.randn(2000, 32), dim=1).numpy()
    features = described.scaled(unit)
    assert features.dtype == np.float32
    np.testing.assert_allclose((features**2).mean(1), 1, rtol=1e-5)
    np.testing.assert_allclose(features.std(0), 1, atol=0.1)


# ------------------------------------------------------------------------------------------------------------ faces


def test_groups_are_gender_and_age_band() -> None:
    names = ("Young", "Smiling", "Male", "Senior")
    attributes = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]], bool)
    groups = People(attributes, attributes, names).groups
    assert groups.tolist() == [0, 0, 1, 2, 4, 5]


def test_persistence_is_counted_from_here_to_elsewhere() -> None:
    here, there = np.array([[1, 1], [0, 1], [0, 0], [0, 0]], bool), np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool)
    table = People(here, there, ("Smiling", "Male")).persistence
    np.testing.assert_allclose(table, [[1.5 / 4, 1.5 / 2], [0, 1]])  # half a pair added; what never differs is sure


def differing(faces: People) -> np.ndarray:
    return (faces.attributes != faces.elsewhere).any(0)


def test_faces_are_those_of_the_role(smoke: Profile, smoke_store: Store) -> None:
    faces, faceset = (
        experiment.load_faces(smoke, smoke_store, "gallery"),
        roles.load_rendered(smoke, "gallery", smoke_store),
    )
    recogniser = recognisers.load_reference(smoke, smoke_store)
    np.testing.assert_allclose(faces.embeddings, embed_faceset(recogniser, faceset), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(faces.embeddings, axis=1), 1, atol=1e-6)
    assert np.array_equal(faces.identity, faceset.identity)
    assert np.array_equal(faces.attributes, faceset.table[list(faces.names)]) and set(faces.names) == set(NAMES)


def test_elsewhere_is_a_photograph_that_was_not_rendered(smoke: Profile, smoke_store: Store) -> None:
    faces, views = experiment.load_faces(smoke, smoke_store, "gallery"), smoke.rendered.roles["gallery"].views
    pairs = [(i, k + views) for i, k in roles.role_pairs(roles.rendered_recipe(smoke, "gallery").config)]
    drawn = rendered.attributes(pairs, smoke_store.get(roles.head_recipe()), smoke.rendered.world_seed)
    assert np.array_equal(faces.elsewhere, drawn[list(faces.names)])
    assert differing(faces).any() and not (differing(faces) & ~np.isin(faces.names, np.array(NAMES)[OF_THE_VIEW])).any()


def test_fewer_people_are_the_first(smoke: Profile, smoke_store: Store) -> None:
    some, all_of_them = (experiment.load_faces(smoke, smoke_store, "val", people=n) for n in (2, None))
    assert len(some) == 2 * smoke.rendered.roles["val"].views < len(all_of_them)
    assert np.array_equal(some.identity, all_of_them.identity[: len(some)])
    assert np.array_equal(some.attributes, all_of_them.attributes[: len(some)])


def test_dlib_embeds_too(smoke: Profile, smoke_store: Store) -> None:
    faces, faceset = (
        experiment.load_faces(smoke, smoke_store, "val", "dlib", 1),
        roles.load_rendered(smoke, "val", smoke_store),
    )
    recogniser = load_dlib(smoke, smoke_store)
    expected = embed_faceset(recogniser, faceset.select(np.arange(len(faces))))
    np.testing.assert_allclose(faces.embeddings, expected, atol=1e-3)


@pytest.mark.parametrize(("name", "flip"), [("dlib", False), ("reference", False), ("judge", True)])
def test_embeddings_of_a_role_are_what_the_recogniser_says(
    smoke: Profile, smoke_store: Store, name: str, flip: bool
) -> None:
    kept = recognisers.load_embeddings(smoke, smoke_store, "val", name, flip)
    asked = load_dlib if name == "dlib" else partial(recognisers.load_recogniser, name=name, flip=flip)
    assert np.array_equal(kept, embed_faceset(asked(smoke, smoke_store), roles.load(smoke, "val", smoke_store)))
    keys = {recognisers.embeddings_recipe(smoke, role, name, f).key for role in ("val", "test") for f in (False, True)}
    assert len(keys) == 4


def test_encoders_see_other_people(smoke: Profile) -> None:
    stages = [u.stage for u in experiment.faces_recipe(smoke, "generator").upstream]
    assert stages == ["rendered.generator", "recognition.reference", "rendered.head"]
    assert [u.stage for u in recognisers.recipe(smoke).upstream] == ["rendered.encoder", "rendered.val"]
    keys = {experiment.faces_recipe(smoke, "val", e).key for e in ("reference", "dlib")}
    assert len(keys) == 2


def test_population_is_the_generator_people(smoke: Profile, smoke_store: Store) -> None:
    known, table = (
        experiment.load_population(smoke, smoke_store),
        roles.load_rendered(smoke, "generator", smoke_store).table,
    )
    assert list(known.names) == rendered.attribute_names(table)
    assert np.array_equal(known.attributes, table[list(known.names)])
    assert np.array_equal(known.elsewhere, experiment.load_faces(smoke, smoke_store, "generator").elsewhere)


def test_population_is_as_large_as_it_says(
    smoke: Profile, smoke_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "POPULATION", 5)
    recipe = experiment.population_recipe(smoke)
    recipe.make(tmp_path, tuple(smoke_store.get(u) for u in recipe.upstream))
    table = roles.load_rendered(smoke, "generator", smoke_store).table
    assert np.array_equal(experiment.read_population(tmp_path).attributes, table[rendered.attribute_names(table)][:5])


# ---------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", [f.name for f in fields(DiFace) if f.name != "text"])
def test_keys_change_with_what_matters_and_with_nothing_else(smoke: Profile, name: str) -> None:
    changed = replace(smoke.diface, **{name: OTHER[name]})
    denoiser, refinement = (
        build(smoke, changed).key != build(smoke, smoke.diface).key
        for build in (experiment.denoiser_recipe, experiment.refinement_recipe)
    )
    assert refinement == (name != "pixel_steps")
    assert denoiser == (name not in OF_REFINEMENT | {"pixel_steps"})
    other = replace(smoke, diface=changed)
    assert experiment.population_recipe(smoke).key == experiment.population_recipe(other).key


def test_a_text_model_is_known_by_its_contents(smoke: Profile, tmp_path: Path) -> None:
    def keys(folder: str) -> list[str]:
        asked = replace(smoke, diface=replace(smoke.diface, tokens="text", text=str(tmp_path / folder)))
        networks = experiment.denoiser_recipe(asked, asked.diface), experiment.baseline_recipe(asked, "regression")
        lines = diface_study.study_recipe(asked, "mentions.0.1.bayes"), diface_study.level_recipe(asked, 0.0)
        return [recipe.key for recipe in (*networks, *lines)]

    for folder, weights in (("here", b"a"), ("there", b"a"), ("other", b"b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
    assert keys("here") == keys("there") and not set(keys("here")) & set(keys("other"))
    with pytest.raises(FileNotFoundError, match=r"diface.text: .*nowhere.* is not there; expected a folder"):
        keys("nowhere")


# ------------------------------------------------------------------------------------------------- the smoke profile


@pytest.fixture(scope="module")
def model(smoke: Profile, smoke_store: Store) -> Model:
    return experiment.load(smoke, smoke_store)


def test_files_describe_themselves(smoke: Profile, smoke_store: Store) -> None:
    section = smoke.diface
    for recipe, steps in (
        (experiment.denoiser_recipe(smoke, section), section.steps),
        (experiment.refinement_recipe(smoke, section), section.refine_steps),
    ):
        facts = read_model(smoke_store.get(recipe) / experiment.MODEL)[1]
        assert facts["step"] == steps and facts["dim"] == smoke.reference.embedding
        assert {"metrics", "code_version"} <= set(facts)
        assert not list(smoke_store.get(recipe).glob("checkpoint*"))


def test_a_model_without_refinement_has_the_same_denoiser(smoke: Profile, smoke_store: Store, model: Model) -> None:
    rough = experiment.load(smoke, smoke_store, refined=False)
    assert rough.refinement is None and not rough.denoiser.training
    weights = model.denoiser.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in rough.denoiser.state_dict().items())


@pytest.mark.parametrize("tokens", ["statements", "text"])
def test_the_unet_of_the_paper_trains_and_answers(smoke: Profile, smoke_store: Store, tokens: Any) -> None:
    section = replace(smoke.diface, denoiser="unet", steps=2, tokens=tokens)
    model, said = experiment.load(smoke, smoke_store, section, refined=False), np.full((2, A), UNSAID, np.int8)
    said[0, 0], said[1, [1, 3]] = PRESENT, ABSENT
    tokens = Tau(section.tokens).of(NAMES)(said, np.random.default_rng(0))
    found = model.refine(model.rough(tokens, 0)).cpu().numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


# -------------------------------------------------------------------------------------------------- photographed people


CELEBA = ["Male", "Young", "Eyeglasses", "Smiling", "Attractive"]  # of the last, the grammar knows nothing


@pytest.fixture
def celeba(smoke: Profile, smoke_store: Store, tmp_path: Path) -> Profile:
    """The smoke profile with photographs in the roles that DiFace uses, of which CelebA's attributes are known."""
    folders = {}
    for role in ("generator", "val", "gallery"):
        faces = roles.load_rendered(smoke, role, smoke_store)
        shown = faces.table[CELEBA[:-1]].astype(int)
        texts = grammar.describe(shown.to_numpy(), tuple(shown), np.random.default_rng(0))
        told = faces.table[["identity", *CELEBA[:-1]]].assign(Attractive=True, caption=texts)
        replace(faces, table=told).save(tmp_path / role)
        folders[role] = str(tmp_path / role)
    return replace(smoke, photographs=folders)


@pytest.fixture
def captioned(celeba: Profile) -> Profile:
    """The same, read by the captions that come with the photographs."""
    return replace(celeba, diface=replace(celeba.diface, tokens="captions"))


@pytest.fixture
def seen(store: Store) -> Store:
    """What the session's stores hold serves here, too."""
    return Store(store.root, shipped=(artifacts.default_store().root, artifacts.WEIGHTS))


def test_photographs_are_described_by_what_their_table_says(celeba: Profile, smoke: Profile, seen: Store) -> None:
    faces, rendering = experiment.load_faces(celeba, seen, "gallery"), experiment.load_faces(smoke, seen, "gallery")
    assert faces.names == tuple(CELEBA[:-1])
    columns = [rendering.names.index(name) for name in faces.names]
    assert np.array_equal(faces.attributes, rendering.attributes[:, columns])
    np.testing.assert_allclose(faces.embeddings, rendering.embeddings, atol=2e-3)
    views = smoke.rendered.roles["gallery"].views
    other = np.arange(len(faces)).reshape(-1, views)
    assert np.array_equal(faces.elsewhere[other], faces.attributes[np.roll(other, -1, 1)])
    assert faces.captions == ()  # nobody asked for them
    people = experiment.load_population(celeba, seen)
    assert people.names == faces.names and set(np.unique(faces.groups)) <= set(range(4))


def test_captions_of_another_photograph_are_what_training_reads(captioned: Profile, seen: Store) -> None:
    faces = experiment.load_faces(captioned, seen, "gallery")
    texts = FaceSet.load(Path(captioned.photographs["gallery"])).table["caption"]
    assert faces.captions == tuple(texts)
    tau = experiment.tau_of(captioned.diface)
    say = described.describing(faces, tau, CANDID)
    views = captioned.rendered.roles["gallery"].views
    rows = torch.tensor([0, views - 1, views])
    other = [1, 0, views + 1]  # the next photograph of the person; after the last, the first
    expected = WordEncoder(minilm_folder(), device())([texts[row] for row in other])
    torch.testing.assert_close(say(rows, torch.Generator().manual_seed(3)).cpu(), expected.cpu())


def test_diface_reads_captions_from_training_to_table(captioned: Profile, seen: Store) -> None:
    table = evaluating.diface(captioned, seen)
    assert set(table["method"]) == {"diface", "diface, infonce r", "regression", "contrastive"}
    assert {"verification, random", "verification, hard", "rank 1 of 4"} <= set(table["test"])
    assert table["value"].between(0, 1).all() and (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    rows = diface_study.study(captioned)
    assert not any(name.startswith(("mentions", "errors")) for name in rows)
    result = json.loads((seen.get(diface_study.study_recipe(captioned, "refinement.none")) / "result.json").read_text())
    assert 0 <= result["random_accuracy"] <= 1


def test_who_reads_captions_is_told_no_statements_and_the_other_way_round() -> None:
    faces, network = crowd(4), nn.Identity()
    with pytest.raises(ValueError, match=r"said: expected texts, as tokens 'captions' read, got an array \(4, "):
        Regression(network, Tau("captions")).match(anything(4), faces, 0)
    texts = ["a man with glasses"] * 4
    for matcher in (Regression(network, Tau()), Classifier(network, np.zeros(A), np.zeros((A, 2)), CANDID)):
        with pytest.raises(ValueError, match=r"said: expected (statements )?\([BN], \d+\)"):
            matcher.match(texts, faces, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"caption": None},
            r"photographs: row 0 \(of \d+\) has no caption; expected photographs with a column caption",
        ),
        ({}, "photographs: expected photographs with a column caption, such as CelebA's"),
    ],
)
def test_photographs_without_captions_are_refused(
    captioned: Profile, seen: Store, tmp_path: Path, change: dict[str, None], message: str
) -> None:
    faces = FaceSet.load(Path(captioned.photographs["val"]))
    replace(faces, table=faces.table.drop(columns="caption").assign(**change)).save(tmp_path / "silent")
    silent = replace(captioned, photographs={"val": str(tmp_path / "silent")})
    with pytest.raises(ValueError, match=message):
        experiment.load_faces(silent, seen, "val")


def test_rendered_people_have_no_captions(smoke: Profile, smoke_store: Store) -> None:
    faces = experiment.load_faces(smoke, smoke_store, "val")
    with pytest.raises(ValueError, match="tokens captions: expected photographs"):
        described.describing(faces, Tau("captions"), CANDID)


def test_a_table_of_described_people(smoke: Profile, smoke_store: Store, tmp_path: Path) -> None:
    """By the command; the numbers are those of the study's line of the same model on the same pairs."""
    assert smoke.evaluation.pair_sets == diface_study.STUDY_SETS
    assert cli.main(["diface", "--profile", "smoke", "--json", str(tmp_path / "table.json")]) == 0
    rows = {(row["method"], row["test"]): row for row in json.loads((tmp_path / "table.json").read_text())}
    assert {method for method, _ in rows} == {"diface", "diface, infonce r", "regression", "contrastive", "classifier"}
    result = diface_study.load_study(smoke, smoke_store, "refinement.trained").iloc[0]
    for impostors in ("random", "hard"):
        assert rows["diface", f"verification, {impostors}"]["value"] == result[f"{impostors}_accuracy"]


def test_diface_trains_on_photographs_and_is_searched(celeba: Profile, seen: Store) -> None:
    model = experiment.load(celeba, seen)
    faces = experiment.load_faces(celeba, seen, "gallery")
    said = described.captions_of(faces, CANDID, 0)
    assert everything(model.match(said, faces, seed=0)).shape == (len(faces), len(faces))
    finder = searching.finder(celeba, seen)
    found = finder.search(np.array([PRESENT, UNSAID, ABSENT, UNSAID]), 3)
    assert len(found) == 3 and finder.pictures(found).shape[0] == 3


def test_photographs_of_which_nothing_is_known_are_refused(smoke: Profile, smoke_store: Store, tmp_path: Path) -> None:
    faces = roles.load_rendered(smoke, "val", smoke_store)
    replace(faces, table=faces.table[["identity"]].assign(Attractive=True)).save(tmp_path / "val")
    unknown = replace(smoke, photographs={"val": str(tmp_path / "val")})
    with pytest.raises(ValueError, match=r"photographs: expected attributes .*got columns identity, Attractive"):
        experiment.load_faces(
            unknown, Store(tmp_path / "cache", (artifacts.default_store().root, artifacts.WEIGHTS)), "val"
        )
