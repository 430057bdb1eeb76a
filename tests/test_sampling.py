"""``sample`` against diffusers' own loops and pipelines, and against itself: a batch of eight equals eight singles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from facetransport.diffusion import denoisers
from facetransport.diffusion.sampling import ddpm_step, initial_noise, predicted_x0, sample
from facetransport.diffusion.schedule import SOLVERS, Schedule, add_noise

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers under numpy 2
SHAPE = (3, 8, 8)
LINEAR = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


class Fake(nn.Module):
    """A seeded denoiser that depends on x, t and the context."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        shift = 0 if context is None else self.linear(context)[:, :, None, None]
        return torch.tanh(self.conv(x)) * (1 + t.view(-1, 1, 1, 1) / 1000) + shift


@pytest.fixture
def fake() -> Fake:
    return Fake().eval()


def contexts(n: int, dim: int = 4) -> Tensor:
    return nn.functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(1)), dim=1)


def generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def diffusers_loop(scheduler, fake: Fake, c: Tensor, seeds: range, steps: int) -> Tensor:
    """The loop of diffusers' documentation, with one generator per sample."""
    scheduler.set_timesteps(steps)
    drawn = generators(seeds)
    x = initial_noise(SHAPE, drawn)
    for t in scheduler.timesteps:
        with torch.no_grad():
            eps = fake(x, t.expand(len(x)), c)
        stochastic = isinstance(scheduler, DDPMScheduler) or "sde" in scheduler.config.get("algorithm_type", "")
        noise = {"generator": drawn} if stochastic else {}
        x = scheduler.step(eps, t, x, **noise).prev_sample
    return x


@pytest.mark.parametrize(
    ("solver", "steps", "scheduler"),
    [
        ("ddim", 20, DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing")),
        ("dpm++", 20, DPMSolverMultistepScheduler(**LINEAR, algorithm_type="dpmsolver++", solver_order=2)),
        ("sde-dpm++", 20, DPMSolverMultistepScheduler(**LINEAR, algorithm_type="sde-dpmsolver++", solver_order=2)),
        ("ddpm", 1000, DDPMScheduler(**LINEAR, clip_sample=False, variance_type="fixed_large")),
        ("ddpm", 50, DDPMScheduler(**LINEAR, clip_sample=False, variance_type="fixed_large")),
    ],
)
def test_trajectories_equal_diffusers(fake: Fake, solver: str, steps: int, scheduler) -> None:
    c = contexts(3)
    ours = sample(fake, SHAPE, c, solver, steps, range(3), micro_batch=3)
    theirs = diffusers_loop(scheduler, fake, c, range(3), steps)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


class PipelineUNet(nn.Module):
    """A denoiser, as diffusers' unconditional pipelines want their U-Net."""

    config = SimpleNamespace(sample_size=8, in_channels=3)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.denoiser(x, torch.as_tensor(t).expand(len(x))))


def test_ddim_equals_diffusers_pipeline() -> None:
    torch.manual_seed(0)
    network = denoisers.build("mlp", SHAPE, 32, 1, 4, 8, 0.25, Schedule()).eval()
    nn.init.normal_(network.body.out.weight, std=0.1)
    scheduler = DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing")
    pipeline = DDIMPipeline(unet=PipelineUNet(network), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=2, generator=generators(range(2)), num_inference_steps=10, output_type="np").images
    ours = sample(network, SHAPE, None, "ddim", 10, range(2), micro_batch=2)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert ((ours > 0) & (ours < 1)).float().mean() > 0.1
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "mixer", "transformer", "unet_ca", "unet_adagn"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_batch_of_eight_equals_eight_singles_bit_for_bit(kind: str, solver: str) -> None:
    torch.manual_seed(0)
    network = denoisers.build(kind, (4, 8, 8), 64 if kind != "unet_ca" else 32, 1, 16, 32, 0.25, Schedule()).eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)  # zero-initialised layers would hide the rest
    c = contexts(8, 16)
    batch = sample(network, (4, 8, 8), c, solver, 4, range(8))
    singles = [sample(network, (4, 8, 8), c[i : i + 1], solver, 4, [i]) for i in range(8)]
    assert torch.equal(batch, torch.cat(singles))
    assert torch.equal(batch[[2, 6, 7]], sample(network, (4, 8, 8), c[[2, 6, 7]], solver, 4, [2, 6, 7]))
    assert not torch.equal(batch[0], batch[1])


