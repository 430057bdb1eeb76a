"""From a person and a view to triangles: the head with its hair, beard, bun and glasses, always with the same topology.

One topology means one BVH that is refitted, never rebuilt. What a person does not have is folded to a point inside
the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse

from facetransport.world.head import GLASSES, HAIR, LEFT_EYE, RIGHT_EYE, TEETH, Head, corner_sum, smoothstep
from facetransport.world.people import HAIR_STYLES, Identity, View

_COLUMNS, _ROWS = 48, 18  # vertices of the curtain of hair, around and down
_RIM, _TUBE = 24, 5  # vertices around a lens and around its wire
_CROWN = np.array([0.0, -0.055, 0.755])  # centre of the curtain of hair, template frame


def _grid(columns: int, rows: int, wrap: bool = False) -> np.ndarray:
    index = np.arange(columns * rows).reshape(columns, rows)
    index = np.concatenate([index, index[:1]]) if wrap else index
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    return np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)


def _tube_faces(length: int, closed: bool) -> np.ndarray:
    index = np.arange(length * _TUBE).reshape(length, _TUBE)
    index = np.concatenate([index, index[:, :1]], 1)
    index = np.concatenate([index, index[:1]]) if closed else index
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    return np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)


def _tube(path: np.ndarray, radius: float, closed: bool) -> np.ndarray:
    """Vertices of a tube of ``_TUBE`` sides around a path (P, 3)."""
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    side = np.cross(ahead, (0.1, 1.0, 0.2))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    up = np.cross(ahead, side)
    angle = np.arange(_TUBE) / _TUBE * 2 * np.pi
    ring = np.cos(angle)[None, :, None] * side[:, None] + np.sin(angle)[None, :, None] * up[:, None]
    return (path[:, None] + radius * ring).reshape(-1, 3)


def hairline_mask(points: np.ndarray, hairline: float, temple: float) -> np.ndarray:
    """0..1: whether hair grows at canonical points (..., 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    corner = temple * smoothstep(-y, 0.07, 0.12) * smoothstep(np.abs(x), 0.03, 0.06) * 0.02
    return smoothstep(z + 0.9 * y - corner - (0.676 + hairline), -0.002, 0.004)


@dataclass(frozen=True)
class Mesh:
    """points, normals, canonical (V, 3) float32 in the head's frame; landmarks (5, 3) in the order of
    ``faceset.LANDMARKS``.

    canonical: where on the template a vertex's texture lives.
    """

    points: np.ndarray
    normals: np.ndarray
    canonical: np.ndarray
    landmarks: np.ndarray


class MeshBuilder:
    """Builds meshes of one topology on a sliced head."""

    def __init__(self, head: Head):
        self.head = head
        ring, temple, bridge = _tube_faces(_RIM, True), _tube_faces(3, False), _tube_faces(3, False)
        parts = [(head.faces, None), (_grid(_COLUMNS, _ROWS), HAIR), (_grid(12, 8, wrap=True), HAIR)]
        parts += [(f, GLASSES) for f in (ring, temple, ring, temple, bridge)]
        sizes = [len(head.template), _COLUMNS * _ROWS, 12 * 8] + [k * _TUBE for k in (_RIM, 3, _RIM, 3, 3)]
        starts = np.cumsum([0, *sizes])
        self.faces = np.concatenate([f + s for (f, _), s in zip(parts, starts, strict=False)]).astype(np.int32)
        extra = [np.full(len(f), m, np.int32) for f, m in parts[1:]]
        self.materials = np.concatenate([head.materials, *extra])
        self.vertex_count = int(starts[-1])
        self._extra_faces = self.faces[len(head.faces) :] - len(head.template)
        self._extra_scatter = corner_sum(self._extra_faces, self.vertex_count - len(head.template))

    @cached_property
    def masks(self) -> np.ndarray:
        """float32 (V, 2): lip and ear weights."""
        masks = np.zeros((self.vertex_count, 2), np.float32)
        masks[: len(self.head.template)] = np.stack([self.head.lip_weight, self.head.ear_weight], 1)
        return masks

    def weights(self, person: Identity, view: View) -> np.ndarray:
        return self.head.shape_weights(person.local, view.actions)

    def build(self, vertices: np.ndarray, person: Identity, view: View) -> Mesh:
        """The mesh of a person whose bare head is ``vertices`` (V, 3)."""
        head = self.head
        v = vertices.copy()
        teeth = head.material_vertices(TEETH)
        v[teeth] = v[teeth] * (0.92, 1, 1) + (0, 0.004, 0)  # set back: extreme mouths would show them at the corners
        left, right = (v[head.material_vertices(m)].mean(0) for m in (LEFT_EYE, RIGHT_EYE))
        corners = head.mouth_corners
        landmarks = np.stack([right, left, v[head.nose_tip], v[corners[1]], v[corners[0]]])
        bare = vertex_normals(v, head.faces, head.scatter)
        v = v + bare * self._hair_thickness(person)[:, None]
        v = v + bare * self._beard_thickness(person)[:, None]
        offset = (left + right) / 2 - head.eye_centres.mean(0)
        inside = (left + right) / 2 + (0, 0.06, 0)
        extra = [
            self._curtain(v, person, offset, inside),
            self._bun(v, person, inside),
            self._glasses(v, person, view, left, right, inside),
        ]
        extra_points = np.concatenate(extra).astype(np.float32)
        normals = [
            vertex_normals(v, head.faces, head.scatter),
            vertex_normals(extra_points, self._extra_faces, self._extra_scatter),
        ]
        points = np.concatenate([v.astype(np.float32), extra_points])
        canonical = np.concatenate([head.template, extra_points - offset]).astype(np.float32)
        return Mesh(points, np.concatenate(normals).astype(np.float32), canonical, landmarks)

    @cached_property
    def _scalp(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where hair may thicken the head, how near the top a vertex is (0..1), and a bumpy pattern for curls."""
        x, y, z = self.head.template.T
        allowed = self.head.skin_mask * (1 - self.head.ear_weight) * (z > 0.62)
        bumps = np.sin(x * 190) * np.sin(y * 170) + np.sin(z * 180 + x * 60)
        return allowed, smoothstep(z, 0.715, 0.80), bumps

    def _hair_thickness(self, person: Identity) -> np.ndarray:
        style = HAIR_STYLES[person.style]
        allowed, top, bumps = self._scalp
        x, y, z = self.head.template.T
        line = hairline_mask(self.head.template, person.hairline, person.temple)
        inner = smoothstep(z + 0.9 * y - 0.676 - person.hairline, -0.004, 0.030)  # thin at the hairline, no step there
        profile = style.sides + (1 - style.sides) * top
        side = 1 + 0.35 * style.parting * np.tanh((x - 0.02) * 80)
        quiff = 1 + 0.8 * (person.style == "quiff") * smoothstep(-y, 0.05, 0.13)
        shape = profile * side * quiff * (1 + 0.30 * style.curl * bumps + 0.05 * np.sin(x * 150 + person.phase[0]))
        fringe = 0.004 * (z > person.fringe - 0.004) * (y < -0.06) * (person.fringe < 1)
        return allowed * np.maximum(line * (0.25 + 0.75 * inner) * style.thickness * shape, fringe)

    @cached_property
    def _jaw(self) -> np.ndarray:
        x, y, z = self.head.template.T
        return (
            self.head.skin_mask
            * smoothstep(0.668 - z, 0, 0.016)
            * smoothstep(z, 0.592, 0.615)
            * smoothstep(-y, 0.05, 0.08)
        )

    def _beard_thickness(self, person: Identity) -> np.ndarray:
        x, _, z = self.head.template.T
        beard = person.beard
        density = np.maximum(beard["jaw"], beard["chin"] * (np.abs(x) < 0.028))
        bumps = 1 + 0.25 * np.sin(x * 420 + person.phase[1]) * np.sin(z * 380)
        return self._jaw * (1 - self.head.lip_weight) * density * beard["length"] * bumps

    def _curtain(self, v: np.ndarray, person: Identity, offset: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Long hair: a surface from crown to tips around the back of the head, open in front."""
        if HAIR_STYLES[person.style].length is None:
            return np.tile(inside, (_COLUMNS * _ROWS, 1))
        c = person.curtain
        band = self.head.skin_mask & (self.head.ear_weight < 0.1) & (np.abs(self.head.template[:, 2] - 0.74) < 0.03)
        wide = np.abs(v[band, 0]).max() / np.abs(self.head.template[band, 0]).max()
        tall = (v[:, 2].max() - offset[2]) - self.head.template[:, 2].max()
        deep = (v[band, 1].max() - offset[1]) - self.head.template[band, 1].max()
        around = np.linspace(c["opening"], 2 * np.pi - c["opening"], _COLUMNS)[:, None]
        top = 0.846 + max(tall, 0.0)
        z = top + (c["length"] - top) * np.linspace(0, 1, _ROWS)[None] ** 1.1
        dome = np.sqrt(np.clip(1 - np.clip((z - _CROWN[2]) / (top - _CROWN[2] + 0.006), 0, 1) ** 2, 0, 1))
        tips = 1 - 0.12 * smoothstep(-z, -0.62, -0.54)
        wave = c["wave"] * np.sin(around * c["frequency"] * 3 + z * 95 + person.phase[2]) + 0.0012 * np.sin(around * 41)
        wave = wave * smoothstep(-z, -0.80, -0.72)
        rx = (0.0835 * wide + c["fullness"]) * dome * tips + wave
        ry = (0.098 + max(deep, 0.0) + c["fullness"]) * dome * tips + wave
        points = np.stack([rx * np.sin(around), _CROWN[1] - ry * np.cos(around), z + 0 * around], -1)
        return points.reshape(-1, 3) + offset

    def _bun(self, v: np.ndarray, person: Identity, inside: np.ndarray) -> np.ndarray:
        if not HAIR_STYLES[person.style].bun:
            return np.tile(inside, (12 * 8, 1))
        top = v[v[:, 2].argmax()]
        centre, radius = top + (0, 0.035, 0.012), 0.026 + 0.010 * person.strands
        around = np.arange(12)[:, None] / 12 * 2 * np.pi
        up = np.linspace(-np.pi / 2, np.pi / 2, 8)[None]
        points = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up) + 0 * around], -1)
        return (centre + radius * points).reshape(-1, 3)

    def _glasses(
        self, v, person: Identity, view: View, left: np.ndarray, right: np.ndarray, inside: np.ndarray
    ) -> np.ndarray:
        g = person.glasses
        if g is None or not view.glasses:
            return np.tile(inside, ((2 * _RIM + 9) * _TUBE, 1))
        angle = np.linspace(0, 2 * np.pi, _RIM, endpoint=False)
        cos, sin = (np.sign(f) * np.abs(f) ** (2 / g["square"]) for f in (np.cos(angle), np.sin(angle)))
        skin = v[self.head.skin_mask]
        front = [
            skin[(np.abs(skin[:, 0] - e[0]) < 0.02) & (np.abs(skin[:, 2] - e[2]) < 0.02), 1].min()
            for e in (left, right)
        ]
        y, tubes = min(front) - 0.003, []
        for eye in (left, right):
            side, x = np.sign(eye[0]), eye[0] * 1.06
            rim = np.stack([x + g["width"] * cos, np.full(_RIM, y), eye[2] - 0.003 + g["height"] * sin], -1)
            hinge = np.array([x + side * g["width"], y, eye[2] + 0.003])
            ear = np.array([side * 0.084, eye[1] + 0.07, eye[2] + 0.004])
            temple = np.stack([hinge, hinge + (side * 0.004, 0.006, 0), ear])
            tubes += [_tube(rim, g["wire"], True), _tube(temple, g["wire"], False)]
        ends = [np.array([e[0] * 1.06 - np.sign(e[0]) * g["width"], y, e[2] + 0.002]) for e in (left, right)]
        bridge = np.stack([ends[0], (ends[0] + ends[1]) / 2 + (0, -0.004, 0.003), ends[1]])
        return np.concatenate([*tubes, _tube(bridge, g["wire"], False)])


def vertex_normals(points: np.ndarray, faces: np.ndarray, scatter: scipy.sparse.csr_matrix) -> np.ndarray:
    """(V, 3): area-weighted normals, unit length; zero where a part is folded to a point."""
    a, b, c = faces.T
    (ux, vx), (uy, vy), (uz, vz) = (
        (p.take(b) - p.take(a), p.take(c) - p.take(a)) for p in np.ascontiguousarray(points.T)
    )
    cross = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx  # axis by axis: np.cross takes four times as long
    normals = np.stack([scatter @ x for x in cross], 1)
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)
