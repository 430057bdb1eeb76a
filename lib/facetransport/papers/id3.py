"""ID3: identity-preserving-yet-diversified diffusion models for synthetic face recognition.

Xu, Li, Wu, Xiong, Deng, Ji, Huang, Mu, Feng, Ding, Hooi, NeurIPS 2024, arXiv 2409.17576. Read beside the paper:

    y = f(x), s = (age, pitch, yaw, roll)        identity and attributes                  diffusion.conditions
    x^_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    log p(y | x_t) = kappa_t y . f(x^_0) + C     the reverse likelihood, a vMF            Sight, coefficient
    L = E||eps - eps_theta||^2 + E||x_0 - x^_0||^2 - E lambda_t kappa_t y . f(x^_0) + C   loss (eq. 3)
    eps~ = eps - sqrt(1 - abar_t) lambda_t kappa_t grad y . f(x^_0)                       adjusted (eq. 8)
    w_i: as far apart as can be; y_ij: at a cosine v_ij ~ U[lb, ub] to w_i                anchors, around (Alg. 3)

No code was published, and formulas are known in part: papers.md 3.2 and 3.5 say what is certain and what is inferred.
Where two readings are possible there is a switch. f has to be a white box. What is marked ours is not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.denoising import Drop, Noised, noising
from facetransport.diffusion.guidance import Denoiser, Guided, with_variance
from facetransport.diffusion.ldm import LDM, LDMConfig
from facetransport.diffusion.sampling import sample_seeds
from facetransport.diffusion.schedule import Schedule, abar_on, clean
from facetransport.recognition.plda import Plda, leading_axes, root
from facetransport.recognition.recogniser import is_white_box
from facetransport.recognition.tammes import tammes
from facetransport.training import Loss

ATTRIBUTES = ("age", "pitch", "yaw", "roll")  # s
Slope = Literal["exact", "stopped", "unit"]  # how d x^_0 / d x_t is had: `Adjustment`
Bounds = tuple[float, float]
Sight = nn.Module
"""sight(codes (B, C, h, w)) -> unit vectors (B, d), differentiable: what f sees of a code."""


# -------------------------------------------------------------------------------------------------- f, seen from a code


class Decoded(nn.Module):
    """f(D(z)): what a frozen white box sees of the decoded image, as published."""

    def __init__(self, code: nn.Module, recogniser: nn.Module) -> None:
        """code: with ``to_images``; recogniser: with ``embed``. TypeError for a black box: it gives no gradient."""
        super().__init__()
        if not is_white_box(recogniser):
            raise TypeError(f"recogniser: ID3 needs a white box, a torch module; got {type(recogniser).__name__}")
        self.code, self.recogniser = code.eval().requires_grad_(False), recogniser.eval().requires_grad_(False)

    def forward(self, codes: Tensor) -> Tensor:
        return self.recogniser.embed(self.code.to_images(codes).clamp(-1, 1))  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------ the loss, eq. 3


def coefficient(t: Tensor, timesteps: int, rising: bool = False) -> Tensor:
    """lambda_t kappa_t = 0.5 (1 - sigmoid(t / T)), (B,): 0.25 at t = 0, where the estimate is reliable, 0.134 at T.

    rising: the other sign in the exponent, 0.25 to 0.366 (papers.md 3.2: signs were lost where it was quoted).
    """
    return 0.5 * torch.sigmoid((t if rising else -t) / timesteps)


def loss(
    codes: Tensor,
    conditions: Tensor,
    drop: Drop,
    sight: Sight,
    dim: int,
    schedule: Schedule = Schedule(),  # noqa: B008
    weight: float = 1.0,
    rows: int | None = None,
    reconstruction: Literal["first", "every"] = "first",
    clip: float | None = 5.0,
    rising: bool = False,
) -> Loss:
    """Equation (3) over codes (N, C, h, w) and conditions (N, dim + ...), y before s: for ``training.train``.

    Its parts are named: "denoising", "reconstruction", "identity" (minus the weighted inner product) and "constant"
    (KL of x_T and N(0, I), nats a number; of no gradient). Squares are means over a code's numbers; ``weight`` stands
    before the inner product, 1 as published. reconstruction: E||x_0 - x^_0||^2 "first" at t = 1, in the place of the
    denoising term, or at "every" t, there at most ``clip`` times ||eps - eps_theta||^2: without a limit (None), for
    networks that compute v, the first two terms are ||v - v_theta||^2 exactly.

    rows: how many of a batch have the inner product computed (ours; by default all): D and f are dear. Where ``drop``
    took y away there is none.
    """
    draw = noising(codes, conditions, schedule, drop)
    if reconstruction not in ("first", "every"):
        raise ValueError(f"reconstruction: expected 'first' or 'every', got {reconstruction!r}")

    def parts(denoiser: nn.Module, batch: Tensor, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        drawn = draw(batch, generator)
        eps = denoiser(drawn.x_t, drawn.t, drawn.condition).float()
        denoising, rebuilt = _elbo(drawn, drawn.error(eps), reconstruction, clip)
        identity = drawn.x_0.new_zeros(())
        if weight:
            cosine, told = inner_products(drawn, eps, sight, dim, rows)
            strength = coefficient(drawn.t[: len(cosine)], schedule.timesteps, rising)
            identity = -weight * (strength * cosine).sum() / told.sum().clamp(min=1)
        total = denoising + rebuilt + identity
        named = {"denoising": denoising, "reconstruction": rebuilt, "identity": identity}
        return {"loss": total, **{n: v.detach() for n, v in named.items()}, "constant": prior(drawn.x_0, schedule)}

    return parts


def _elbo(drawn: Noised, error: Tensor, reconstruction: str, clip: float | None) -> tuple[Tensor, Tensor]:
    """The first two terms; error (B,): ||eps - eps_theta||^2. ||x_0 - x^_0||^2 is (1 - abar) / abar times it."""
    ratio = (1 - drawn.abar) / drawn.abar
    if reconstruction == "every":
        return error.mean(), (ratio.clamp(max=math.inf if clip is None else clip) * error).mean()
    first = drawn.t == 0
    return (error * ~first).mean(), (ratio * error * first).mean()


def inner_products(
    drawn: Noised, eps: Tensor, sight: Sight, dim: int, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """y . f(x^_0) of the first ``rows`` of a batch, (rows,), 0 where no y is told, and where one is."""
    part = slice(rows)
    y = drawn.condition[part, :dim]  # type: ignore[index]
    seen = sight(clean(drawn.x_t[part], eps[part], drawn.abar[part]))
    return (y * seen).sum(1), y.abs().amax(1) > 0


def prior(x_0: Tensor, schedule: Schedule) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)), mean over batch and numbers."""
    abar = abar_on(schedule, x_0.device)[-1]
    return 0.5 * (abar * (x_0.square().mean() - 1) - (1 - abar).log())


