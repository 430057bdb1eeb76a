"""IDiff-Face's networks, contexts and labelled sets, as a profile asks for them (`facetransport.papers.idiff_face`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from facetransport import devices
from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import autoencoder, given, recognisers, roles
from facetransport.companion.experiments.fitting import MODEL, fit_denoiser, network_config
from facetransport.companion.profiles import IDiffFace, Profile, as_config
from facetransport.data.faceset import FaceSet
from facetransport.devices import Share, device
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion.denoising import denoising_loss
from facetransport.diffusion.sampling import sample_seeds
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import Model, generate_into, load_model
from facetransport.papers.idiff_face import (
    authentic_contexts,
    fit_plda,
    matched_contexts,
    plda_contexts,
    two_stage_contexts,
    uniform_contexts,
)
from facetransport.recognition.plda import Plda, deviations
from facetransport.recognition.recogniser import Recogniser, embed_faceset
from facetransport.tensors import compact, read_model, rounding, save_model
from facetransport.training import resident

UNCONDITIONAL = "unconditional"  # the variant that draws the faces of two-stage contexts
CONTEXTS = "contexts.safetensors"
LEVELS = (0.0, 0.25, 0.5)  # of CPD, in the paper


def recipe(profile: Profile, cpd: float | None = None, variant: str | None = None) -> Recipe:
    """The trained denoiser at a CPD level (by default the profile's): stage ``idiff_face.cpd25`` at 0.25.

    variant: a name in the profile's ``idiff_face_variants``, another network: stage ``idiff_face.<variant>``, at a
    level other than its own ``idiff_face.<variant>.cpd0``. A variant that is the profile's own network has its recipe.
    The profile's own and ``unconditional`` can be files that it gives.
    """
    section = network_section(profile, cpd, variant)
    name = "idiff_face" if section == profile.idiff_face else variant
    brought = given.recipe(profile, name) if name in ("idiff_face", UNCONDITIONAL) else None
    if brought:
        return brought
    level = f"cpd{round(100 * section.cpd)}"
    if variant is None or section == replace(profile.idiff_face, cpd=section.cpd):
        stage = f"idiff_face.{level}"
    else:
        stage = f"idiff_face.{variant}" + f".{level}" * (section != network_section(profile, variant=variant))
    made_of = (training_data(profile),)
    make = partial(_make, section, profile.milestones)
    return Recipe(stage, as_config(section), make, upstream=made_of, collective=True)


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
        recognisers.recipe(profile),
        autoencoder.code_recipe(profile),
    )
    return Recipe("idiff_face.data", {"flip": True}, _make_data, upstream=upstream)


def training_contexts(profile: Profile) -> Recipe:
    """The contexts alone, without codes: small enough to ship, enough to look for copies of training people in."""
    upstream = (roles.recipe(profile, "generator"), recognisers.recipe(profile))
    return Recipe("idiff_face.contexts", {}, _make_contexts, upstream=upstream)


def load_training_contexts(profile: Profile, store: Store) -> np.ndarray:
    """float32 (N, d), unit norm: the context of each image of the ``generator`` people, in their FaceSet's order."""
    return read_contexts(store.get(training_contexts(profile))).numpy()


def load_plda(profile: Profile, store: Store) -> Plda:
    """How contexts vary: in all over the training contexts, within a person over the photographs of ``val`` people."""
    known, reference = read_contexts(store.get(training_contexts(profile))), recognisers.load_reference(profile, store)
    return fit_plda(known, reference, roles.load(profile, "val", store))


def read_contexts(folder: Path) -> Tensor:
    """float32 (n, ..., d), unit norm, of a finished artefact."""
    return F.normalize(read_model(folder / CONTEXTS)[0]["contexts"].float(), dim=-1)


def load(profile: Profile, store: Store, cpd: float | None = None, variant: str | None = None) -> Model:
    """The model of a profile: shipped, cached, or trained now. Arguments as for ``recipe``."""
    path = store.get(recipe(profile, cpd, variant)) / MODEL
    return load_model(path, autoencoder.load_autoencoder(profile, store)).to(device())


def _make_data(folder: Path, upstream: tuple[Path, ...]) -> None:
    """The context of a mirror image is that of the image, not computed anew, as published."""
    faces, reference, code = upstream
    faceset, autoencoder = FaceSet.load(faces), codes.load(code / MODEL)
    contexts = authentic_contexts(recognisers.read(reference), faceset)
    latents = torch.cat([autoencoder.encode_faceset(faceset), autoencoder.encode_faceset(faceset, flip=True)])
    save_file({"latents": latents.half(), "contexts": contexts.repeat(2, 1)}, folder / "data.safetensors")


def _make_contexts(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, reference = upstream
    contexts = authentic_contexts(recognisers.read(reference), FaceSet.load(faces))
    save_model(folder / CONTEXTS, compact({"contexts": contexts}))


def _make(section: IDiffFace, milestones: tuple[int, ...], folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train into ``folder``; continues an interrupted attempt."""
    data = load_file(upstream[0] / "data.safetensors")
    latents, contexts = data["latents"], data["contexts"]
    config = network_config(section, latents.shape[1:], contexts.shape[1])
    z, y = (resident(part, device()) for part in (latents, contexts))
    loss = denoising_loss(z, y, Schedule(**config["schedule"]), section.prediction, section.context_drop)
    fit_denoiser(section, config, loss, len(latents), folder, milestones=milestones, data=upstream[0].name)


# ------------------------------------------------------------------------------------------- contexts and labelled sets

Draw = Callable[[tuple[Path, ...]], Tensor]
"""draw(upstream folders) -> contexts float32 (n, d), unit norm."""
Source = tuple[dict[str, Any], tuple[Recipe, ...], Draw]


def contexts_recipe(profile: Profile, kind: str) -> Recipe:
    """Contexts of new people: contexts.safetensors, float32 (n, d), unit norm; row i depends on (seed, i) only.

    kind: "uniform", "matched" (to ``training_contexts``), "plda" (as matched, but one for each image, varied with the
    covariance of `val` people's photographs), "plda_shown" (varied as one of these, by example), "two_stage" (the
    variant ``unconditional`` draws a face, the reference embeds it) or "authentic" (the first image of each rendered
    ``authentic`` person). n is twice ``generation.identities``, or as many as the role has people.
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
    return read_contexts(store.get(recipe))[:n]


def _require_contexts(profile: Profile, kind: str, n: int | None) -> None:
    most = available(profile, kind)
    if n is not None and not 1 <= n <= most:
        source = "rendered.roles.authentic.identities" if kind == "authentic" else "2 x generation.identities"
        raise ValueError(f"identities: expected 1 to {most} {kind} contexts, got {n}; raise {source} in the profile")


def _make_drawn(draw: Draw, folder: Path, upstream: tuple[Path, ...]) -> None:
    contexts = draw(upstream)
    contexts = contexts.half() if contexts.ndim == 3 else contexts
    save_model(folder / CONTEXTS, {"contexts": contexts}, small=rounding(smallest=2**62))  # float16, where shipped


def _uniform(profile: Profile, n: int, seed: int) -> Source:
    dim = recognisers.dimension(profile)
    return {"n": n, "dim": dim, "seed": seed}, (), lambda _: uniform_contexts(n, dim, seed)


def _matched(profile: Profile, n: int, seed: int) -> Source:
    upstream = (training_contexts(profile),)
    return {"n": n, "seed": seed}, upstream, lambda folders: matched_contexts(n, seed, read_contexts(folders[0]))


def _plda(profile: Profile, n: int, seed: int, by_example: bool = False) -> Source:
    upstream = (training_contexts(profile), roles.recipe(profile, "val"), recognisers.recipe(profile))
    samples = profile.generation.samples

    def draw(folders: tuple[Path, ...]) -> Tensor:
        reference, people = recognisers.read(folders[2]), FaceSet.load(folders[1])
        plda = fit_plda(read_contexts(folders[0]), reference, people)
        return plda_contexts(n, samples, seed, plda, shown_by(reference, people)[1] if by_example else None)

    return {"n": n, "samples": samples, "seed": seed}, upstream, draw


def shown_by(reference: Recogniser, people: FaceSet) -> tuple[FaceSet, Tensor]:
    """The photographs of everyone who has several, and how each deviates from its person, (N, d)."""
    _, place, count = np.unique(people.identity, return_inverse=True, return_counts=True)
    several = people.select(np.flatnonzero(count[place] > 1))
    return several, deviations(embed_faceset(reference, several), several.identity)


def _two_stage(profile: Profile, n: int, seed: int) -> Source:
    solver, steps = profile.sampling.solver, profile.sampling.steps
    code = autoencoder.code_recipe(profile)  # its own decoder will do: these faces are only embedded
    upstream = (recipe(profile, variant=UNCONDITIONAL), code, recognisers.recipe(profile))

    def draw(folders: tuple[Path, ...]) -> Tensor:
        recogniser = recognisers.read(folders[2])
        unused = sample_seeds(seed, [2**32 - 1], 1)[0]  # by sets: no image of theirs may start from a context's noise
        return two_stage_contexts(_read_model(folders[0], folders[1:2]), recogniser, n, unused, solver, steps)

    return {"n": n, "seed": seed, "solver": solver, "steps": steps}, upstream, draw


def _authentic(profile: Profile, n: int, seed: int) -> Source:
    upstream = (roles.recipe(profile, "authentic"), recognisers.recipe(profile))

    def draw(folders: tuple[Path, ...]) -> Tensor:
        faces = FaceSet.load(folders[0])
        first = np.unique(faces.identity, return_index=True)[1][:n]
        recogniser = recognisers.read(folders[1])
        return authentic_contexts(recogniser, faces.select(first))

    return {"n": n}, upstream, draw


CONTEXTS_VERSIONS = {"matched": 2, "plda": 2}  # 2: the symmetric root of a covariance
SOURCES: dict[str, Callable[[Profile, int, int], Source]] = {
    "uniform": _uniform,
    "matched": _matched,
    "plda": _plda,
    "plda_shown": partial(_plda, by_example=True),
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
    share: Share | None = None,
) -> Recipe:
    """A labelled FaceSet of new people, ``identities x samples`` images; what is not given is ``profile.generation``'s,
    and solver and steps ``profile.sampling``'s.

    kind: of contexts, as for ``contexts_recipe``; variant: as for ``recipe``. A set of fewer identities is the
    beginning of one of more. share: (i, n) for a maker that draws every n-th shard, as one of n jobs (`Store.part`);
    by default the processes of a run share them.
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
    config |= {"bf16": True} if main.bf16 else {}
    upstream = (recipe(profile, cpd, variant), contexts_recipe(profile, kind), *autoencoder.recipes(profile))
    _require_contexts(profile, kind, config["identities"])
    _require_set(section, config)
    return Recipe("idiff_face.set", config, partial(_make_set, config, share), upstream=upstream, collective=True)


def _require_set(section: IDiffFace, config: dict[str, Any]) -> None:
    if config["samples"] < 1:
        raise ValueError(f"samples: expected at least one per identity, got {config['samples']}")
    if section.context_drop == 1:
        raise ValueError("variant: expected one that sees contexts, got an unconditional one (context_drop is 1)")
    if config["guidance"] != 1 and section.context_drop == 0:
        raise ValueError(f"guidance: {config['guidance']} needs a network with context_drop above 0, got 0")


def _make_set(config: dict[str, Any], share: Share | None, folder: Path, upstream: tuple[Path, ...]) -> None:
    network, drawn, *code = upstream
    contexts = read_contexts(drawn)[: config["identities"]]
    contexts = contexts[:, : config["samples"]] if contexts.ndim == 3 else contexts
    settings = {name: config[name] for name in ("samples", "seed", "solver", "steps", "guidance")}
    settings |= {"temperature": config.get("temperature", 1.0), "bf16": config.get("bf16", False)}
    others = [path for path in folder.parent.iterdir() if path != folder]  # among them the smaller sets of these people
    model = _read_model(network, code)
    generate_into(folder, model, contexts, **settings, share=share or devices.share(), beginnings=others)


def _read_model(network: Path, code: Sequence[Path]) -> Model:
    """The model of a network's artefact and its autoencoder's."""
    return load_model(network / MODEL, autoencoder.load_folders(code)).to(device())
