"""ID3's networks and labelled sets, as a profile asks for them (`facetransport.papers.id3`)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import autoencoder, idiff_face, recognisers, roles
from facetransport.companion.experiments.fitting import MODEL, fit, fit_denoiser, network_config
from facetransport.companion.profiles import ID3, Profile, as_config
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.diffusion.conditions import Attributes, drop_apart
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.sight import Distilled, distilling_loss
from facetransport.evaluation.readers import MIRRORED
from facetransport.generation import Model, load_model
from facetransport.papers.id3 import Adjustment, Decoded, loss
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig, resident

SIGHT = {"width": 128, "depth": 3}


def recipe(profile: Profile, **changes: Any) -> Recipe:
    """The trained denoiser: stage ``id3``. changes: fields of the profile's section, for networks to compare with."""
    section = replace(profile.id3, **changes)
    sight = [sight_recipe(profile)] if section.sight == "distilled" else _white_box(profile)
    begins = [idiff_face.recipe(profile, cpd=section.cpd)] * (section.begins == "idiff_face")
    upstream = (roles.recipe(profile, "generator"), idiff_face.training_data(profile), *begins, *sight)
    return Recipe("id3", as_config(section), partial(_make, section), upstream=upstream, collective=True)


def sight_recipe(profile: Profile) -> Recipe:
    """The cheap sight: trained on codes and their contexts."""
    section = profile.id3
    config = SIGHT | {"steps": section.steps, "batch": section.batch, "lr": section.lr, "seed": section.seed}
    upstream = (idiff_face.training_data(profile),)
    return Recipe("id3.sight", config, partial(_make_sight, config), upstream=upstream, collective=True)


def recipes(profile: Profile) -> list[Recipe]:
    """What a profile trains once and can ship."""
    return [recipe(profile), sight_recipe(profile)]


def _white_box(profile: Profile) -> list[Recipe]:
    return [recognisers.recipe(profile), *autoencoder.recipes(profile)]


def load(profile: Profile, store: Store, **changes: Any) -> Model:
    """The model of a profile: shipped, cached, or trained now. It is adjusted by the published sight, whatever it was
    trained with. Arguments as for ``recipe``."""
    path = store.get(recipe(profile, **changes)) / MODEL
    model = load_model(path, autoencoder.load_autoencoder(profile, store))
    return adjusted(model, load_sight(profile, store), profile.id3_set.exact)


def adjusted(model: Model, sight: Decoded | Distilled, exact: bool = True) -> Model:
    """A model whose score can be adjusted by a sight, on this machine's device."""
    return replace(model, adjustment=Adjustment(sight, model.context_dim, exact)).to(device())


def load_sight(profile: Profile, store: Store) -> Decoded:
    """f of the decoded image: the reference."""
    code = autoencoder.load_autoencoder(profile, store).code
    return Decoded(code, recognisers.load_reference(profile, store)).to(device())


def load_distilled(profile: Profile, store: Store) -> Distilled:
    """The reader of codes."""
    return _read_distilled(store.get(sight_recipe(profile)))


def attributes_of(model: Model) -> Attributes:
    """The second condition of a trained model."""
    return Attributes(**{name: tuple(value) for name, value in model.metadata["attributes"].items()})


# ------------------------------------------------------------------------------------------------------------- training


def _make(section: ID3, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train into ``folder``; continues an interrupted attempt."""
    people, data, *rest = upstream
    begins, rest = (rest[0], rest[1:]) if section.begins == "idiff_face" else (None, rest)
    sight = _read_distilled(rest[0]) if section.sight == "distilled" else _read_decoded(rest)
    tensors = load_file(data / "data.safetensors")
    attributes, encoded = encoded_twice(FaceSet.load(people), section.attributes)
    config = network_config(
        section, tensors["latents"].shape[1:], tensors["contexts"].shape[1], attributes=attributes.size
    )
    codes, conditions = (
        resident(part, device()) for part in (tensors["latents"], torch.cat([tensors["contexts"], encoded], dim=1))
    )
    trained = loss_of(section, codes, conditions, sight, tensors["contexts"].shape[1])
    facts = {"data": data.name, "attributes": vars(attributes)}
    first = None if begins is None else read_model(begins / MODEL)[0]
    fit_denoiser(section, config, trained, len(codes), folder, first, **facts)


def loss_of(section: ID3, codes: Tensor, conditions: Tensor, sight: Decoded | Distilled, dim: int) -> Any:
    """Equation (3) as a section asks for it."""
    drop = partial(
        drop_apart,
        dim=dim,
        embedding=section.context_drop,
        together=section.attributes_drop,
        each=section.attribute_drop,
    )
    return loss(
        codes,
        conditions,
        drop,
        sight,
        dim,
        Schedule(section.timesteps, section.schedule),
        section.identity_weight,
        section.identity_rows,
        section.reconstruction,
        section.clip,
    )


def encoded_twice(faces: FaceSet, names: tuple[str, ...]) -> tuple[Attributes, Tensor]:
    """The attributes of all images, then of all mirror images."""
    attributes = Attributes.fitted(faces.table, names)
    values = {name: faces.table[name].to_numpy(np.float64) for name in names}
    mirror = {name: -column if name in MIRRORED else column for name, column in values.items()}
    return attributes, torch.cat([attributes.encode(told, len(faces)) for told in (values, mirror)])


def _read_decoded(folders: list[Path]) -> Decoded:
    reference, *code = folders
    return Decoded(autoencoder.load_folders(code).code, recognisers.read(reference)).to(device())


def _read_distilled(folder: Path) -> Distilled:
    tensors, metadata = read_model(folder / MODEL)
    network = Distilled(**metadata["config"])
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device())


def _make_sight(config: dict[str, Any], folder: Path, upstream: tuple[Path, ...]) -> None:
    data = load_file(upstream[0] / "data.safetensors")
    codes, contexts = (resident(data[name], device()) for name in ("latents", "contexts"))
    about: dict[str, Any] = {"shape": list(codes.shape[1:]), "dim": contexts.shape[1], **SIGHT}
    with seeded(config["seed"]):
        network = Distilled(**about)
    training = TrainingConfig(
        config["steps"], config["batch"], config["lr"], config["seed"], warmup=50, decay="cosine", bf16=True
    )
    fit(network, distilling_loss(codes, contexts), len(codes), training, folder, config=about)
