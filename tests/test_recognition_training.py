from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from facetransport.companion.experiments import recognisers
from facetransport.companion.profiles import RecogniserTraining
from facetransport.data.faceset import FaceSet
from facetransport.evaluation import benchmark, protocols
from facetransport.recognition import training
from facetransport.recognition.iresnet import IResNetRecogniser
from facetransport.recognition.training import State, batch_rows, learning_rate, load_model, save_model, train
from facetransport.tensors import compact, expanded

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


def weights(state: State) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in training.checkpoint_tensors(state).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("head", ["cosface", "arcface", "adaface"])
def test_learns(faces, head):
    config = replace(CONFIG, head=head, steps=60, augment=False, margin=0.1, dropout=0.0)
    losses = [state.loss for state in train(faces, config)]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


def test_yields_after_every_step_and_counts(faces):
    seen = [(s.step, s.lr, s.accuracy) for s in train(faces, CONFIG)]
    assert [s[0] for s in seen] == list(range(1, 21))
    assert all(0 <= s[2] <= 1 for s in seen) and max(s[1] for s in seen) == pytest.approx(0.1)


@pytest.mark.parametrize("bf16", [False, True])
def test_ten_and_ten_steps_are_twenty(faces, tmp_path: Path, bf16):
    config = replace(CONFIG, bf16=bf16)
    whole = weights(list(train(faces, config))[-1])
    checkpoint = tmp_path / "checkpoint.safetensors"
    list(islice(train(faces, config, checkpoint=checkpoint, every=10), 13))  # stops at 13, saved at 10
    torch.manual_seed(12345)  # ambient randomness must not matter
    resumed = train(faces, config, checkpoint=checkpoint, every=10)
    first = next(resumed)
    assert first.step == 11
    assert_same(weights(list(resumed)[-1]), whole)


def test_the_caller_may_draw_random_numbers(faces):
    plain = weights(list(train(faces, CONFIG))[-1])
    for state in train(faces, CONFIG):
        torch.rand(3)
        state.model.eval()
    assert_same(weights(state), plain)


def test_ambient_generator_is_left_alone(faces):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(train(faces, CONFIG))
    assert torch.equal(torch.rand(3), expected)


