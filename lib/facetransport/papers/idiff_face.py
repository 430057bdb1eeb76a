"""IDiff-Face: synthetic-based face recognition through fizzy identity-conditioned diffusion models.

Boutros, Grebe, Kuijper, Damer, ICCV 2023, arXiv 2308.04995. Read beside the paper:

    y = f(x) / ||f(x)||                              identity context of a training image          contexts_of
    L = E || eps - eps_theta(z_t, t, CPD(W y + b)) ||^2   fizzy: dropout on the PROJECTED context   recipe (training)
    y ~ uniform on the sphere | two-stage | authentic     where new identities come from            *_contexts
    z_T ~ N(0, I), T denoising steps, decode              images of an identity                     generate

The network is the U-Net of ``diffusion.unet`` (paper profile) or a smaller denoiser with the same contract (laptop).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facetransport.artifacts import Recipe, Store, code_version, default_store
from facetransport.data import rendered
from facetransport.data.faceset import FaceSet, to_uint8
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion import denoisers
from facetransport.diffusion.guidance import Denoiser, classifier_free
from facetransport.diffusion.sampling import sample
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.training import (
    TrainingConfig,
    TrainingLog,
    denoising_loss,
    half,
    read_model,
    save_model,
    train,
)
from facetransport.profiles import IDiffFace, Profile, as_config, resolve
from facetransport.recognition import training as recognition
from facetransport.recognition.iresnet import IResNetRecogniser
from facetransport.recognition.recogniser import Recogniser, embed_faceset

MODEL = "model.safetensors"
CHUNK = 256  # samples drawn at a time: bounds memory, changes nothing else


@dataclass(frozen=True)
class Model:
    """A trained IDiff-Face: the denoiser, the code it lives in, and how both were made."""

    denoiser: nn.Module
    autoencoder: codes.Autoencoder
    shape: tuple[int, int, int]  # (C, h, w) of a code
    context_dim: int
    metadata: dict[str, Any]

    def decode(self, latents: Tensor) -> Tensor:
        """float32 (B, C, h, w) -> images float32 (B, 3, H, W) in [-1, 1]."""
        return self.autoencoder.decode(latents)


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
    values, vectors = torch.linalg.eigh(torch.cov(like.double().T))
    root = vectors * values.clamp(min=0).sqrt()
    white = uniform_contexts(n, like.shape[1], seed).double() * like.shape[1] ** 0.5
    return F.normalize(white @ root.T + like.double().mean(0), dim=1).float()


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
    needs ``context_drop`` in its training.
    """
    first = unconditional or model.denoiser
    parts = []
    for i in range(0, n, CHUNK):
        seeds = sample_seeds(seed, range(i, min(n, i + CHUNK)), 1)
        images = model.decode(sample(first, model.shape, None, solver, steps, seeds))
        with torch.inference_mode():
            parts.append(recogniser.embed(images))
    return torch.cat(parts).float()


# ------------------------------------------------------------------------------------------------------- generation


def sample_seeds(seed: int, identities: Sequence[int], samples: int) -> list[int]:
    """One seed per image, identity by identity; each depends on (seed, identity, sample) only."""
    return [
        int(np.random.SeedSequence((seed, int(i), k)).generate_state(1, np.uint64)[0] >> 1)
        for i in identities
        for k in range(samples)
    ]


def generate(
    model: Model,
    contexts: Tensor,
    samples_per_identity: int,
    seed: int,
    solver: str = "dpm++",
    steps: int = 20,
    guidance: float = 1.0,
    identities: Sequence[int] | None = None,
) -> FaceSet:
    """Images of each context: a FaceSet of len(contexts) x samples_per_identity, columns identity and sample.

    contexts: (n, d), unit norm. identities: labels, by default 0 .. n - 1; images of identity i depend on (seed, i) and
    its context only. guidance: 1 is the published method; above 1 needs ``context_drop`` in training.
    """
    contexts = _unit(contexts, model.context_dim)
    labels = np.arange(len(contexts)) if identities is None else np.asarray(identities)
    if len(labels) != len(contexts) or samples_per_identity < 1:
        raise ValueError(f"identities: expected {len(contexts)} labels and at least one sample each, got {len(labels)}")
    denoiser = classifier_free(model.denoiser, guidance)
    seeds = sample_seeds(seed, labels.tolist(), samples_per_identity)
    repeated = contexts.repeat_interleave(samples_per_identity, dim=0)
    images = [
        to_uint8(
            model.decode(sample(denoiser, model.shape, repeated[i : i + CHUNK], solver, steps, seeds[i : i + CHUNK]))
        )
        for i in range(0, len(seeds), CHUNK)
    ]
    table = {
        "identity": labels.repeat(samples_per_identity),
        "sample": np.tile(np.arange(samples_per_identity), len(labels)),
    }
    return FaceSet(np.concatenate(images), pd.DataFrame(table))


def _unit(contexts: Tensor, dim: int) -> Tensor:
    contexts = torch.as_tensor(contexts, dtype=torch.float32)
    if contexts.ndim != 2 or contexts.shape[1] != dim or not len(contexts):
        raise ValueError(f"contexts: expected (n, {dim}) with n above 0, got {tuple(contexts.shape)}")
    norms = contexts.norm(dim=1)
    if not torch.isfinite(norms).all() or (norms - 1).abs().max() > 1e-3:
        raise ValueError(
            "contexts: expected finite unit vectors, as in training; divide by the norm (NaN: look upstream)"
        )
    return contexts


# ----------------------------------------------------------------------------------------------------------- training


