"""Training: resume bit for bit, kill and resume, an EMA that averages, finite-loss guard, losses in closed form."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from facetransport import devices
from facetransport.diffusion import denoisers
from facetransport.diffusion.denoising import denoising_loss
from facetransport.diffusion.schedule import Schedule, add_noise
from facetransport.tensors import compact, half, read_model, save_model
from facetransport.training import (
    EMA,
    Guard,
    State,
    TrainingConfig,
    TrainingLog,
    _optimizer,
    lr_at,
    pick,
    resident,
    rows_at,
    train,
)

CONFIG = TrainingConfig(steps=20, batch=8, lr=1e-3, seed=7, ema=0.9, warmup=3, decay="cosine")


def network() -> nn.Module:
    torch.manual_seed(0)
    return denoisers.build("mlp", (2, 4, 4), 16, 1, 8, 8, 0.25, Schedule(50))


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    contexts = nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
    return torch.randn(n, 2, 4, 4, generator=generator), contexts


def run(
    config: TrainingConfig = CONFIG, checkpoint: Path | None = None, stop: int = 10**9, every: int = 10
) -> list[State]:
    latents, contexts = data()
    loss, states = denoising_loss(latents, contexts, Schedule(50), context_drop=0.1), []
    for state in train(network(), loss, len(latents), config, checkpoint, every):
        states.append(state)
        if state.step == stop:
            break
    return states


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(v, w) for (m, v), (n, w) in pairs)


# ----------------------------------------------------------------------------------------------------- compiled


def losses(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> list[float]:
    torch._dynamo.reset()
    monkeypatch.delenv(devices.COMPILE, raising=False)
    if backend:
        monkeypatch.setenv(devices.COMPILE, backend)
    return [float(state.loss) for state in run()]


def test_a_compiled_run_is_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = losses(monkeypatch, None)
    assert losses(monkeypatch, "aot_eager") == pytest.approx(plain, rel=1e-5)


def test_what_does_not_compile_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    @torch._dynamo.register_backend
    def broken_backend(graph: object, inputs: object) -> object:
        tried.append(1)
        raise RuntimeError("no compiler on this machine")

    try:
        plain = losses(monkeypatch, None)
        assert losses(monkeypatch, "broken_backend") == plain and tried
    finally:
        torch._dynamo.backends.registry._COMPILER_FNS.pop("broken_backend")
    with pytest.raises(ValueError, match=r"FACETRANSPORT_COMPILE: expected one of .*inductor.*, got 'fast'"):
        losses(monkeypatch, "fast")


# ----------------------------------------------------------------------------------------------------- resume


def test_ten_and_ten_steps_equal_twenty(tmp_path: Path) -> None:
    whole = run()
    run(checkpoint=tmp_path / "c.safetensors", stop=13)  # a step is kept once the caller is done with it: 10
    rest = run(checkpoint=tmp_path / "c.safetensors")
    assert [s.step for s in rest] == list(range(11, 21))
    assert [float(s.loss) for s in rest] == [float(s.loss) for s in whole[10:]]
    assert same(rest[-1].model, whole[-1].model)
    assert same(rest[-1].ema, whole[-1].ema)
    assert not same(rest[-1].ema, rest[-1].model)


def test_a_finished_checkpoint_hands_over_its_model(tmp_path: Path) -> None:
    """Killed between the last step and what the caller makes of it: the next attempt gets the model, trains no more."""
    whole = run(checkpoint=tmp_path / "c.safetensors")
    (again,) = run(checkpoint=tmp_path / "c.safetensors")
    for name in ("step", "loss", "gradient_norm", "lr"):
        assert getattr(again, name) == getattr(whole[-1], name), name
    assert not again.ema.training
    assert same(again.model, whole[-1].model) and same(again.ema, whole[-1].ema)


def test_the_ambient_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    before, one = torch.get_rng_state(), run()
    torch.manual_seed(2)
    assert [float(s.loss) for s in one] == [float(s.loss) for s in run()]
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_training import CONFIG, run
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
run(replace(CONFIG, steps=100_000), Path({path!r}), every=5)
"""


def test_killed_training_resumes_where_its_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not path.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.is_file()
    done = int(read_model(path)[1]["step"])
    config = replace(CONFIG, steps=100_000)
    resumed = run(config, path, stop=done + 5)
    whole = run(config, stop=done + 5)
    assert resumed[0].step == done + 1
    assert same(resumed[-1].model, whole[-1].model)
    assert same(resumed[-1].ema, whole[-1].ema)


