"""ID3's networks and labelled sets, as a profile asks for them (`facetransport.papers.id3`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pandas as pd
import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from facetransport import devices, files
from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import autoencoder, idiff_face, recognisers, roles
from facetransport.companion.experiments.attributes import attributes_of, encoded_twice
from facetransport.companion.experiments.fitting import MODEL, fit, fit_denoiser, network_config
from facetransport.companion.profiles import ID3, ID3Set, Profile, as_config
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.diffusion.conditions import Attributes, drop_apart
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.sight import Distilled, distilling_loss
from facetransport.generation import Model, generate_into, load_model
from facetransport.papers.id3 import (
    Adjustment,
    Decoded,
    Slope,
    anchors,
    around,
    drawn_rows,
    empirical,
    loss,
    random_anchors,
)
from facetransport.papers.idiff_face import fit_plda
from facetransport.recognition.plda import Plda
from facetransport.recognition.recogniser import Recogniser
from facetransport.recognition.tammes import sweeps
from facetransport.tensors import read_model, seeded
from facetransport.training import Loss, TrainingConfig, resident

TAMMES = "tammes.json"
SIGHT = {"width": 64, "depth": 2}


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
    how_long = {"steps": section.sight_steps, "batch": (section.batch + 1) // 2, "lr": 2 * section.lr}
    config = SIGHT | how_long | {"seed": section.seed}
    upstream = (idiff_face.training_data(profile),)
    return Recipe("id3.sight", config, partial(_make_sight, config), upstream=upstream, collective=True)


def recipes(profile: Profile) -> list[Recipe]:
    """What a profile trains once and can ship."""
    return [recipe(profile), sight_recipe(profile)]


def _white_box(profile: Profile) -> list[Recipe]:
    return [recognisers.recipe(profile), *autoencoder.recipes(profile)]


def load(profile: Profile, store: Store, **changes: Any) -> Model:
    """The model of a profile: shipped, cached, or trained now. It is adjusted as published: by the decoded image and
    the exact gradient. Arguments as for ``recipe``."""
    path = store.get(recipe(profile, **changes)) / MODEL
    model = load_model(path, autoencoder.load_autoencoder(profile, store))
    return adjusted(model, load_sight(profile, store))


def adjusted(model: Model, sight: Decoded | Distilled, slope: Slope = "exact") -> Model:
    """A model whose score can be adjusted by a sight, on this machine's device."""
    return replace(model, adjustment=Adjustment(sight, model.context_dim, slope)).to(device())


def load_sight(profile: Profile, store: Store) -> Decoded:
    """f of the decoded image: the reference."""
    code = autoencoder.load_autoencoder(profile, store).code
    reference = recognisers.read_white_box(store.get(recognisers.recipe(profile)))
    return Decoded(code, reference).to(device())


def load_distilled(profile: Profile, store: Store) -> Distilled:
    """The reader of codes."""
    return _read_distilled(store.get(sight_recipe(profile)))


# --------------------------------------------------------------------------------------------------- sets of new people


def tammes_recipes(profile: Profile) -> list[Recipe]:
    """How far apart points of each size can be brought: tammes.json, with the time and the memory that it took."""
    section = profile.tammes
    sizes = zip(section.sizes, section.sweeps, strict=True)
    cases: list[dict[str, Any]] = [{"n": n, "dim": section.dim, "steps": k, "seed": profile.seed} for n, k in sizes]
    return [Recipe("id3.tammes", case, partial(_make_tammes, case)) for case in cases]


def _make_tammes(case: dict[str, Any], folder: Path, upstream: tuple[Path, ...]) -> None:
    began = time.perf_counter()
    with memory_watched() as held:
        tops = [top for _, top in sweeps(**case, sharpness=(10.0, 500.0), lr=0.1)]
    machine = {"seconds": time.perf_counter() - began, "threads": torch.get_num_threads(), "peak_memory": max(held)}
    files.write_json(folder / TAMMES, case | {"max_cosine": min(tops), "random": tops[0]} | machine)


@contextmanager
def memory_watched(every: float = 0.05) -> Iterator[list[float]]:
    """MiB that this process holds, looked at every so many seconds while the block runs."""
    held, done = list[float](), Event()

    def look() -> None:
        while not done.is_set():
            held.append(psutil.Process().memory_info().rss / 2**20)
            done.wait(every)

    watch = Thread(target=look)
    watch.start()
    try:
        yield held
    finally:
        done.set()
        watch.join()


def load_tammes(profile: Profile, store: Store) -> list[dict[str, float]]:
    """The results of ``tammes_recipes``. peak_memory: MiB, of the whole process; seconds: of that machine."""
    return [json.loads((store.get(r) / TAMMES).read_text(encoding="utf-8")) for r in tammes_recipes(profile)]


