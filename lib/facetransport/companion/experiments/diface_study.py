"""DiFace measured (`facetransport.papers.diface`): verification, every line of the ablations, D's levels of noise.

Protocols: papers.md 1.6, as far as those of arXiv 2312.01367 could be read; what is varied, and how far, is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import words
from facetransport.companion.experiments.diface import (
    BASELINES,
    assemble,
    baseline_recipe,
    denoiser_recipe,
    describer_of,
    faces_recipe,
    ours,
    pixels_recipe,
    population_recipe,
    read_baseline,
    read_faces,
    read_population,
    refinement_recipe,
    rivals,
    tau_of,
    words_of,
)
from facetransport.companion.profiles import DiFace, Evaluation, Profile, as_config
from facetransport.evaluation.described import Faces, Matcher, Said, captions_from, captions_of
from facetransport.evaluation.descriptions import (
    DescriptionVerification,
    Match,
    Matched,
    Scores,
    draw_pairs,
    verify_descriptions,
)
from facetransport.evaluation.matchers import DRAWS, Bayes, Likelihood
from facetransport.evaluation.statistics import Estimate
from facetransport.files import write_json
from facetransport.papers.diface import Model, match_all
from facetransport.world.captions import Describer

RESULT = "result.json"
STUDY_SETS = 2  # of pairs, in ablations
MOST_STEPS = 10  # that a line of a study trains an R for
SMALL = 2_000  # people, where encoders are compared: dlib is the slow one
LEVELS = (4.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0)  # log signal-to-noise


def told(faces: Faces, describer: Describer, sets: int) -> list[np.ndarray]:
    """What is said of each photograph, int8 (N, A), in so many sets of descriptions."""
    return [captions_of(faces, describer, seed) for seed in range(sets)]


def told_to(section: DiFace, faces: Faces, describer: Describer, sets: int) -> Sequence[Said]:
    """As `told`, or, for a model that reads captions, those of the photographs, the same in each set."""
    return [captions_from(faces)] * sets if section.tokens == "captions" else told(faces, describer, sets)


def matches(matcher: Matcher, faces: Faces, understood: Sequence[Said]) -> list[Matched]:
    """Sets of descriptions of all faces, each as it was understood (`told`, or `words.load_readings`), against all."""
    return [matcher.match(said, faces, seed) for seed, said in enumerate(understood)]


def matches_of_all(models: Mapping[str, Model], faces: Faces, understood: Sequence[Said]) -> dict[str, list[Match]]:
    """As `matches`, of models that share their D (`facetransport.papers.diface.match_all`), by name."""
    found = [match_all(models, said, faces, seed) for seed, said in enumerate(understood)]
    return {name: [each[name] for each in found] for name in models}


def verification(
    val: Sequence[Scores],
    test: Sequence[Scores],
    faces: tuple[Faces, Faces],
    evaluation: Evaluation,
    protocol: str = "other",
    hard: bool = False,
) -> DescriptionVerification:
    """Verification as papers.md 1.6 has it: one match of `val` fixes the threshold, one set of pairs for each of test.

    faces: those of val and of test. protocol: captions of another photograph ("other") or of the same ("same"). hard:
    impostors of the same gender and age band.
    """
    drawn = [
        [draw_pairs(f.identity, seed, evaluation.pairs, protocol, f.groups if hard else None) for seed in range(len(m))]
        for f, m in zip(faces, (val, test), strict=True)
    ]
    scores = [
        [m.pairs(p.caption, p.image) for m, p in zip(found, pairs, strict=True)]
        for found, pairs in zip((val, test), drawn, strict=True)
    ]
    labels = np.concatenate([p.same for p in drawn[0]])
    resamples = evaluation.bootstrap
    return verify_descriptions(
        np.concatenate(scores[0]), labels, scores[1], drawn[1], faces[1].identity, bootstrap=resamples
    )


# ------------------------------------------------------------------------------------------------------------ ablations


@dataclass(frozen=True)
class Row:
    """One line of a study, of statements as they are said. section: of the model. told: who describes. method: of
    METHODS; "ours": DiFace with the R of ``ours``. refined: with R.
    """

    section: DiFace
    told: Describer
    method: str = "diface"
    refined: bool = True


def study(profile: Profile) -> dict[str, Row]:
    """Every line of every study by name, ``<what is varied>.<value>``; ``rough.`` before it: without R.

    A line that changes T~, K or guidance has an R of its own; one that changes D, E or tau has its own D too. Nobody
    varies what captions say: for a model that reads them there are no lines about the describer.
    """
    base = profile.diface
    by = describer_of(base)
    rows = {"refinement.trained": Row(base, by), "refinement.none": Row(base, by, refined=False)}
    for name, changes in _variants(base).items():
        row = Row(replace(base, **changes), by)
        if row.section.sampling_steps <= MOST_STEPS:  # an R of its own for more would take an hour to make data for
            rows[name] = row
        if name.startswith(SWEEPS):
            rows[f"rough.{name}"] = replace(row, refined=False)
    for name, describer in describers(by).items() if base.tokens != "captions" else ():
        for method in METHODS:
            rows[f"{name}.{method}"] = Row(_section(base, method), describer, method)
    return rows


def _section(base: DiFace, method: str) -> DiFace:
    return ours(base) if method == "ours" else base


SWEEPS = ("steps.", "samples.", "guidance.")
METHODS = ("diface", "ours", "regression", "contrastive", "classifier", "bayes")


def describers(usual: Describer) -> dict[str, Describer]:
    """Describers that mention more or fewer attributes, or err more or less."""
    mentions = {f"mentions.{share:g}": replace(usual, say_yes=share) for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)}
    errors = {f"errors.{rate:g}": replace(usual, error=rate) for rate in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)}
    return mentions | errors


def _variants(base: DiFace) -> dict[str, dict[str, Any]]:
    """Changes to the profile's model by line. Lines that train D anew train it, and what they are compared with, for
    fewer steps; those of several samples start from T~ = 5 and K = 8, and R sees fewer people."""
    most = base.timesteps
    small = {
        "refine_people": min(base.people, 12_000),
        "refine_captions": 1,
        "refine_steps": min(base.refine_steps, 400),
    }
    several = small | {"sampling_steps": min(5, most), "samples": 8}
    brief = small | {"steps": min(base.steps, 1000)}
    few = brief | {"people": min(base.people, SMALL), "refine_people": min(base.people, SMALL)}
    slow = {"batch": min(base.batch, 64), "steps": min(base.steps, 2000), "refine_people": min(base.people, SMALL)}
    unet = small | slow
    rows: dict[str, dict[str, Any]] = {
        f"steps.{t}": several | {"sampling_steps": t} for t in (1, 2, 5, 10, 50) if t <= most
    }
    rows |= {f"samples.{k}": several | {"samples": k} for k in (1, 2, 4, 8)}
    scales = (1.0, 2.0) if base.token_drop else (1.0,)
    rows |= {f"guidance.{g:g}": several | {"guidance": g} for g in scales}
    rows |= {f"l2.{weight:g}": {"l2": weight} for weight in (0.0, 1.0, 10.0)}
    rows |= {f"refine_gallery.{'yes' if on else 'no'}": {"refine_gallery": on} for on in (False, True)}
    rows |= {
        f"refine_loss.{kind}": {"refine_loss": kind, "refine_gallery": True, "l2": 0.0}
        for kind in ("cosine", "infonce")
    }
    rows |= {f"tokens.{kind}": brief | {"tokens": kind, "text": None} for kind in ("statements", "clauses")}
    rows |= {"denoiser.mlp": unet, "denoiser.unet": unet | {"denoiser": "unet", "width": 32, "depth": 1}}
    rows |= {f"encoder.{name}": few | {"encoder": name} for name in ("reference", "dlib")}
    return rows


def study_recipe(profile: Profile, name: str) -> Recipe:
    """The result of one line of ``study``: result.json, verification at random and at hard negatives."""
    row = study(profile)[name]
    section = as_config(row.section) | words_of(row.section)
    config = as_config(row) | {"section": section, "evaluation": as_config(profile.evaluation)}
    faces = (faces_recipe(profile, role, row.section.encoder) for role in ("val", "gallery"))
    upstream = (*faces, *_networks(profile, row))
    make = partial(_make_study, row, profile.evaluation)
    return Recipe("diface.study", config, make, upstream=upstream, label=name)


def load_study(profile: Profile, store: Store, prefix: str = "") -> pd.DataFrame:
    """Lines of the study whose name begins with ``prefix``: name, then each number of ``result.json`` by column."""
    chosen = [name for name in study(profile) if name.startswith(prefix)]
    results = [
        json.loads((store.get(study_recipe(profile, name)) / RESULT).read_text(encoding="utf-8")) for name in chosen
    ]
    return pd.DataFrame(results, index=pd.Index(chosen, name="row"))


def _networks(profile: Profile, row: Row) -> tuple[Recipe, ...]:
    if row.method == "bayes":
        return (population_recipe(profile),)
    if row.method in BASELINES:
        return (baseline_recipe(profile, row.method),)
    denoiser = denoiser_recipe(profile, row.section)
    return (denoiser, refinement_recipe(profile, row.section)) if row.refined else (denoiser,)


def _make_study(row: Row, evaluation: Evaluation, folder: Path, upstream: tuple[Path, ...]) -> None:
    val, test = (read_faces(path) for path in upstream[:2])
    numbers: dict[str, Any] = {}
    for name, hard in (("random", False), ("hard", True)):
        if name == "random" or row.method == "bayes":  # whose bound knows what impostors share
            matcher = _row_matcher(row, hard, upstream[2:])
            found = [
                matches(matcher, f, told_to(row.section, f, row.told, n)) for f, n in ((val, 1), (test, STUDY_SETS))
            ]
        numbers |= numbers_of(name, verification(found[0], found[1], (val, test), evaluation, hard=hard))
    write_json(folder / RESULT, numbers)


def numbers_of(name: str, verified: DescriptionVerification) -> dict[str, Any]:
    """``<name>_accuracy``, ``<name>_accuracy_low`` and so on; n: pairs; sets: of pairs."""
    numbers: dict[str, Any] = {"n": verified.accuracy.n, "sets": len(verified.sets)}
    for measure in ("accuracy", "eer", "auc"):
        numbers |= {f"{name}_{measure}{k}": v for k, v in _parts(getattr(verified, measure)).items()}
    return numbers


def _parts(estimate: Estimate) -> dict[str, float]:
    return {"": estimate.value, "_low": estimate.low, "_high": estimate.high}


def _row_matcher(row: Row, hard: bool, folders: tuple[Path, ...]) -> Matcher:
    if row.method == "bayes":
        return Bayes(row.told, read_population(folders[0]), hard=hard)
    if row.method in BASELINES:
        return read_baseline(row.method, row.section, folders[0])
    return assemble(row.section, *folders)


def recipes(profile: Profile) -> list[Recipe]:
    """What notebook 03 needs once: networks and the population; the lines of the study are ``study_recipes``."""
    section = profile.diface
    networks = [denoiser_recipe(profile, section), *(refinement_recipe(profile, s) for s in (section, ours(section)))]
    baselines = [baseline_recipe(profile, kind, encoder) for kind, encoder in rivals(profile)]
    return [*networks, *baselines, pixels_recipe(profile), population_recipe(profile), *words.networks(profile)]


def study_recipes(profile: Profile) -> list[Recipe]:
    """Every line of the study, each once, and what each reader understood of each kind of words."""
    readings = [words.readings_recipe(profile, kind, how) for how, kind in words.READ]
    readings += [words.sentences_recipe(profile, how) for how in words.OF_SENTENCES]
    return [*{r.key: r for r in (study_recipe(profile, name) for name in study(profile))}.values(), *readings]


# ------------------------------------------------------------------------------------------------------- D as a density


def level_recipe(profile: Profile, level: float) -> Recipe:
    """The result at one level: result.json, verification at random and hard negatives, and the AUC on `val` pairs."""
    section, evaluation = profile.diface, profile.evaluation
    config: dict[str, Any] = {"level": level, "draws": DRAWS, "tokens": section.tokens, **words_of(section)}
    config |= {"told": as_config(describer_of(section))}
    faces = (faces_recipe(profile, role, section.encoder) for role in ("val", "gallery"))
    upstream = (*faces, denoiser_recipe(profile, section))
    make = partial(_make_level, section, level, evaluation)
    return Recipe(
        "diface.likelihood",
        config | {"evaluation": as_config(evaluation)},
        make,
        upstream=upstream,
        label=f"level {level:g}",
    )


def level_recipes(profile: Profile) -> list[Recipe]:
    """The result at every level."""
    return [level_recipe(profile, level) for level in LEVELS]


def load_levels(profile: Profile, store: Store) -> pd.DataFrame:
    """The numbers of ``result.json`` by column, one row a level (the index, log SNR)."""
    found = [json.loads((store.get(r) / RESULT).read_text(encoding="utf-8")) for r in level_recipes(profile)]
    return pd.DataFrame(found, index=pd.Index(LEVELS, name="level"))


def best_level(levels: pd.DataFrame) -> float:
    """The level of the highest AUC on `val` pairs."""
    return LEVELS[int(levels["val_auc"].to_numpy().argmax())]


def _make_level(
    section: DiFace, level: float, evaluation: Evaluation, folder: Path, upstream: tuple[Path, ...]
) -> None:
    val, test = (read_faces(path) for path in upstream[:2])
    matcher = Likelihood(assemble(section, upstream[2]).denoiser, tau_of(section), level)
    found = [
        [
            matcher.match(said, faces, seed)
            for seed, said in enumerate(told_to(section, faces, describer_of(section), sets))
        ]
        for faces, sets in ((val, 1), (test, STUDY_SETS))
    ]
    pairs = draw_pairs(val.identity, 0, evaluation.pairs, "other")
    numbers: dict[str, Any] = {
        "val_auc": float(roc_auc_score(pairs.same, found[0][0].pairs(pairs.caption, pairs.image)))
    }
    for name, hard in (("random", False), ("hard", True)):
        numbers |= numbers_of(name, verification(found[0], found[1], (val, test), evaluation, hard=hard))
    write_json(folder / RESULT, numbers)
