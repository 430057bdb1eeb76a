"""ID3PM's embeddings, networks and baseline, as a profile asks for them (`facetransport.papers.id3pm`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import autoencoder, idiff_face, recognisers, roles
from facetransport.companion.experiments.attributes import encoded_twice
from facetransport.companion.experiments.fitting import MODEL, fit, fit_denoiser, network_config
from facetransport.companion.profiles import ID3PM, Profile, as_config
from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.devices import device
from facetransport.diffusion.adm import hybrid_loss
from facetransport.diffusion.autoencoder import Autoencoder, PixelCode
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import Model, load_model
from facetransport.papers.id3pm import (
    BlackBox,
    RegressionDecoder,
    conditioning,
    loss,
    regression_loss,
)
from facetransport.recognition import dlib
from facetransport.recognition.augmentation import Augment
from facetransport.recognition.recogniser import embed_faceset
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig, resident

EMBEDDINGS = "embeddings.safetensors"
BATCH = 256  # images embedded at a time
PIXELS = 64  # side of the images that the published network draws (papers.md 4.3)


def section_of(profile: Profile, variant: str | None = None) -> ID3PM:
    """The profile's own network, or a variant of it by name."""
    if variant is None:
        return profile.id3pm
    if variant not in profile.id3pm_variants:
        names = ", ".join(profile.id3pm_variants) or "none in this profile"
        raise ValueError(f"variant: expected one of id3pm_variants ({names}), got {variant!r}")
    return profile.id3pm_variants[variant]


def recipe(profile: Profile, variant: str | None = None) -> Recipe:
    """The trained denoiser: stage ``id3pm``, or ``id3pm.<variant>``."""
    section = section_of(profile, variant)
    upstream = [roles.recipe(profile, "generator"), data_recipe(profile, section), embeddings_recipe(profile)]
    upstream += [degraded_recipe(profile, section.seed)] * bool(section.degraded)
    stage = f"id3pm.{variant}" if variant else "id3pm.plain"
    return Recipe(stage, as_config(section), partial(_make, section), upstream=tuple(upstream), collective=True)


def data_recipe(profile: Profile, section: ID3PM) -> Recipe:
    """What diffusion works on: codes of the ``generator`` people, or for the published network their pixels; then those
    of the mirror images."""
    if section.denoiser != "adm":
        return idiff_face.training_data(profile)
    upstream = (roles.recipe(profile, "generator"),)
    return Recipe("id3pm.pixels", {"size": PIXELS}, _make_pixels, upstream=upstream)


