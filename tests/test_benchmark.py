"""Recognisers from nothing: what they report, what they may look at, and that a kill changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from facetransport import training
from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import recognisers, synthetic_recognition
from facetransport.data.faceset import FaceSet
from facetransport.evaluation import benchmark
from facetransport.evaluation.benchmark import Result, ahead, load_curve, load_result, train_and_test
from facetransport.evaluation.statistics import Estimate
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.recognition.training import HeadConfig
from facetransport.training import TrainingConfig
from test_recognition_training import CONFIG, some_people

CONFIG = replace(CONFIG, steps=12, dropout=0.0)
FACES, VAL = some_people(), some_people(5, 4, seed=1)
TESTS = {"first": some_people(6, 4, seed=2), "second": some_people(12, 3, seed=3)}


def run(folder: Path, augmentation: str = "flip", lr: float = 0.05, seed: int = 0, evaluations: int = 4) -> Result:
    chosen = {"augmentation": augmentation, "evaluations": evaluations}
    return train_and_test(FACES, *how(lr, seed), VAL, TESTS, folder=folder, bootstrap=50, **chosen)


def how(lr: float = 0.05, seed: int = 0) -> tuple[IResNetConfig, HeadConfig, TrainingConfig]:
    section = replace(CONFIG, lr=lr, seed=seed)
    shape, head = recognisers.network_config(section), recognisers.head_config(section)
    return shape, head, recognisers.training_config(section)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    return run(folder)


def test_result_and_curve_agree_and_are_all_that_stays(result: Result, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["curve.csv", "resampled.safetensors", "result.json"]
    curve = load_curve(folder).set_index("step")
    assert list(curve.index) == [3, 6, 9, 12] and list(curve.columns) == ["loss", "val", "first", "second"]
    assert curve["val"].max() == curve.loc[result.step, "val"] == result.val
    for name, tested in result.tests.items():
        assert tested.accuracy.value == pytest.approx(curve.loc[result.step, name], abs=5e-3)
        assert tested.peeked == curve.loc[result.peeked_step, name]
        assert tested.accuracy.low <= tested.accuracy.value <= tested.accuracy.high
        assert tested.accuracy.n == tested.auc.n and 0 < tested.auc.value <= 1
        assert tested.bias == tested.peeked - tested.accuracy.value
    assert (result.identities, result.images, result.lr, result.seed) == (6, 48, 0.05, 0)
    assert curve[["first", "second"]].mean(axis=1).idxmax() == result.peeked_step


def test_a_result_is_read_back_as_it_was(result: Result, folder: Path, tmp_path: Path) -> None:
    assert load_result(folder) == result
    tests = {"t": replace(result.tests["first"], auc=Estimate(0.5, math.nan, math.nan, 3))}
    benchmark._save_result(replace(result, tests=tests), tmp_path)
    auc = load_result(tmp_path).tests["t"].auc
    assert (auc.value, auc.n) == (0.5, 3) and math.isnan(auc.low) and math.isnan(auc.high)


def test_resamples_are_kept_and_are_the_interval(result: Result, folder: Path, tmp_path: Path) -> None:
    for name, tested in load_result(folder).tests.items():
        np.testing.assert_allclose(tested.resampled, result.tests[name].resampled, rtol=0, atol=1e-4)
        bounds = [tested.accuracy.low, tested.accuracy.high]
        assert tested.resampled.shape == (50,)
        assert np.quantile(tested.resampled, [0.025, 0.975]) == pytest.approx(bounds, abs=1e-4)
    (tmp_path / "result.json").write_bytes((folder / "result.json").read_bytes())  # of a run that did not keep them
    assert all(tested.resampled.shape == (0,) for tested in load_result(tmp_path).tests.values())


def test_same_seed_same_files_another_seed_another_run(result: Result, folder: Path, tmp_path: Path) -> None:
    run(tmp_path / "same")
    for name in ("curve.csv", "result.json"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    run(tmp_path / "other", seed=1)
    assert not np.array_equal(load_curve(tmp_path / "other")["loss"], load_curve(folder)["loss"])


def test_augmentation_and_lr_change_the_run(result: Result, folder: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", augmentation="randaugment")
    run(tmp_path / "b", lr=0.1)
    losses = [load_curve(f)["loss"].iloc[0] for f in (folder, tmp_path / "a", tmp_path / "b")]
    assert len(set(losses)) == 3


def test_selection_looks_at_validation_people_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """val says step 6, the tests say step 9 (on average; the first one alone says 12): the weights are those of 6."""
    script = {"val": [0.6, 0.8, 0.7, 0.8], "first": [0.5, 0.6, 0.7, 0.9], "second": [0.5, 0.5, 0.9, 0.6]}
    seen: dict[str, int] = dict.fromkeys(script, 0)
    kept: list[dict] = []

    def scripted(model: IResNet, faces: FaceSet, flip: bool) -> float:
        name = next(n for n, f in {"val": VAL, **TESTS}.items() if f is faces)
        if name == "val":
            kept.append({k: v.clone() for k, v in model.state_dict().items()})
        seen[name] += 1
        assert flip
        return script[name][seen[name] - 1]

    judged: list[IResNet] = []
    real = benchmark.measure
    monkeypatch.setattr(benchmark, "validate", scripted)
    monkeypatch.setattr(benchmark, "measure", lambda model, *rest: judged.append(model) or real(model, *rest))
    result = run(tmp_path)
    assert (result.step, result.val, result.peeked_step) == (6, 0.8, 9)
    assert (result.tests["first"].peeked, result.tests["second"].peeked) == (0.7, 0.9)
    assert seen == {"val": 4, "first": 4, "second": 4}
    for model in judged:
        assert all((v == kept[1][k]).all() for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("module", "name", "call", "resumed"),
    [
        (training, "_one_step", 8, 6),  # while training
        (benchmark, "save_network", 1, 0),  # while looking for the first time
        (training, "save_checkpoint", 2, 3),  # when the curve was ahead of the checkpoint
        (benchmark, "conclude", 1, 12),  # after the last step
    ],
)
def test_an_interrupted_run_ends_the_same(
    module, name: str, call: int, resumed: int, result: Result, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    real, calls = getattr(module, name), []

    def dies(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "result.json").exists()
    monkeypatch.setattr(module, name, real)
    steps, real_step = [], training._one_step
    monkeypatch.setattr(training, "_one_step", lambda *given: steps.append(given[5]) or real_step(*given))
    assert run(tmp_path) == result
    assert (steps or [12])[0] == resumed
    assert (tmp_path / "curve.csv").read_bytes() == (folder / "curve.csv").read_bytes()


def test_runs_are_compared_seed_by_seed(result: Result) -> None:
    people = np.random.default_rng(0).normal(0, 0.02, 400)

    def scored(seed: int, accuracy: float, resampled: np.ndarray) -> Result:
        estimate = Estimate(accuracy, accuracy - 0.03, accuracy + 0.03)
        tested = replace(result.tests["first"], accuracy=estimate, resampled=accuracy + resampled)
        return replace(result, seed=seed, tests={"rendered": tested})

    def half(estimate: Estimate) -> float:
        return estimate.high - estimate.value

    one = [scored(0, 0.8, people), scored(1, 0.9, people)]
    other = [scored(0, 0.7, people), scored(1, 0.85, people)]
    found, seeds = ahead(one, other, "rendered"), stats.t.ppf(0.975, 1) * 0.025
    assert found.value == pytest.approx(0.075) and found.n == 2
    assert half(found) == pytest.approx(seeds)  # whom one finds hard, so does the other: nothing is left of people
    assert half(ahead(one[:1], other[:1], "rendered")) == pytest.approx(0, abs=1e-9)
    apart = [scored(0, 0.7, -people), scored(1, 0.85, -people)]
    assert half(ahead(one[:1], apart[:1], "rendered")) == pytest.approx(1.96 * 2 * people.std(ddof=1), rel=1e-3)
    unkept = [scored(0, 0.7, people[:0]), scored(1, 0.85, people[:0])]
    assert half(ahead(one, unkept, "rendered")) == pytest.approx(math.hypot(seeds, 0.03 * 2**0.5))
    assert half(benchmark.over_seeds(one, "rendered")) == pytest.approx(math.hypot(0.03, stats.t.ppf(0.975, 1) * 0.05))
    with pytest.raises(ValueError, match=r"other: expected runs with the seeds \[0, 1\], got \[1, 0\]"):
        ahead(one, other[::-1], "rendered")


def test_evaluations_are_spread_over_the_schedule() -> None:
    assert benchmark.evaluation_steps(900, 6) == [150, 300, 450, 600, 750, 900]
    assert benchmark.evaluation_steps(7, 3) == [2, 5, 7]
    assert benchmark.evaluation_steps(5, 5) == [1, 2, 3, 4, 5]
    for wrong in (0, 6):
        with pytest.raises(ValueError, match="expected 1 to 5"):
            benchmark.evaluation_steps(5, wrong)


def test_bad_input_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of flip, randaugment; got 'none'"):
        run(tmp_path, augmentation="none")
    chosen = {"augmentation": "flip", "evaluations": 1, "folder": tmp_path}
    with pytest.raises(ValueError, match="names other than step, loss and val, got"):
        train_and_test(FACES, *how(), VAL, {}, **chosen)
    with pytest.raises(ValueError, match="names other than"):
        train_and_test(FACES, *how(), VAL, {"val": VAL}, **chosen)
    with pytest.raises(ValueError, match="few: expected at least 3 people"):
        train_and_test(FACES, *how(), VAL, {"few": some_people(2, 4)}, **chosen)
    with pytest.raises(ValueError, match="val: expected .* 2 images each; got 5 and 5"):
        train_and_test(FACES, *how(), some_people(5, 1), TESTS, **chosen)
    for load in (load_result, load_curve):
        with pytest.raises(FileNotFoundError, match="finished"):
            load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_artefact_of_a_profile(smoke, smoke_store: Store, tmp_path: Path) -> None:
    """A recipe on any FaceSet, tested on rendered people and on photographs."""
    faces = Recipe("some_faces", {}, lambda out, _: some_people().save(out))
    make = lambda **changes: synthetic_recognition.run_recipe(  # noqa: E731
        smoke, **{"faces": faces, "name": "cpd25.uniform", "augmentation": "flip", "lr": 0.05, "seed": 0, **changes}
    )
    store = Store(tmp_path, shipped=(smoke_store.root, *smoke_store.shipped))
    found = load_result(store.get(make()))
    section = smoke.synthetic_recognition
    assert set(found.tests) == {"rendered", "orl"} and found.images == 48
    assert len(load_curve(store.get(make()))) == section.evaluations
    other = Recipe("some_faces", {"more": 1}, faces.make)
    changes = [{}, {"faces": other}, {"augmentation": "randaugment"}, {"lr": 0.1}, {"seed": 1}]
    assert len({make(**c).key for c in changes}) == 5
    assert make().stage == "synthetic_recognition.cpd25.uniform"
    assert make().config["lr"] == 0.05 and make().config["seed"] == 0 and make().config["randaugment"] == 0
