"""The denoiser as a density: against Gaussians whose likelihood is known, and the smoke profile end to end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diface_world import A, D, crowd, randomised
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface_study as study
from facetransport.companion.experiments.diface_study import LEVELS
from facetransport.companion.profiles import Profile
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.vectors import VectorConfig, VectorDenoiser
from facetransport.evaluation import described
from facetransport.evaluation.described import Tau
from facetransport.evaluation.matchers import Likelihood, LikelihoodMatch, Noised, timestep
from facetransport.world.captions import Describer

DIM, TOLD, UNTOLD = 6, 0.4, 1.1  # deviation of features, with words and without


@dataclass
class Exact:
    """The best denoiser where features are N(0, UNTOLD^2 I), and N(prompt, TOLD^2 I) given words."""

    schedule: Schedule = field(default_factory=Schedule)
    abar: Tensor = field(default_factory=lambda: Schedule().alphas_cumprod)

    def __call__(self, z: Tensor, t: Tensor, prompts: Tensor | None) -> Tensor:
        abar = self.abar[t][:, None, None]
        mean, deviation = (torch.zeros(DIM), UNTOLD) if prompts is None else (prompts[:, None], TOLD)
        return (1 - abar).sqrt() * (z - abar.sqrt() * mean) / (abar * deviation**2 + 1 - abar)


def log_ratio(z: Tensor, means: Tensor) -> Tensor:
    told, untold = (torch.distributions.Normal(m, s) for m, s in ((means, TOLD), (torch.zeros(DIM), UNTOLD)))
    return (told.log_prob(z) - untold.log_prob(z)).sum(1)


def test_the_integral_over_noise_levels_is_the_log_likelihood_ratio() -> None:
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(5, DIM, generator=rng)
    z = means + TOLD * torch.randn(5, DIM, generator=rng)
    many, whose, rows = z.repeat_interleave(2000, 0), np.arange(5).repeat(2000), np.arange(10_000)
    exact, times = Exact(), list(range(0, 1000, 12))
    levels = torch.log(exact.abar / (1 - exact.abar)).double()

    def integrand(t: int) -> np.ndarray:
        draws = torch.randn(1, len(rows), DIM, generator=rng)
        match = LikelihoodMatch(Noised(exact, many, torch.cat([draws, -draws]), t), means)
        return match.pairs(whose, rows).reshape(5, -1).mean(1)

    integral = 0.5 * np.trapezoid(np.stack([integrand(t) for t in times]), -levels[times].numpy(), axis=0)
    np.testing.assert_allclose(integral, log_ratio(z, means).numpy(), atol=0.15)


def test_the_right_words_score_higher() -> None:
    rng = torch.Generator().manual_seed(1)
    means = torch.randn(200, DIM, generator=rng)
    z = means + TOLD * torch.randn(200, DIM, generator=rng)
    exact, noise = Exact(), torch.randn(4, 200, DIM, generator=rng)
    match = LikelihoodMatch(Noised(exact, z, noise, timestep(exact.schedule, 0.0)), means)
    rows = np.arange(200)
    assert (match.pairs(rows, rows) > match.pairs(np.roll(rows, 1), rows)).mean() > 0.9


def test_a_pair_depends_on_its_description_its_face_and_the_seed() -> None:
    faces = crowd(12, seed=1)
    said = described.captions_of(faces, Describer(0.05, 0.6, 0.1), 0)
    denoiser = randomised(VectorDenoiser(VectorConfig("mlp", D, 2 * A, 32, 1, Schedule(50))))
    matcher = Likelihood(denoiser, Tau(), -1.0, draws=2)
    match = matcher.match(said, faces, 3)
    whole = match.pairs(np.array([0, 5, 7]), np.array([4, 5, 4]))
    alone = replace(matcher).match(said, faces, 3).pairs(np.array([7]), np.array([4]))
    np.testing.assert_allclose(alone, whole[2:], atol=1e-3)
    first = replace(faces, **{k: getattr(faces, k)[:6] for k in ("attributes", "elsewhere", "embeddings", "identity")})
    np.testing.assert_allclose(matcher.match(said, first, 3).pairs(np.array([5]), np.array([5])), whole[1:2], atol=1e-3)
    assert abs(matcher.match(said, faces, 4).pairs(np.array([5]), np.array([5])) - whole[1]) > 1e-4


def test_certain_statements_and_those_only_probable_are_scored_alike() -> None:
    faces = crowd(4, seed=1)
    said = described.captions_of(faces, Describer(0.05, 0.6, 0.1), 0)
    denoiser = randomised(VectorDenoiser(VectorConfig("mlp", D, 2 * A, 32, 2, Schedule(50))))
    matcher, rows = Likelihood(denoiser, Tau(), -1.0, draws=2), np.arange(len(faces))
    hard, soft = (matcher.match(told, faces, 0).pairs(rows, rows) for told in (said, described.probable(said)))
    np.testing.assert_allclose(soft, hard, atol=1e-4)


def test_a_pair_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, asked, error = Exact(), [], Noised.error
    means, noise = torch.randn(9, DIM), torch.randn(2, 9, DIM)
    noised = Noised(exact, means, noise, timestep(exact.schedule, 0.0))
    match = LikelihoodMatch(noised, means)

    def watched(self: Noised, images: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
        asked.append(len(images))
        return error(self, images, prompts)

    monkeypatch.setattr(Noised, "error", watched)
    first = match.pairs(np.array([0, 1, 1]), np.array([2, 3, 3]))
    again = match.pairs(np.array([1, 4, 0]), np.array([3, 4, 2]))
    assert asked == [9, 2, 1]  # without words all faces; then what was not asked before
    assert first[1] == first[2] == again[0] and again[2] == first[0]
    alike = LikelihoodMatch(noised, means.flip(0)).pairs(np.array([8, 8]), np.array([2, 3]))
    assert asked == [9, 2, 1, 1] and alike[0] == first[0]  # other descriptions, of which one says the same


def test_faces_are_seen_through_noise_once() -> None:
    faces, others = crowd(6, seed=1), crowd(6, seed=2)
    denoiser = randomised(VectorDenoiser(VectorConfig("mlp", D, 2 * A, 32, 1, Schedule(50))))
    matcher, said = (
        Likelihood(denoiser, Tau(), -1.0, draws=2),
        described.captions_of(faces, Describer(0.05, 0.6, 0.1), 0),
    )
    match = matcher.match(said, faces, 0)
    assert matcher.match(said, faces, 0).noised is match.noised
    assert not any(matcher.match(said, *other).noised is match.noised for other in ((faces, 1), (others, 0)))


def test_timesteps_are_the_nearest_to_the_level() -> None:
    schedule = Schedule()
    abar = schedule.alphas_cumprod
    levels = [math.log(float(abar[t] / (1 - abar[t]))) for t in (0, 300, 999)]
    assert [timestep(schedule, level) for level in levels] == [0, 300, 999]
    assert timestep(schedule, 99) == 0 and timestep(schedule, -99) == 999


def test_every_level_has_a_result_and_val_people_choose(smoke: Profile, smoke_store: Store) -> None:
    levels = study.load_levels(smoke, smoke_store)
    assert tuple(levels.index) == LEVELS and levels["random_accuracy"].between(0, 1).all()
    assert (levels["random_accuracy_low"] <= levels["random_accuracy_high"]).all() and (levels["sets"] == 2).all()
    assert levels.loc[study.best_level(levels), "val_auc"] == levels["val_auc"].max()