def test_a_scheduler_that_ends_the_job_loses_no_step(tmp_path: Path) -> None:
    """SIGTERM between two checkpoints: the step is kept, the handler of before is back, and the next run goes on."""
    path, before = tmp_path / "c.safetensors", signal.getsignal(signal.SIGTERM)
    latents, contexts = data()
    loss = denoising_loss(latents, contexts, Schedule(50), context_drop=0.1)
    with pytest.raises(SystemExit) as ended:
        for state in train(network(), loss, len(latents), CONFIG, path, 10):
            if state.step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143 and read_model(path)[1]["step"] == 7
    assert signal.getsignal(signal.SIGTERM) == before
    resumed, whole = run(checkpoint=path), run()
    assert resumed[0].step == 8 and same(resumed[-1].model, whole[-1].model)


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    run(checkpoint=path, stop=13)
    with pytest.raises(ValueError, match="lr: 0.001 there, 0.002 here"):
        run(replace(CONFIG, lr=2e-3), path)
    latents, contexts = data()
    other = denoisers.build("mlp", (2, 4, 4), 32, 1, 8, 8, 0.25, Schedule(50))
    with pytest.raises(ValueError, match="another network"):
        next(train(other, denoising_loss(latents, contexts, Schedule(50)), 20, CONFIG, path))


# -------------------------------------------------------------------------------------------------------- EMA


def test_ema_is_the_average_of_the_weights_seen() -> None:
    """Closed form: sum_k (1 - d_k) prod_{j>k} d_j w_k. A copy of the weights (IDiff-Face's defect) fails."""
    model = nn.Linear(3, 2)
    ema, seen, rates = EMA(model, 0.9), [], []
    for k in range(40):
        with torch.no_grad():
            model.weight.normal_(generator=torch.Generator().manual_seed(k))
        ema.update(model, k)
        seen.append(model.weight.detach().double().clone())
        rates.append(min(0.9, 1 - (1 + k) ** -0.75))
    expected = sum((1 - rates[k]) * float(np.prod(rates[k + 1 :])) * w for k, w in enumerate(seen))
    torch.testing.assert_close(ema.model.weight.double(), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(ema.model.weight, model.weight, atol=0.1)
    assert ema.model.weight.std() < 0.5  # averages of independent draws shrink


def test_ema_of_training_lags_behind_the_weights() -> None:
    state = run(replace(CONFIG, ema=0.99))[-1]
    start, end = network().context_emb.weight, state.model.context_emb.weight
    lag = (state.ema.context_emb.weight - end).norm() / (start - end).norm()
    assert 0.05 < lag < 0.95


def test_decay_zero_is_the_network_itself() -> None:
    state = run(replace(CONFIG, ema=0.0))[-1]
    assert state.ema is state.model and not state.ema.training


def test_what_a_loss_names_survives_a_kill_after_the_last_step(tmp_path: Path) -> None:
    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        error = model(torch.ones(len(rows), 3)).square().mean()
        return {"loss": error, "accuracy": error.detach() / 2}

    config, path = TrainingConfig(2, 4, 1e-3, 0), tmp_path / "c.safetensors"
    first = list(train(nn.Linear(3, 2), loss, 8, config, path))[-1]
    (again,) = train(nn.Linear(3, 2), loss, 8, config, path)
    assert again.named["accuracy"] == first.named["accuracy"] > 0


# ------------------------------------------------------------------------------------------------ guard, clipping


def test_divergence_is_reported_with_its_step_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        value = model.weight.square().sum()
        return value * float("nan") if step == 6 else value

    states = []
    with pytest.raises(FloatingPointError, match="loss is nan at step 7; the weights are those of step 6"):
        for state in train(nn.Linear(2, 2), loss, 4, CONFIG, tmp_path / "c.safetensors", every=6):
            states.append(state)
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6]
    tensors, metadata = read_model(tmp_path / "c.safetensors")
    assert metadata["step"] == 6
    assert all(torch.isfinite(v).all() for v in tensors.values())
    assert torch.equal(tensors["model.weight"], states[-1].model.weight)


def test_gradients_are_clipped_to_the_norm() -> None:
    seen = []

    class Spy(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p))

    loss = lambda model, rows, generator, step: 1000 * model.weight.sum()  # noqa: E731
    state = next(train(Spy(), loss, 4, replace(CONFIG, clip=0.5)))
    assert float(state.gradient_norm) == pytest.approx(2000)
    assert float(seen[0].grad.norm()) == pytest.approx(0.5, rel=1e-3)


def test_empty_data_and_impossible_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        next(train(network(), lambda *a: a, 0, CONFIG))
    for change in ({"ema": 1.0}, {"lr": 0.0}, {"batch": 0}, {"decay": "linear"}, {"parts": 9}, {"optimizer": "lion"}):
        with pytest.raises(ValueError, match=r"expected"):
            replace(CONFIG, **change)


