"""IDiff-Face: synthetic-based face recognition through fizzy identity-conditioned diffusion models.

Boutros, Grebe, Kuijper, Damer, ICCV 2023, arXiv 2308.04995. Read beside the paper:

    y = f(x) / ||f(x)||                              identity context of a training image          contexts_of
    L = E || eps - eps_theta(z_t, t, CPD(W y + b)) ||^2   fizzy: dropout on the PROJECTED context   recipe (training)
    y ~ uniform on the sphere | two-stage | authentic     where new identities come from            *_contexts
    z_T ~ N(0, I), T denoising steps, decode              images of an identity                     generate
    10,000 identities x 50 images                         a labelled set to train recognisers on    generate_into

The network is the U-Net of ``diffusion.unet`` (paper profile) or a smaller denoiser with the same contract (laptop).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from tqdm.auto import tqdm

from facetransport.companion.artifacts import Recipe, Store, default_store
from facetransport.companion.experiments import roles
from facetransport.companion.profiles import IDiffFace, Profile, as_config, resolve
from facetransport.data import shards
from facetransport.data.faceset import FaceSet, to_uint8
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion import denoisers
from facetransport.diffusion.batching import in_fixed_batches
from facetransport.diffusion.guidance import Denoiser, classifier_free
from facetransport.diffusion.sampling import device_of, sample, sample_seeds
from facetransport.diffusion.schedule import Schedule
from facetransport.evaluation import benchmark
from facetransport.recognition import training as recognition
from facetransport.recognition.iresnet import IResNetRecogniser
from facetransport.recognition.plda import Plda, root, within_covariance
from facetransport.recognition.recogniser import Recogniser, embed_faceset
from facetransport.recognition.recogniser import device_of as device_of_recogniser
from facetransport.tensors import compact
from facetransport.training import (
    TrainingConfig,
    TrainingLog,
    denoising_loss,
    read_model,
    save_model,
    train,
)
from facetransport.version import code_version

UNCONDITIONAL = "unconditional"  # the variant that draws the faces of two-stage contexts
MODEL, CONTEXTS = "model.safetensors", "contexts.safetensors"
LEVELS = (0.0, 0.25, 0.5)  # of CPD, in the paper
SMALLEST = 2**10  # matrix that is rounded to whole numbers for shipping: small U-Nets are made of such
CHUNK = 256  # samples drawn at a time, and about as many images in a shard: bounds memory, changes nothing else


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

    def to(self, device: str | torch.device) -> Model:
        """The same networks on another device (moved, not copied)."""
        self.denoiser.to(device)
        self.autoencoder.code.to(device)
        return self


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
    spread = root(torch.cov(like.double().T))
    white = uniform_contexts(n, like.shape[1], seed).double() * like.shape[1] ** 0.5
    return F.normalize(white @ spread.T + like.double().mean(0), dim=1).float()


def plda_contexts(n: int, samples: int, seed: int, plda: Plda) -> Tensor:
    """Synthetic people whose images differ as photographs of one person do: float32 (n, samples, d), unit norm.

    Not in the paper, whose images of a person share one context, and with it the pose, light and glasses that an
    embedding holds beside identity. Image j of person i depends on (seed, i, j) and ``plda`` only.
    """
    dim, between, within = len(plda.mean), root(plda.between), root(plda.within)
    b = uniform_contexts(n, dim, seed).double() * dim**0.5
    w = [uniform_contexts(samples, dim, s).double() * dim**0.5 for s in sample_seeds(seed, range(n), 1)]
    people = plda.mean + b @ between.T
    return F.normalize(people[:, None] + torch.stack(w) @ within.T, dim=2).float()


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
    first, device = unconditional or model.denoiser, device_of_recogniser(recogniser)
    parts = []
    for i in tqdm(range(0, n, CHUNK), unit="chunk", desc="two-stage contexts", disable=None):
        seeds = sample_seeds(seed, range(i, min(n, i + CHUNK)), 1)
        images = model.decode(sample(first, model.shape, None, solver, steps, seeds))
        with torch.inference_mode():
            parts.append(in_fixed_batches(recogniser.embed, images.to(device)).float().cpu())
    return torch.cat(parts)


# ------------------------------------------------------------------------------------------------------- generation


def generate(
    model: Model,
    contexts: Tensor,
    samples_per_identity: int,
    seed: int,
    solver: str = "dpm++",
    steps: int = 20,
    guidance: float = 1.0,
    identities: Sequence[int] | None = None,
    temperature: float = 1.0,
) -> FaceSet:
    """Images of each context: a FaceSet of len(contexts) x samples_per_identity, columns identity and sample.

    contexts: (n, d), unit norm, or (n, samples_per_identity, d): one for each image. identities: labels, by default 0
    to n - 1; images of identity i depend on (seed, i) and its contexts only. guidance: 1 is the published method; above
    1 needs ``context_drop`` in training. temperature: as for ``sample``, 1 as published.
    """
    contexts = _unit(contexts, model.context_dim, samples_per_identity)
    labels = np.arange(len(contexts)) if identities is None else np.asarray(identities)
    if len(labels) != len(contexts) or samples_per_identity < 1:
        raise ValueError(f"identities: expected {len(contexts)} labels and at least one sample each, got {len(labels)}")
    denoiser = classifier_free(model.denoiser, guidance)
    seeds = sample_seeds(seed, labels.tolist(), samples_per_identity)
    repeated = contexts.expand(-1, samples_per_identity, -1).flatten(0, 1).to(device_of(model.denoiser))
    draw = partial(sample, denoiser, model.shape, solver=solver, steps=steps, temperature=temperature)
    images = [
        to_uint8(model.decode(draw(repeated[i : i + CHUNK], seeds=seeds[i : i + CHUNK])))
        for i in range(0, len(seeds), CHUNK)
    ]
    table = {
        "identity": labels.repeat(samples_per_identity),
        "sample": np.tile(np.arange(samples_per_identity), len(labels)),
    }
    return FaceSet(np.concatenate(images), pd.DataFrame(table))


def _unit(contexts: Tensor, dim: int, samples: int) -> Tensor:
    """(n, 1 or samples, dim)."""
    contexts = torch.as_tensor(contexts, dtype=torch.float32)
    each = contexts[:, None] if contexts.ndim == 2 else contexts
    if each.ndim != 3 or each.shape[2] != dim or each.shape[1] not in (1, samples) or not len(each):
        raise ValueError(
            f"contexts: expected (n, {dim}) or (n, {samples}, {dim}) with n above 0, got {tuple(contexts.shape)}"
        )
    norms = each.norm(dim=2)
    if not torch.isfinite(norms).all() or (norms - 1).abs().max() > 1e-3:
        raise ValueError(
            "contexts: expected finite unit vectors, as in training; divide by the norm (NaN: look upstream)"
        )
    return each


def generate_into(
    folder: Path,
    model: Model,
    contexts: Tensor,
    samples: int,
    seed: int,
    solver: str = "dpm++",
    steps: int = 20,
    guidance: float = 1.0,
    workers: int | None = None,
    temperature: float = 1.0,
) -> FaceSet:
    """``generate`` for sets of any size: in shards, on every core, into ``folder``; resumes where a kill stopped it.

    Images of identity i depend on (seed, i) and its context only, bit for bit on CPU, whatever the shard, the number
    of workers and the set's size: the set of the first contexts is the beginning of the set of all of them. ``folder``
    also says what was made (plan.json). workers: processes, by default one per core (on CPU; else one). guidance,
    temperature: as for ``generate``.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least one per identity, got {samples}")
    contexts = _unit(contexts, model.context_dim, samples).cpu()
    settings = {"seed": seed, "solver": solver, "steps": steps, "guidance": float(guidance), "temperature": temperature}
    plan = settings | {"identities": len(contexts), "samples": samples, "digest": _digest(model, contexts)}
    if shards.claim(folder, plan):
        return FaceSet.load(folder)
    each = max(1, CHUNK // samples)
    parts = [(i, contexts[i : i + each].numpy()) for i in range(0, len(contexts), each)]
    sizes = [samples * len(part) for _, part in parts]
    make = partial(_generate_part, model, settings | {"samples_per_identity": samples})
    workers = workers if device_of(model.denoiser).type == "cpu" else 1
    return shards.build(folder, parts, sizes, make, workers, f"generating {folder.name}")


def _generate_part(model: Model, settings: dict[str, Any], part: tuple[int, np.ndarray]) -> FaceSet:
    first, contexts = part
    with _one_thread():
        identities = range(first, first + len(contexts))
        return generate(model, torch.from_numpy(contexts), identities=identities, **settings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """How many threads share a sum decides its last bits; processes use the cores better anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(model: Model, contexts: Tensor) -> str:
    """Hex digest of the weights that draw and decode, and of the contexts."""
    weights = [*model.denoiser.state_dict().values(), *model.autoencoder.code.state_dict().values()]
    hasher = hashlib.sha256()
    for tensor in [contexts, *weights]:
        hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------- training


def recipe(profile: Profile, cpd: float | None = None, variant: str | None = None) -> Recipe:
    """The trained denoiser at a CPD level (by default the profile's): stage ``idiff_face.cpd25`` at 0.25.

    variant: a name in the profile's ``idiff_face_variants``, another network: stage ``idiff_face.<variant>``, at a
    level other than its own ``idiff_face.<variant>.cpd0``. A variant that is the profile's own network has its recipe.
    """
    section = network_section(profile, cpd, variant)
    level = f"cpd{round(100 * section.cpd)}"
    if variant is None or section == replace(profile.idiff_face, cpd=section.cpd):
        stage = f"idiff_face.{level}"
    else:
        stage = f"idiff_face.{variant}" + f".{level}" * (section != network_section(profile, variant=variant))
    return Recipe(stage, as_config(section), partial(_make, section), upstream=(training_data(profile),))


def recipes(profile: Profile) -> list[Recipe]:
    """What the paper's tables and figures need once: networks, and the contexts known and new.

    Not in the list, and so not shipped: the unconditional network, which only draws two-stage contexts, and contexts
    that are made in seconds.
    """
    networks = [recipe(profile), *(recipe(profile, cpd) for cpd in LEVELS)]
    networks += [recipe(profile, cpd, name) for name in conditioned_variants(profile) for cpd in (None, *LEVELS)]
    kinds = ["authentic", *["two_stage"] * (UNCONDITIONAL in profile.idiff_face_variants)]
    contexts = [training_contexts(profile), *(contexts_recipe(profile, kind) for kind in kinds)]
    return list({r.key: r for r in [*networks, *contexts]}.values())


def conditioned_variants(profile: Profile) -> list[str]:
    """The names of the variants that see contexts: other ways of conditioning."""
    return [name for name in profile.idiff_face_variants if name != UNCONDITIONAL]


def network_section(profile: Profile, cpd: float | None = None, variant: str | None = None) -> IDiffFace:
    """The profile's own network, or a variant of it by name; at another CPD level where one is given."""
    if variant is not None and variant not in profile.idiff_face_variants:
        names = ", ".join(profile.idiff_face_variants) or "none in this profile"
        raise ValueError(f"variant: expected one of idiff_face_variants ({names}), got {variant!r}")
    section = profile.idiff_face if variant is None else profile.idiff_face_variants[variant]
    return section if cpd is None else replace(section, cpd=cpd)


def training_data(profile: Profile) -> Recipe:
    """Codes of the ``generator`` people, of their mirror images, and the contexts of both."""
    upstream = (
        roles.recipe(profile, "generator"),
        recognition.recipe(profile, "reference"),
        codes.code_recipe(profile),
    )
    return Recipe("idiff_face.data", {"flip": True}, _make_data, upstream=upstream)


def training_contexts(profile: Profile) -> Recipe:
    """The contexts alone, without codes: small enough to ship, enough to look for copies of training people in."""
    upstream = (roles.recipe(profile, "generator"), recognition.recipe(profile, "reference"))
    return Recipe("idiff_face.contexts", {}, _make_contexts, upstream=upstream)


def load_training_contexts(profile: Profile, store: Store) -> np.ndarray:
    """float32 (N, d), unit norm: the context of each image of the ``generator`` people, in their FaceSet's order."""
    return _read_contexts(store.get(training_contexts(profile))).numpy()


def load_plda(profile: Profile, store: Store) -> Plda:
    """How contexts vary: in all over the training contexts, within a person over the photographs of ``val`` people."""
    reference, people = recognition.load_reference(profile, store), roles.load(profile, "val", store)
    return fit_plda(_read_contexts(store.get(training_contexts(profile))), reference, people)


def fit_plda(known: Tensor, recogniser: Recogniser, people: FaceSet) -> Plda:
    """PLDA of a recogniser's contexts known (N, d); several photographs of each of some people tell one person's."""
    return Plda.of(known, within_covariance(embed_faceset(recogniser, people), people.identity))


def _read_contexts(folder: Path) -> Tensor:
    return F.normalize(read_model(folder / CONTEXTS)[0]["contexts"].float(), dim=-1)


def load(profile: Profile, store: Store, cpd: float | None = None, variant: str | None = None) -> Model:
    """The model of a profile: shipped, cached, or trained now. Arguments as for ``recipe``."""
    path = store.get(recipe(profile, cpd, variant)) / MODEL
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
        "prediction": section.prediction,
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
    save_model(folder / CONTEXTS, compact({"contexts": contexts}))


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
    save_model(folder / MODEL, compact(state.ema.state_dict(), SMALLEST), **facts, metrics={"loss": state.loss})
    checkpoint.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ labelled sets

Draw = Callable[[tuple[Path, ...]], Tensor]
"""draw(upstream folders) -> contexts float32 (n, d), unit norm."""
Source = tuple[dict[str, Any], tuple[Recipe, ...], Draw]


def contexts_recipe(profile: Profile, kind: str) -> Recipe:
    """Contexts of new people: contexts.safetensors, float32 (n, d), unit norm; row i depends on (seed, i) only.

    kind: "uniform", "matched" (to ``training_contexts``), "plda" (as matched, but one for each image, varied as `val`
    people's photographs are), "two_stage" (the variant ``unconditional`` draws a face, the
    reference embeds it) or "authentic" (the first image of each rendered ``authentic`` person). n is twice
    ``generation.identities``, or as many as the role has people.
    """
    if kind not in SOURCES:
        raise ValueError(f"kind: expected one of {', '.join(SOURCES)}, got {kind!r}")
    config, upstream, draw = SOURCES[kind](profile, available(profile, kind), profile.generation.seed)
    version = CONTEXTS_VERSIONS.get(kind, 1)
    return Recipe(f"idiff_face.contexts.{kind}", config, partial(_make_drawn, draw), version, upstream)


def available(profile: Profile, kind: str) -> int:
    """How many contexts of a kind there are: enough for double the main set, or all ``authentic`` people."""
    wanted = 2 * profile.generation.identities
    return min(wanted, roles.identities(profile, "authentic")) if kind == "authentic" else wanted


def load_contexts(profile: Profile, store: Store, kind: str, n: int | None = None) -> Tensor:
    """float32 (n, d), for "plda" (n, generation.samples, d), unit norm: the first n (by default all) people of a kind.

    Drawn now if they are not there.
    """
    recipe = contexts_recipe(profile, kind)
    _require_contexts(profile, kind, n)
    return _read_contexts(store.get(recipe))[:n]


def _require_contexts(profile: Profile, kind: str, n: int | None) -> None:
    most = available(profile, kind)
    if n is not None and not 1 <= n <= most:
        source = "rendered.roles.authentic.identities" if kind == "authentic" else "2 x generation.identities"
        raise ValueError(f"identities: expected 1 to {most} {kind} contexts, got {n}; raise {source} in the profile")


def _make_drawn(draw: Draw, folder: Path, upstream: tuple[Path, ...]) -> None:
    contexts = draw(upstream)
    save_file({"contexts": contexts.half() if contexts.ndim == 3 else contexts.contiguous()}, folder / CONTEXTS)


def _uniform(profile: Profile, n: int, seed: int) -> Source:
    dim = profile.reference.embedding
    return {"n": n, "dim": dim, "seed": seed}, (), lambda _: uniform_contexts(n, dim, seed)


def _matched(profile: Profile, n: int, seed: int) -> Source:
    upstream = (training_contexts(profile),)
    return {"n": n, "seed": seed}, upstream, lambda folders: matched_contexts(n, seed, _read_contexts(folders[0]))


def _plda(profile: Profile, n: int, seed: int) -> Source:
    upstream = (training_contexts(profile), roles.recipe(profile, "val"), recognition.recipe(profile))
    samples = profile.generation.samples

    def draw(folders: tuple[Path, ...]) -> Tensor:
        reference = IResNetRecogniser(recognition.load_model(folders[2] / MODEL))
        return plda_contexts(
            n, samples, seed, fit_plda(_read_contexts(folders[0]), reference, FaceSet.load(folders[1]))
        )

    return {"n": n, "samples": samples, "seed": seed}, upstream, draw


def _two_stage(profile: Profile, n: int, seed: int) -> Source:
    solver, steps = profile.sampling.solver, profile.sampling.steps
    code = codes.code_recipe(profile)  # its own decoder will do: these faces are only embedded
    upstream = (recipe(profile, variant=UNCONDITIONAL), code, recognition.recipe(profile))

    def draw(folders: tuple[Path, ...]) -> Tensor:
        recogniser = IResNetRecogniser(recognition.load_model(folders[2] / MODEL))
        unused = sample_seeds(seed, [2**32 - 1], 1)[0]  # by sets: no image of theirs may start from a context's noise
        return two_stage_contexts(_read_model(folders[0], folders[1:2]), recogniser, n, unused, solver, steps)

    return {"n": n, "seed": seed, "solver": solver, "steps": steps}, upstream, draw


def _authentic(profile: Profile, n: int, seed: int) -> Source:
    upstream = (roles.recipe(profile, "authentic"), recognition.recipe(profile))

    def draw(folders: tuple[Path, ...]) -> Tensor:
        faces = FaceSet.load(folders[0])
        first = np.unique(faces.identity, return_index=True)[1][:n]
        recogniser = IResNetRecogniser(recognition.load_model(folders[1] / MODEL))
        return authentic_contexts(recogniser, faces.select(first))

    return {"n": n}, upstream, draw


CONTEXTS_VERSIONS = {"matched": 2, "plda": 2}  # 2: the symmetric root of a covariance
SOURCES: dict[str, Callable[[Profile, int, int], Source]] = {
    "uniform": _uniform,
    "matched": _matched,
    "plda": _plda,
    "two_stage": _two_stage,
    "authentic": _authentic,
}


def dataset_recipe(
    profile: Profile,
    kind: str,
    identities: int | None = None,
    cpd: float | None = None,
    variant: str | None = None,
    guidance: float | None = None,
    samples: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    temperature: float | None = None,
) -> Recipe:
    """A labelled FaceSet of new people, ``identities x samples`` images; what is not given is ``profile.generation``'s,
    and solver and steps ``profile.sampling``'s.

    kind: of contexts, as for ``contexts_recipe``; variant: as for ``recipe``. A set of fewer identities is the
    beginning of one of more.
    """
    main = profile.generation
    cpd = main.cpd if cpd is None and variant is None else cpd
    section = network_section(profile, cpd, variant)
    config: dict[str, Any] = {
        "contexts": kind,
        "identities": main.identities if identities is None else identities,
        "samples": main.samples if samples is None else samples,
        "guidance": float(main.guidance if guidance is None else guidance),
        "temperature": float(main.temperature if temperature is None else temperature),
        "seed": main.seed,
        "solver": solver or profile.sampling.solver,
        "steps": steps or profile.sampling.steps,
    }
    if config["temperature"] == 1:  # the prior: what a set without a word about it is drawn from
        del config["temperature"]
    upstream = (recipe(profile, cpd, variant), contexts_recipe(profile, kind), *codes.recipes(profile))
    _require_contexts(profile, kind, config["identities"])
    _require_set(section, config)
    return Recipe("idiff_face.set", config, partial(_make_set, config), upstream=upstream)


def _require_set(section: IDiffFace, config: dict[str, Any]) -> None:
    if config["samples"] < 1:
        raise ValueError(f"samples: expected at least one per identity, got {config['samples']}")
    if section.context_drop == 1:
        raise ValueError("variant: expected one that sees contexts, got an unconditional one (context_drop is 1)")
    if config["guidance"] != 1 and section.context_drop == 0:
        raise ValueError(f"guidance: {config['guidance']} needs a network with context_drop above 0, got 0")


def _make_set(config: dict[str, Any], folder: Path, upstream: tuple[Path, ...]) -> None:
    network, drawn, *code = upstream
    contexts = _read_contexts(drawn)[: config["identities"]]
    contexts = contexts[:, : config["samples"]] if contexts.ndim == 3 else contexts
    settings = {name: config[name] for name in ("samples", "seed", "solver", "steps", "guidance")}
    settings["temperature"] = config.get("temperature", 1.0)
    generate_into(folder, _read_model(network, code), contexts, **settings)


def _read_model(network: Path, code: Sequence[Path]) -> Model:
    """The model of a network's artefact and its autoencoder's, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(network / MODEL, codes.load_folders(code)).to(device)


# ------------------------------------------------------------------------------- recognisers trained on labelled sets


def recognition_rows(profile: Profile) -> dict[str, tuple[Recipe, str]]:
    """Row of the main table (paper, Table 4) -> the set that is trained on, and the augmentation."""
    n, authentic = profile.generation.identities, roles.recipe(profile, "authentic")
    plda, slowest = dataset_recipe(profile, "plda"), profile.idiff_face.timesteps
    half = (profile.generation.samples + 1) // 2
    # small, because the published solver is slow
    quarter = partial(dataset_recipe, profile, "plda", n // 4, samples=half, guidance=1.0, temperature=1.0)
    fast = quarter(solver="sde-dpm++", steps=min(20, slowest))  # stochastic, as the published one: notebook 07
    slow = quarter(solver="ddpm", steps=slowest)
    return {
        "authentic": (authentic, "randaugment"),
        "authentic_flip": (authentic, "flip"),
        "plda": (plda, "randaugment"),
        "plda_flip": (plda, "flip"),
        "plda_half": (dataset_recipe(profile, "plda", n // 2), "randaugment"),
        "plda_double": (dataset_recipe(profile, "plda", 2 * n), "randaugment"),
        "fast_solver": (fast, "randaugment"),
        "published_solver": (slow, "randaugment"),
    }


def recognition_run(profile: Profile, row: str, seed: int) -> Recipe:
    """The results of one recogniser trained on a row's set."""
    rows = recognition_rows(profile)
    if row not in rows:
        raise ValueError(f"row: expected one of {', '.join(rows)}; got {row!r}")
    faces, augmentation = rows[row]
    lr = profile.synthetic_recognition.training.lr
    return benchmark.recipe(profile, faces, f"idiff_face.{row}", augmentation, lr, seed)


def recognition_runs(profile: Profile) -> dict[tuple[str, int], Recipe]:
    """(row, seed) -> the results of that run, for all rows and seeds."""
    seeds = profile.synthetic_recognition.seeds
    return {(row, seed): recognition_run(profile, row, seed) for row in recognition_rows(profile) for seed in seeds}


Choice = tuple[str, float, float, float, float]
"""Contexts, CPD, guidance, temperature, learning rate."""


def pilot_runs(profile: Profile) -> dict[Choice, Recipe]:
    """One run each, with the first seed, to choose the main set and the learning rate by, on `val` people."""
    main, section = profile.generation, profile.synthetic_recognition
    lr = section.training.lr
    kinds = ("uniform", "two_stage", "matched", "plda")
    tried: list[Choice] = [(kind, main.cpd, main.guidance, 1.0, lr) for kind in kinds]
    scales = (1.0, 2.0, 3.0) if profile.idiff_face.context_drop else (1.0,)
    tried += [("plda", 0.25, scale, 1.0, lr) for scale in scales]
    tried += [("plda", main.cpd, main.guidance, temperature, lr) for temperature in (0.7, 0.5)]
    tried += [("plda", main.cpd, main.guidance, main.temperature, rate) for rate in section.lrs]
    return {choice: _pilot(profile, *choice) for choice in tried}


def _pilot(profile: Profile, kind: str, cpd: float, guidance: float, temperature: float, lr: float) -> Recipe:
    faces = dataset_recipe(profile, kind, cpd=cpd, guidance=guidance, temperature=temperature)
    return benchmark.recipe(profile, faces, "pilot", "randaugment", lr, profile.synthetic_recognition.seeds[0])


def main() -> None:
    """``python -m facetransport.papers.idiff_face --profile laptop [--cpd 0.25] [--set uniform]``: build, or resume."""
    import argparse

    parser = argparse.ArgumentParser(description="Train a profile's IDiff-Face, or make a set; resumes after a kill.")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--cpd", type=float, default=None)
    parser.add_argument("--variant", default=None, help="a network of idiff_face_variants")
    parser.add_argument("--set", dest="kind", choices=SOURCES, help="a labelled set of this kind of contexts")
    for name, kind in (("identities", int), ("samples", int), ("guidance", float)):
        parser.add_argument(f"--{name}", type=kind, default=None, help="of the set")
    parser.add_argument("--row", default=None, help="instead: train the recognisers of this row of the main table")
    parser.add_argument("--seed", type=int, default=None, help="of --row: this one only")
    given = parser.parse_args()
    profile = resolve(given.profile)
    if given.row:
        seeds = profile.synthetic_recognition.seeds if given.seed is None else [given.seed]
        print(*(default_store().get(recognition_run(profile, given.row, seed)) for seed in seeds), sep="\n")
        return
    network = {"cpd": given.cpd, "variant": given.variant}
    size = {"identities": given.identities, "samples": given.samples, "guidance": given.guidance}
    made = dataset_recipe(profile, given.kind, **network, **size) if given.kind else recipe(profile, **network)
    print(default_store().get(made))


if __name__ == "__main__":
    main()
