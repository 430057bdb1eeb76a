"""The exact world against torch.distributions, automatic differentiation, quadrature and ``sample``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from facetransport.diffusion.sampling import predicted_x0, sample
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.transport import (
    Clock,
    ExactDenoiser,
    Mixture,
    continuity_residual,
    divergence,
    fit,
    flow,
    flow_with_volume,
    fokker_planck_residual,
    forward_path,
    on_sphere,
    velocity,
)

WEIGHTS, VARIANCES = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.05, 0.02, 0.1])
MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.8, -1.3]])
EVIDENCE = torch.tensor([0.1, 0.9, 0.6])  # a description that half rules out the first
CLOCK = Clock()
LEVELS = [0.999, 0.7, 0.2, 1e-4]


@pytest.fixture
def world() -> Mixture:
    return Mixture(WEIGHTS, MEANS, VARIANCES)


def points(n: int = 40, dim: int = 2) -> Tensor:
    return 1.5 * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def by_torch(world: Mixture, abar: float, context: Tensor | None = None) -> MixtureSameFamily:
    """p_t(z | c), by torch.distributions."""
    spread = (abar * world.variances + 1 - abar).sqrt()[:, None].expand_as(world.means)
    components = Independent(Normal(abar**0.5 * world.means, spread), 1)
    return MixtureSameFamily(Categorical(world.prior(context)), components)


@pytest.mark.parametrize("abar", LEVELS)
@pytest.mark.parametrize("context", [None, EVIDENCE], ids=["plain", "given"])
def test_density_equals_torch_distributions_and_score_its_gradient(
    world: Mixture, abar: float, context: Tensor | None
) -> None:
    z = points().requires_grad_()
    theirs = by_torch(world, abar, context).log_prob(z)
    torch.testing.assert_close(world.log_density(z, abar, context), theirs)
    (gradient,) = torch.autograd.grad(theirs.sum(), z)
    torch.testing.assert_close(world.score(z, abar, context), gradient)


@pytest.mark.parametrize("abar", LEVELS)
def test_posterior_mean_is_tweedies_and_quadratures(world: Mixture, abar: float) -> None:
    """E[z_0 | z_t] = (z_t + (1 - abar) score) / sqrt(abar); and by Bayes' rule summed over a fine grid of z_0."""
    z, a = points(3), torch.tensor(abar, dtype=torch.float64)
    mean = world.posterior_mean(z, abar, EVIDENCE)
    torch.testing.assert_close((z + (1 - a) * world.score(z, abar, EVIDENCE)) / a.sqrt(), mean, rtol=1e-6, atol=1e-6)
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    step = Normal(a.sqrt() * grid, (1 - a).sqrt())
    for row, expected in zip(z, mean, strict=True):
        joint = (world.log_density(grid, 1.0, EVIDENCE) + step.log_prob(row).sum(1)).softmax(0)
        torch.testing.assert_close(joint @ grid, expected, rtol=1e-4, atol=1e-4)


def test_a_level_for_each_point_and_a_context_for_each(world: Mixture) -> None:
    z, abars = points(4), torch.tensor(LEVELS)
    contexts = torch.stack([EVIDENCE, torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]), 7 * EVIDENCE])
    for ask in (world.score, world.posterior_mean, world.responsibilities, world.noise):
        one_by_one = [ask(z[[i]], float(abars[i]), contexts[i]) for i in range(4)]
        torch.testing.assert_close(ask(z, abars, contexts), torch.cat(one_by_one))


def test_a_condition_reweights_components(world: Mixture) -> None:
    joint = WEIGHTS * EVIDENCE
    torch.testing.assert_close(world.prior(EVIDENCE), (joint / joint.sum()).double())
    torch.testing.assert_close(world.prior(torch.zeros(3)), world.weights)  # the null context of the networks
    only = torch.tensor([0.0, 0.0, 2.0])
    assert torch.equal(world.given(only).means, world.means[2:])
    assert torch.equal(world.responsibilities(points(2), 0.3, only), torch.tensor([[0.0, 0.0, 1.0]] * 2).double())
    z = points(5)
    torch.testing.assert_close(world.given(EVIDENCE).score(z, 0.3), world.score(z, 0.3, EVIDENCE))