def test_batch_larger_than_the_micro_batch_equals_singles(fake: Fake) -> None:
    c = contexts(19)
    batch = sample(fake, SHAPE, c, "ddpm", 3, range(19), micro_batch=8)
    assert torch.equal(batch[17:18], sample(fake, SHAPE, c[17:18], "ddpm", 3, [17], micro_batch=8))


@pytest.mark.parametrize("solver", SOLVERS)
def test_vectors_are_sampled_as_codes_that_were_flattened(fake: Fake, solver: str) -> None:
    """Vectors (d,) and contexts of tokens (B, L, e), here of rows that sum to the contexts of the codes."""
    c, codes = contexts(3), lambda x: x.unflatten(1, SHAPE)

    def flat(x: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        return fake(codes(x), t, None if tokens is None else tokens.sum(1)).flatten(1)

    tokens = torch.stack([c, torch.zeros_like(c)], 1)
    vectors = sample(flat, (192,), tokens, solver, 5, range(3), Schedule())
    assert vectors.shape == (3, 192)
    assert torch.equal(codes(vectors), sample(fake, SHAPE, c, solver, 5, range(3)))
    assert torch.equal(codes(sample(flat, (192,), None, solver, 5, [1])), sample(fake, SHAPE, None, solver, 5, [1]))


def test_ddpm_mean_is_diffusers_step_without_its_noise(fake: Fake) -> None:
    scheduler = Schedule().scheduler("ddpm", 1000)
    x, eps, t = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor(400)
    noisy = ddpm_step(scheduler, eps, t, x, generators(range(2)))
    noise = torch.stack([torch.randn(SHAPE, generator=g) for g in generators(range(2))])
    mean = ddpm_step(scheduler, eps, t, x, None)
    torch.testing.assert_close(noisy, mean + scheduler.betas[400].sqrt() * noise)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_temperature_scales_the_starting_noise_and_nothing_else(solver: str, fake: Fake) -> None:
    def silent(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)  # every step is then linear in x

    schedule = Schedule()
    full, half = (sample(silent, SHAPE, None, solver, 10, [3], schedule, temperature=t) for t in (1.0, 0.5))
    torch.testing.assert_close(half, full / 2)
    first, last = (sample(fake, SHAPE, None, solver, 10, [3], temperature=t) for t in (1.0, 1e-3))
    assert not torch.allclose(first, last)
    other = sample(fake, SHAPE, None, solver, 10, [4], temperature=1e-3)
    assert (other - last).norm() < 0.1 * (sample(fake, SHAPE, None, solver, 10, [4]) - first).norm()


def test_quiet_steps_two_is_the_published_quirk(fake: Fake) -> None:
    """IDiff-Face omits the noise at the last two indices; the rest of the trajectory is the same."""
    paths: dict[int, list[Tensor]] = {1: [], 2: []}
    for quiet, path in paths.items():
        sample(fake, SHAPE, None, "ddpm", 20, [3], quiet_steps=quiet, callback=lambda i, x, path=path: path.append(x))
    assert all(torch.equal(a, b) for a, b in zip(paths[1][:18], paths[2][:18], strict=True))
    assert not torch.equal(paths[1][18], paths[2][18])


def test_a_perfect_denoiser_recovers_its_image() -> None:
    """For data at one point x0, eps = (x - sqrt(abar) x0) / sqrt(1 - abar), and every solver ends at x0."""
    x0, abar = torch.linspace(-1, 1, 48).view(1, 3, 4, 4), Schedule().alphas_cumprod

    def ideal(x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        a = abar[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    for solver, steps in (("ddim", 10), ("dpm++", 10), ("ddpm", 100)):
        torch.testing.assert_close(sample(ideal, (3, 4, 4), None, solver, steps, [0]), x0, atol=0.02, rtol=0)
    torch.testing.assert_close(predicted_x0(ideal, torch.randn(1, 3, 4, 4), 700, None), x0, atol=1e-4, rtol=0)


def test_schedules_equal_diffusers_to_the_bit() -> None:
    assert torch.equal(Schedule().alphas_cumprod, DDPMScheduler(**LINEAR).alphas_cumprod)
    cosine = DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.equal(Schedule(50, "cosine").alphas_cumprod, cosine)
    x0, noise, t = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor([3, 900])
    theirs = DDPMScheduler(**LINEAR).add_noise(x0, noise, t)
    torch.testing.assert_close(add_noise(x0, noise, Schedule().alphas_cumprod[t]), theirs)


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 50), ("ddim", 50), ("dpm++", 49), ("sde-dpm++", 49)])
def test_as_many_steps_as_can_be_stay_finite(fake: Fake, solver: str, steps: int) -> None:
    assert sample(fake, SHAPE, None, solver, steps, [0], schedule=Schedule(50, "cosine")).isfinite().all()