def regression_recipe(profile: Profile) -> Recipe:
    """The baseline: embedding -> code by squared error."""
    section, upstream = profile.id3pm, (idiff_face.training_data(profile), embeddings_recipe(profile))
    config = {"width": section.width, "steps": section.steps // 4, "batch": section.batch, "lr": section.lr / 2}
    config["seed"] = section.seed
    return Recipe("id3pm.regression", config, partial(_make_regression, config), upstream=upstream, collective=True)


def recipes(profile: Profile) -> list[Recipe]:
    """What a profile trains once and can ship."""
    return [recipe(profile), *(recipe(profile, name) for name in profile.id3pm_variants), regression_recipe(profile)]


def embeddings_recipe(profile: Profile) -> Recipe:
    """What dlib says of each image of the ``generator`` people, then of each mirror image."""
    upstream = (roles.recipe(profile, "generator"), recognisers.dlib_recipe(profile))
    return Recipe("id3pm.embeddings", {"flip": True}, _make_embeddings, upstream=upstream)


def degraded_recipe(profile: Profile, seed: int) -> Recipe:
    """What dlib says of one degraded view of each image: moved, grey, blurred, noisy, as cameras and detectors do."""
    upstream = (roles.recipe(profile, "generator"), recognisers.dlib_recipe(profile))
    return Recipe("id3pm.degraded", {"seed": seed}, partial(_make_degraded, seed), upstream=upstream)


def load(profile: Profile, store: Store, variant: str | None = None) -> Model:
    """The model of a profile: shipped, cached, or trained now."""
    path = store.get(recipe(profile, variant)) / MODEL
    pixels = section_of(profile, variant).denoiser == "adm"
    code = Autoencoder(PixelCode()) if pixels else autoencoder.load_autoencoder(profile, store)
    return load_model(path, code).to(device())


def load_regression(profile: Profile, store: Store) -> RegressionDecoder:
    """The baseline, in evaluation mode."""
    tensors, metadata = read_model(store.get(regression_recipe(profile)) / MODEL)
    network = RegressionDecoder(**metadata["config"])
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def black_box(profile: Profile, store: Store) -> BlackBox:
    """dlib, centred, with nothing but ``embed``."""
    return BlackBox(recognisers.load_dlib(profile, store))


def read_black_box(folder: Path) -> BlackBox:
    """dlib with the statistics of a finished artefact."""
    return BlackBox(dlib.load(folder / recognisers.STATISTICS))


def read_embeddings(folder: Path) -> Tensor:
    """float32 (N, d) of a finished artefact."""
    return load_file(folder / EMBEDDINGS)["embeddings"]


# ------------------------------------------------------------------------------------------------------------- training


def _make_embeddings(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, box = FaceSet.load(upstream[0]), read_black_box(upstream[1])
    mirror = FaceSet(faces.images[:, :, ::-1], faces.table)
    both = np.concatenate([embed_faceset(box, part, BATCH) for part in (faces, mirror)])
    save_file({"embeddings": torch.from_numpy(both)}, folder / EMBEDDINGS)


def _make_pixels(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = FaceSet.load(upstream[0])
    parts = (to_tensor(faces.images[i : i + BATCH]) for i in range(0, len(faces), BATCH))
    small = torch.cat([F.interpolate(part, (PIXELS, PIXELS), mode="area").half() for part in parts])
    save_file({"latents": torch.cat([small, small.flip(-1)])}, folder / "data.safetensors")


def _make_degraded(seed: int, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, box = FaceSet.load(upstream[0]), read_black_box(upstream[1])
    worse = Augment(operations=0)
    with seeded(seed):
        parts = [
            box.embed(worse(to_tensor(faces.images[i : i + BATCH])).clamp(-1, 1)) for i in range(0, len(faces), BATCH)
        ]
    save_file({"embeddings": torch.cat(parts)}, folder / EMBEDDINGS)


def _make(section: ID3PM, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train into ``folder``; continues an interrupted attempt."""
    people, data, *embedded = upstream
    latents = load_file(data / "data.safetensors")["latents"]
    views = [read_embeddings(path) for path in embedded]
    attributes, encoded = encoded_twice(FaceSet.load(people), section.attributes)
    conditions = torch.cat([views[0], *[v.repeat(2, 1) for v in views[1:]], encoded], dim=1)
    dim, shape = views[0].shape[1], latents.shape[1:]
    config = network_config(section, shape, dim, attributes=attributes.size, null_projected=True)
    z, y = (resident(part, device()) for part in (latents, conditions))
    drop = conditioning(dim, section.context_drop, section.attributes_drop, section.attribute_drop, section.degraded)
    schedule, published = Schedule(**config["schedule"]), section.denoiser == "adm"
    trained = hybrid_loss(z, y, schedule, drop) if published else loss(z, y, drop, schedule, section.prediction)
    facts: dict[str, Any] = {"data": data.name, "attributes": vars(attributes)}
    fit_denoiser(section, config, trained, len(latents), folder, **facts)


def _make_regression(config: dict[str, float], folder: Path, upstream: tuple[Path, ...]) -> None:
    latents = load_file(upstream[0] / "data.safetensors")["latents"]
    y = read_embeddings(upstream[1])
    (_, *shape), (steps, batch, width, seed) = (
        latents.shape,
        (int(config[n]) for n in ("steps", "batch", "width", "seed")),
    )
    about: dict[str, Any] = {"dim": y.shape[1], "shape": shape, "width": width}
    with seeded(seed):
        network = RegressionDecoder(**about)
    training = TrainingConfig(steps, batch, config["lr"], seed, decay="cosine", betas=(0.9, 0.99), bf16=True)
    z, y = (resident(part, device()) for part in (latents, y))
    fit(network, regression_loss(z, y), len(latents), training, folder, config=about)