def test_draws_have_the_moments_and_the_distribution(world: Mixture) -> None:
    z, k = world.draw(20_000, 1, EVIDENCE)
    error = ((z.mean(0) - world.mean(EVIDENCE)) / (world.covariance(EVIDENCE).diagonal() / len(z)).sqrt()).abs()
    assert error.max() < 4
    torch.testing.assert_close(torch.cov(z.T), world.covariance(EVIDENCE), atol=0.03, rtol=0)
    counts = torch.bincount(k, minlength=3).numpy()
    assert stats.chisquare(counts, len(k) * world.prior(EVIDENCE).numpy()).pvalue > 1e-3
    assert torch.equal(z, world.draw(20_000, 1, EVIDENCE)[0])
    assert not torch.equal(z, world.draw(20_000, 2, EVIDENCE)[0])


def test_clock_keeps_the_schedule_and_its_rate() -> None:
    for schedule in (Schedule(), Schedule(50, "cosine")):
        clock, abar = Clock(schedule), schedule.alphas_cumprod.double()
        ours = torch.tensor([clock.abar(t) for t in range(len(abar))], dtype=torch.float64)
        torch.testing.assert_close(ours, abar)
        assert clock.abar(-1) == 1
    slope = (np.log(CLOCK.abar(400.51)) - np.log(CLOCK.abar(400.49))) / 0.02
    assert CLOCK.beta(400.5) == pytest.approx(-slope, rel=1e-6)
    betas = torch.linspace(1e-4, 0.02, 1000)
    assert CLOCK.beta(400) == pytest.approx(float(betas[400]), rel=0.01)


@pytest.mark.parametrize("t", [0.0, 100.0, 400.5, 900.0])
def test_continuity_and_fokker_planck_hold(world: Mixture, t: float) -> None:
    z = points()
    scale = CLOCK.beta(t) * world.log_density(z, CLOCK.abar(t)).exp().max()
    assert continuity_residual(world, CLOCK, z, t).abs().max() < 1e-9 * scale
    assert fokker_planck_residual(world, CLOCK, z, t).abs().max() < 1e-9 * scale


def test_another_velocity_does_not_carry_the_density(world: Mixture) -> None:
    """The drift of the SDE alone, and the reverse SDE's (a full score instead of half of it)."""
    z, t = points(), 300.0
    scale = CLOCK.beta(t) * world.log_density(z, CLOCK.abar(t)).exp().max()
    for weight in (0.0, 2.0):

        def field(x: Tensor, weight: float = weight) -> Tensor:
            return -CLOCK.beta(t) / 2 * (x + weight * world.score(x, CLOCK.abar(t)))

        assert continuity_residual(world, CLOCK, z, t, field).abs().max() > 0.01 * scale


def test_rate_of_the_density_by_differences(world: Mixture) -> None:
    """What ``continuity_residual`` takes for dp/dt: with a velocity of zero it is dp/dt alone."""
    z, t, h = points(), 300.0, 0.01
    ahead, behind = (world.log_density(z, CLOCK.abar(t + s)).exp() for s in (h, -h))
    rate = continuity_residual(world, CLOCK, z, t, lambda x: 0 * x)
    torch.testing.assert_close(rate, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-8)


def test_divergence_of_a_known_field() -> None:
    z = points(6, 3)
    field = divergence(lambda x: torch.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] * x[:, 2]], dim=1), z)
    torch.testing.assert_close(field, 3 * z[:, 0] + z[:, 1])