def test_killed_training_resumes_bit_for_bit(faces, tmp_path: Path):
    """A process that dies by SIGKILL between checkpoints; another one finishes its work."""
    script = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_recognition_training import CONFIG, some_people\n"
        "from facetransport.recognition.training import train\n"
        "for state in train(some_people(), CONFIG, checkpoint=pathlib.Path(sys.argv[1]), every=5):\n"
        "    print(state.step, flush=True)\n"
        "    if state.step == 13: import time; time.sleep(60)\n"
    )
    checkpoint = tmp_path / "checkpoint.safetensors"
    paths = [str(Path(training.__file__).parents[2]), str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(checkpoint), *paths], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "13":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert checkpoint.is_file() and not list(tmp_path.glob(".*"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resumed = list(train(faces, CONFIG, checkpoint=checkpoint, every=5))
    assert resumed[-1].step == 20 and len(resumed) == 10  # 11 to 20: the checkpoint was that of step 10
    whole = list(train(faces, CONFIG))[-1]
    torch.set_num_threads(threads)
    assert_same(weights(resumed[-1]), weights(whole))


def test_augmentation_given_is_the_one_that_is_used(faces):
    plain = weights(list(train(faces, replace(CONFIG, augment=False)))[-1])
    assert_same(weights(list(train(faces, CONFIG, augment=torch.nn.Identity()))[-1]), plain)


def test_a_step_is_kept_after_the_caller_has_seen_it(faces, tmp_path: Path):
    """What the caller did at a step that is in the checkpoint need not be done again."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    run = train(faces, CONFIG, checkpoint=checkpoint, every=5)
    assert [next(run).step for _ in range(5)][-1] == 5 and not checkpoint.exists()
    assert next(run).step == 6 and checkpoint.exists()


def test_folds_are_ten_or_the_people_there_are(faces):
    assert benchmark.fold_count(faces) == 6
    assert benchmark.fold_count(some_people(12, 2)) == 10


def test_mirror_images_can_be_judged_too(faces):
    model = next(train(faces, CONFIG)).model
    both = IResNetRecogniser(model, flip=True)
    vectors = np.concatenate([both.embed(faces.tensor(slice(k, k + 8))).detach() for k in range(0, 48, 8)])
    expected = protocols.verify(vectors, faces.identity, folds=6, bootstrap=0).accuracy.value
    assert benchmark.validate(model, faces, flip=True) == pytest.approx(expected, abs=1e-3)


def test_checkpoint_of_another_run_is_refused(faces, tmp_path: Path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    list(islice(train(faces, CONFIG, checkpoint=checkpoint, every=5), 6))
    with pytest.raises(ValueError, match=r"lr: 0.1 there, 0.05 here.*delete it"):
        next(train(faces, replace(CONFIG, lr=0.05), checkpoint=checkpoint))
    with pytest.raises(ValueError, match="data: .* there"):
        next(train(some_people(7), CONFIG, checkpoint=checkpoint))


def test_a_loss_that_is_not_finite_stops(faces):
    run = train(faces, CONFIG)
    state = next(run)
    with torch.no_grad():
        state.head.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan"):
        next(run)


def test_one_identity_is_refused(faces):
    with pytest.raises(ValueError, match="at least 2 identities"):
        next(train(faces.select(slice(0, 8)), CONFIG))


def test_one_cycle():
    rates = [learning_rate(s, 100, 0.2) for s in range(101)]
    assert rates[0] == pytest.approx(0.2 / 25) and rates[10] == 0.2 and rates[100] == pytest.approx(0)
    assert all(np.diff(rates[:11]) > 0) and all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx(0.1)


def test_an_epoch_meets_every_image_once():
    rows = np.concatenate([batch_rows(s, 48, 16, seed=0) for s in range(3)])
    assert sorted(rows) == list(range(48))
    assert not np.array_equal(batch_rows(0, 48, 16, 0), batch_rows(3, 48, 16, 0))
    assert len(batch_rows(5, 10, 16, 0)) == 10  # fewer images than a batch


def test_model_file_describes_itself(faces, tmp_path: Path):
    state = next(train(faces, CONFIG))
    save_model(tmp_path / "model.safetensors", state.model, step=1, metrics={"val_accuracy": 0.5})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == state.model.config and not loaded.training
    images = faces.tensor(slice(0, 4))
    torch.testing.assert_close(IResNetRecogniser(loaded).embed(images), IResNetRecogniser(state.model).embed(images))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["metrics"]) == {"val_accuracy": 0.5}


def test_unusable_model_files_are_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="make train"):
        load_model(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no 'config' in its metadata"):
        load_model(tmp_path / "other.safetensors")


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


def test_interrupted_artefact_keeps_its_checkpoint(faces, tmp_path: Path, monkeypatch):
    faces.save(tmp_path / "train")
    out = tmp_path / "out"
    out.mkdir()
    real = training.update

    def dies(state: State, *rest) -> None:
        if state.step == 12:
            raise KeyboardInterrupt
        real(state, *rest)

    monkeypatch.setattr(recognisers, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(training, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        recognisers._make(CONFIG, out, (tmp_path / "train", tmp_path / "train"))
    assert [p.name for p in out.glob("*.safetensors")] == ["checkpoint.safetensors"]
    monkeypatch.setattr(training, "update", real)
    recognisers._make(CONFIG, out, (tmp_path / "train", tmp_path / "train"))
    assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]
    whole = expanded(compact(list(train(faces, CONFIG))[-1].model.state_dict()))
    kept = load_model(out / "model.safetensors").state_dict()
    assert all(torch.equal(v, whole[k].to(v.dtype)) for k, v in kept.items())
