"""Authentic people drawn again: how much of what synthetic people cost is the code's, and how much the generator's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from facetransport.companion.artifacts import Recipe
from facetransport.companion.experiments import autoencoder, id3, roles
from facetransport.companion.experiments.attributes import attributes_of
from facetransport.companion.profiles import ID3Set, Profile
from facetransport.data.faceset import FaceSet, save_table, to_uint8
from facetransport.data.shards import TABLE
from facetransport.generation import CHUNK, generate_into
from facetransport.recognition.recogniser import embed_faceset


def decoded_recipe(profile: Profile) -> Recipe:
    """The ``authentic`` images, encoded and decoded."""
    upstream = (roles.recipe(profile, "authentic"), *autoencoder.recipes(profile))
    return Recipe("redrawn.decoded", {}, _make_decoded, upstream=upstream)


def redrawn_recipe(profile: Profile) -> Recipe:
    """An image by ID3's network for each ``authentic`` one, of its own embedding, age and pose: people are as real as
    can be, and everything else is as in ID3's sets."""
    section, seed = profile.id3_set, profile.generation.seed
    config = id3.how(section) | {"slope": section.slope, "sight": section.sight, "seed": seed}
    upstream = (roles.recipe(profile, "authentic"), *id3.drawn_by(profile, section))
    return Recipe("redrawn.contexts", config, partial(_make_redrawn, section, seed), upstream=upstream)


def _make_decoded(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, code = FaceSet.load(upstream[0]), autoencoder.load_folders(upstream[1:])
    parts = [slice(i, i + CHUNK) for i in range(0, len(faces), CHUNK)]
    images = [to_uint8(code.decode(code.encode_faceset(faces.select(part)))) for part in parts]
    FaceSet(np.concatenate(images), faces.table).save(folder)


def _make_redrawn(section: ID3Set, seed: int, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, (model, reference) = FaceSet.load(upstream[0]), id3.read_drawing(section, upstream[1:])
    y = torch.from_numpy(embed_faceset(reference, faces))
    attributes = attributes_of(model)
    told = {name: faces.table[name].to_numpy(np.float64) for name in attributes.names}
    encoded = attributes.encode(told, len(faces)) if section.attributes else None
    drawn = generate_into(folder, model, y, 1, seed, attributes=encoded, **id3.how(section))
    assert drawn is not None  # not shared
    save_table(drawn.table.assign(identity=faces.identity), folder / TABLE)
