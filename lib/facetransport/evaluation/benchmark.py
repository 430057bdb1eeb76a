"""What a set of faces is worth: a recogniser trained from nothing on it, tested on people of no training.

IDiff-Face's protocol (Boutros et al., 2023): CosFace, image and mirror image both embedded, verification accuracy over
10 folds. Its code drops the learning rate and picks the epoch by the mean accuracy on the test sets themselves; here
the schedule is fixed and the step is picked on validation people. What picking on the tests would have reported is kept
beside every number (`Tested.peeked`), so that this bias can be shown.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from facetransport import files
from facetransport.data.faceset import FaceSet
from facetransport.evaluation.pairs import PairSet, auc, embed_pairs, verify_set
from facetransport.evaluation.protocols import separability, verify
from facetransport.evaluation.statistics import Estimate, joined, normal_half
from facetransport.recognition.augmentation import PublishedAugment
from facetransport.recognition.iresnet import IResNet, IResNetConfig, IResNetRecogniser
from facetransport.recognition.recogniser import embed_faceset
from facetransport.recognition.training import (
    HeadConfig,
    Learner,
    classes_of,
    digest_of,
    load_network,
    recogniser_loss,
    save_network,
)
from facetransport.tensors import read_model, save_model
from facetransport.training import TrainingConfig, train

Test = FaceSet | PairSet
"""People whose pairs are all compared, or given pairs (lfw.bin)."""
OPERATIONS = {"flip": 0, "randaugment": 4}  # of RandAugment on every image, beside mirror images
CURVE, RESULT = "curve.csv", "result.json"
RESAMPLED = "resampled.safetensors"  # of each test, accuracy on resamples minus accuracy: float16 is off by 1e-6
CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"  # while it runs


# ------------------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True)
class Tested:
    """One test set at the step that validation picked.

    accuracy: verification as the embeddings are; centred: with the mean of the other folds' people subtracted.
    peeked: accuracy at the step with the highest mean accuracy over the test sets. resampled: accuracy on resamples of
    the people, (bootstrap,), the same people for every run; none of given pairs, whose people are unknown, and
    of runs that ended before these were kept.
    """

    accuracy: Estimate
    centred: Estimate
    auc: Estimate
    peeked: float
    resampled: np.ndarray = field(compare=False, repr=False)

    @property
    def bias(self) -> float:
        """What selection on the test sets would have added to the reported accuracy."""
        return self.peeked - self.accuracy.value


@dataclass(frozen=True)
class Result:
    """A recogniser trained from nothing. step, val: picked on validation people, and their accuracy there."""

    augmentation: str
    lr: float
    seed: int
    identities: int
    images: int
    step: int
    val: float
    peeked_step: int
    tests: dict[str, Tested]


def ahead(one: Sequence[Result], other: Sequence[Result], test: str) -> Estimate:
    """Accuracy of the runs on one set minus that of those on another, seed by seed: an interval for seeds and people
    together (`statistics.joined`). It is paired over test people where every run kept its resamples (`is_paired`); else
    the variances of both are added, as if they had been tested on different people."""
    seeds = [run.seed for run in one]
    if not seeds or seeds != [run.seed for run in other]:
        raise ValueError(f"other: expected runs with the seeds {seeds}, got {[run.seed for run in other]}")
    pairs = [(a.tests[test], b.tests[test]) for a, b in zip(one, other, strict=True)]
    by_seed = [a.accuracy.value - b.accuracy.value for a, b in pairs]
    if is_paired(one, other, test):
        return joined(by_seed, normal_half(np.mean([a.resampled - b.resampled for a, b in pairs], axis=0)))
    return joined(by_seed, math.hypot(_mean_half(one, test), _mean_half(other, test)))


def is_paired(one: Sequence[Result], other: Sequence[Result], test: str) -> bool:
    """Whether all runs kept their accuracy on every resample of the test people."""
    return all(len(run.tests[test].resampled) > 1 for run in (*one, *other))


def over_seeds(runs: Sequence[Result], test: str) -> Estimate:
    """Mean accuracy of runs with several seeds, its interval for people and seeds together."""
    return joined([run.tests[test].accuracy.value for run in runs], _mean_half(runs, test))


def _mean_half(runs: Sequence[Result], test: str) -> float:
    return float(np.mean([(run.tests[test].accuracy.high - run.tests[test].accuracy.low) / 2 for run in runs]))


def load_result(folder: Path) -> Result:
    """The result of a finished run."""
    data = json.loads(_present(folder / RESULT).read_text(encoding="utf-8"))
    away = read_model(folder / RESAMPLED)[0] if (folder / RESAMPLED).is_file() else {}
    none = torch.empty(0)
    tests = {name: _tested(numbers, away.get(name, none).float().numpy()) for name, numbers in data["tests"].items()}
    return Result(**{**data, "tests": tests})


def _present(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected the folder of a finished `benchmark.recipe`")
    return path


def _tested(numbers: Mapping[str, Any], away: np.ndarray) -> Tested:
    estimates = {name: _estimate(numbers[name]) for name in ("accuracy", "centred", "auc")}
    return Tested(**estimates, peeked=numbers["peeked"], resampled=estimates["accuracy"].value + away)


def _estimate(numbers: Mapping[str, Any]) -> Estimate:
    bounds = {k: math.nan if numbers[k] is None else numbers[k] for k in ("low", "high")}
    return Estimate(numbers["value"], **bounds, n=numbers["n"])


def _save_result(result: Result, folder: Path) -> None:
    tests = {
        name: {k: v.record() if isinstance(v, Estimate) else v for k, v in vars(tested).items() if k != "resampled"}
        for name, tested in result.tests.items()
    }
    away = {name: t.resampled - t.accuracy.value for name, t in result.tests.items()}
    save_model(folder / RESAMPLED, {name: torch.from_numpy(numbers).half() for name, numbers in away.items()})
    files.write_json(folder / RESULT, {**asdict(result), "tests": tests})


def load_curve(folder: Path) -> pd.DataFrame:
    """Columns step, loss (of that step's batch), val and one for each test set: accuracies, one row an evaluation."""
    return pd.DataFrame(_rows(_present(folder / CURVE).parent))


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The curve, none where it has not begun; every float as it was written."""
    if not (folder / CURVE).is_file():
        return []
    with (folder / CURVE).open(encoding="utf-8") as file:
        return [{k: int(v) if k == "step" else float(v) for k, v in r.items()} for r in csv.DictReader(file)]


# ----------------------------------------------------------------------------------------------------- train and test


def train_and_test(
    faces: FaceSet,
    network: IResNetConfig,
    head: HeadConfig,
    training: TrainingConfig,
    val: FaceSet,
    tests: Mapping[str, Test],
    *,
    augmentation: str,
    evaluations: int,
    folder: Path,
    bootstrap: int = 1000,
) -> Result:
    """Train on ``faces``, look at ``val`` and the tests ``evaluations`` times, report the step that is best on ``val``.

    augmentation: "flip" (mirror images only) or "randaugment" (IDiff-Face's besides). folder: receives ``curve.csv``
    and ``result.json``; an attempt that was interrupted there is continued, bit for bit. bootstrap: resamples of people
    for the intervals. Raises ValueError for bad input and FloatingPointError when the loss is not finite.
    """
    if augmentation not in OPERATIONS:
        raise ValueError(f"augmentation: expected one of {', '.join(OPERATIONS)}; got {augmentation!r}")
    points = evaluation_steps(training.steps, evaluations)
    _check(val, tests)
    learner = Learner.drawn(network, head, int(classes_of(faces).max()) + 1, training.seed)
    loss = recogniser_loss(faces, network.input_size, PublishedAugment(OPERATIONS[augmentation]))
    identity = {"data": digest_of(faces), "augmentation": augmentation}
    every = training.steps // evaluations
    for state in train(learner, loss, len(faces), training, folder / CHECKPOINT, every, identity):
        if state.step in points:
            look(state.step, float(state.loss), learner.network, val, tests, folder)
    result = conclude(faces, training, augmentation, tests, folder, bootstrap)
    _save_result(result, folder)
    for left_over in (CHECKPOINT, BEST):
        (folder / left_over).unlink(missing_ok=True)
    return result


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """Evenly spaced, the last one at the end."""
    if not 1 <= evaluations <= steps:
        raise ValueError(f"evaluations: expected 1 to {steps}, the number of steps, got {evaluations}")
    return [round(steps * (k + 1) / evaluations) for k in range(evaluations)]


def look(step: int, loss: float, network: IResNet, val: FaceSet, tests: Mapping[str, Test], folder: Path) -> None:
    """Add a row to the curve, unless an interrupted attempt did; keep the weights if they are the best on ``val``."""
    rows = _rows(folder)
    if any(row["step"] == step for row in rows):
        return
    accuracies = {name: validate(network, faces, flip=True) for name, faces in {"val": val, **tests}.items()}
    if all(accuracies["val"] > row["val"] for row in rows):
        save_network(folder / BEST, network, step=step)
    with files.replacing(folder / CURVE) as temporary:
        pd.DataFrame([*rows, {"step": step, "loss": loss, **accuracies}]).to_csv(temporary, index=False)


def conclude(
    faces: FaceSet,
    run: TrainingConfig,
    augmentation: str,
    tests: Mapping[str, Test],
    folder: Path,
    bootstrap: int,
) -> Result:
    """Test the kept weights, with intervals, and say what selection on the tests would have said."""
    curve, model = _rows(folder), load_network(folder / BEST)
    picked = max(curve, key=lambda r: r["val"])  # the first of equals, as `look` keeps
    peeked = max(curve, key=lambda r: np.mean([r[name] for name in tests]))
    return Result(
        augmentation=augmentation,
        lr=run.lr,
        seed=run.seed,
        identities=len(np.unique(faces.identity)),
        images=len(faces),
        step=picked["step"],
        val=picked["val"],
        peeked_step=peeked["step"],
        tests={name: measure(model, test, peeked[name], bootstrap) for name, test in tests.items()},
    )


def measure(model: IResNet, faces: Test, peeked: float, bootstrap: int) -> Tested:
    """All numbers of one test set."""
    if isinstance(faces, PairSet):
        vectors, same = embed_pairs(IResNetRecogniser(model, flip=True), faces), faces.same
        plain, centred = (verify_set(vectors, same, centre).accuracy for centre in (False, True))
        return Tested(plain, centred, auc(vectors, same), peeked, np.empty(0))
    vectors, labels = embed_faceset(IResNetRecogniser(model, flip=True), faces), faces.identity
    folds = fold_count(faces)
    verified = verify(vectors, labels, folds=folds, bootstrap=bootstrap)
    return Tested(
        accuracy=verified.accuracy,
        centred=verify(vectors, labels, folds=folds, centre=True, bootstrap=bootstrap).accuracy,
        auc=separability(vectors, labels, bootstrap=bootstrap).auc,
        peeked=peeked,
        resampled=verified.resampled,
    )


def validate(model: IResNet, val: Test, flip: bool = False) -> float:
    """10-fold verification accuracy on a set. flip: embed image and mirror image."""
    if isinstance(val, PairSet):
        return verify_set(embed_pairs(IResNetRecogniser(model, flip=flip), val), val.same).accuracy.value
    embeddings = embed_faceset(IResNetRecogniser(model, flip=flip), val)
    return verify(embeddings, val.identity, folds=fold_count(val), bootstrap=0).accuracy.value


def fold_count(faces: FaceSet) -> int:
    """10, or one fold for each identity where there are fewer."""
    return min(10, len(np.unique(faces.identity)))


def _check(val: FaceSet, tests: Mapping[str, Test]) -> None:
    """Now, not after an hour of training."""
    if not tests or {"step", "loss", "val"} & set(tests):
        raise ValueError(f"tests: expected FaceSets under names other than step, loss and val, got {list(tests)}")
    for name, faces in {"val": val, **{n: t for n, t in tests.items() if isinstance(t, FaceSet)}}.items():
        people, images = len(np.unique(faces.identity)), len(faces)
        if people < 3 or images < 2 * people:
            raise ValueError(f"{name}: expected at least 3 people, 2 images each; got {people} and {images} images")