def test_density_moves_with_the_flow(world: Mixture) -> None:
    """Instantaneous change of variables: log p_t(z_t) + log volume is what it was, forth and back."""
    z = world.draw(30, 0)[0]
    times = [-1.0, 50.0, 300.0, 999.0]
    path, volume = flow_with_volume(world, CLOCK, z, times)
    assert volume[-1].std() > 0.05
    torch.testing.assert_close(path, flow(world, CLOCK, z, times), rtol=1e-5, atol=1e-5)
    for t, x, v in zip(times, path, volume, strict=True):
        now = world.log_density(x, CLOCK.abar(t)) + v
        torch.testing.assert_close(now, world.log_density(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow(world, CLOCK, path[-1], times[::-1])[-1], z, rtol=1e-4, atol=1e-4)


def test_mass_inside_a_moving_interval_is_conserved() -> None:
    """In one dimension the exact distribution function says what is between two particles, at any time."""
    world = Mixture([0.4, 0.6], [[-1.0], [1.2]], [0.05, 0.1])
    edges, times = torch.tensor([[-1.3], [-0.2], [1.1]]), [-1.0, 200.0, 500.0, 999.0]
    for t, edge in zip(times, flow(world, CLOCK, edges, times), strict=True):
        cdf = by_torch(world, CLOCK.abar(t)).mixture_distribution.probs @ components_cdf(world, CLOCK.abar(t), edge)
        expected = world.weights @ components_cdf(world, 1.0, edges.double())
        torch.testing.assert_close(cdf, expected, rtol=0, atol=1e-6)


def components_cdf(world: Mixture, abar: float, edges: Tensor) -> Tensor:
    """(K, n) for edges (n, 1)."""
    return Normal(abar**0.5 * world.means, (abar * world.variances + 1 - abar)[:, None].sqrt()).cdf(edges[:, 0])


def test_sde_has_the_same_marginals_as_the_ode() -> None:
    world = Mixture([0.4, 0.6], [[-1.0], [1.2]], [0.05, 0.1])
    times = [-1.0, 60.0, 250.0, 700.0]
    moved = flow(world, CLOCK, world.draw(4000, 0)[0], times)[1:]
    noised = forward_path(world.draw(4000, 1)[0], [CLOCK.abar(t) for t in times[1:]], seed=2)
    for t, a, b in zip(times[1:], moved, noised, strict=True):

        def exact(x: np.ndarray, t: float = t) -> np.ndarray:
            return (world.weights @ components_cdf(world, CLOCK.abar(t), torch.as_tensor(x)[:, None])).numpy()

        assert min(stats.kstest(x[:, 0].numpy(), exact).pvalue for x in (a, b)) > 1e-3
    a, spread = (
        CLOCK.abar(times[2]) / CLOCK.abar(times[1]),
        [float(x.std()) for x in noised],
    )  # one path shares its past
    correlation = np.corrcoef(noised[0, :, 0], noised[1, :, 0])[0, 1]
    assert correlation == pytest.approx(a**0.5 * spread[0] / spread[1], abs=0.02)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 200), ("dpm++", 50), ("sde-dpm++", 50), ("ddpm", 200)])
def test_sampling_ends_in_the_described_distribution(world: Mixture, solver: str, steps: int) -> None:
    """Theorem-level check of papers.md 1.2: moments of p(z_0 | c), within Monte-Carlo error and that of the steps."""
    n = 2000
    codes = sample(ExactDenoiser(world), (2, 1, 1), EVIDENCE.expand(n, 3), solver, steps, range(n))
    z = codes.flatten(1).double()
    covariance = world.covariance(EVIDENCE)
    error = (z.mean(0) - world.mean(EVIDENCE)) / (covariance.diagonal() / n).sqrt()
    assert error.abs().max() < 4
    torch.testing.assert_close(torch.cov(z.T), covariance, atol=0.1, rtol=0)
    shares = world.responsibilities(z, 1.0, EVIDENCE).mean(0)
    torch.testing.assert_close(shares, world.prior(EVIDENCE), atol=0.05, rtol=0)


def test_many_ddim_steps_follow_the_ode(world: Mixture) -> None:
    """From the same noise: DDIM is the ODE, to first order in the steps."""
    states: list[Tensor] = []
    sample(ExactDenoiser(world), (2, 1, 1), None, "ddim", 1000, range(8), callback=lambda i, x: states.append(x))
    start = torch.stack([torch.randn(2, 1, 1, generator=torch.Generator().manual_seed(s)) for s in range(8)])
    end = flow(world, CLOCK, start.flatten(1), [999.0, -1.0])[-1]
    coarse = sample(ExactDenoiser(world), (2, 1, 1), None, "ddim", 100, range(8))
    errors = [(x.flatten(1) - end).norm(dim=1).mean() for x in (states[-1], coarse)]
    assert errors[0] < 0.02
    assert errors[0] < 0.3 * errors[1]


def test_one_step_is_regression_and_more_steps_commit(world: Mixture) -> None:
    n, exact = 300, ExactDenoiser(world)
    tight = 3 * float(VARIANCES.max()) ** 0.5
    for context in (None, EVIDENCE):
        contexts = None if context is None else context.expand(n, 3)
        ends = [sample(exact, (2, 1, 1), contexts, "ddim", k, range(n)).flatten(1).double() for k in (1, 100)]
        centre = [(z - world.mean(context)).norm(dim=1).mean() for z in ends]
        nearest = [torch.cdist(z, world.means).amin(1).mean() for z in ends]
        assert centre[0] < 0.03 * centre[1]
        assert nearest[1] < tight < nearest[0]


