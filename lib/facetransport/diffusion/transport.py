"""Diffusion as transport of probability, in a world where all of it is known: mixtures of Gaussians.

DiFace's theory (papers.md 1.2, a reconstruction): noise and data are joined by densities p_t that obey dp/dt + div(p v)
= 0 with v_t(z) = -beta(t)/2 (z + grad log p_t(z)); where data are tight clusters, as embeddings of margin-trained
recognisers are, the best denoiser is E[z_0 | z_t, c] = sum_k P(k | z_t, c) mu_k(z_t), and a condition c re-weights
clusters. For a mixture of isotropic Gaussians each of these is a closed form, in any dimension, here in float64.

Points are (B, d); ``abar`` is abar_t, a number or one per point (B,). A ``context`` is evidence for the components:
P(c | k) up to a factor, (K,) or (B, K); None or a row of zeros is the null context, as for the networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.integrate import solve_ivp
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.func import grad, jacrev

from facetransport.diffusion.schedule import Schedule, add_noise

Level = float | Tensor
Field = Callable[[Tensor], Tensor]
"""v (B, d) = field(z (B, d)), each row on its own."""


@dataclass(frozen=True)
class Mixture:
    """sum_k weights[k] N(means[k], variances[k] I): the data, and by ``abar`` what the forward process makes of them.

    weights: (K,), above 0, sum 1. means: (K, d). variances: (K,), of each coordinate, above 0. Kept as float64.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "variances"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        if self.means.ndim != 2 or not self.weights.shape == self.means.shape[:1] == self.variances.shape:
            shapes = [tuple(x.shape) for x in (self.weights, self.means, self.variances)]
            raise ValueError(f"expected weights (K,), means (K, d), variances (K,), got {shapes}")
        if not ((self.weights > 0).all() and abs(float(self.weights.sum()) - 1) < 1e-6):
            raise ValueError(f"weights: expected numbers above 0 that sum to 1, got {self.weights.tolist()[:8]}")
        if not ((self.variances > 0).all() and self.means.isfinite().all()):
            raise ValueError("expected finite means and variances above 0; give a tight cluster a small variance")

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    # ------------------------------------------------------------------------------------------- what is asked for

    def prior(self, context: Tensor | None = None) -> Tensor:
        """P(k | c), (K,) or (B, K): all that a description does to the mixture is to re-weight its components."""
        if context is None:
            return self.weights
        evidence = self._evidence(context)
        joint = self.weights * torch.where(evidence.any(-1, keepdim=True), evidence, 1.0)
        return joint / joint.sum(-1, keepdim=True)

    def given(self, context: Tensor | None) -> Mixture:
        """p(z_0 | c) as a mixture of its own, for one context (K,); components that c rules out are left out."""
        prior = self.prior(context)
        if prior.ndim != 1:
            raise ValueError(f"context: expected one, ({len(self.weights)},), got {tuple(prior.shape)}")
        kept = prior > 0
        return Mixture(prior[kept], self.means[kept], self.variances[kept])

    def mean(self, context: Tensor | None = None) -> Tensor:
        """E[z_0 | c], (d,) or (B, d): what a plain regression from descriptions to points learns."""
        return self.prior(context) @ self.means

    def covariance(self, context: Tensor | None = None) -> Tensor:
        """Cov[z_0 | c], (d, d), for one context (K,)."""
        world = self.given(context)
        off = world.means - world.mean()
        between = (world.weights[:, None] * off).T @ off
        return between + (world.weights @ world.variances) * torch.eye(self.dim, dtype=torch.float64)

    def draw(self, n: int, seed: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """n samples of p(z_0 | c) for one context (K,), and their components: (n, d), int64 (n,)."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.prior(context), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return self.means[k] + self.variances[k, None].sqrt() * noise, k

    # ------------------------------------------------------------------------------------------------ at a noise level

    def log_density(self, z: Tensor, abar: Level = 1.0, context: Tensor | None = None) -> Tensor:
        """log p_t(z | c), (B,)."""
        return self._log_joint(z, abar, context).logsumexp(1)

    def responsibilities(self, z: Tensor, abar: Level = 1.0, context: Tensor | None = None) -> Tensor:
        """P(k | z_t, c), (B, K)."""
        return self._log_joint(z, abar, context).softmax(1)

    def score(self, z: Tensor, abar: Level = 1.0, context: Tensor | None = None) -> Tensor:
        """grad_z log p_t(z | c) = sum_k P(k | z_t, c) (sqrt(abar) mu_k - z) / s_k, (B, d)."""
        pull = self.responsibilities(z, abar, context) / self._spread(_column(abar))
        return _column(abar).sqrt() * (pull @ self.means) - pull.sum(1, keepdim=True) * z.double()

    def posterior_mean(self, z: Tensor, abar: Level, context: Tensor | None = None) -> Tensor:
        """E[z_0 | z_t, c] = sum_k P(k | z_t, c) mu_k(z_t), (B, d): the best denoiser (papers.md 1.2).

        mu_k(z_t) = mu_k + sqrt(abar) variance_k / s_k (z_t - sqrt(abar) mu_k), s_k = abar variance_k + 1 - abar.
        """
        a, share = _column(abar).sqrt(), self.responsibilities(z, abar, context)
        gain = a * self.variances / self._spread(a**2)  # of each component
        return (share * (1 - a * gain)) @ self.means + (share * gain).sum(1, keepdim=True) * z.double()

    def noise(self, z: Tensor, abar: Level, context: Tensor | None = None) -> Tensor:
        """E[eps | z_t, c] = -sqrt(1 - abar) score, (B, d): what a network that predicts noise should learn."""
        return -(1 - _column(abar)).sqrt() * self.score(z, abar, context)

    def _spread(self, abar: Tensor) -> Tensor:
        """s_k, the variance of component k at level t: (1 or B, 1) -> (1 or B, K)."""
        return abar * self.variances + 1 - abar

    def _log_joint(self, z: Tensor, abar: Level, context: Tensor | None) -> Tensor:
        """log P(k | c) N(z; sqrt(abar) mu_k, s_k I), (B, K), without a (B, K, d) array."""
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"z: expected (B, {self.dim}), got {tuple(z.shape)}")
        a, z = _column(abar), z.double()
        s = self._spread(a)
        square = z.square().sum(1, keepdim=True) - 2 * a.sqrt() * (z @ self.means.T) + a * self.means.square().sum(1)
        return self.prior(context).log() - square / (2 * s) - self.dim / 2 * (2 * torch.pi * s).log()

    def _evidence(self, context: Tensor) -> Tensor:
        evidence = torch.as_tensor(context, dtype=torch.float64)
        if evidence.ndim not in (1, 2) or evidence.shape[-1] != len(self.weights):
            raise ValueError(f"context: expected (..., {len(self.weights)}), P(c | k), got {tuple(evidence.shape)}")
        if not ((evidence >= 0) & evidence.isfinite()).all():
            raise ValueError("context: expected finite likelihoods P(c | k) of at least 0")
        return evidence


def _column(abar: Level) -> Tensor:
    """A number or (B,) -> (1, 1) or (B, 1), float64."""
    column = torch.as_tensor(abar, dtype=torch.float64).reshape(-1, 1)
    if not ((column >= 0) & (column <= 1)).all():
        raise ValueError(f"abar: expected shares of signal in [0, 1], got {abar}")
    return column


# ------------------------------------------------------------------------------------------------------- the sphere


def on_sphere(directions: Tensor, spread: float) -> Mixture:
    """Equally frequent tight clusters around directions (K, d), made unit norm, on the sphere of radius sqrt(d).

    spread: standard deviation of each coordinate. At that radius coordinates have about unit variance, as a noise
    schedule wants them (papers.md 1.3).
    """
    means = F.normalize(directions.double(), dim=1) * directions.shape[1] ** 0.5
    return Mixture(_equal(len(means)), means, torch.full((len(means),), spread**2, dtype=torch.float64))


def fit(embeddings: np.ndarray, identity: np.ndarray) -> Mixture:
    """One cluster a person: unit-norm embeddings (N, d), int identity (N,), in units of 1 / sqrt(d).

    All have one variance, the mean within people (N - K degrees of freedom) over coordinates; people are equally
    frequent, in ascending order of identity. Raises ValueError unless somebody has two embeddings.
    """
    z, (people, place) = torch.as_tensor(embeddings).double(), np.unique(identity, return_inverse=True)
    if len(z) <= len(people):
        raise ValueError(f"identity: expected several embeddings a person, got {len(z)} of {len(people)} people")
    members = F.one_hot(torch.as_tensor(place)).double()
    means = (members.T @ z) / members.sum(0)[:, None]
    variance = (z - means[place]).square().sum() / (len(z) - len(people))  # summed over d: the sphere's scale is in it
    return Mixture(_equal(len(people)), means * z.shape[1] ** 0.5, variance.expand(len(people)))


def _equal(k: int) -> Tensor:
    return torch.full((k,), 1 / k, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------- time and motion


class Clock:
    """A schedule in continuous time: real t from -1 (data, abar = 1) to T - 1, at integers the schedule's own abar_t.

    Between them log abar is a monotone cubic; beta(t) = -d log(abar) / dt is the rate of dz = -beta/2 z dt + sqrt(beta)
    dw, the VP process.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        logs = (schedule or Schedule()).alphas_cumprod.double().log().numpy()
        self.end = len(logs) - 1
        self._log = PchipInterpolator(np.arange(-1, len(logs)), np.concatenate([[0.0], logs]), extrapolate=False)
        self._slope = self._log.derivative()

    def abar(self, t: float) -> float:
        """Share of signal (variance) left at time t."""
        return float(np.exp(self._log(self._time(t))))

    def beta(self, t: float) -> float:
        """Noise added per unit of time."""
        return float(-self._slope(self._time(t)))

    def _time(self, t: float) -> float:
        if not -1 <= t <= self.end:
            raise ValueError(f"t: expected -1 (data) .. {self.end} (noise), got {t}")
        return t


def velocity(world: Mixture, clock: Clock, z: Tensor, t: float, context: Tensor | None = None) -> Tensor:
    """v_t(z) = -beta(t)/2 (z + grad log p_t(z | c)), (B, d): the probability-flow ODE (papers.md 1.2)."""
    return clock.beta(t) * _drift(world, z, clock.abar(t), context)


def _drift(world: Mixture, z: Tensor, abar: float, context: Tensor | None = None) -> Tensor:
    """``velocity`` by a clock that beats with -log abar: no schedule is left in it, and no knots of a spline."""
    return -(z.double() + world.score(z, abar, context)) / 2


def flow(world: Mixture, clock: Clock, z: Tensor, times: Sequence[float], context: Tensor | None = None) -> Tensor:
    """Particles z (n, d) at times[0] moved along the ODE: float64 (len(times), n, d). times rise or fall.

    By scipy's DOP853, to a relative error of 1e-8 a step.
    """
    return _solve(lambda abar, x: _drift(world, x, abar, context), clock, z.double(), times)


def flow_with_volume(world: Mixture, clock: Clock, z: Tensor, times: Sequence[float]) -> tuple[Tensor, Tensor]:
    """As ``flow``, and the logarithm of how much the flow has stretched the volume around each particle.

    (len(times), n, d), (len(times), n). d log volume / dt = div v, so that log p_t(z_t) + log volume stays what it was
    (instantaneous change of variables, Chen et al. 2018). For few dimensions: the divergence takes d backward passes.
    """

    def rate(abar: float, state: Tensor) -> Tensor:
        x = state[:, :-1]
        stretch = divergence(lambda y: _drift(world, y, abar), x)
        return torch.cat([_drift(world, x, abar), stretch[:, None]], dim=1)

    states = _solve(rate, clock, F.pad(z.double(), (0, 1)), times)
    return states[..., :-1], states[..., -1]


def _solve(rate: Callable[[float, Tensor], Tensor], clock: Clock, start: Tensor, times: Sequence[float]) -> Tensor:
    """d start / d(-log abar) = rate(abar, .), at times: (len(times), *start.shape)."""

    def flat(b: float, y: np.ndarray) -> np.ndarray:
        return rate(min(1.0, math.exp(-b)), torch.from_numpy(y).view_as(start)).flatten().numpy()

    steps = np.diff(times)
    if len(times) < 2 or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"times: expected at least two, rising or falling, got {list(times)}")
    beats = np.array([-math.log(clock.abar(t)) for t in times])
    span = float(beats[0]), float(beats[-1])
    found = solve_ivp(flat, span, start.flatten().numpy(), "DOP853", beats, rtol=1e-8, atol=1e-9)
    if not found.success:
        raise FloatingPointError(f"the ODE could not be solved from t = {times[0]} to {times[-1]}: {found.message}")
    return torch.from_numpy(found.y.T).reshape(len(times), *start.shape)


