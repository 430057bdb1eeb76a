"""What DiFace (`facetransport.papers.diface`) has to beat, the best that the words allow, and D as a density.

    E[z_0 | c] by least squares, by cosine           plain regression from words to feature        Regression
    InfoNCE of two towers                            a dual encoder, as CLIP (arXiv 2103.00020)    Contrastive
    P(attribute | z_0), then naive Bayes             a classifier of attributes, told the words    Classifier
    P(attribute | pixels), then naive Bayes          the same before any recogniser                Seen
    P(c | true attributes) / P(c)                    the Bayes bound                               Bayes
    E || eps - D(z_t, t, 0) ||^2 - E || eps - D(z_t, t, tau(c)) ||^2      how much the words help       Likelihood

The choice is ours (papers.md 1.11): which baselines arXiv 2312.01367 has could not be read (1.6). The last row is not
in it either: a diffusion model is a likelihood (Kingma et al. 2021, arXiv 2107.00630): log p(z|c) - log p(z) is half
the integral of that difference over the log signal-to-noise ratio; and so it classifies (Li et al. 2023, arXiv
2303.16203). One level instead of the integral: at low noise the two errors hardly differ and their noise adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.devices import device
from facetransport.diffusion.sampling import device_of, initial_noise, sample_seeds
from facetransport.diffusion.schedule import Schedule, add_noise
from facetransport.diffusion.vectors import Described, MultiLayer, VectorDenoiser, prompts_of
from facetransport.evaluation.described import Faces, People, Said, Say, Tau, features_of, heard, statements
from facetransport.evaluation.descriptions import Match, Matched, attribute_match, bayes_match, cosine_match
from facetransport.training import Loss, pick, resident
from facetransport.world.captions import Describer

CHUNK = 1024  # rows at a time: bounds memory
PAIRS = 256  # that D judges at a time, each with its draws: what a block of the network writes stays in a core's cache
DRAWS = 4  # of noise for each face; more change the AUC on val pairs by 0.001


@dataclass(frozen=True)
class Regression:
    """Plain regression: E[z_0 | c] by least squares, compared by cosine: what diffusion does in its first step."""

    network: nn.Module
    tau: Tau

    def match(self, said: Said, faces: Faces, seed: int) -> Match:
        tokens = heard(self.network, self.tau, said, faces.names, seed)
        return cosine_match(_unit(self.network, tokens), faces.embeddings)


@dataclass(frozen=True)
class Contrastive:
    """A dual encoder (InfoNCE, as CLIP): words and features meet in a space of its own."""

    words: nn.Module
    images: nn.Module
    tau: Tau

    def match(self, said: Said, faces: Faces, seed: int) -> Match:
        tokens = heard(self.words, self.tau, said, faces.names, seed)
        return cosine_match(_unit(self.words, tokens), _unit(self.images, features_of(faces)))


@dataclass(frozen=True)
class Classifier:
    """Attributes of a feature by a classifier, matched with what was said by naive Bayes: reads no text, is told."""

    network: nn.Module
    prior: np.ndarray  # (A,), share of training people
    persistence: np.ndarray  # (A, 2)
    describer: Describer

    def match(self, said: Said, faces: Faces, seed: int) -> Matched:
        return attribute_match(self.describer, np.asarray(said), self.present(faces), self.prior, self.persistence)

    @torch.inference_mode()
    def present(self, faces: Faces) -> np.ndarray:
        """float64 (N, A): how probable each attribute is, read off the features."""
        features = features_of(faces).to(device_of(self.network))
        return self.network(features).float().cpu().double().sigmoid().numpy()


@dataclass(frozen=True)
class Seen:
    """As ``Classifier``, but a network read the attributes off the PIXELS: what a photograph shows of the words,
    before a recogniser has forgotten some of it. present: float (N, A), of the faces matched, row by row."""

    present: np.ndarray
    population: People
    describer: Describer

    def match(self, said: Said, faces: Faces, seed: int) -> Matched:
        known, told = self.population, np.asarray(said)
        return attribute_match(self.describer, told, self.present, known.attributes.mean(0), known.persistence)


@torch.inference_mode()
def _unit(network: nn.Module, inputs: Tensor) -> np.ndarray:
    parts = [F.normalize(network(part).float(), dim=1) for part in inputs.to(device_of(network)).split(CHUNK)]
    return torch.cat(parts).cpu().numpy()


class DualEncoder(nn.Module):
    """Two towers and a learned inverse temperature."""

    def __init__(self, token_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.words, self.images = Described(token_dim, dim, width, depth), MultiLayer(dim, width, dim, dropout=0.1)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        """The InfoNCE of a batch."""
        return info_nce(self.words(tokens).float(), self.images(features).float(), self.log_scale.exp())


@dataclass(frozen=True)
class Bayes:
    """The best that the words allow: the true attributes are known, and how the describer errs (``bayes_match``).

    elsewhere: the caption is of another photograph. hard: impostors share the caption's gender and age band.
    """

    describer: Describer
    population: People
    elsewhere: bool = True
    hard: bool = False

    def match(self, said: Said, faces: Faces, seed: int) -> Match:
        """``said`` describes the faces row by row."""
        known, told = self.population, statements(said, len(faces.names))
        persistence = known.persistence if self.elsewhere else None
        groups = (faces.groups, known.groups) if self.hard else (None, None)
        return bayes_match(self.describer, told, faces.attributes, known.attributes, persistence, *groups)


def info_nce(left: Tensor, right: Tensor, scale: float | Tensor = 16.0) -> Tensor:
    """Cross-entropy of finding each row's mate among the others', both ways, by scaled cosine; (B, d) each."""
    logits = scale * F.normalize(left, dim=1) @ F.normalize(right, dim=1).T
    target = torch.arange(len(left), device=left.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


# ------------------------------------------------------------------------------------------------------- D as a density


@dataclass(frozen=True)
class Likelihood:
    """A matcher. tau: as D was trained. level: log SNR of the noise that faces are seen through.

    draws: of noise for each face, each used with both signs, which takes out a part of its variance.
    """

    denoiser: VectorDenoiser
    tau: Tau
    level: float
    draws: int = DRAWS

    def match(self, said: Said, faces: Faces, seed: int) -> LikelihoodMatch:
        """Noise of face n depends on (seed, n) only. What was once computed for these faces and this seed is kept."""
        tokens = heard(self.denoiser, self.tau, said, faces.names, seed)
        return LikelihoodMatch(self._seen(faces, seed), prompts_of(self.denoiser, tokens))

    @cached_property
    def _noised(self) -> dict[tuple[int, int], tuple[Faces, Noised]]:
        """By faces and seed; the faces themselves are kept, so that no others can get their number."""
        return {}

    def _seen(self, faces: Faces, seed: int) -> Noised:
        key = id(faces), seed
        if key not in self._noised:
            self._noised[key] = faces, self._through_noise(faces, seed)
        return self._noised[key][1]

    def _through_noise(self, faces: Faces, seed: int) -> Noised:
        seeds = sample_seeds(seed, range(len(faces)), self.draws)
        noise = initial_noise(faces.embeddings.shape[1:], [torch.Generator().manual_seed(s) for s in seeds])
        signed = torch.stack([noise, -noise]).unflatten(1, (len(faces), self.draws)).transpose(1, 2).flatten(0, 1)
        where, t = self.denoiser.abar.device, timestep(self.denoiser.schedule, self.level)
        return Noised(self.denoiser, features_of(faces).to(where), signed.to(where), t)


@dataclass(frozen=True)
class Noised:
    """Faces through noise: features (N, d), noise (K, N, d), float32, at the timestep t; and what D makes of them."""

    denoiser: VectorDenoiser
    features: Tensor
    noise: Tensor
    t: int

    @cached_property
    def scores(self) -> dict[tuple[bytes, int], float]:
        """By prompt and face: descriptions that are understood alike score alike, and hard negatives and random ones
        have their genuine pairs in common."""
        return {}

    @cached_property
    def untold(self) -> Tensor:
        """(N,): the error without words."""
        return torch.cat([self.error(rows, None) for rows in torch.arange(len(self.features)).split(PAIRS)])

    @torch.inference_mode()
    def error(self, images: Tensor, prompts: Tensor | None) -> Tensor:
        """(P,): || eps - D(z_t, t, prompts) ||^2, the mean over the draws of noise."""
        t = torch.full((len(images),), self.t, device=self.features.device)
        eps = self.noise[:, images].transpose(0, 1)
        z_t = add_noise(self.features[images, None], eps, self.denoiser.abar[t])
        return (eps - self.denoiser(z_t, t, prompts)).square().sum(2).mean(1)


@dataclass(frozen=True)
class LikelihoodMatch:
    """Scores of descriptions and faces, computed for the pairs that are asked for: each takes the network.

    prompts: float32 (Q, w).
    """

    noised: Noised
    prompts: Tensor

    def pairs(self, caption_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """float64 (P,): the scores of caption_rows[p] with image_rows[p]; int (P,) each."""
        known = self.noised.scores
        asked = list(zip(np.asarray(caption_rows).tolist(), np.asarray(image_rows).tolist(), strict=True))
        named = [(self._names[caption], image) for caption, image in asked]
        new = {name: pair for name, pair in zip(named, asked, strict=True) if name not in known}
        for names in (list(new)[i : i + PAIRS] for i in range(0, len(new), PAIRS)):
            captions, images = torch.tensor([new[name] for name in names]).T
            scores = self.noised.untold[images] - self.noised.error(images, self.prompts[captions])
            known.update(zip(names, scores.double().tolist(), strict=True))
        return np.array([known[name] for name in named])

    @cached_property
    def _names(self) -> list[bytes]:
        """What each prompt is known by."""
        return [blake2b(prompt.tobytes(), digest_size=16).digest() for prompt in self.prompts.cpu().numpy()]


def timestep(schedule: Schedule, level: float) -> int:
    """The timestep whose log signal-to-noise ratio is nearest to ``level``."""
    abar = schedule.alphas_cumprod.double()
    return int((torch.log(abar / (1 - abar)) - level).abs().argmin())


# --------------------------------------------------------------------------------------------------------------- losses


def regression_loss(faces: Faces, say: Say) -> Loss:
    """|| network(tau(c)) - z_0 ||^2, averaged over components."""
    features = resident(features_of(faces), device())

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        return F.mse_loss(network(say(rows, generator)).float(), pick(features, rows, generator.device))

    return loss


def contrastive_loss(faces: Faces, say: Say) -> Loss:
    """InfoNCE of a `DualEncoder`."""
    features = resident(features_of(faces), device())
    return lambda network, rows, generator, _: network(say(rows, generator), pick(features, rows, generator.device))


def classifier_loss(faces: Faces, say: Say) -> Loss:
    """Cross-entropy of each attribute, read off z_0; no words."""
    del say
    known = (features_of(faces), torch.from_numpy(faces.attributes).float())
    features, present = (resident(part, device()) for part in known)

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        logits = network(pick(features, rows, generator.device)).float()
        return F.binary_cross_entropy_with_logits(logits, pick(present, rows, generator.device))

    return loss
