"""Recognisers trained from nothing on labelled sets: rows of the main table, and pilots that choose its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from facetransport.companion.artifacts import Recipe
from facetransport.companion.experiments import aligned, given, id3, recognisers, redrawn, roles
from facetransport.companion.experiments.idiff_face import dataset_recipe
from facetransport.companion.profiles import ID3Set, Profile, RecogniserTraining, as_config
from facetransport.data.faceset import FaceSet
from facetransport.evaluation import benchmark
from facetransport.evaluation.pairs import PairSet


def run_recipe(
    profile: Profile, faces: Recipe, name: str, augmentation: str, lr: float, seed: int, times: int = 1
) -> Recipe:
    """The result of one run on a FaceSet, tested on rendered ``test`` people ("rendered") and on photographs ("orl").

    faces: makes the FaceSet to train on. name: of the set, such as ``idiff_face.authentic`` or ``pilot``. times: of the
    profile's steps.
    """
    section = profile.synthetic_recognition
    settings = {"evaluations": section.evaluations, "bootstrap": profile.evaluation.bootstrap}
    operations = benchmark.OPERATIONS[augmentation]
    steps = times * section.training.steps
    run = replace(section.training, lr=lr, seed=seed, steps=steps, augment=True, randaugment=operations)
    chosen = {"augmentation": augmentation, **settings}
    judged = [roles.recipe(profile, "val"), roles.recipe(profile, "test"), roles.orl_recipe(profile.rendered.size)]
    judged += [given.pairs_recipe(name, path) for name, path in profile.tests.items()]
    return Recipe(
        stage=f"synthetic_recognition.{name}",
        config={**as_config(run), **chosen},
        make=partial(_make, run, chosen, tuple(profile.tests)),
        upstream=(faces, *judged),
        label=f"{augmentation}, lr {lr:g}, seed {seed}" + f", {steps} steps" * (times > 1),
        collective=True,
    )


def _make(
    section: RecogniserTraining,
    settings: Mapping[str, Any],
    names: Sequence[str],
    folder: Path,
    upstream: tuple[Path, ...],
) -> None:
    """Train on upstream[0], pick on upstream[1], test on the others; continues an interrupted attempt."""
    faces, val, rendered, orl = (FaceSet.load(path) for path in upstream[:4])
    tests: dict[str, benchmark.Test] = {"rendered": rendered, "orl": orl}
    tests |= {name: PairSet.open(path / given.PAIRS) for name, path in zip(names, upstream[4:], strict=True)}
    how = recognisers.network_config(section), recognisers.head_config(section), recognisers.training_config(section)
    benchmark.train_and_test(faces, *how, val, tests, folder=folder, **settings)


ABLATIONS: dict[str, dict[str, Any]] = {  # of ID3, from Table 2 of its paper
    "": {},
    "_random": {"anchors": "random"},
    "_original_score": {"adjustment": 0.0},
    "_no_attributes": {"attributes": False},
    "_wider": {"bounds": (0.5, 0.7)},
    "_drawn": {"directions": "drawn"},  # ours: contexts that vary within a person as a Gaussian does
}
AS_PUBLISHED: dict[str, tuple[str, float]] = {  # IDiff-Face's contexts and CPD
    "published": ("uniform", 0.25),
    "published_two_stage": ("two_stage", 0.25),
    "published_cpd0": ("uniform", 0.0),
    "published_cpd50": ("uniform", 0.5),
}


def recognition_rows(profile: Profile) -> dict[str, tuple[Recipe, str]]:
    """Row of the main table (paper, Table 4) -> the set that is trained on, and the augmentation."""
    n, authentic = profile.generation.identities, roles.recipe(profile, "authentic")
    plda, slowest = dataset_recipe(profile, "plda"), profile.idiff_face.timesteps
    half = (profile.generation.samples + 1) // 2
    # small, because the published solver is slow
    quarter = partial(dataset_recipe, profile, "plda", n // 4, samples=half, guidance=1.0, temperature=1.0)
    fast = quarter(solver="sde-dpm++", steps=min(20, slowest))  # stochastic, as the published one: notebook 07
    slow = quarter(solver="ddpm", steps=slowest)
    plain = partial(dataset_recipe, profile, guidance=1.0, temperature=1.0)
    less_guidance, shown = (dataset_recipe(profile, kind, **_as_id3(profile)) for kind in ("plda", "plda_shown"))
    untaught = replace(profile, id3=replace(profile.id3, identity_weight=0.0))
    return {
        "authentic": (authentic, "randaugment"),
        "authentic_flip": (authentic, "flip"),
        "authentic_decoded_flip": (redrawn.decoded_recipe(profile), "flip"),
        "authentic_redrawn_flip": (redrawn.redrawn_recipe(profile), "flip"),
        "plda": (plda, "randaugment"),
        "plda_flip": (plda, "flip"),
        "plda_more_steps_flip": (dataset_recipe(profile, "plda", steps=4 * profile.sampling.steps), "flip"),
        "plda_less_guidance_flip": (less_guidance, "flip"),
        "plda_shown_flip": (shown, "flip"),
        "plda_half": (dataset_recipe(profile, "plda", n // 2), "randaugment"),
        "plda_double": (dataset_recipe(profile, "plda", 2 * n), "randaugment"),
        "fast_solver": (fast, "randaugment"),
        "published_solver": (slow, "randaugment"),
        **{f"{name}_flip": (plain(kind, cpd=cpd), "flip") for name, (kind, cpd) in AS_PUBLISHED.items()},
        **{f"id3{end}_flip": (id3.set_recipe(profile, **change), "flip") for end, change in ABLATIONS.items()},
        "id3_no_loss_term_flip": (id3.set_recipe(untaught), "flip"),
    }


def recognition_run(profile: Profile, row: str, seed: int) -> Recipe:
    """The results of one recogniser trained on a row's set."""
    return _run(profile, row, *_row(profile, row), seed)


