"""The recognisers of a profile: the reference that conditions and guides, the judge, and dlib, a black box."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import given, roles
from facetransport.companion.profiles import Profile, RecogniserTraining, as_config
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.evaluation.benchmark import validate
from facetransport.recognition import dlib
from facetransport.recognition.augmentation import Augment
from facetransport.recognition.dlib import DlibRecogniser
from facetransport.recognition.iresnet import IResNetConfig, IResNetRecogniser
from facetransport.recognition.onnx import OnnxRecogniser
from facetransport.recognition.recogniser import Recogniser, embed_faceset
from facetransport.recognition.training import (
    HeadConfig,
    Learner,
    digest_of,
    load_network,
    published,
    recogniser_loss,
    save_network,
)
from facetransport.tensors import read_metadata, read_model, save_model
from facetransport.training import TrainingConfig, TrainingLog, train
from facetransport.version import code_version

NETWORKS = {"reference": "encoder", "judge": "train"}  # a network's section and its people
MODEL, STATISTICS, EMBEDDINGS = "model.safetensors", "statistics.safetensors", "embeddings.safetensors"
CHECKPOINT_EVERY = 500  # steps


def recipe(profile: Profile, name: str = "reference") -> Recipe:
    """A trained recogniser: ``model.safetensors`` and ``log.csv``; or the file that the profile gives for it.

    name: one of NETWORKS.
    """
    if name not in NETWORKS:
        raise ValueError(f"name: expected one of {', '.join(NETWORKS)}, got {name!r}")
    brought = given.recipe(profile, name)
    if brought:
        return brought
    section: RecogniserTraining = getattr(profile, name)
    upstream = (roles.recipe(profile, NETWORKS[name]), roles.recipe(profile, "val"))
    return Recipe(
        f"recognition.{name}", as_config(section), partial(_make, section), upstream=upstream, collective=True
    )


def network_config(section: RecogniserTraining) -> IResNetConfig:
    """The shape of a section's network."""
    shape: dict[str, Any] = {name: getattr(section, name) for name in ("layers", "widths", "strides", "dropout")}
    return IResNetConfig(input_size=section.size, dim=section.embedding, **shape)


def dimension(profile: Profile) -> int:
    """Of the reference's embeddings: the given file's, else the section's."""
    path = Path(profile.weights.get("reference", ""))
    if path.suffix == ".onnx":
        return OnnxRecogniser(path).dim
    return int(read_metadata(path)["config"]["dim"]) if path.suffix else profile.reference.embedding


def head_config(section: RecogniserTraining) -> HeadConfig:
    """A section's margin softmax."""
    return HeadConfig(section.head, section.scale, section.margin)


def training_config(section: RecogniserTraining) -> TrainingConfig:
    """How a section's network is trained."""
    changes = {"weight_decay": section.weight_decay, "momentum": section.momentum, "bf16": section.bf16}
    return published(section.steps, section.batch, section.lr, section.seed, **changes)


def _make(section: RecogniserTraining, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train on upstream[0], validate on upstream[1], into ``folder``; continues an interrupted attempt."""
    faces, val = (FaceSet.load(path) for path in upstream)
    learner = Learner.drawn(network_config(section), head_config(section), len(np.unique(faces.identity)), section.seed)
    augment = Augment(section.randaugment) if section.augment else None
    loss, training = recogniser_loss(faces, section.size, augment), training_config(section)
    log = TrainingLog(folder / "log.csv", training, extra=["val_accuracy"])
    checkpoint, identity = folder / "checkpoint.safetensors", {"data": digest_of(faces)}
    for state in train(learner, loss, len(faces), training, checkpoint, CHECKPOINT_EVERY, identity):
        looks = state.step % 1000 == 0 or state.step == section.steps
        accuracy = {"val_accuracy": validate(learner.network, val)} if looks else {}
        log.write(state, **accuracy)
    metrics = accuracy | {"train_accuracy": float(state.named["accuracy"]), "loss": float(state.loss)}
    facts = {"step": state.step, "data": [path.name for path in upstream], "code_version": code_version()}
    save_network(folder / MODEL, learner.network, small=True, **facts, metrics=metrics)
    checkpoint.unlink(missing_ok=True)


def read(folder: Path, name: str = "reference", flip: bool = False) -> Recogniser:
    """The recogniser of a finished artefact: a white box, unless an ONNX file was given."""
    if (folder / given.ONNX).is_file():
        return OnnxRecogniser(folder / given.ONNX, name, flip=flip)
    network = load_network(folder / MODEL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return IResNetRecogniser(network, name, flip).to(device())


def read_white_box(folder: Path) -> IResNetRecogniser:
    """The reference where gradients must flow through it; ValueError where it is a black box."""
    found = read(folder)
    if not isinstance(found, IResNetRecogniser):
        raise ValueError(
            "weights.reference: an ONNX file lets no gradient through, which ID3 and the autoencoder's identity loss "
            "need; give the network's own weights (import-weights --kind iresnet)"
        )
    return found


def load_recogniser(profile: Profile, store: Store, name: str = "reference", flip: bool = False) -> Recogniser:
    """A profile's recogniser: given, shipped, cached, or trained now. flip: average with the mirror image."""
    return read(store.get(recipe(profile, name)), name, flip)


def load_reference(profile: Profile, store: Store, flip: bool = False) -> Recogniser:
    """What conditions."""
    return load_recogniser(profile, store, "reference", flip)


def dlib_recipe(profile: Profile) -> Recipe:
    """dlib's statistics: mean and deviation over the profile's ``val`` people."""
    upstream = (roles.recipe(profile, "val"),)
    return Recipe("recognition.dlib", {"statistics": "mean, std"}, _make_dlib, upstream=upstream)


def _make_dlib(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = FaceSet.load(upstream[0])
    DlibRecogniser.fitted(faces).save(folder / STATISTICS, images=str(len(faces)), data=upstream[0].name)


def load_dlib(profile: Profile, store: Store) -> DlibRecogniser:
    """dlib, centred on the profile's ``val`` people (fitted where it is neither shipped nor cached)."""
    return dlib.load(store.get(dlib_recipe(profile)) / STATISTICS)


def embeddings_recipe(profile: Profile, role: str, name: str, flip: bool = False) -> Recipe:
    """What a recogniser, "reference", "judge" or "dlib", says of each image of a role: several notebooks ask for it."""
    network = dlib_recipe(profile) if name == "dlib" else recipe(profile, name)
    make = partial(_make_embeddings, name, flip)
    return Recipe(f"embeddings.{role}.{name}", {"flip": flip}, make, upstream=(roles.recipe(profile, role), network))


def _make_embeddings(name: str, flip: bool, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, network = upstream
    recogniser = dlib.load(network / STATISTICS) if name == "dlib" else read(network, name, flip)
    save_model(folder / EMBEDDINGS, {"embeddings": torch.from_numpy(embed_faceset(recogniser, FaceSet.load(faces)))})


def load_embeddings(profile: Profile, store: Store, role: str, name: str, flip: bool = False) -> np.ndarray:
    """float32 (N, d), unit norm: of the images of a role, row by row. Arguments as for ``embeddings_recipe``."""
    return read_model(store.get(embeddings_recipe(profile, role, name, flip)) / EMBEDDINGS)[0]["embeddings"].numpy()
