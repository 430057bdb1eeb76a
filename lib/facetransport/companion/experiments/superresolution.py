"""ID3PM's super-resolution, as a profile asks for it (`facetransport.diffusion.superresolution`)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import roles
from facetransport.companion.experiments.fitting import MODEL, fit
from facetransport.companion.profiles import Profile, as_config
from facetransport.companion.profiles import SuperResolution as Section
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.superresolution import (
    SuperResolution,
    SuperResolutionConfig,
    residuals,
    superresolution_loss,
)
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig, resident

BATCH = 256  # pairs made ready at a time
DRAWN = ("sampling_steps", "temperature")  # of a section, of no matter in training


def large_recipe(profile: Profile) -> Recipe:
    """The first ``generator`` people once more, at the size that is aimed at: the same views, pixel for pixel."""
    section = profile.superresolution
    return roles.rendered_recipe(profile, "generator", identities=section.people, size=section.size)


def recipe(profile: Profile) -> Recipe:
    """The trained network."""
    section, upstream = profile.superresolution, (roles.rendered_recipe(profile, "generator"), large_recipe(profile))
    config = {name: value for name, value in as_config(section).items() if name not in DRAWN}
    return Recipe("superresolution", config, partial(_make, section), upstream=upstream, collective=True)


def how(profile: Profile) -> dict[str, Any]:
    """A profile's way of enlarging as keyword arguments of ``enlarge``."""
    section = profile.superresolution
    return {"steps": section.sampling_steps, "temperature": section.temperature}


def load(profile: Profile, store: Store) -> SuperResolution:
    """The network of a profile: shipped, cached, or trained now."""
    tensors, facts = read_model(store.get(recipe(profile)) / MODEL)
    config = facts["config"]
    network = SuperResolution(SuperResolutionConfig(**{**config, "schedule": Schedule(**config["schedule"])}))
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device())


def _make(section: Section, folder: Path, upstream: tuple[Path, ...]) -> None:
    small, large = (FaceSet.load(path) for path in upstream)
    parts = [slice(i, min(i + BATCH, section.people)) for i in range(0, section.people, BATCH)]
    missed = torch.cat([residuals(small.tensor(rows), large.tensor(rows)).half() for rows in parts])
    told = torch.cat([small.tensor(rows).flatten(1).half() for rows in parts])
    scale = float(missed[:BATCH].float().std())
    config = SuperResolutionConfig(small.images.shape[1], section.size, section.width, scale)
    with seeded(section.seed):
        network = SuperResolution(config)
    training = TrainingConfig(
        section.steps, section.batch, section.lr, section.seed, ema=0.995, warmup=50, decay="cosine", bf16=True
    )
    x0, y = (resident(part, device()) for part in (missed / scale, told))
    loss = superresolution_loss(x0, y, config.schedule)
    fit(network, loss, section.people, training, folder, config=asdict(config))