def set_recipe(profile: Profile, identities: int | None = None, samples: int | None = None, **changes: Any) -> Recipe:
    """A labelled FaceSet of new people (Algorithm 3), by default as many as ``profile.generation`` says.

    changes: fields of ``profile.id3_set``, for sets to compare with. Anchors are of all people together, so a set of
    fewer identities is another set.
    """
    section, main = replace(profile.id3_set, **changes), profile.generation
    n, each = (a if b is None else b for a, b in ((main.identities, identities), (main.samples, samples)))
    config = as_config(section) | {"identities": n, "samples": each, "seed": main.seed}
    config |= {"bf16": True} if main.bf16 else {}
    del config["single_adjustment"]  # no set's
    if section.directions == "drawn":  # what a set without a word about them has
        del config["directions"]
    laws = idiff_face.training_contexts(profile), roles.recipe(profile, "val")
    make = partial(_make_set, section, n, each, main.seed, main.bf16)
    return Recipe("id3.set", config, make, upstream=(*laws, *drawn_by(profile, section)), collective=True)


def drawn_by(profile: Profile, section: ID3Set) -> list[Recipe]:
    """What a set is drawn by; `read_drawing` reads it."""
    cheap = [sight_recipe(profile)] * (section.sight == "distilled")
    return [recipe(profile), *cheap, *_white_box(profile)]


def read_drawing(section: ID3Set, folders: Sequence[Path]) -> tuple[Model, Recogniser]:
    """The adjusted model, and the recogniser whose embeddings its contexts are."""
    network, *rest = folders
    distilled, white_box = (rest[:1], rest[1:]) if section.sight == "distilled" else ([], rest)
    sight = _read_distilled(*distilled) if distilled else _read_decoded(white_box)
    model = load_model(network / MODEL, autoencoder.load_folders(white_box[1:]))
    return adjusted(model, sight, section.slope), recognisers.read(white_box[0])


def conditions(
    section: ID3Set,
    like: Plda,
    table: pd.DataFrame,
    attributes: Attributes,
    n: int,
    samples: int,
    seed: int,
    shown: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Contexts (n, samples, d) and encoded attributes (n, samples, a) of new people.

    like: of training contexts; table: of images, whose attributes are drawn; shown (len(table), d): how these images
    deviate from their people, where contexts are to vary so (`plda.deviations`).
    """
    spread, make = spread_of(section.where, like), anchors if section.anchors == "tammes" else random_anchors
    rows = drawn_rows(len(table), n * samples, seed)
    examples = None if shown is None else shown[rows].unflatten(0, (n, samples))
    y = around(make(n, len(like.mean), seed, spread), samples, section.bounds, seed, spread, examples)
    if not section.attributes:
        return y, None
    told = empirical(table, attributes.names, n * samples, seed)
    return y, attributes.encode(told, n * samples).unflatten(0, (n, samples))


def spread_of(where: str, like: Plda) -> Plda | None:
    """How anchors and contexts around them spread: "people" does not tell variation within a person from between."""
    total = like.between + like.within
    return {"sphere": None, "people": Plda(like.mean, total, total), "plda": like}[where]


def how(section: ID3Set) -> dict[str, Any]:
    """A profile's way of sampling as keyword arguments of ``generate``."""
    return {name: getattr(section, name) for name in ("solver", "steps", "guidance", "temperature", "adjustment")}


def _make_set(
    section: ID3Set, n: int, samples: int, seed: int, bf16: bool, folder: Path, upstream: tuple[Path, ...]
) -> None:
    known, val, *drawing = upstream
    (model, reference), faces = read_drawing(section, drawing), FaceSet.load(val)
    like = fit_plda(idiff_face.read_contexts(known), reference, faces)
    faces, shown = idiff_face.shown_by(reference, faces) if section.directions == "photographs" else (faces, None)
    y, told = conditions(section, like, faces.table, attributes_of(model), n, samples, seed, shown)
    generate_into(folder, model, y, samples, seed, attributes=told, **how(section), share=devices.share(), bf16=bf16)


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
    facts: dict[str, Any] = {"data": data.name, "attributes": vars(attributes)}
    first = None if begins is None else read_model(begins / MODEL)[0]
    fit_denoiser(section, config, trained, len(codes), folder, first, **facts)


def loss_of(section: ID3, codes: Tensor, conditions: Tensor, sight: Decoded | Distilled, dim: int) -> Loss:
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


def _read_decoded(folders: list[Path]) -> Decoded:
    reference, *code = folders
    return Decoded(autoencoder.load_folders(code).code, recognisers.read_white_box(reference)).to(device())


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
