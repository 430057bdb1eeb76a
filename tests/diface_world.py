"""What tests of DiFace share: a world where all is known, in which features are the attributes themselves, +1 or -1 by
component, so that what a matcher has to score is a closed form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.evaluation.described import Faces, Tau
from facetransport.evaluation.descriptions import Matched, MixtureMatch
from facetransport.world import grammar
from facetransport.world.captions import UNSAID, Describer

NAMES = grammar.known_names()
OF_THE_VIEW = np.isin(NAMES, ("Eyeglasses", "Smiling", "Mouth_Open", "Eyes_Closed", "Frowning"))
A, D = len(NAMES), len(NAMES)
CANDID = Describer(error=0, say_yes=1, say_no=1)  # says everything, and all of it is true

OTHER: dict[str, Any] = {  # another value for every setting
    "encoder": "dlib", "tokens": "clauses", "people": 24, "error": 0.1, "say_yes": 0.5, "say_no": 0.2,
    "denoiser": "unet", "width": 64, "depth": 2, "token_drop": 0.2, "schedule": "cosine", "timesteps": 40, "ema": 0.8,
    "steps": 11, "batch": 8, "lr": 2e-3, "weight_decay": 0.1, "pixel_steps": 6, "refine_people": 24,
    "refine_captions": 2, "refine_width": 64, "refine_loss": "infonce", "refine_steps": 6, "l2": 2.0,
    "refine_gallery": True, "sampling_steps": 3, "samples": 3, "guidance": 2.0, "seed": 8,
}  # fmt: skip
OF_REFINEMENT = {name for name in OTHER if name.startswith("refine_")} | {"l2", "sampling_steps", "samples", "guidance"}


def crowd(people: int, views: int = 3, seed: int = 0, share: float = 0.4) -> Faces:
    """People with independent attributes, and as features the attributes themselves: scaled, +1 and -1."""
    rng = np.random.default_rng(seed)
    lasting = np.repeat(rng.random((people, A)) < share, views, 0)
    here, there = (np.where(OF_THE_VIEW, rng.random(lasting.shape) < 0.3, lasting) for _ in range(2))
    embeddings = np.where(here, 1, -1).astype(np.float32) / np.float32(A**0.5)
    return Faces(here, there, NAMES, embeddings, np.arange(people).repeat(views))


def everything(match: Matched) -> np.ndarray:
    """Scores of all captions with all images."""
    texts, images = (match.stated, match.ratio) if isinstance(match, MixtureMatch) else (match.queries, match.gallery)
    return match.block(np.arange(len(texts)), np.arange(len(images)))


def anything(n: int, seed: int = 0) -> np.ndarray:
    """said int8 (n, A); nothing in the last row."""
    said = np.random.default_rng(seed).integers(-1, 2, (n, A)).astype(np.int8)
    said[-1] = UNSAID
    return said


def randomised(network: nn.Module, std: float = 0.1) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network.eval()


def said_tokens(n: int) -> Tensor:
    return Tau("statements").of(NAMES)(anything(n), np.random.default_rng(0))


def contrast(left: Tensor, right: Tensor, scale: float | Tensor) -> Tensor:
    """InfoNCE one way: - log of the share that a row's mate has among all."""
    shares = (scale * F.cosine_similarity(left[:, None], right[None], dim=2)).softmax(1)
    return -shares.diagonal().log().mean()