def published() -> LDM:
    """A network as the paper's may be, untrained: embedding and attributes through perceptrons of (512, 256, 768), two
    tokens that a latent U-Net attends to. Widths of the U-Net are not known; IDiff-Face's are taken (papers.md 3.3)."""
    return LDM(LDMConfig(attributes=2 * len(ATTRIBUTES)), Schedule())


# -------------------------------------------------------------------------------------------- the adjusted score, eq. 8


class Adjustment(nn.Module):
    """adjustment(denoiser, scale) -> the denoiser of the adjusted score: what `generation.Model` samples by.

    slope: how d x^_0 / d x_t is had. "exact": through the network. Else it is taken for a number: with the gradient
    "stopped" at the network's output 1 / sqrt(abar_t), which explodes near T; "unit": sqrt(abar_t), what it is for
    codes that are N(0, I) (ours). A denoiser that is guided already (`guidance.classifier_free`) is adjusted last.
    """

    def __init__(self, sight: Sight, dim: int, slope: Slope = "exact", rising: bool = False) -> None:
        super().__init__()
        if slope not in get_args(Slope):
            raise ValueError(f"slope: expected 'exact', 'stopped' or 'unit', got {slope!r}")
        self.sight, self.dim, self.slope, self.rising = sight, dim, slope, rising

    def forward(self, denoiser: Denoiser, scale: float) -> Denoiser:
        """scale: before the gradient, 1 as published, 0 for the original score."""
        return Adjusted(denoiser, self, scale) if scale else denoiser