def forward_path(z0: Tensor, levels: Sequence[float], seed: int) -> Tensor:
    """One path of the forward process (the SDE) for each z0 (n, d), at falling abar: (len(levels), n, d).

    Exact for any distance between levels: z_s = sqrt(a) z_r + sqrt(1 - a) n with a = abar_s / abar_r.
    """
    if not all(0 < b <= a for a, b in zip([1.0, *levels], levels, strict=False)):
        raise ValueError(f"levels: expected abar falling from at most 1, got {list(levels)}")
    generator, path, before = torch.Generator().manual_seed(seed), [z0.double()], 1.0
    for abar in levels:
        noise = torch.randn(z0.shape, dtype=torch.float64, generator=generator)
        path.append(add_noise(path[-1], noise, torch.full((len(z0),), abar / before, dtype=torch.float64)))
        before = abar
    return torch.stack(path[1:])


# ---------------------------------------------------------------------------------------------------- conservation


def divergence(field: Field, z: Tensor) -> Tensor:
    """div field at z (B, d), by automatic differentiation: (B,)."""
    return jacrev(lambda x: field(x).sum(0))(z).diagonal(dim1=0, dim2=2).sum(1)  # rows are independent: one sum does


def density_rate(world: Mixture, clock: Clock, z: Tensor, t: float) -> Tensor:
    """dp_t(z) / dt at fixed z (B, d), by automatic differentiation: (B,)."""
    abar = torch.full((len(z),), clock.abar(t), dtype=torch.float64)
    return -clock.beta(t) * abar * grad(lambda a: world.log_density(z, a).exp().sum())(abar)


