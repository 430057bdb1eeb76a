"""``facetransport evaluate``, ``benchmark`` and ``diface``: a recogniser's accuracy in ten folds on LFW and its
relatives; that of recognisers which are trained from nothing on a set; faces recognised from words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from facetransport.checkpoints import SUFFIXES, read_checkpoint
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface as experiment
from facetransport.companion.experiments import diface_study, recognisers
from facetransport.companion.experiments.synthetic_recognition import recognition_run
from facetransport.companion.profiles import Profile
from facetransport.devices import device
from facetransport.evaluation.benchmark import load_result
from facetransport.evaluation.described import Faces, Matcher, another
from facetransport.evaluation.descriptions import Matched, identify_descriptions
from facetransport.evaluation.pairs import PairSet, auc, embed_pairs, verify_set
from facetransport.evaluation.statistics import Estimate
from facetransport.recognition.iresnet import IResNetRecogniser, from_state_dict
from facetransport.recognition.onnx import OnnxRecogniser
from facetransport.recognition.recogniser import Recogniser
from facetransport.recognition.training import load_network
from facetransport.tensors import read_metadata


def open_recogniser(named: str, profile: Profile, store: Store, flip: bool = True) -> Recogniser:
    """dlib; reference or judge of the profile; or a file: ours, ArcFace's ``.onnx``, InsightFace's IResNet ``.pth``.

    flip: average with the mirror image, as the field does; not of dlib.
    """
    if named == "dlib":
        return recognisers.load_dlib(profile, store)
    if named in recognisers.NETWORKS:
        return recognisers.load_recogniser(profile, store, named, flip)
    path = Path(named)
    if path.suffix == ".onnx":
        return OnnxRecogniser(path, flip=flip)
    if path.suffix not in SUFFIXES:
        names = ", ".join(("dlib", *recognisers.NETWORKS))
        raise ValueError(f"{named}: expected {names}, or a file ending in .onnx, {', '.join(SUFFIXES)}")
    ours = path.suffix == ".safetensors" and "config" in read_metadata(path)
    model = load_network(path) if ours else from_state_dict(read_checkpoint(path), str(path))
    return IResNetRecogniser(model, path.stem, flip).to(device())


def evaluate(recogniser: Recogniser, sets: Sequence[Path]) -> pd.DataFrame:
    """A row a set: pairs, accuracy with its 95 % interval and its deviation over folds, AUC, accuracy when centred."""
    opened = [PairSet.open(path) for path in sets]  # all of them before the first is embedded
    return pd.DataFrame([_row(recogniser, pairs) for pairs in opened])


def _row(recogniser: Recogniser, pairs: PairSet) -> dict[str, object]:
    embeddings = embed_pairs(recogniser, pairs)
    plain, centred = (verify_set(embeddings, pairs.same, centre) for centre in (False, True))
    return {
        "set": pairs.name,
        "pairs": len(pairs.same),
        "accuracy": plain.accuracy.value,
        "low": plain.accuracy.low,
        "high": plain.accuracy.high,
        "deviation": float(np.std(plain.folds)),
        "auc": auc(embeddings, pairs.same).value,
        "centred": centred.accuracy.value,
    }


def benchmark(profile: Profile, store: Store, rows: Sequence[str], seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """A row a run: row, seed, people, images, the step picked on `val`, accuracy on each test with its interval.

    All runs are named before the first is made, so that a wrong name costs no training.
    """
    seeds = profile.synthetic_recognition.seeds if seeds is None else seeds
    runs = {(row, seed): recognition_run(profile, row, seed) for row in rows for seed in seeds}
    found = {key: load_result(store.get(recipe)) for key, recipe in runs.items()}
    return pd.DataFrame(
        [
            {"row": row, "seed": seed, "people": r.identities, "images": r.images, "step": r.step, "val": r.val}
            | {name: str(tested.accuracy) for name, tested in r.tests.items()}
            for (row, seed), r in found.items()
        ]
    )


def diface(profile: Profile, store: Store) -> pd.DataFrame:
    """DiFace and its rivals on a profile's ``gallery`` people, described as its section says.

    A row for each method and test (verification, impostors at random and of the same gender and age band; ranks in
    galleries), with 95 % intervals over people. Thresholds are those of ``val`` people.
    """
    faces = {role: experiment.load_faces(profile, store, role) for role in ("val", "gallery")}
    sets = {"val": 1, "gallery": profile.evaluation.pair_sets}
    by = experiment.describer_of(profile.diface)
    told = {role: diface_study.told_to(profile.diface, f, by, sets[role]) for role, f in faces.items()}
    rows = []
    for name, matcher in _word_matchers(profile, store).items():
        found = {role: diface_study.matches(matcher, f, told[role]) for role, f in faces.items()}
        rows += [{"method": name, **row} for row in _described(profile, faces, found)]
    return pd.DataFrame(rows)


def _word_matchers(profile: Profile, store: Store) -> dict[str, Matcher]:
    """By name. A classifier is told statements, so it has no part where captions are read."""
    section = profile.diface
    asked = {"diface": section, "diface, infonce r": experiment.ours(section)}
    kinds = [kind for kind in experiment.BASELINES if kind != "classifier" or section.tokens != "captions"]
    matchers: dict[str, Matcher] = {name: experiment.load(profile, store, how) for name, how in asked.items()}
    return matchers | {kind: experiment.load_baseline(profile, store, kind) for kind in kinds}


def _described(
    profile: Profile, faces: Mapping[str, Faces], found: Mapping[str, Sequence[Matched]]
) -> Iterator[dict[str, object]]:
    val, test = faces["val"], faces["gallery"]
    for impostors in ("random", "hard"):
        verified = diface_study.verification(
            found["val"], found["gallery"], (val, test), profile.evaluation, hard=impostors == "hard"
        )
        yield _measured(f"verification, {impostors}", verified.accuracy)
        yield _measured(f"auc, {impostors}", verified.auc)
    described, shown = _two_photographs(test.identity)
    for size in (size for size in profile.evaluation.galleries if size <= len(described)):
        ranks = [k for k in (1, 5, 10) if k <= size]
        ranked = identify_descriptions(
            found["gallery"][0], described, shown, size, ranks=ranks, bootstrap=profile.evaluation.bootstrap
        )
        for k, value in ranked.rank.items():
            yield _measured(f"rank {k} of {size}", value)


def _two_photographs(identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (P,) each: a photograph to describe and another to find, of everyone who has two."""
    first, other = np.unique(identity, return_index=True)[1], another(identity)
    first = first[other[first] != first]
    return first, other[first]


def _measured(test: str, value: Estimate) -> dict[str, object]:
    return {"test": test, **value.record()}
