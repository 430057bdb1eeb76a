"""The network that reads attributes off generated images (`facetransport.evaluation.readers`)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import recognisers, roles
from facetransport.companion.experiments.fitting import MODEL, fit
from facetransport.companion.profiles import Profile, RecogniserTraining, as_config
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.evaluation.readers import AttributeReader, ReaderNetwork, reader_loss, standardised
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig, resident
from facetransport.world.rendered import attribute_names

NUMBERS = ("yaw", "pitch", "age")


def recipe(profile: Profile) -> Recipe:
    """Built like the recognisers of ``synthetic_recognition``, trained on the ``generator`` people."""
    section = replace(profile.synthetic_recognition.training, steps=2 * profile.synthetic_recognition.training.steps)
    shape = {name: as_config(section)[name] for name in ("size", "layers", "widths", "strides", "embedding")}
    config = shape | {name: as_config(section)[name] for name in ("batch", "steps", "seed")}
    upstream = (roles.rendered_recipe(profile, "generator"),)
    return Recipe("reader", config, partial(_make, section), upstream=upstream, collective=True)


def load(profile: Profile, store: Store) -> AttributeReader:
    """The reader of a profile: shipped, cached, or trained now."""
    tensors, facts = read_model(store.get(recipe(profile)) / MODEL)
    section = profile.synthetic_recognition.training
    network = ReaderNetwork(recognisers.network_config(section), len(facts["names"]))
    network.load_state_dict(tensors)
    told = (tuple(facts[name]) for name in ("names", "mean", "deviation"))
    return AttributeReader(network.eval().requires_grad_(False).to(device()), *told)


def _make(section: RecogniserTraining, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = FaceSet.load(upstream[0])
    names = [*NUMBERS, *attribute_names(faces.table)]
    targets, mean, deviation = standardised(faces.table, names)
    with seeded(section.seed):
        network = ReaderNetwork(recognisers.network_config(section), len(names))
    training = TrainingConfig(
        section.steps,
        section.batch,
        2e-3,
        section.seed,
        ema=0.99,
        warmup=50,
        decay="cosine",
        weight_decay=0.01,
        bf16=True,
    )
    where = device()
    loss = reader_loss(resident(faces.images, where), resident(targets, where), names)
    fit(network, loss, len(faces), training, folder, names=names, mean=mean, deviation=deviation)