def continuity_residual(world: Mixture, clock: Clock, z: Tensor, t: float, field: Field | None = None) -> Tensor:
    """dp/dt + div(p v) at z (B, d), (B,): 0 where v carries p. field: a v to put on trial; by default ``velocity``."""
    carry = field or (lambda x: velocity(world, clock, x, t))
    flux = divergence(lambda x: world.log_density(x, clock.abar(t)).exp()[:, None] * carry(x), z.double())
    return density_rate(world, clock, z, t) + flux


def fokker_planck_residual(world: Mixture, clock: Clock, z: Tensor, t: float) -> Tensor:
    """dp/dt - beta/2 (div(z p) + laplacian p) at z (B, d), (B,): 0 for the densities of the VP process.

    From the density alone: no formula for the score enters.
    """

    def density(x: Tensor) -> Tensor:
        return world.log_density(x, clock.abar(t)).exp()

    drift = divergence(lambda x: x * density(x)[:, None], z.double())
    spreading = divergence(grad(lambda x: density(x).sum()), z.double())
    return density_rate(world, clock, z, t) - clock.beta(t) / 2 * (drift + spreading)


# -------------------------------------------------------------------------------------------------------- denoising


class ExactDenoiser:
    """The best noise prediction there is, as a denoiser for ``sampling.sample``: eps = denoiser(x_t, t, context).

    x_t (B, d) or (B, d, 1, 1), t int64 (B,), context (B, K) or None. Computes in float64, answers in x_t's precision.
    """

    micro_batch = 1024

    def __init__(self, world: Mixture, schedule: Schedule | None = None) -> None:
        self.world, self.schedule = world, schedule or Schedule()
        self.abar = self.schedule.alphas_cumprod.double()

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[1:] not in ((self.world.dim,), (self.world.dim, 1, 1)):
            raise ValueError(f"x: expected (B, {self.world.dim}) or (B, {self.world.dim}, 1, 1), got {tuple(x.shape)}")
        z, evidence = x.detach().cpu().flatten(1), None if context is None else context.cpu()
        return self.world.noise(z, self.abar[t.cpu()], evidence).view(x.shape).to(x)
