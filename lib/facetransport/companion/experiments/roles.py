"""Who plays a role of a profile: rendered people, or photographs that the user has imported (``import-faces``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.profiles import Profile, Role, as_config
from facetransport.data.faceset import FaceSet, save_table
from facetransport.files import file_digest
from facetransport.world import rendered

EVEN = ("val", "test", "authentic", "gallery")  # roles whose people have equally many images; the others take all
CHUNK = 1024  # images copied at a time


def recipe(profile: Profile, role: str) -> Recipe:
    """The FaceSet of a role: rendered, unless the profile's ``photographs`` name a folder for it.

    A folder is known by its contents, not by its place: its table's digest, and the shape of its images.
    """
    if role not in profile.photographs:
        return rendered.recipe(profile, role)
    folder, asked = _folder(profile, role), profile.rendered.roles[role]
    shape = list(_open(profile, role).images.shape)
    config = {"table": file_digest(folder / "table.npz"), "images": shape}
    config |= as_config(asked) if role in EVEN else {}
    return Recipe(f"photographs.{role}", config, partial(_take, folder, role, asked))


def load(profile: Profile, role: str, store: Store) -> FaceSet:
    """The FaceSet of a role, rendered or taken over if it is not there yet."""
    return FaceSet.load(store.get(recipe(profile, role)))


def glimpse(profile: Profile, role: str, rows: Sequence[int], store: Store) -> FaceSet:
    """Some rows of a role's FaceSet, without rendering the rest."""
    if role not in profile.photographs:
        return rendered.glimpse(profile, role, rows, store)
    return load(profile, role, store).select(np.asarray(rows))


def identities(profile: Profile, role: str) -> int:
    """How many people a role has."""
    if role not in profile.photographs or role in EVEN:
        return profile.rendered.roles[role].identities
    return len(np.unique(_open(profile, role).identity))


def _folder(profile: Profile, role: str) -> Path:
    return Path(profile.photographs[role]).expanduser().absolute()


def _open(profile: Profile, role: str) -> FaceSet:
    """The folder's FaceSet; ValueError where its images are not of the profile's size."""
    faces, size = FaceSet.load(_folder(profile, role)), profile.rendered.size
    if faces.images.shape[1:3] != (size, size):
        raise ValueError(
            f"photographs.{role}: expected images of {size} x {size} pixels (rendered.size), got "
            f"{faces.images.shape[2]} x {faces.images.shape[1]}; import them again with --size {size}"
        )
    return faces


def _take(source: Path, role: str, asked: Role, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Copy the role's rows; ``view`` counts the images of a person, as in rendered sets."""
    del upstream
    faces = FaceSet.load(source)
    rows = even_rows(faces.identity, role, asked) if role in EVEN else np.arange(len(faces))
    table = faces.table.iloc[rows].reset_index(drop=True)
    save_table(table.assign(view=table.groupby("identity").cumcount()), folder / "table.npz")
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(rows), *faces.images.shape[1:]))
    for i in range(0, len(rows), CHUNK):
        images[i : i + CHUNK] = faces.images[rows[i : i + CHUNK]]
    images.flush()


def even_rows(identity: np.ndarray, role: str, asked: Role) -> np.ndarray:
    """int (identities x views,): the first images of the first people who have enough of them, person by person."""
    people, counts = np.unique(identity, return_counts=True)
    enough = people[counts >= asked.views][: asked.identities]
    if len(enough) < asked.identities:
        raise ValueError(
            f"photographs.{role}: expected {asked.identities} people with {asked.views} photographs each "
            f"(rendered.roles.{role}), got {len(enough)}; ask for fewer, or import more"
        )
    return np.concatenate([np.flatnonzero(identity == person)[: asked.views] for person in enough])
