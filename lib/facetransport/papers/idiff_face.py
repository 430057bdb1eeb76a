"""IDiff-Face: synthetic-based face recognition through fizzy identity-conditioned diffusion models.

Boutros, Grebe, Kuijper, Damer, ICCV 2023, arXiv 2308.04995. Read beside the paper:

    y = f(x) / ||f(x)||                          identity context of a training image     authentic_contexts
    c = CPD_p(W y + b)                           fizzy: dropout on the PROJECTED context  diffusion.unet.project_context
    L = E || eps - eps_theta(z_t, t, c) ||^2     no identity loss at all                  loss
    y ~ uniform | two-stage | authentic          where new identities come from           *_contexts
    z_T ~ N(0, I), T denoising steps, decode     images of an identity                    generation.generate
    10,000 identities x 50 images                a set to train recognisers on            generation.generate_into

The network is the U-Net of ``diffusion.unet`` (`published`) or a smaller denoiser with the same contract (laptop).
What is marked ours is not in the paper.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from facetransport.data.faceset import FaceSet
from facetransport.diffusion.batching import in_fixed_batches
from facetransport.diffusion.denoising import denoising_loss
from facetransport.diffusion.guidance import Denoiser
from facetransport.diffusion.sampling import sample, sample_seeds
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.unet import UNet, UNetConfig
from facetransport.generation import CHUNK, Model
from facetransport.recognition.plda import Plda, root, within_covariance
from facetransport.recognition.recogniser import Recogniser, device_of, embed_faceset
from facetransport.tensors import require_finite
from facetransport.training import Loss

CODE = (3, 32, 32)  # of an image of 128 x 128 pixels (VQ-f4 of latent diffusion, un-normalised)
CONTEXT, PROJECTED = 512, 256  # ElasticFace's embedding, and what CPD acts on


# --------------------------------------------------------------------------------------------- the network and its loss


def published(conditioning: str = "ca", cpd: float = 0.25) -> UNet:
    """The paper's network, untrained: 216,341,187 parameters with "ca" (cross-attention), 134,595,939 with "adagn".

    cpd: p of contextual partial dropout; 0, 0.25 and 0.5 in the paper (papers.md 2.3, read in the official code).
    """
    multipliers, attention = (1, 2, 2, 2), (False, True, True, True)
    return UNet(UNetConfig(3, 96, multipliers, attention, 2, 32, CONTEXT, PROJECTED, cpd, conditioning), Schedule())


def loss(latents: Tensor, contexts: Tensor, schedule: Schedule = Schedule()) -> Loss:  # noqa: B008
    """E || eps - eps_theta(z_t, t, CPD(W y + b)) ||^2 with t uniform (section 3): for ``training.train``.

    latents: (N, C, h, w), codes of the training images; contexts: (N, d), unit norm, of the same. CPD belongs to the
    network, which drops in training only. Ours: ``denoising_loss`` has whole contexts dropped and losses in v besides.
    """
    return denoising_loss(latents, contexts, schedule)


# ---------------------------------------------------------------------- contexts: where new identities come from


def uniform_contexts(n: int, dim: int, seed: int) -> Tensor:
    """Synthetic uniform identities: y ~ N(0, I), normalised. float32 (n, dim); row i depends on (seed, i) only."""
    rows = [np.random.default_rng((seed, i)).standard_normal(dim, dtype=np.float32) for i in range(n)]
    return F.normalize(torch.from_numpy(np.stack(rows)), dim=1)


def matched_contexts(n: int, seed: int, like: Tensor) -> Tensor:
    """Synthetic identities with the mean and covariance of known contexts (N, d): float32 (n, d), unit norm.

    Not in the paper: a recogniser trained on few people leaves most directions of its sphere empty, and uniform points
    lie where no training context was. Row i depends on (seed, i) and ``like`` only.
    """
    if like.ndim != 2 or len(like) <= like.shape[1]:
        raise ValueError(f"like: expected (N, d) with more rows than dimensions, got {tuple(like.shape)}")
    spread = root(torch.cov(require_finite("like", like).double().T))
    white = uniform_contexts(n, like.shape[1], seed).double() * like.shape[1] ** 0.5
    return F.normalize(white @ spread.T + like.double().mean(0), dim=1).float()


def plda_contexts(n: int, samples: int, seed: int, plda: Plda, shown: Tensor | None = None) -> Tensor:
    """Synthetic people whose images differ as photographs of one person do: float32 (n, samples, d), unit norm.

    Not in the paper, whose images of a person share one context, and with it the pose, light and glasses that an
    embedding holds beside identity. shown: (N, d), examples of w_ij to take instead of drawing them from N(0, W)
    (`plda.deviations`). Image j of person i depends on (seed, i, j), ``plda`` and ``shown`` only.
    """
    dim, seeds = len(plda.mean), sample_seeds(seed, range(n), 1)
    b = uniform_contexts(n, dim, seed).double() * dim**0.5
    if shown is None:
        drawn = torch.stack([uniform_contexts(samples, dim, s).double() * dim**0.5 for s in seeds])
        w = drawn @ root(plda.within).T
    else:
        w = torch.stack([shown[np.random.default_rng(s).integers(len(shown), size=samples)] for s in seeds])
    return F.normalize((plda.mean + b @ root(plda.between).T)[:, None] + w, dim=2).float()


def authentic_contexts(recogniser: Recogniser, faceset: FaceSet) -> Tensor:
    """Embeddings of real (or rendered) images: float32 (N, d), unit norm."""
    return torch.from_numpy(embed_faceset(recogniser, faceset))


def two_stage_contexts(
    model: Model,
    recogniser: Recogniser,
    n: int,
    seed: int,
    solver: str,
    steps: int,
    unconditional: Denoiser | None = None,
) -> Tensor:
    """Two-stage identities: an unconditional model draws n faces, the recogniser embeds them. float32 (n, d).

    unconditional: the first stage, called with context None; by default the model itself under the null context, which
    needs ``context_drop`` in its training. Row i depends on (seed, i) only.
    """
    first, device = unconditional or model.denoiser, device_of(recogniser)
    parts = []
    for i in tqdm(range(0, n, CHUNK), unit="chunk", desc="two-stage contexts", disable=None):
        seeds = sample_seeds(seed, range(i, min(n, i + CHUNK)), 1)
        images = model.decode(sample(first, model.shape, None, solver, steps, seeds))
        with torch.inference_mode():
            parts.append(in_fixed_batches(recogniser.embed, images.to(device)).float().cpu())
    return torch.cat(parts)


def fit_plda(known: Tensor, recogniser: Recogniser, people: FaceSet) -> Plda:
    """PLDA of a recogniser's contexts known (N, d); several photographs of each of some people tell one person's."""
    return Plda.of(known, within_covariance(embed_faceset(recogniser, people), people.identity))