def test_flagged_optimizers_leave_weights_and_moments_as_they_are() -> None:
    """What GPUs do instead of waiting: fused optimizers skip a step under this flag."""
    for kind in ("adamw", "sgd"):
        model = nn.Linear(3, 2)
        optimizer = _optimizer(model, replace(CONFIG, optimizer=kind))
        if kind == "sgd":  # slower on processors, so fused elsewhere only
            assert not optimizer.defaults["fused"]
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        for flag in (0.0, 1.0, 1.0):
            before = [p.detach().clone() for p in model.parameters()]
            model(torch.ones(1, 3)).sum().backward()
            optimizer.found_inf = torch.tensor(flag)
            optimizer.step()
            kept = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            assert kept == bool(flag), kind


def test_the_guard_of_a_device_names_the_first_bad_step() -> None:
    guard = Guard(torch.device("meta"))
    guard.device, guard.bad, guard.first = torch.device("cuda"), torch.zeros(()), torch.zeros(())  # but computed here
    for step, value in enumerate([1.0, float("nan"), 1.0, float("inf")]):
        guard.see(torch.tensor(value), "loss", step)
    with pytest.raises(FloatingPointError, match="at step 2; the weights are those of step 1"):
        guard.look()


# ------------------------------------------------------------------------------------------------ parts of a step


def test_parts_of_a_step_are_its_gradient() -> None:
    """Without randomness in the loss, micro-batches change nothing but rounding."""
    latents, contexts = data()
    loss = lambda model, rows, generator, step: model(latents[rows], rows, contexts[rows]).square().mean()  # noqa: E731
    plain = denoisers.build("mlp", (2, 4, 4), 16, 1, 8, 8, 0.0, Schedule(50))
    nn.init.normal_(plain.body.out.weight)
    ways = [list(train(deepcopy(plain), loss, 20, replace(CONFIG, parts=parts))) for parts in (1, 4)]
    for one, four in zip(*ways, strict=True):
        assert float(one.loss) == pytest.approx(float(four.loss), rel=1e-5)


def test_batch_norm_keeps_the_mean_of_the_parts() -> None:
    model = nn.BatchNorm1d(2, momentum=0.5)
    x = torch.tensor([[0.0, 1], [2, 3], [10, 20], [30, 40]])
    config = TrainingConfig(1, 4, 1e-3, 0, ema=0.0, parts=2)
    next(train(model, lambda m, rows, *_: m(x[rows]).square().mean(), 4, config))
    rows = torch.from_numpy(rows_at(0, 4, 4, 0))
    means = [x[rows[part::2]].mean(0) for part in (0, 1)]
    torch.testing.assert_close(model.running_mean, 0.5 * (means[0] + means[1]) / 2)


def test_two_losses_by_name() -> None:
    model = nn.Linear(2, 1)
    loss = lambda m, *_: {"loss": m.weight.square().sum(), "identity": m.bias.sum()}  # noqa: E731
    state = next(train(model, loss, 4, CONFIG))
    assert set(state.named) == {"identity"} and state.loss.ndim == 0
    with pytest.raises(KeyError, match="loss"):
        next(train(model, lambda m, *_: {"other": m.weight.sum()}, 4, CONFIG))


# ------------------------------------------------------------------------------------------------- the data's place


def test_rows_are_picked_from_tensors_and_memory_maps(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.uint8).reshape(4, 3))
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows, cpu = torch.tensor([2, 0]), torch.device("cpu")
    assert pick(on_disk, rows, cpu).tolist() == [[6, 7, 8], [0, 1, 2]]
    assert pick(torch.ones(4, dtype=torch.float16), rows, cpu).dtype == torch.float32
    assert resident(on_disk, cpu) is on_disk


# -------------------------------------------------------------------------------------------- batches, schedules


def test_every_epoch_is_a_permutation() -> None:
    rows = np.concatenate([rows_at(step, 10, 4, seed=1) for step in range(10)])  # four epochs
    assert all(sorted(epoch) == list(range(10)) for epoch in rows.reshape(4, 10))
    assert not np.array_equal(rows[:10], rows[10:20])
    assert np.array_equal(rows_at(3, 10, 4, seed=1), rows[12:16])