def _run(profile: Profile, row: str, faces: Recipe, augmentation: str, seed: int) -> Recipe:
    lr = profile.synthetic_recognition.training.lr
    name = row.replace("+", "_")  # as stages are called
    return run_recipe(profile, faces, name if row.startswith("id3") else f"idiff_face.{name}", augmentation, lr, seed)


PUBLISHED = re.compile(
    r"(?P<kind>\w+)\.cpd(?P<cpd>\d+)\.(?P<n>\d+)(\+(?P<spare>\d+))?x(?P<each>\d+)\.(?P<augmentation>flip|randaugment)"
)


def _row(profile: Profile, row: str) -> tuple[Recipe, str]:
    """A row by its name, or one of the paper's own tables: contexts, CPD, people x images and augmentation; with people
    to spare ("10000+50x50") the images are aligned."""
    rows, asked = recognition_rows(profile), PUBLISHED.fullmatch(row)
    if row in rows:
        return rows[row]
    if not asked:
        raise ValueError(f"row: expected one of {', '.join(rows)}, or such as uniform.cpd25.5000x16.flip; got {row!r}")
    n, each, cpd = int(asked["n"]), int(asked["each"]), int(asked["cpd"]) / 100
    drawn = n + int(asked["spare"] or 0)
    faces = dataset_recipe(profile, asked["kind"], drawn, cpd, samples=each, guidance=1.0, temperature=1.0)
    return aligned.recipe(profile, faces, n) if asked["spare"] else faces, asked["augmentation"]


def recognition_runs(profile: Profile) -> dict[tuple[str, int], Recipe]:
    """(row, seed) -> the results of that run, for all rows and seeds."""
    rows, seeds = recognition_rows(profile), profile.synthetic_recognition.seeds
    return {(row, seed): _run(profile, row, *trained_on, seed) for row, trained_on in rows.items() for seed in seeds}


def longer_runs(profile: Profile) -> dict[tuple[str, int], Recipe]:
    """(set, steps) -> one run with the first seed and ``longer`` times the steps, on authentic images and on ID3's set,
    and on sets of it of ``larger`` times as many people (``id3_x2``): whether the main table ends before its
    recognisers have converged, and what more people are worth where they have."""
    section, people = profile.synthetic_recognition, profile.generation.identities
    sets = {name: (faces, section.longer) for name, faces in _same_people(profile).items()}
    sets |= {f"id3_x{n}": (id3.set_recipe(profile, n * people), (steps,)) for n, steps in section.larger}
    return {
        (name, times * section.training.steps): run_recipe(
            profile, faces, f"longer.{name}", "flip", section.training.lr, section.seeds[0], times
        )
        for name, (faces, lengths) in sets.items()
        for times in lengths
    }


def _same_people(profile: Profile) -> dict[str, Recipe]:
    return {"authentic": roles.recipe(profile, "authentic"), "id3": id3.set_recipe(profile)}


Choice = tuple[str, float, float, float, float]
"""Contexts, CPD, guidance, temperature, learning rate."""


