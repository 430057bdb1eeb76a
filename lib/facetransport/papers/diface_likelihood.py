"""DiFace's denoiser as a density (`facetransport.papers.diface`): how much likelier the words make a face.

    log p(z|c) - log p(z) = 1/2 int E || eps - D(z_t, t, 0) ||^2 - E || eps - D(z_t, t, tau(c)) ||^2 dlambda_t
    s(c, I) = the integrand at one noise level lambda_t = log(abar_t / (1 - abar_t))                      Likelihood

A diffusion model is a likelihood (Kingma et al. 2021, arXiv 2107.00630) and so a classifier (Li et al. 2023, arXiv
2303.16203). Not in arXiv 2312.01367, which samples features and compares them by cosine. One level instead of the
integral: at low noise the two errors hardly differ and their noise adds up (notebook 03 shows every level).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.profiles import DiFace, Evaluation, Profile, as_config
from facetransport.diffusion.sampling import initial_noise, sample_seeds
from facetransport.diffusion.schedule import Schedule, add_noise
from facetransport.diffusion.vectors import VectorDenoiser
from facetransport.evaluation.descriptions import draw_pairs
from facetransport.files import write_json
from facetransport.papers.diface import (
    CHUNK,
    Faces,
    assemble,
    captions_of,
    denoiser_recipe,
    describer_of,
    faces_recipe,
    features_of,
    prompts_of,
    read_faces,
    tokeniser,
)
from facetransport.papers.diface_study import RESULT, STUDY_SETS, numbers_of, verification

DRAWS = 4  # more change the AUC on val pairs by 0.001
LEVELS = (4.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0)  # log signal-to-noise


@dataclass(frozen=True)
class Likelihood:
    """A matcher. tokens: the kind that D was trained with. level: log SNR of the noise that faces are seen through.

    draws: of noise for each face, each used with both signs, which takes out a part of its variance.
    """

    denoiser: VectorDenoiser
    tokens: str
    level: float
    draws: int = DRAWS

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> LikelihoodMatch:
        """Noise of face n depends on (seed, n) only."""
        tokens = tokeniser(faces.names, self.tokens, unseen)(said, np.random.default_rng(seed))
        seeds = sample_seeds(seed, range(len(faces)), self.draws)
        noise = initial_noise(faces.embeddings.shape[1:], [torch.Generator().manual_seed(s) for s in seeds])
        signed = torch.stack([noise, -noise]).unflatten(1, (len(faces), self.draws)).transpose(1, 2).flatten(0, 1)
        t = timestep(self.denoiser.schedule, self.level)
        return LikelihoodMatch(self.denoiser, prompts_of(self.denoiser, tokens), features_of(faces), signed, t)


@dataclass(frozen=True)
class LikelihoodMatch:
    """Scores of descriptions and faces, computed for the pairs that are asked for: each takes the network.

    prompts (Q, w), features (N, d), noise (K, N, d): float32.
    """

    denoiser: VectorDenoiser
    prompts: Tensor
    features: Tensor
    noise: Tensor
    t: int

    def pairs(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """float64 (P,): the scores of caption_rows[p] with image_rows[p]; int (P,) each."""
        captions, images = torch.as_tensor(caption_rows).split(CHUNK), torch.as_tensor(image_rows).split(CHUNK)
        said = torch.cat([self._error(n, self.prompts[c]) for c, n in zip(captions, images, strict=True)])
        return (self._untold[image_rows] - said).double().numpy()

    @cached_property
    def _untold(self) -> Tensor:
        """(N,): the error without words."""
        return torch.cat([self._error(rows, None) for rows in torch.arange(len(self.features)).split(CHUNK)])

    @torch.inference_mode()
    def _error(self, images: Tensor, prompts: Tensor | None) -> Tensor:
        """(P,): || eps - D(z_t, t, prompts) ||^2, the mean over the draws of noise."""
        t = torch.full((len(images),), self.t)
        abar, errors = self.denoiser.abar[t], []
        for eps in (noise[images] for noise in self.noise):
            z_t = add_noise(self.features[images], eps, abar)
            errors.append((eps - self.denoiser(z_t, t, prompts)).square().sum(1))
        return torch.stack(errors).mean(0)


def timestep(schedule: Schedule, level: float) -> int:
    """The timestep whose log signal-to-noise ratio is nearest to ``level``."""
    abar = schedule.alphas_cumprod.double()
    return int((torch.log(abar / (1 - abar)) - level).abs().argmin())


def recipe(profile: Profile, level: float) -> Recipe:
    """The result at one level: result.json, verification at random and hard negatives, and the AUC on `val` pairs."""
    section, evaluation = profile.diface, profile.evaluation
    config = {"level": level, "draws": DRAWS, "tokens": section.tokens, "told": as_config(describer_of(section))}
    faces = (faces_recipe(profile, role, section.encoder) for role in ("val", "gallery"))
    upstream = (*faces, denoiser_recipe(profile, section))
    make = partial(_make, section, level, evaluation)
    return Recipe(
        "diface.likelihood",
        config | {"evaluation": as_config(evaluation)},
        make,
        upstream=upstream,
        label=f"level {level:g}",
    )


def recipes(profile: Profile) -> list[Recipe]:
    """The result at every level."""
    return [recipe(profile, level) for level in LEVELS]


def load_levels(profile: Profile, store: Store) -> pd.DataFrame:
    """The numbers of ``result.json`` by column, one row a level (the index, log SNR)."""
    found = [json.loads((store.get(r) / RESULT).read_text(encoding="utf-8")) for r in recipes(profile)]
    return pd.DataFrame(found, index=pd.Index(LEVELS, name="level"))


def best_level(levels: pd.DataFrame) -> float:
    """The level of the highest AUC on `val` pairs."""
    return LEVELS[int(levels["val_auc"].to_numpy().argmax())]


def _make(section: DiFace, level: float, evaluation: Evaluation, folder: Path, upstream: tuple[Path, ...]) -> None:
    val, test = (read_faces(path) for path in upstream[:2])
    matcher, told = Likelihood(assemble(section, upstream[2]).denoiser, section.tokens, level), describer_of(section)
    found = [
        [matcher.match(captions_of(faces, told, seed), faces, seed) for seed in range(sets)]
        for faces, sets in ((val, 1), (test, STUDY_SETS))
    ]
    pairs = draw_pairs(val.identity, 0, evaluation.pairs, "other")
    numbers: dict[str, Any] = {
        "val_auc": float(roc_auc_score(pairs.same, found[0][0].pairs(pairs.caption, pairs.image)))
    }
    for name, hard in (("random", False), ("hard", True)):
        numbers |= numbers_of(name, verification(found[0], found[1], (val, test), evaluation, hard=hard))
    write_json(folder / RESULT, numbers)