class Adjusted(Guided):
    """eps - scale sqrt(1 - abar_t) lambda_t kappa_t grad_{x_t} y . f(x^_0(x_t)); y: the first numbers of a context."""

    def __init__(self, denoiser: Denoiser, how: Adjustment, scale: float) -> None:
        super().__init__(denoiser)
        self.how, self.scale = how, scale
        self.gpu_batch = self.micro_batch  # gradients through decoder and recogniser take a GPU's memory

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            return self.denoiser(x, t, None)
        with torch.inference_mode(False), torch.enable_grad():
            x, t, context = x.clone().requires_grad_(), t.clone(), context.clone()
            abar = abar_on(self.schedule, x.device)[t]
            with torch.set_grad_enabled(self.how.slope == "exact"):
                output = self.denoiser(x, t, context)
            eps = output[:, : x.shape[1]]
            seen = self.how.sight(clean(x, eps, abar))
            (slope,) = torch.autograd.grad((context[:, : self.how.dim] * seen).sum(), x)
        strength = self.scale * coefficient(t, self.schedule.timesteps, self.how.rising) * (1 - abar).sqrt()
        strength = strength * abar if self.how.slope == "unit" else strength
        return with_variance(eps.detach() - strength.view(-1, *[1] * (x.ndim - 1)) * slope, output.detach())


# ------------------------------------------------------------------------------------------ sets of people, Algorithm 3


def anchors(n: int, dim: int, seed: int, like: Plda | None = None, steps: int = 200, lr: float = 0.1) -> Tensor:
    """w_i, float32 (n, dim), unit norm: one for each identity, as far apart as can be (`recognition.tammes`).

    like, ours: on the sphere of the directions that people differ in (`plda.leading_axes`); a recogniser leaves most
    directions of its own sphere empty.
    """
    axes = torch.eye(dim) if like is None else leading_axes(like.between)
    return tammes(n, len(axes), seed, steps, (10.0, 500.0), lr) @ axes


def random_anchors(n: int, dim: int, seed: int, like: Plda | None = None) -> Tensor:
    """The ablation "random": anchors where ``anchors`` begins, nobody pushed apart."""
    axes = torch.eye(dim) if like is None else leading_axes(like.between)
    return F.normalize(torch.randn(n, len(axes), generator=torch.Generator().manual_seed(seed)), dim=1) @ axes


def around(
    anchors: Tensor, samples: int, bounds: Bounds, seed: int, like: Plda | None = None, shown: Tensor | None = None
) -> Tensor:
    """y_ij = v_ij w_i + sqrt(1 - v_ij^2) u_ij, v_ij ~ U[lb, ub]: float32 (n, samples, dim), unit norm.

    So v_ij is its cosine with w_i. u_ij, orthogonal to that: uniform; ours: with ``like`` of the covariance within a
    person there, with ``shown`` (n, samples, dim) as a photograph lies from its person's mean (`plda.deviations`).
    """
    if not -1 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError(f"bounds: expected cosines -1 <= lb <= ub <= 1, got {bounds[0]}, {bounds[1]}")
    drawn = [np.random.default_rng(s) for s in sample_seeds(seed, range(len(anchors)), 1)]
    v = torch.from_numpy(np.stack([r.uniform(*bounds, (samples, 1)) for r in drawn]))
    w = anchors[:, None].double()
    u = torch.from_numpy(np.stack([r.standard_normal((samples, anchors.shape[1])) for r in drawn]))
    u = u if like is None else u @ root(like.within)
    u = u if shown is None else shown.double()
    u = F.normalize(u - (u * w).sum(2, keepdim=True) * w, dim=2)
    return F.normalize(v * w + (1 - v.square()).sqrt() * u, dim=2).float()


def drawn_rows(photographs: int, images: int, seed: int) -> np.ndarray:
    """int64 (images,): whose attributes, and where it is shown whose variation, each image gets."""
    return np.random.default_rng(seed).integers(photographs, size=images)


def empirical(table: pd.DataFrame, names: Sequence[str], images: int, seed: int) -> dict[str, np.ndarray]:
    """s_ij of that many images, by name: whole rows of a FaceSet's table, so that their joint law is kept."""
    return {n: table[n].to_numpy(np.float64)[drawn_rows(len(table), images, seed)] for n in names}


def pose_only(deviations: Mapping[str, float], images: int, seed: int, spread: float) -> dict[str, np.ndarray]:
    """Poses alone, N(0, (spread deviation)^2) in degrees, by name; of age nothing is said.

    The appendix has three such laws and not their spreads (papers.md 3.5); here they are multiples of the training
    images' deviations.
    """
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, spread * deviation, images) for name, deviation in deviations.items()}