def test_bad_arguments_are_refused(fake: Fake) -> None:
    with pytest.raises(ValueError, match=r"solver: expected one of ddpm, ddim, dpm\+\+, sde-dpm\+\+, got 'euler'"):
        sample(fake, SHAPE, None, "euler", 10)
    with pytest.raises(ValueError, match=r"steps: expected 1\.\.1000"):
        sample(fake, SHAPE, None, "ddim", 1001)
    with pytest.raises(ValueError, match=r"steps: expected 1\.\.49 \(dpm\+\+, T = 50\), got 50"):
        sample(fake, SHAPE, None, "dpm++", 50, schedule=Schedule(50, "cosine"))
    with pytest.raises(ValueError, match=r"contexts: expected \(2, d\), one per seed, got \(3, 4\)"):
        sample(fake, SHAPE, contexts(3), "ddim", 10, range(2))
    with pytest.raises(ValueError, match="seeds: expected one per sample"):
        sample(fake, SHAPE, None, "ddim", 10, [])
    with pytest.raises(ValueError, match="NaN"):
        sample(fake, SHAPE, contexts(1) * float("nan"), "ddim", 10)
    for shape in ((1, *SHAPE), SHAPE[1:]):
        with pytest.raises(ValueError, match=r"shape: expected \(C, h, w\) of one code or \(d,\) of a vector, got"):
            sample(fake, shape, None, "ddim", 10)
    with pytest.raises(ValueError, match=r"contexts: expected \(1, d\), one per seed, got \(1, 2, 3, 4\)"):
        sample(fake, SHAPE, torch.ones(1, 2, 3, 4), "ddim", 10)
    with pytest.raises(ValueError, match="training mode"):
        sample(Fake().train(), SHAPE, None, "ddim", 10)
    with pytest.raises(ValueError, match="quiet_steps"):
        sample(fake, SHAPE, None, "ddpm", 10, quiet_steps=0)
    for temperature in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="temperature: expected above 0 and at most 1"):
            sample(fake, SHAPE, None, "ddim", 10, temperature=temperature)
    with pytest.raises(ValueError, match="schedule: expected one of linear, cosine"):
        Schedule(kind="sigmoid")


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm++", "sde-dpm++"])
def test_a_denoiser_that_returns_nan_draws_nothing(solver: str) -> None:
    with pytest.raises(ValueError, match="denoiser: it returned NaN or inf"):
        sample(lambda x, t, c: x * float("nan"), (2, 4, 4), None, solver, 4, [0])
