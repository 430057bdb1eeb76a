"""Rendered people: the embedded data of the project. Real heads in shape, procedural in everything else, attributes
exactly known.

An image is a pure function of (world seed, identity index, view index). Splits are ranges of identity indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.transform import SimilarityTransform

from facetransport.data import shards
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet, concatenate
from facetransport.data.template import template
from facetransport.world import people
from facetransport.world.geometry import Mesh, MeshBuilder
from facetransport.world.head import ANCESTRIES, Head

SHARD = 256  # images per shard: what a killed run can lose
_GAMMA = 1 / 1.15


@dataclass(frozen=True)
class Frame:
    """Image plane of a view: ``pixel = (plane @ matrix.T + shift)`` maps the plane through the face to -1..1."""

    rotation: np.ndarray  # (3, 3): head to camera
    centre: np.ndarray
    to_plane: np.ndarray  # (2, 3): affine, from image coordinates in -1..1 to the plane
    landmarks: np.ndarray  # (5, 2) in -1..1


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Head-to-camera rotation for angles in degrees: yaw about z, then pitch about x, then roll about the view axis."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(np.deg2rad([yaw, pitch, roll])), np.sin(np.deg2rad([yaw, pitch, roll]))
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return about_y @ about_x @ about_z


def frame(mesh: Mesh, view: people.View) -> Frame:
    """Point the camera: five landmarks, projected in perspective, land on the template as well as a similarity can do
    it."""
    turn = rotation(view.yaw, view.pitch, view.roll)
    centre = mesh.landmarks[:2].mean(0) + (0, 0.05, -0.03)
    seen = (mesh.landmarks - centre) @ turn.T
    plane = seen[:, [0, 2]] * (1, -1) * (view.distance / (seen[:, 1:2] + view.distance))
    fit = SimilarityTransform.from_estimate(template(2.0) - 1, plane).params
    jitter = np.array([[view.zoom, 0, view.shift[0]], [0, view.zoom, view.shift[1]], [0, 0, 1]])
    to_plane = fit @ jitter
    landmarks = (np.c_[plane, np.ones(5)] @ np.linalg.inv(to_plane).T)[:, :2]
    return Frame(turn, centre, to_plane[:2], landmarks)


class Renderer:
    """Renders people. One per process; holds the head, the mesh topology and the rasteriser."""

    def __init__(self, head: Head, world_seed: int, size: int, supersampling: int, device: str | None = None):
        from facetransport.world.rasteriser import Rasteriser  # warp starts here, not when the package is imported

        self.world_seed, self.size, self.supersampling = world_seed, size, supersampling
        self.builder = MeshBuilder(head)
        self._rasteriser = Rasteriser(
            self.builder.faces, self.builder.materials, self.builder.masks, self._unfolded, device
        )

    @property
    def head(self) -> Head:
        return self.builder.head

    @cached_property
    def _unfolded(self) -> np.ndarray:
        """Points of somebody with long hair, a bun's place taken by the crown, and glasses: where the BVH is built."""
        candidates = (self.person(i) for i in range(1_000_000))
        person = next(p for p in candidates if p.style == "long_straight" and p.glasses is not None)
        views = (people.draw_view(self.world_seed, person, k) for k in range(1_000))
        return self.mesh(person, next(v for v in views if v.glasses)).points

    def person(self, index: int) -> people.Identity:
        return people.draw_identity(self.world_seed, index, self.head.local_names)

    def mesh(self, person: people.Identity, view: people.View) -> Mesh:
        return self.meshes([(person, view)])[0]

    def meshes(self, subjects: Sequence[tuple[people.Identity, people.View]]) -> list[Mesh]:
        weights = np.stack([self.builder.weights(*s) for s in subjects])
        bare = self.head.vertices([p.macro for p, _ in subjects], weights)
        return [self.builder.build(v, *s) for v, s in zip(bare, subjects, strict=True)]

    def render(self, pairs: Sequence[tuple[int, int]]) -> FaceSet:
        """Images of (identity index, view index) pairs with everything known about them."""
        persons = {i: self.person(i) for i, _ in pairs}
        subjects = [(persons[i], people.draw_view(self.world_seed, persons[i], k)) for i, k in pairs]
        images, rows = [], []
        for (person, view), (_, k), mesh in zip(subjects, pairs, self.meshes(subjects), strict=True):
            aim = frame(mesh, view)
            images.append(self._photograph(person, view, k, mesh, aim))
            rows.append(describe(person, view, k, (aim.landmarks + 1) * self.size / 2))
        return FaceSet(np.stack(images), pd.DataFrame(rows))

    def _photograph(self, person: people.Identity, view: people.View, k: int, mesh: Mesh, aim: Frame) -> np.ndarray:
        look = look_of(person, view, self.head, aim)
        linear = self._rasteriser(mesh.points, mesh.normals, mesh.canonical, look, self.size, self.supersampling)
        noise = np.random.default_rng(np.random.SeedSequence((self.world_seed, person.index, k + 1, 1)))
        return develop(linear, view, noise)