def recipe(profile: Profile, cpd: float | None = None) -> Recipe:
    """The trained denoiser at a CPD level (by default the profile's): stage ``idiff_face.cpd25`` at 0.25."""
    section = profile.idiff_face if cpd is None else replace(profile.idiff_face, cpd=cpd)
    stage = f"idiff_face.cpd{round(100 * section.cpd)}"
    return Recipe(stage, as_config(section), partial(_make, section), upstream=(training_data(profile),))


def training_data(profile: Profile) -> Recipe:
    """Codes of the ``generator`` people, of their mirror images, and the contexts of both."""
    upstream = (
        rendered.recipe(profile, "generator"),
        recognition.recipe(profile, "reference"),
        codes.recipe(profile),
    )
    return Recipe("idiff_face.data", {"flip": True}, _make_data, upstream=upstream)


def training_contexts(profile: Profile) -> Recipe:
    """The contexts alone, without codes: small enough to ship, enough to look for copies of training people in."""
    upstream = (rendered.recipe(profile, "generator"), recognition.recipe(profile, "reference"))
    return Recipe("idiff_face.contexts", {}, _make_contexts, upstream=upstream)


def load_training_contexts(profile: Profile, store: Store) -> np.ndarray:
    """float32 (N, d), unit norm: the context of each image of the ``generator`` people, in their FaceSet's order."""
    contexts = load_file(store.get(training_contexts(profile)) / "contexts.safetensors")["contexts"]
    return F.normalize(contexts.float(), dim=1).numpy()


def load(profile: Profile, store: Store, cpd: float | None = None) -> Model:
    """The model of a profile: shipped, cached, or trained now."""
    path = store.get(recipe(profile, cpd)) / MODEL
    return load_model(path, codes.load_autoencoder(profile, store))


def load_model(path: Path, autoencoder: codes.Autoencoder) -> Model:
    """The model of a file written in training, on a code."""
    tensors, metadata = read_model(path)
    denoiser = _build(metadata["config"])
    denoiser.load_state_dict(tensors)
    config = metadata["config"]
    return Model(
        denoiser.eval().requires_grad_(False), autoencoder, tuple(config["shape"]), config["context_dim"], metadata
    )


def _build(config: dict[str, Any]) -> nn.Module:
    schedule = Schedule(**config["schedule"])
    return denoisers.build(**{**config, "shape": tuple(config["shape"]), "schedule": schedule})


def network_config(section: IDiffFace, shape: Sequence[int], context_dim: int) -> dict[str, Any]:
    """Arguments of ``denoisers.build`` as plain JSON data."""
    return {
        "kind": section.denoiser,
        "shape": list(shape),
        "width": section.width,
        "depth": section.depth,
        "context_dim": context_dim,
        "projected_dim": section.context_dim,
        "cpd": section.cpd,
        "schedule": asdict(Schedule(section.timesteps, section.schedule)),
    }


def training_config(section: IDiffFace) -> TrainingConfig:
    """Mixed precision as published; Adam's defaults for the published U-Net, quicker second moments for the others."""
    betas = (0.9, 0.999) if section.denoiser.startswith("unet") else (0.9, 0.99)
    return TrainingConfig(
        steps=section.steps,
        batch=section.batch,
        lr=section.lr,
        seed=section.seed,
        ema=section.ema,
        warmup=section.steps // 100,
        decay=section.decay,
        betas=betas,
        bf16=True,
    )


def _make_data(folder: Path, upstream: tuple[Path, ...]) -> None:
    """The context of a mirror image is that of the image, not computed anew, as published."""
    faces, reference, code = upstream
    faceset, autoencoder = FaceSet.load(faces), codes.load(code / codes.MODEL)
    contexts = authentic_contexts(IResNetRecogniser(recognition.load_model(reference / MODEL)), faceset)
    latents = torch.cat([autoencoder.encode_faceset(faceset), autoencoder.encode_faceset(faceset, flip=True)])
    save_file({"latents": latents.half(), "contexts": contexts.repeat(2, 1)}, folder / "data.safetensors")


def _make_contexts(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, reference = upstream
    contexts = authentic_contexts(IResNetRecogniser(recognition.load_model(reference / MODEL)), FaceSet.load(faces))
    save_file({"contexts": contexts.half()}, folder / "contexts.safetensors")


def _make(section: IDiffFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train into ``folder``; continues an interrupted attempt."""
    data = load_file(upstream[0] / "data.safetensors")
    latents, contexts = data["latents"], data["contexts"]
    config, training = network_config(section, latents.shape[1:], contexts.shape[1]), training_config(section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        denoiser = _build(config)
    loss = denoising_loss(latents, contexts, Schedule(**config["schedule"]), section.prediction, section.context_drop)
    log, checkpoint = TrainingLog(folder / "log.csv", training), folder / "checkpoint.safetensors"
    for state in train(denoiser, loss, len(latents), training, checkpoint):
        log.write(state)
    facts = {"config": config, "step": state.step, "data": upstream[0].name, "code_version": code_version()}
    save_model(folder / MODEL, half(state.ema.state_dict()), **facts, metrics={"loss": state.loss})
    checkpoint.unlink(missing_ok=True)


def main() -> None:
    """``python -m facetransport.papers.idiff_face --profile laptop [--cpd 0.25]``: build (or resume) the model."""
    import argparse

    parser = argparse.ArgumentParser(description="Train a profile's IDiff-Face (resumes after a kill).")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--cpd", type=float, default=None)
    arguments = parser.parse_args()
    print(default_store().get(recipe(resolve(arguments.profile), arguments.cpd)))


if __name__ == "__main__":
    main()
