"""DiFace measured: the protocols in closed form, the lines of the study, those of the smoke profile end to end."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

from diface_world import crowd
from facetransport.companion import profiles
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface as experiment
from facetransport.companion.experiments import diface_study as study
from facetransport.companion.experiments import words
from facetransport.companion.experiments.diface import load_baseline
from facetransport.companion.experiments.diface_study import (
    load_study,
    matches,
    recipes,
    study_recipe,
    study_recipes,
    verification,
)
from facetransport.companion.profiles import Profile
from facetransport.evaluation import described
from facetransport.evaluation.described import Faces
from facetransport.evaluation.descriptions import Match, cosine_match, draw_pairs
from facetransport.evaluation.matchers import Bayes
from facetransport.world.captions import Describer

# -------------------------------------------------------------------------------------------------------- protocols


@dataclass
class Known:
    """Whoever knows something of faces, as vectors (N, D): captions and images are compared by it."""

    vectors: Any

    def match(self, said: np.ndarray, faces: Faces, seed: int) -> Match:
        vectors = self.vectors(faces)
        return Match(vectors, vectors, np.zeros(len(said)))


@pytest.fixture
def verified(smoke: Profile) -> Any:
    """verified(matcher, protocol, hard): on crowds of 60 (validation) and 100 people, 1,000 pairs in 2 sets."""
    evaluation = replace(smoke.evaluation, pairs=1000, pair_sets=2)
    val, test, describer = crowd(60, seed=1), crowd(100, seed=2), Describer(0.05, 0.6, 0.1)

    def verify(matcher: Any, **options: Any) -> Any:
        found = [matches(matcher, f, study.told(f, describer, n)) for f, n in ((val, 1), (test, 2))]
        return verification(*found, (val, test), evaluation, **options)

    return verify


def test_who_knows_the_attributes_verifies_and_who_guesses_does_not(verified: Any) -> None:
    sure = verified(Bayes(Describer(0.05, 0.6, 0.1), crowd(500, 1, seed=3)))
    assert sure.accuracy.value > 0.95 and len(sure.sets) == 2 and sure.accuracy.n == 2000
    rng = np.random.default_rng(0)
    guess = verified(Known(lambda faces: rng.normal(size=(len(faces), 100))))
    assert guess.accuracy.value == pytest.approx(0.5, abs=0.04)
    assert guess.accuracy.low < 0.5 < guess.accuracy.high


def test_the_caption_is_of_another_photograph_or_of_the_same(verified: Any) -> None:
    """Who recognises nothing but the photograph itself has nothing to hold on to in another one."""
    photograph = Known(lambda faces: np.eye(len(faces)))
    assert verified(photograph, protocol="same").accuracy.value == 1
    assert verified(photograph, protocol="other").accuracy.value == 0.5


def test_hard_negatives_share_gender_and_age_band(verified: Any) -> None:
    band = Known(lambda faces: np.eye(8)[faces.groups])
    assert verified(band, hard=True).accuracy.value == 0.5
    assert verified(band).accuracy.value > 0.85


def test_the_threshold_is_that_of_validation(smoke: Profile) -> None:
    """Scores of 0 and 1 there, and of 0 and 0.1 here: no test pair reaches what was fixed."""
    faces = crowd(20)
    people = np.eye(20)[faces.identity]
    val, test = (Match(people * scale, people, np.zeros(60)) for scale in (1, 0.1))
    evaluation = replace(smoke.evaluation, pairs=400, pair_sets=1)
    found = verification([val], [test], (faces, faces), evaluation)
    assert found.accuracy.value == 0.5 and found.auc.value == 1 and 0 < found.threshold <= 1
    assert verification([val], [val], (faces, faces), evaluation).accuracy.value == 1


def test_each_set_has_captions_and_pairs_of_its_own(smoke: Profile) -> None:
    faces, describer = crowd(10), Describer(0.1, 0.5, 0.3)
    asked = []

    class Asked:
        def match(self, said: np.ndarray, faces: Faces, seed: int) -> Match:
            asked.append((said, seed))
            return cosine_match(faces.embeddings, faces.embeddings)

    found = matches(Asked(), faces, study.told(faces, describer, 3))
    assert [seed for _, seed in asked] == [0, 1, 2]
    assert all(np.array_equal(said, described.captions_of(faces, describer, s)) for said, s in asked)
    evaluation = replace(smoke.evaluation, pairs=60, pair_sets=3)
    sets = verification(found[:1], found, (faces, faces), evaluation).sets
    by_hand = []
    for seed in range(3):
        pairs = draw_pairs(faces.identity, seed, 60)
        scores = found[seed].pairs(pairs.caption, pairs.image)
        threshold = verification(found[:1], found, (faces, faces), evaluation).threshold
        by_hand.append(((scores >= threshold) == pairs.same).mean())
    np.testing.assert_allclose(sets, by_hand)


# ---------------------------------------------------------------------------------------------------------- recipes


def test_how_much_is_measured_changes_no_network(smoke: Profile) -> None:
    more = replace(smoke, evaluation=replace(smoke.evaluation, pairs=60))
    assert [r.key for r in recipes(smoke)] == [r.key for r in recipes(more)]
    assert study_recipe(smoke, "refinement.trained").key != study_recipe(more, "refinement.trained").key
    assert len({r.key for r in recipes(smoke)}) == len(recipes(smoke))


# ------------------------------------------------------------------------------------------------------------ study

LINES = (
    "refinement.trained", "refinement.none", "steps.5", "rough.guidance.2", "tokens.clauses", "mentions.0.1.ours",
    "encoder.reference", "mentions.1.contrastive", "errors.0.4.bayes", "errors.0.1.regression",
    "mentions.0.6.classifier",
)  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_study_is_measured(smoke: Profile, smoke_store: Store, name: str) -> None:
    numbers = json.loads((smoke_store.get(study_recipe(smoke, name)) / study.RESULT).read_text())
    assert numbers["n"] == smoke.evaluation.pairs * numbers["sets"]
    for kind in ("random", "hard"):
        for measure in ("accuracy", "eer", "auc"):
            value, low, high = (numbers[f"{kind}_{measure}{end}"] for end in ("", "_low", "_high"))
            assert 0 <= low <= high <= 1 and 0 <= value <= 1


@pytest.mark.parametrize("hard", [False, True])
def test_lines_are_what_their_parts_give(smoke: Profile, smoke_store: Store, hard: bool) -> None:
    told = experiment.describer_of(smoke.diface)
    erring = replace(told, error=0.4)
    parts = {
        "refinement.trained": (experiment.load(smoke, smoke_store), told),
        "errors.0.4.bayes": (Bayes(erring, experiment.load_population(smoke, smoke_store), hard=hard), erring),
        "errors.0.1.regression": (load_baseline(smoke, smoke_store, "regression"), replace(told, error=0.1)),
        "mentions.0.6.ours": (
            experiment.load(smoke, smoke_store, experiment.ours(smoke.diface)),
            replace(told, say_yes=0.6),
        ),
    }
    faces = tuple(experiment.load_faces(smoke, smoke_store, role) for role in ("val", "gallery"))
    for name, (matcher, describer) in parts.items():
        line = load_study(smoke, smoke_store, name).loc[name]
        asked = zip(faces, (1, int(line["sets"])), strict=True)
        found = [matches(matcher, f, study.told(f, describer, n)) for f, n in asked]
        verified = verification(*found, faces, smoke.evaluation, hard=hard)
        for measure in ("accuracy", "eer", "auc"):
            estimate, column = getattr(verified, measure), f"{'hard' if hard else 'random'}_{measure}"
            assert (line[column], line[f"{column}_low"]) == (estimate.value, estimate.low)


@pytest.mark.parametrize("name", profiles.names())
def test_lines_of_a_study_differ_in_what_is_varied_only(name: str) -> None:
    rows, first = study.study(profiles.load(name)), {}
    varied = {
        "steps": {"sampling_steps"}, "mentions": {"say_yes"}, "errors": {"error"},
        "denoiser": {"denoiser", "width", "depth"},
    }  # fmt: skip
    for line, row in rows.items():
        topic = line.removeprefix("rough.").split(".")[0]
        other = first.setdefault((topic, row.method), row)
        parts = ((row.section, other.section), (row.told, other.told))
        changed = {f.name for x, y in parts for f in fields(x) if getattr(x, f.name) != getattr(y, f.name)}
        assert changed <= varied.get(topic, {topic}), line
        assert row.refined == (not line.startswith("rough.") and line != "refinement.none")
    assert set(LINES) <= set(rows) and {row.method for row in rows.values()} == set(study.METHODS)


def test_rough_lines_are_the_others_without_refinement(smoke: Profile) -> None:
    rows = study.study(smoke)
    rough = {name.removeprefix("rough."): row for name, row in rows.items() if name.startswith("rough.")}
    few = {name: row for name, row in rough.items() if row.section.sampling_steps <= study.MOST_STEPS}
    assert few and all(rows[name] == replace(row, refined=True) for name, row in few.items())
    assert set(rough) - set(few) == {"steps.50"} and "steps.50" not in rows  # no R for so many steps


def test_every_line_is_made_once(smoke: Profile) -> None:
    keys = [r.key for r in study_recipes(smoke)]
    assert len(keys) == len(set(keys)) < len(study.study(smoke)) + len(words.READ)
    as_it_is = {"refinement.trained", "refine_gallery.no", "mentions.0.6.diface", f"l2.{smoke.diface.l2:g}"}
    assert {study_recipe(smoke, name).key for name in as_it_is} == {keys[0]}
    assert {study_recipe(smoke, name).key for name in LINES} <= set(keys)


def test_lines_need_only_the_networks_they_use(smoke: Profile) -> None:
    def networks(name: str) -> list[str]:
        stages = [u.stage.removeprefix("diface.") for u in study_recipe(smoke, name).upstream]
        return [s for s in stages if not s.startswith(("faces", "population"))]

    assert networks("refinement.trained") == ["denoiser", "refinement"]
    assert networks("refinement.none") == networks("rough.steps.1") == ["denoiser"]
    assert networks("mentions.1.ours") == ["denoiser", "refinement"]
    assert networks("errors.0.bayes") == []
    assert networks("errors.0.1.contrastive") == ["contrastive"]
