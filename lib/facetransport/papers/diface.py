"""DiFace: cross-modal face recognition through controlled diffusion.

arXiv 2312.01367; no official code is known: papers.md section 1 says what could be read and what is our default.

    z_0 = sqrt(d) E(I)                                   feature of a photograph, unit variance    described.features_of
    tau(c)                                               statements of a text, as tokens           described.Tau
    L = E || eps - D(z_t, t, tau(c)) ||^2                denoiser in the feature space             denoiser_loss
    z_T ~ N(0, I), T~ steps -> zhat_0                    rough estimate                            rough_estimates
    L_R = cosine embedding + lambda || R(zhat_0) - z_0 ||^2     refinement                         refinement_loss
    s(c, I) = cos(R(zhat_0(c)), E(I))                    score                                     Model.match

What a diffusion model has to beat, the bound, and D as a density are in `facetransport.evaluation.matchers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.guidance import classifier_free
from facetransport.diffusion.sampling import device_of, sample, sample_seeds
from facetransport.diffusion.schedule import Schedule, abar_on, add_noise, uniform_timesteps
from facetransport.diffusion.vectors import MultiLayer, VectorDenoiser, prompts_of
from facetransport.evaluation.described import Faces, Said, Say, Tau, heard, scaled
from facetransport.evaluation.descriptions import Match, cosine_match
from facetransport.evaluation.matchers import CHUNK, info_nce
from facetransport.training import Loss, pick

# --------------------------------------------------------------------------------------------------------- the denoiser


def denoiser_loss(features: Tensor, say: Say, schedule: Schedule, token_drop: float) -> Loss:
    """E w(t) || eps - D(z_t, t, tau(c)) ||^2, t uniform, w = 1 / abar_t: least squares in v for a network that computes
    v (as in ``denoising_loss``). token_drop: share of descriptions dropped whole, for guidance."""

    def loss(denoiser: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        device = generator.device
        z0, t = pick(features, rows, device), uniform_timesteps(len(rows), schedule, generator)
        noise, a = torch.randn(z0.shape, generator=generator, device=device), abar_on(schedule, device)[t]
        kept = torch.rand(len(rows), generator=generator, device=device) >= token_drop
        tokens = say(rows, generator) * kept[:, None, None]
        error = denoiser(add_noise(z0, noise, a), t, tokens).float() - noise
        return (error.square().mean(1) / a).mean()

    return loss


def rough_estimates(
    denoiser: VectorDenoiser, tokens: Tensor, steps: int, samples: int, seed: int, guidance: float = 1.0
) -> Tensor:
    """zhat_0: tokens (B, L, e) -> float32 (B, K, d), K samples of each description by T~ = steps DDIM steps.

    Sample k of description i depends on (seed, i, k) and the description only.
    """
    guided, shape = classifier_free(denoiser, guidance), (denoiser.config.dim,)
    seeds = sample_seeds(seed, range(len(tokens)), samples)
    parts = []
    for i in range(0, len(tokens), CHUNK):
        prompts = prompts_of(denoiser, tokens[i : i + CHUNK]).repeat_interleave(samples, 0)
        parts.append(sample(guided, shape, prompts, "ddim", steps, seeds[i * samples : i * samples + len(prompts)]))
    return torch.cat(parts).unflatten(0, (len(tokens), samples))


# ------------------------------------------------------------------------------------------------------- the refinement


class Refinement(nn.Module):
    """R: z (..., d) -> z + MLP(z), its last matrix zero at first (a default of ours: papers.md 1.3)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.change = MultiLayer(dim, width, dim, dropout=0.3)  # it overfits: each person is one feature
        nn.init.zeros_(self.change.out.weight)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.change(z)


def refinement_loss(rough: Tensor, features: Tensor, l2: float, refine_gallery: bool, kind: str = "cosine") -> Loss:
    """Cosine embedding loss (margin 0; the negatives are the batch shifted by one) + l2 || R(zhat) - z ||^2 / d.

    rough: (N c, K, d), samples of zhat_0 for c descriptions of each person, whose R are averaged as in use; features:
    (N, d), z_0; both scaled. refine_gallery: compare with R(z_0) instead of z_0. kind: "cosine" as published, or
    "infonce" (ours): against everybody else in the batch.
    """
    compare: Callable[[Tensor, Tensor], Tensor] = info_nce if kind == "infonce" else _cosine_embedding

    def loss(refinement: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        target = pick(features, rows % len(features), generator.device)
        found = refinement(pick(rough, rows, generator.device)).float().mean(1)
        mate = refinement(target).float() if refine_gallery else target
        return compare(found, mate) + l2 * F.mse_loss(found, target)

    return loss


def _cosine_embedding(found: Tensor, mate: Tensor) -> Tensor:
    same = torch.ones(len(found), device=found.device)
    return F.cosine_embedding_loss(found, mate, same) + F.cosine_embedding_loss(found, mate.roll(1, 0), -same)


# ------------------------------------------------------------------------------------------------------------ the score


@dataclass(frozen=True)
class Settings:
    """How a trained DiFace is asked. steps: T~; samples: K, averaged; guidance: 1 is the conditional model.

    tau: as D was trained. refine_gallery: compare with R(z_0) instead of z_0 (papers.md 1.2).
    """

    tau: Tau = Tau()
    steps: int = 1
    samples: int = 1
    guidance: float = 1.0
    refine_gallery: bool = False


@dataclass(frozen=True)
class Model:
    """A trained DiFace. refinement: R, or None for rough estimates alone."""

    denoiser: VectorDenoiser
    refinement: Refinement | None
    settings: Settings

    def rough(self, tokens: Tensor, seed: int) -> Tensor:
        """tokens (B, L, e), or their sum (B, width) -> zhat_0, float32 (B, K, d), scaled."""
        asked = self.settings
        return rough_estimates(self.denoiser, tokens, asked.steps, asked.samples, seed, asked.guidance)

    @torch.inference_mode()
    def refine(self, features: Tensor) -> Tensor:
        """(B, K, d), scaled -> (B, d), unit norm: the mean direction of R of K features."""
        refined = features if self.refinement is None else self.refinement(features)
        return F.normalize(refined.mean(1), dim=1)

    def gallery(self, embeddings: np.ndarray) -> np.ndarray:
        """What descriptions are compared with, float32 (N, d): E(I), or R(sqrt(d) E(I)) with ``refine_gallery``."""
        if not self.settings.refine_gallery:
            return embeddings
        features = torch.from_numpy(scaled(embeddings)).to(device_of(self.denoiser))
        return self.refine(features[:, None]).cpu().numpy()

    def match(self, said: Said, faces: Faces, seed: int) -> Match:
        """s(c, I) = cos(R(zhat_0(c)), E(I))."""
        return match_all({"": self}, said, faces, seed)[""]


def match_all(models: Mapping[str, Model], said: Said, faces: Faces, seed: int) -> dict[str, Match]:
    """`Model.match` of models that differ in R and in nothing else than what R is compared with: D is asked once.

    Raises ValueError where they do not share their denoiser or are asked in other ways.
    """
    one, *_ = models.values()
    if len({(id(m.denoiser), replace(m.settings, refine_gallery=False)) for m in models.values()}) > 1:
        raise ValueError(f"models: expected one denoiser, asked in one way, got several in {', '.join(models)}")
    rough = one.rough(heard(one.denoiser, one.settings.tau, said, faces.names, seed), seed)
    return {
        name: cosine_match(model.refine(rough).cpu().numpy(), model.gallery(faces.embeddings))
        for name, model in models.items()
    }