def pilot_runs(profile: Profile) -> dict[Choice, Recipe]:
    """One run each, with the first seed, to choose the main set and the learning rate by, on `val` people."""
    main, section = profile.generation, profile.synthetic_recognition
    lr = section.training.lr
    kinds = ("uniform", "two_stage", "matched", "plda")
    tried: list[Choice] = [(kind, main.cpd, main.guidance, 1.0, lr) for kind in kinds]
    scales = (1.0, 2.0, 3.0) if profile.idiff_face.context_drop else (1.0,)
    tried += [("plda", 0.25, scale, 1.0, lr) for scale in scales]
    tried += [("plda", main.cpd, main.guidance, temperature, lr) for temperature in (0.7, 0.5)]
    tried += [("plda", main.cpd, main.guidance, main.temperature, rate) for rate in section.lrs]
    return {choice: _pilot(profile, *choice) for choice in tried}


def _pilot(profile: Profile, kind: str, cpd: float, guidance: float, temperature: float, lr: float) -> Recipe:
    faces = dataset_recipe(profile, kind, cpd=cpd, guidance=guidance, temperature=temperature)
    return run_recipe(profile, faces, "pilot", "randaugment", lr, profile.synthetic_recognition.seeds[0])


def _as_id3(profile: Profile) -> dict[str, Any]:
    """Steps and guidance of ID3's set, for IDiff-Face's network; one that always saw its context has no guidance."""
    like = profile.id3_set
    return {"steps": like.steps, "guidance": like.guidance if profile.idiff_face.context_drop else 1.0}


def mirrored_pilot_runs(profile: Profile) -> dict[tuple[str, int, float, float], Recipe]:
    """Contexts, steps, guidance and temperature of IDiff-Face's set -> one run with the first seed and mirror images
    only, as ID3's pilots. Some are runs of the main table; the others are drawn as ID3's set is, or in part."""
    main, fast, like = profile.generation, profile.sampling.steps, profile.id3_set
    first, guidance = profile.synthetic_recognition.seeds[0], _as_id3(profile)["guidance"]
    strongest = 3.0 if profile.idiff_face.context_drop else 1.0
    mild = (like.steps, guidance)
    rows = {
        ("plda", fast, main.guidance, main.temperature): "plda_flip",
        ("plda", 4 * fast, main.guidance, main.temperature): "plda_more_steps_flip",
        ("plda", *mild, main.temperature): "plda_less_guidance_flip",
        ("plda_shown", *mild, main.temperature): "plda_shown_flip",
    }
    tried = [(kind, *mild, like.temperature) for kind in ("plda", "plda_shown")]
    tried += [("plda_shown", like.steps, scale, main.temperature) for scale in (main.guidance, strongest)]
    tried += [("plda_shown", fast, main.guidance, main.temperature)]
    runs = {how: _mirrored_pilot(profile, *how) for how in tried}
    return runs | {how: recognition_run(profile, row, first) for how, row in rows.items()}


def _mirrored_pilot(profile: Profile, kind: str, steps: int, guidance: float, temperature: float) -> Recipe:
    section = profile.synthetic_recognition
    faces = dataset_recipe(profile, kind, steps=steps, guidance=guidance, temperature=temperature)
    return run_recipe(profile, faces, "pilot", "flip", section.training.lr, section.seeds[0])


def id3_pilot_runs(profile: Profile) -> dict[tuple[float | str, ...], Recipe]:
    """Directions, bounds (as text), adjustment, steps, guidance and temperature of an ID3 set -> one run with the first
    seed, to choose the profile's own by, on `val` people. That one, and the one with directions drawn, are runs of the
    main table."""
    section, first = profile.synthetic_recognition, profile.synthetic_recognition.seeds[0]
    runs = {_knobs(replace(profile.id3_set, directions="drawn")): recognition_run(profile, "id3_drawn_flip", first)}
    runs[_knobs(profile.id3_set)] = recognition_run(profile, "id3_flip", first)
    for pilot in section.id3_pilots:
        change = {name: value for name, value in vars(pilot).items() if value is not None}
        faces = id3.set_recipe(profile, **change)
        run = run_recipe(profile, faces, "id3_pilot", "flip", section.training.lr, first)
        runs[_knobs(replace(profile.id3_set, **change))] = run
    return runs


def _knobs(drawing: ID3Set) -> tuple[float | str, ...]:
    bounds = "{:g} to {:g}".format(*drawing.bounds)
    return drawing.directions, bounds, drawing.adjustment, drawing.steps, drawing.guidance, drawing.temperature