def test_learning_rates() -> None:
    assert [lr_at(k, CONFIG) / 1e-3 for k in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert lr_at(3, CONFIG) == pytest.approx(1e-3)
    assert lr_at(19, CONFIG) < 1e-5
    restarts = replace(CONFIG, steps=150_000, warmup=0, decay="restarts")  # cycles end at 10k, 30k, 70k, 150k
    for end in (10_000, 30_000, 70_000, 150_000):
        assert lr_at(end - 1, restarts) < 1e-9
    assert lr_at(10_000, restarts) == lr_at(30_000, restarts) == pytest.approx(1e-3)


# --------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(("prediction", "weight"), [("eps", lambda a: 1.0), ("v", lambda a: 1 / a)])
def test_denoising_loss_in_closed_form(prediction: str, weight) -> None:
    """A denoiser that answers zero: the loss is the mean of w(t) eps^2, with the noise of the same generator."""
    latents, contexts = data()
    schedule, rows = Schedule(50), torch.arange(20)
    asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def zero(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        asked.append((x, t, y))
        return x * 0

    loss = denoising_loss(latents, contexts, schedule, prediction)
    value = loss(zero, rows, torch.Generator().manual_seed(0), 0)
    (x, t, y), abar = asked[0], schedule.alphas_cumprod
    a = abar[t].view(-1, 1, 1, 1)
    noise = (x - a.sqrt() * latents) / (1 - a).sqrt()
    expected = (torch.stack([torch.as_tensor(weight(v)) for v in abar[t]]) * noise.square().mean((1, 2, 3))).mean()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(y, contexts)
    torch.testing.assert_close(x, add_noise(latents, noise, abar[t]))


def test_v_weighting_is_the_loss_of_v() -> None:
    x0, noise, error = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    a = torch.rand(5).view(-1, 1, 1, 1) * 0.9 + 0.05
    x, v = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
    eps = (1 - a).sqrt() * x + a.sqrt() * (v + error)
    torch.testing.assert_close((eps - noise).square() / a, error.square(), rtol=1e-3, atol=1e-4)


def test_contexts_are_dropped_at_their_rate() -> None:
    latents, contexts = torch.zeros(4000, 1, 1, 1), torch.ones(4000, 3)
    kept = []
    loss = denoising_loss(latents, contexts, Schedule(50), context_drop=0.1)
    loss(lambda x, t, y: kept.append(y.any(1)) or x, torch.arange(4000), torch.Generator().manual_seed(0), 0)
    assert 0.88 < kept[0].float().mean() < 0.92


def test_bad_data_is_refused() -> None:
    latents, contexts = data()
    with pytest.raises(ValueError, match=r"contexts: expected one per latent \(20\), got 19"):
        denoising_loss(latents, contexts[:19], Schedule())
    with pytest.raises(ValueError, match="prediction: expected 'eps' or 'v'"):
        denoising_loss(latents, contexts, Schedule(), "x0")


# ---------------------------------------------------------------------------------------------------------- files


def test_model_files_describe_themselves(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, half(network().state_dict()), config={"width": 16}, step=3, metrics={"loss": 0.5})
    tensors, metadata = read_model(path)
    assert metadata == {"config": {"width": 16}, "step": 3, "metrics": {"loss": 0.5}}
    assert {v.dtype for v in tensors.values()} == {torch.float16}
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    with pytest.raises(FileNotFoundError, match="no such model file"):
        read_model(tmp_path / "other.safetensors")


def test_compact_files_are_a_quarter_and_come_back_within_a_rounding(tmp_path: Path) -> None:
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 64)[:, None]
    state = {
        "matrix": rows,
        "zeros": torch.zeros(64, 256),
        "kernel": rows.view(64, 16, 4, 4),
        "bias": torch.arange(3.0),
        "count": torch.tensor(5),
    }
    save_model(tmp_path / "m.safetensors", compact(state))
    loaded, _ = read_model(tmp_path / "m.safetensors")
    assert set(loaded) == set(state)
    assert loaded["matrix"].dtype == torch.float32 and loaded["bias"].dtype == torch.float16
    assert ((loaded["matrix"] - rows).abs() <= rows.abs().amax(1, keepdim=True) / 253).all()
    assert torch.equal(loaded["zeros"], state["zeros"]) and loaded["count"] == 5
    assert torch.equal(loaded["kernel"], loaded["matrix"].view(64, 16, 4, 4))
    assert (tmp_path / "m.safetensors").stat().st_size < 0.3 * 4 * 3 * rows.numel()


def test_log_holds_mean_losses(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.csv", CONFIG, lines=4)
    states = run()
    for state in states:
        log.write(state)
    lines = (tmp_path / "log.csv").read_text().split()
    assert lines[0].startswith("step,loss")
    assert [int(line.split(",")[0]) for line in lines[1:]] == [5, 10, 15, 20]
    assert float(lines[1].split(",")[1]) == pytest.approx(np.mean([float(s.loss) for s in states[:5]]), abs=1e-4)