def test_denoiser_answers_as_the_papers_networks_do(world: Mixture) -> None:
    exact, x, t = ExactDenoiser(world), points(5).float().view(5, 2, 1, 1), torch.tensor([0, 10, 300, 700, 999])
    eps = exact(x, t, EVIDENCE.expand(5, 3))
    assert eps.dtype == torch.float32 and eps.shape == x.shape
    assert torch.equal(exact(x.flatten(1), t, EVIDENCE.expand(5, 3)), eps.flatten(1))  # vectors, as DiFace has them
    abar = Schedule().alphas_cumprod.double()[t]
    torch.testing.assert_close(eps.flatten(1).double(), world.noise(x.flatten(1), abar, EVIDENCE), rtol=1e-5, atol=1e-6)
    estimate = predicted_x0(exact, x, 300, None).flatten(1).double()
    expected = world.posterior_mean(x.flatten(1), Schedule().alphas_cumprod[300])
    torch.testing.assert_close(estimate, expected, rtol=1e-4, atol=1e-4)


def test_no_noise_prediction_has_a_lower_loss(world: Mixture) -> None:
    z0, generator = world.draw(20_000, 0)[0], torch.Generator().manual_seed(5)
    noise = torch.randn(z0.shape, dtype=torch.float64, generator=generator)
    z = 0.5**0.5 * (z0 + noise)
    best = world.noise(z, 0.5)
    losses = [(noise - eps).square().mean() for eps in (best, 0.98 * best, best + 0.03, world.noise(z, 0.5, EVIDENCE))]
    assert min(losses) == losses[0]


def test_clusters_on_the_sphere() -> None:
    directions = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    world = on_sphere(directions, 0.3)
    torch.testing.assert_close(world.means.norm(dim=1), torch.full((5,), 8.0).double())
    torch.testing.assert_close(world.means / 8, torch.nn.functional.normalize(directions.double(), dim=1))
    drawn, k = world.draw(400, 0)
    found = fit(torch.nn.functional.normalize(drawn, dim=1).numpy(), k.numpy())
    assert torch.nn.functional.cosine_similarity(found.means, world.means).min() > 0.99
    share = 0.3**2 / (1 + 0.3**2)  # of the variance, on the sphere
    assert float(found.variances[0]) == pytest.approx(share, rel=0.05)
    assert float(found.means.square().sum(1).mean()) == pytest.approx(64 * (1 - share), rel=0.01)


def test_bad_input_is_refused(world: Mixture) -> None:
    with pytest.raises(ValueError, match=r"weights \(K,\), means \(K, d\), variances \(K,\), got"):
        Mixture(WEIGHTS, MEANS, VARIANCES[:2])
    with pytest.raises(ValueError, match="sum to 1"):
        Mixture(2 * WEIGHTS, MEANS, VARIANCES)
    with pytest.raises(ValueError, match="variances above 0"):
        Mixture(WEIGHTS, MEANS, 0 * VARIANCES)
    with pytest.raises(ValueError, match=r"z: expected \(B, 2\), got \(4, 3\)"):
        world.log_density(points(4, 3), 0.5)
    with pytest.raises(ValueError, match=r"abar: expected shares of signal in \[0, 1\]"):
        world.score(points(2), 1.5)
    with pytest.raises(ValueError, match=r"context: expected \(\.\.\., 3\)"):
        world.prior(torch.ones(4))
    with pytest.raises(ValueError, match="at least 0"):
        world.prior(-EVIDENCE)
    with pytest.raises(ValueError, match=r"context: expected one, \(3,\), got \(2, 3\)"):
        world.given(EVIDENCE.expand(2, 3))
    with pytest.raises(ValueError, match=r"t: expected -1 \(data\) \.\. 999"):
        CLOCK.abar(1000)
    with pytest.raises(ValueError, match="times: expected at least two, rising or falling"):
        flow(world, CLOCK, points(2), [0.0, 10.0, 5.0])
    with pytest.raises(ValueError, match="levels: expected abar falling"):
        forward_path(points(2), [0.5, 0.7], 0)
    with pytest.raises(ValueError, match=r"x: expected \(B, 2\) or \(B, 2, 1, 1\), got \(1, 3, 1, 1\)"):
        ExactDenoiser(world)(torch.zeros(1, 3, 1, 1), torch.tensor([5]))
    with pytest.raises(ValueError, match="several embeddings a person"):
        fit(np.eye(3), np.arange(3))
    assert velocity(world, CLOCK, points(1), 5.0).shape == (1, 2)