def look_of(person: people.Identity, view: people.View, head: Head, aim: Frame):
    """The kernel's ``Look`` of a person in a view; camera and lights are turned into the head's frame."""
    import warp as wp

    from facetransport.world.rasteriser import Look

    back = aim.rotation.T
    to_head = lambda x: wp.vec3(*(back @ np.asarray(x, float)))  # noqa: E731
    (ax, bx, cx), (ay, by, cy) = aim.to_plane
    left, right = head.eye_centres
    brow, beard = person.brow, person.beard
    values = dict(
        skin=person.skin, lips=person.lips, hair=person.hair, iris=person.iris, eyeshadow=person.eyeshadow,
        glasses=person.glasses_colour, clothes=person.clothes, phase=person.phase, left_eye=left, right_eye=right,
        brow_shape=(brow["thickness"], brow["arch"], brow["angle"]),
        brow_place=(brow["length"], brow["height"], brow["offset"]), brow_density=brow["density"],
        beard=(beard["jaw"], beard["moustache"], beard["chin"]), beard_top=beard["top"],
        hairline=(person.hairline, person.temple, person.fringe), hair_cover=people.HAIR_STYLES[person.style].cover,
        curtain=float(people.HAIR_STYLES[person.style].length is not None),
        hair_curl=people.HAIR_STYLES[person.style].curl, strands=person.strands, makeup=person.makeup,
        blush=person.blush,
        bags=person.bags, freckles=person.freckles, wrinkles=person.wrinkles, gloss=person.gloss,
        key=view.key, fill=view.fill, ambient=view.ambient, background_a=view.background[0],
        background_b=view.background[1], background_angle=view.background_angle,
        background_texture=view.background_texture, background_phase=view.phase,
    )  # fmt: skip
    look = Look()
    for name, value in values.items():
        setattr(look, name, float(value) if np.ndim(value) == 0 else wp.vec3(*map(float, value)))
    look.moles = wp.mat33(*person.moles.ravel().tolist())
    look.origin = wp.vec3(*(back @ (0, -view.distance, 0) + aim.centre))
    look.right, look.down = to_head((ax, 0, -ay)), to_head((bx, 0, -by))
    look.centre = wp.vec3(*(back @ (cx, 0, -cy) + aim.centre))
    look.light, look.fill_light, look.up = to_head(view.light), to_head(view.fill_light), to_head((0, 0, 1))
    return look


def develop(linear: np.ndarray, view: people.View, rng: np.random.Generator) -> np.ndarray:
    """The camera: white balance, exposure, shoulder, colour, blur and noise; linear float (H, W, 3) -> uint8."""
    light = linear * view.tint * view.exposure
    light = np.where(light < 0.75, light, 0.75 + 0.25 * np.tanh((light - 0.75) / 0.25))
    grey = light.mean(-1, keepdims=True)
    light = grey + view.saturation * (light - grey)
    sigma = view.blur * len(linear) / 64
    light = gaussian_filter(light, (sigma, sigma, 0)) if sigma > 0.2 else light
    image = np.clip(light, 0, 1) ** _GAMMA + rng.normal(0, view.noise, light.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def describe(person: people.Identity, view: people.View, k: int, landmarks: np.ndarray) -> dict:
    """One row of the table: identity, view, numbers, landmarks in pixels, attributes."""
    numbers = dict(identity=person.index, view=k, age=person.age, yaw=view.yaw, pitch=view.pitch, roll=view.roll)
    shape = {a: person.macro[a] for a in ANCESTRIES} | {"weight": person.macro["weight"], "melanin": person.melanin}
    text = dict(hair_style=person.style, hair_colour=person.hair_colour, eye_colour=person.eye_colour)
    points = dict(zip(LANDMARK_COLUMNS, landmarks.astype(np.float32).ravel(), strict=True))
    return numbers | shape | text | points | people.identity_attributes(person) | people.view_attributes(person, view)


def attribute_names(table: pd.DataFrame) -> list[str]:
    """Names of the binary attributes of a table."""
    return [str(c) for c in table if table[c].dtype == bool]


def attributes(pairs: Sequence[tuple[int, int]], head: Path, world_seed: int) -> pd.DataFrame:
    """The binary attributes of (identity, view) pairs, row by row, without rendering them (about 1 ms each)."""
    local_names = Head.load(head).local_names
    person = lru_cache(maxsize=1)(lambda i: people.draw_identity(world_seed, i, local_names))
    return pd.DataFrame(
        [
            people.identity_attributes(person(i))
            | people.view_attributes(person(i), people.draw_view(world_seed, person(i), k))
            for i, k in pairs
        ]
    )


def render_shards(
    pairs: Sequence[tuple[int, int]],
    out: Path,
    head: Path,
    world_seed: int,
    size: int,
    supersampling: int,
    workers: int | None = None,
) -> None:
    """Render pairs into ``out`` as a FaceSet: in shards on every core, each written whole or not at all, then joined.

    A shard that is already there is kept: an interrupted run goes on where it stopped. Memory does not grow with
    ``len(pairs)``.
    """
    if not pairs:
        raise ValueError("pairs: expected at least one (identity, view) pair, got none; check identities and views")
    parts = [pairs[i : i + SHARD] for i in range(0, len(pairs), SHARD)]
    make = partial(_render_part, head, world_seed, size, supersampling)
    shards.build(out, parts, [len(p) for p in parts], make, workers, f"rendering {out.name}")


def _render_part(
    head: Path, world_seed: int, size: int, supersampling: int, pairs: Sequence[tuple[int, int]]
) -> FaceSet:
    renderer = _renderer(head, world_seed, size, supersampling)
    return concatenate([renderer.render(pairs[i : i + 32]) for i in range(0, len(pairs), 32)])


@lru_cache(maxsize=1)
def _renderer(head: Path, world_seed: int, size: int, supersampling: int) -> Renderer:
    """The renderer of this process."""
    return Renderer(Head.load(head), world_seed, size, supersampling)
