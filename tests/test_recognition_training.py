"""Training a recogniser on the one loop, its files, and the artefact of a profile."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from facetransport.companion.experiments import recognisers
from facetransport.companion.profiles import RecogniserTraining
from facetransport.data.faceset import FaceSet
from facetransport.evaluation import benchmark, protocols
from facetransport.recognition.augmentation import Augment
from facetransport.recognition.iresnet import IResNet, IResNetRecogniser
from facetransport.recognition.training import (
    Learner,
    digest_of,
    load_network,
    prepare,
    published,
    recogniser_loss,
    save_network,
)
from facetransport.training import State, lr_at, train

CONFIG = RecogniserTraining(
    size=28, layers=(1, 1, 1, 1), widths=(8, 8, 16, 16), strides=(2, 2, 2, 2, 1), embedding=16, dropout=0.1,
    head="cosface", scale=16.0, margin=0.1, batch=16, steps=20, lr=0.1, weight_decay=5e-4, momentum=0.9, augment=True,
    randaugment=2, bf16=False, seed=1,
)  # fmt: skip


def some_people(identities: int = 6, views: int = 8, seed: int = 0) -> FaceSet:
    """Patterns that stand for people: one random low-resolution picture each, with noise. 32 px."""
    rng = np.random.default_rng(seed)
    base = np.kron(rng.integers(0, 256, (identities, 4, 4, 3)), np.ones((1, 8, 8, 1)))
    labels = np.repeat(np.arange(identities), views)
    images = np.clip(base[labels] + rng.normal(0, 12, (len(labels), 32, 32, 3)), 0, 255).astype(np.uint8)
    return FaceSet(images, pd.DataFrame({"identity": labels + 100}))


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    return some_people()


def learner(faces: FaceSet, config: RecogniserTraining = CONFIG) -> Learner:
    shape, head = recognisers.network_config(config), recognisers.head_config(config)
    return Learner.drawn(shape, head, len(np.unique(faces.identity)), config.seed)


def run(faces: FaceSet, config: RecogniserTraining = CONFIG, **options: Any) -> Iterator[State]:
    augment = Augment(config.randaugment) if config.augment else None
    loss, how = recogniser_loss(faces, config.size, augment), recognisers.training_config(config)
    return train(learner(faces, config), loss, len(faces), how, identity={"data": digest_of(faces)}, **options)


def network(state: State) -> IResNet:
    assert isinstance(state.model, Learner)
    return state.model.network


@pytest.mark.parametrize("head", ["cosface", "arcface", "adaface"])
def test_learns(faces: FaceSet, head: str) -> None:
    config = replace(CONFIG, head=head, steps=60, augment=False, margin=0.1, dropout=0.0)
    losses = [float(state.loss) for state in run(faces, config)]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


def test_the_step_is_margin_softmax_by_sgd(faces: FaceSet) -> None:
    """One step by hand: cross-entropy of the head's logits, weight decay, the cycle's first rate."""
    config = replace(CONFIG, augment=False, dropout=0.0, batch=48)
    state, ours = next(run(faces, config)), learner(faces, config).train()
    labels = torch.from_numpy(np.unique(faces.identity, return_inverse=True)[1])
    loss = torch.nn.functional.cross_entropy(ours.head(ours.network(prepare(faces.tensor(), 28, None)), labels), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(ours.parameters(), 5.0)
    assert float(state.loss) == pytest.approx(float(loss.detach()), rel=1e-4)
    weight = ours.head.weight.detach()
    expected = weight - config.lr / 25 * (ours.head.weight.grad + config.weight_decay * weight)
    assert isinstance(state.model, Learner)
    torch.testing.assert_close(state.model.head.weight.detach(), expected, atol=1e-6, rtol=1e-4)


def test_accuracy_is_told_beside_the_loss(faces: FaceSet) -> None:
    seen = [(s.lr, float(s.named["accuracy"])) for s in run(faces)]
    assert all(0 <= accuracy <= 1 for _, accuracy in seen) and max(lr for lr, _ in seen) == pytest.approx(0.1)


def test_ten_and_ten_steps_are_twenty_with_augmentation_and_dropout(faces: FaceSet, tmp_path: Path) -> None:
    whole = list(run(faces))[-1].model.state_dict()
    checkpoint = tmp_path / "checkpoint.safetensors"
    list(islice(run(faces, checkpoint=checkpoint, every=10), 13))  # stops at 13, saved at 10
    torch.manual_seed(12345)  # ambient randomness must not matter
    resumed = list(run(faces, checkpoint=checkpoint, every=10))
    assert resumed[0].step == 11
    assert all(torch.equal(v, whole[n]) for n, v in resumed[-1].model.state_dict().items())


def test_augmentation_is_used(faces: FaceSet) -> None:
    plain = next(run(faces, replace(CONFIG, augment=False)))
    assert float(plain.loss) != float(next(run(faces)).loss)


def test_checkpoint_of_another_run_is_refused(faces: FaceSet, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    list(islice(run(faces, checkpoint=checkpoint, every=5), 6))
    with pytest.raises(ValueError, match=r"lr: 0.1 there, 0.05 here.*delete it"):
        next(run(faces, replace(CONFIG, lr=0.05), checkpoint=checkpoint))
    with pytest.raises(ValueError, match="data: .* there"):
        next(run(some_people(7), checkpoint=checkpoint))


def test_a_loss_that_is_not_finite_stops(faces: FaceSet) -> None:
    states = run(faces)
    state = next(states)
    assert isinstance(state.model, Learner)
    with torch.no_grad():
        state.model.head.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 2; the weights are those of step 1"):
        next(states)


def test_one_identity_is_refused(faces: FaceSet) -> None:
    with pytest.raises(ValueError, match="classes"):
        next(run(faces.select(slice(0, 8))))


def test_one_cycle() -> None:
    rates = [lr_at(s, published(100, 8, 0.2, 0)) for s in range(101)]
    assert rates[0] == pytest.approx(0.2 / 25) and rates[10] == 0.2 and rates[100] == pytest.approx(0)
    assert all(np.diff(rates[:11]) > 0) and all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx(0.1)


def test_folds_are_ten_or_the_people_there_are(faces):
    assert benchmark.fold_count(faces) == 6
    assert benchmark.fold_count(some_people(12, 2)) == 10


def test_mirror_images_can_be_judged_too(faces: FaceSet) -> None:
    model = network(next(run(faces)))
    both = IResNetRecogniser(model, flip=True)
    vectors = np.concatenate([both.embed(faces.tensor(slice(k, k + 8))).detach() for k in range(0, 48, 8)])
    expected = protocols.verify(vectors, faces.identity, folds=6, bootstrap=0).accuracy.value
    assert benchmark.validate(model, faces, flip=True) == pytest.approx(expected, abs=1e-3)


def test_model_file_describes_itself(faces: FaceSet, tmp_path: Path) -> None:
    model = network(next(run(faces)))
    save_network(tmp_path / "model.safetensors", model, step=1, metrics={"val_accuracy": 0.5})
    loaded = load_network(tmp_path / "model.safetensors")
    assert loaded.config == model.config and not loaded.training
    images = faces.tensor(slice(0, 4))
    torch.testing.assert_close(IResNetRecogniser(loaded).embed(images), IResNetRecogniser(model).embed(images))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["metrics"]) == {"val_accuracy": 0.5}


def test_unusable_model_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model file"):
        load_network(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no 'config' in its metadata"):
        load_network(tmp_path / "other.safetensors")


def test_artefact_of_a_profile(smoke, smoke_store):
    """What `make train` and the notebooks do, at the smoke profile."""
    recogniser = recognisers.load_reference(smoke, smoke_store)
    assert recogniser.name == "reference" and recogniser.dim == smoke.reference.embedding
    folder = smoke_store.get(recognisers.recipe(smoke, "reference"))
    assert sorted(p.name for p in folder.iterdir()) == ["log.csv", "manifest.json", "model.safetensors"]
    with (folder / "log.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    assert int(last["step"]) == smoke.reference.steps and 0 <= float(last["val_accuracy"]) <= 1
    assert math.isfinite(float(last["loss"]))
    assert recognisers.recipe(smoke, "judge").key != recognisers.recipe(smoke, "reference").key
    with pytest.raises(ValueError, match="one of reference, judge, got .other"):
        recognisers.recipe(smoke, "other")


def test_interrupted_artefact_keeps_its_checkpoint(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces.save(tmp_path / "train")
    out = tmp_path / "out"
    out.mkdir()
    upstream = (tmp_path / "train", tmp_path / "train")
    monkeypatch.setattr(recognisers, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(recognisers.TrainingLog, "write", dies_at(12, recognisers.TrainingLog.write))
    with pytest.raises(KeyboardInterrupt):
        recognisers._make(CONFIG, out, upstream)
    assert [p.name for p in out.glob("*.safetensors")] == ["checkpoint.safetensors"]
    monkeypatch.undo()
    recognisers._make(CONFIG, out, upstream)
    assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]


def dies_at(step: int, real: Any) -> Any:
    def write(log: Any, state: State, **numbers: float) -> None:
        if state.step == step:
            raise KeyboardInterrupt
        real(log, state, **numbers)

    return write
