"""``facetransport evaluate`` and ``benchmark``: a recogniser's accuracy in ten folds on LFW and its relatives; and that
of recognisers which are trained from nothing on a set, authentic or synthetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from facetransport.checkpoints import SUFFIXES, read_checkpoint
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import recognisers
from facetransport.companion.experiments.synthetic_recognition import recognition_run
from facetransport.companion.profiles import Profile
from facetransport.devices import device
from facetransport.evaluation.benchmark import load_result
from facetransport.evaluation.pairs import PairSet, auc, embed_pairs, verify_set
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
