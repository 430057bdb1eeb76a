"""ID3PM: controllable inversion of black-box face recognition models via diffusion.

Kansy, Rael, Mignone, Naruniec, Schroers, Gross, Weber, ICCV 2023 Workshops, arXiv 2303.13006. Read beside the paper:

    y = FR(x)                                    all that the black box tells             BlackBox
    min_s E || s(x_t, y) - grad log p(x_t | x) ||^2 = grad log p(x_t | y)
    L = E || eps - eps_theta(x_t, t, y) ||^2     so pairs (x, y) are enough               loss
    y -> 0 with p = 0.1, before the projection   the null condition                       conditions.drop_apart
    eps(0) + s (eps(y) - eps(0))                 s = 1 is p(x | y)                        guidance.classifier_free
    W_a a beside W y                             attributes as second condition           conditions.Attributes
    z_T ~ N(0, I), T denoising steps, decode     images of the embedding                  invert

Why the loss needs no gradient of FR: x_t depends on y through x alone, so the regression of the noise on (x_t, y) is
the conditional score, -eps / sigma_t (denoising score matching); notebook 06 derives it and checks it in closed form.

The published denoiser (`published`) works on pixels; the laptop's on codes. What is marked ours is not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from facetransport.data.faceset import FaceSet
from facetransport.diffusion.adm import ADM, ADMConfig
from facetransport.diffusion.conditions import drop_apart
from facetransport.diffusion.denoising import Drop, denoising_loss
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import Model, generate
from facetransport.recognition.recogniser import Recogniser
from facetransport.training import Loss, pick

# -------------------------------------------------------------------------------------------------------- the black box


class BlackBox:
    """A recogniser of which only ``embed`` can be called: no weights, no gradients.

    Centred and scaled embeddings condition better: dlib's raw ones lie in a cone (cosine of two strangers 0.86), so
    almost all of a raw embedding is what everybody shares. `DlibRecogniser` centres; others are taken as they come.
    """

    __slots__ = ("_embed", "dim", "name")

    def __init__(self, recogniser: Recogniser) -> None:
        self._embed, self.name, self.dim = recogniser.embed, recogniser.name, recogniser.dim

    def embed(self, images: Tensor) -> Tensor:
        """float32 (B, 3, H, W) in [-1, 1] -> float32 (B, dim), unit norm. ValueError where a gradient is asked for."""
        if images.requires_grad:
            raise ValueError("images: they ask for a gradient, and a black box gives none; pass images.detach()")
        with torch.no_grad():
            return self._embed(images).detach()


# ------------------------------------------------------------------------------------------------------------- the loss


def conditioning(
    dim: int, drop: float = 0.1, attributes_drop: float = 0.5, attribute_drop: float = 0.1, other_view: float = 0.0
) -> Drop:
    """What becomes of a batch of conditions (B, dim + 2 A), each an embedding and encoded `Attributes`, in training.

    other_view, ours: the share of embeddings taken from another view of the image; conditions are (B, 2 dim + 2 A).
    """
    drops = partial(drop_apart, dim=dim, embedding=drop, together=attributes_drop, each=attribute_drop)

    def changed(conditions: Tensor, generator: torch.Generator) -> Tensor:
        return drops(choose_view(conditions, generator, dim, other_view) if other_view else conditions, generator)

    return changed


def loss(
    codes: Tensor | np.ndarray,
    conditions: Tensor | np.ndarray,
    drop: Drop,
    schedule: Schedule = Schedule(),  # noqa: B008
    prediction: str = "eps",
) -> Loss:
    """E || eps - eps_theta(x_t, t, y) ||^2 over pairs of an image and what the black box said of it: for `train`.

    codes: (N, C, h, w), or images as codes; conditions (N, ...) and drop: of `conditioning`. prediction: "eps" as
    published; "v" weighs noise levels evenly for networks that compute v. `adm.hybrid_loss` adds learned variances.
    """
    return denoising_loss(codes, conditions, schedule, prediction, drop)


def choose_view(conditions: Tensor, generator: torch.Generator, dim: int, share: float) -> Tensor:
    """(B, 2 dim + 2 A) -> (B, dim + 2 A): of two embeddings the first, and the second with probability ``share``."""
    other = torch.rand(len(conditions), 1, generator=generator, device=conditions.device) < share
    first, second, rest = conditions.tensor_split([dim, 2 * dim], dim=1)
    return torch.cat([torch.where(other, second, first), rest], dim=1)


def regression_loss(codes: Tensor, embeddings: Tensor) -> Loss:
    """E || x - g(y) ||^2: a decoder of embeddings, the baseline that every inversion has to beat. Ours."""

    def squared(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        device = generator.device
        return (network(pick(embeddings, rows, device)) - pick(codes, rows, device)).square().mean()

    return squared


def published(attributes: int = 0) -> ADM:
    """The paper's network on images of 64 pixels, untrained: 295.5 million parameters with embeddings of 512 numbers.

    ADM's configuration (papers.md 4.3): 192 channels, 3 blocks, attention at 32, 16 and 8, learned variances, cosine
    schedule. attributes: numbers of a second condition.
    """
    return ADM(ADMConfig(attributes=attributes), Schedule(kind="cosine"))


class RegressionDecoder(nn.Module):
    """g: embeddings (B, dim), unit norm -> codes (B, *shape), a perceptron of three layers."""

    def __init__(self, dim: int, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.dim, self.shape = dim, tuple(shape)
        size = math.prod(shape)
        layers = [nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings * self.dim**0.5).unflatten(1, self.shape)


# ------------------------------------------------------------------------------------------------------------- sampling


def invert(
    model: Model,
    embeddings: Tensor,
    samples: int,
    seed: int,
    guidance: float = 2.0,
    attributes: Tensor | None = None,
    attribute_guidance: float = 1.0,
    solver: str = "ddim",
    steps: int = 50,
    temperature: float = 1.0,
    identities: Sequence[int] | None = None,
) -> FaceSet:
    """Images that the black box would embed so: x ~ p(x | y)^s p(x)^(1-s), a FaceSet of len(embeddings) x samples.

    embeddings: (n, dim), unit norm. guidance: s, 1 is p(x | y); the other convention, Ho and Salimans' w, is s - 1.
    attributes: (n, size) or (n, samples, size), of `Attributes.encode`, with a scale of its own:
    eps(0) + s (eps(y) - eps(0)) + s_a (eps(y, a) - eps(y)). Steps and s = 2: papers.md 4.5.
    """
    return generate(
        model,
        embeddings,
        samples,
        seed,
        solver,
        steps,
        guidance,
        identities=identities,
        temperature=temperature,
        attributes=attributes,
        attribute_guidance=attribute_guidance,
    )
