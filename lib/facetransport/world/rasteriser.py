"""Rasterising and shading of one head by warp, on CPU or GPU, without a display.

A first kernel finds the triangle that each sample sees; a second averages the samples of a pixel, each shaded by a
procedural texture that lives on the template's surface (so it follows every deformation), with one shadow ray a pixel.
"""

from __future__ import annotations

import os

import numpy as np
import warp as wp

from facetransport.world import head as parts

wp.config.log_level = wp.LOG_ERROR


def _start() -> None:
    """Start warp; its native part would warn on stderr, in every process, of a machine without CUDA."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        wp.init()
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


_start()
wp.set_module_options({"enable_backward": False})

SKIN = wp.constant(parts.SKIN)
LEFT_EYE = wp.constant(parts.LEFT_EYE)
RIGHT_EYE = wp.constant(parts.RIGHT_EYE)
TEETH = wp.constant(parts.TEETH)
TONGUE = wp.constant(parts.TONGUE)
LASHES = wp.constant(parts.LASHES)
HAIR = wp.constant(parts.HAIR)
GLASSES = wp.constant(parts.GLASSES)

FACES = wp.constant(wp.int64(1 << 20))  # more than a mesh has
STEPS = wp.constant(float(1 << 30))  # distances are compared to the billionth: finer than float32
NOTHING = wp.constant(wp.int64(1 << 62))


@wp.struct
class Look:
    """Everything the kernel needs to know of a person and a view besides the mesh; colours are linear 0..1."""

    skin: wp.vec3
    lips: wp.vec3
    hair: wp.vec3
    iris: wp.vec3
    eyeshadow: wp.vec3
    glasses: wp.vec3
    clothes: wp.vec3
    moles: wp.mat33
    phase: wp.vec3
    left_eye: wp.vec3
    right_eye: wp.vec3
    brow_shape: wp.vec3  # thickness, arch, angle
    brow_place: wp.vec3  # length, height, offset
    brow_density: float
    beard: wp.vec3  # jaw, moustache, chin
    beard_top: float
    hairline: wp.vec3  # hairline, temple, fringe height
    curtain: float  # 1 with long hair, which covers the sides of the head and the ears
    hair_cover: float
    hair_curl: float
    strands: float
    makeup: float
    blush: float
    bags: float
    freckles: float
    wrinkles: float
    gloss: float
    origin: wp.vec3  # camera in the head's frame
    right: wp.vec3  # the image plane: centre, and what one unit to the right and down is
    down: wp.vec3
    centre: wp.vec3
    light: wp.vec3
    fill_light: wp.vec3
    up: wp.vec3
    key: float
    fill: float
    ambient: float
    background_a: wp.vec3
    background_b: wp.vec3
    background_angle: float
    background_texture: float
    background_phase: wp.vec3


@wp.func
def smooth(x: float, low: float, high: float):
    t = wp.clamp((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@wp.func
def bell(x: float, width: float):
    return wp.exp(-(x / width) * (x / width))


@wp.func
def waves(p: wp.vec3, phase: wp.vec3, scale: float):
    """Cheap smooth noise in -1..1."""
    q = p * scale + phase
    return wp.sin(q[0] * 1.7 + wp.sin(q[1] * 1.1)) * wp.sin(q[1] * 1.3 + q[2]) * wp.sin(q[2] * 1.9 + 0.7 * q[0])


@wp.func
def hair_grows(p: wp.vec3, look: Look):
    corner = look.hairline[1] * smooth(-p[1], 0.07, 0.12) * smooth(wp.abs(p[0]), 0.03, 0.06) * 0.02
    line = smooth(p[2] + 0.9 * p[1] - corner - (0.676 + look.hairline[0]), -0.003, 0.006)
    fringe = smooth(
        p[2] + 0.0025 * wp.sin(p[0] * 420.0 + look.phase[0]), look.hairline[2] - 0.002, look.hairline[2] + 0.004
    )
    fringe = fringe * smooth(-p[1], 0.06, 0.09)
    side = (
        look.curtain * smooth(p[1] + 0.0012 * wp.sin(p[2] * 250.0), -0.098, -0.086) * smooth(wp.abs(p[0]), 0.040, 0.052)
    )
    return wp.max(wp.max(line, fringe) * smooth(p[2], 0.600, 0.630), side)


@wp.func
def hair_colour(p: wp.vec3, look: Look):
    around = wp.atan2(p[0], -(p[1] + 0.05))
    strand = wp.sin(around * 60.0 * look.strands + 3.0 * waves(p, look.phase, 40.0) * (1.0 + 2.0 * look.hair_curl))
    lock = waves(p, look.phase, 90.0 + 160.0 * look.hair_curl)
    return look.hair * (1.0 + 0.16 * strand + (0.12 + 0.25 * look.hair_curl) * lock)


@wp.func
def brow_mask(p: wp.vec3, look: Look):
    u = (wp.abs(p[0]) - look.left_eye[0] - look.brow_place[2]) / look.brow_place[0]
    along = u * look.brow_place[0]
    middle = look.left_eye[2] + look.brow_place[1] + look.brow_shape[1] * 0.001 * (0.5 - 2.0 * (u - 0.25) * (u - 0.25))
    z = p[2] - middle - look.brow_shape[2] * along
    thickness = look.brow_shape[0] * (1.0 - 0.4 * wp.clamp(u, -1.0, 1.0))
    body = wp.exp(-wp.pow(wp.abs(z / thickness), 4.0)) * smooth(1.0 - wp.abs(u), 0.0, 0.25)
    hairs = 0.85 + 0.15 * wp.sin(p[0] * 2600.0 + p[2] * 900.0)
    return body * hairs * smooth(-p[1], 0.10, 0.11) * look.brow_density


@wp.func
def beard_mask(p: wp.vec3, look: Look):
    x = wp.abs(p[0])
    edge = look.beard_top - 0.25 * wp.max(0.0, 0.045 - x) - 0.012 * bell(x - 0.03, 0.012)
    jaw = (
        smooth(edge + 0.25 * wp.max(0.0, x - 0.048) - p[2], 0.0, 0.012)
        * smooth(-p[1], 0.045, 0.075)
        * smooth(p[2], 0.588, 0.612)
    )
    side = (
        smooth(x, 0.050, 0.060)
        * smooth(-p[1], 0.050, 0.068)
        * smooth(-p[1], 0.125, 0.100)
        * smooth(0.725 - p[2], 0.0, 0.01)
    )
    side = side * smooth(p[2], 0.62, 0.64)
    chin = (
        smooth(0.028 - x, 0.0, 0.006)
        * smooth(0.655 - p[2], 0.0, 0.006)
        * smooth(p[2], 0.595, 0.615)
        * smooth(-p[1], 0.10, 0.12)
    )
    lip = wp.exp(-wp.pow(x / 0.026, 4.0) - wp.pow((p[2] - 0.6765 + 0.10 * wp.max(0.0, x - 0.012)) / 0.0058, 4.0))
    lip = lip * smooth(-p[1], 0.115, 0.125)
    grain = 0.85 + 0.3 * waves(p, look.phase, 420.0)
    density = wp.max(wp.max(wp.max(jaw, side) * look.beard[0], chin * look.beard[2]), lip * look.beard[1])
    return wp.clamp(density * grain, 0.0, 1.0)


@wp.func
def wrinkle_mask(p: wp.vec3):
    """Where age darkens the skin: folds beside the nose, forehead lines, crow's feet, lines beside the mouth."""
    x = wp.abs(p[0])
    t = wp.clamp((0.692 - p[2]) / 0.034, 0.0, 1.0)
    fold = bell(x - (0.0195 + 0.0125 * t), 0.0022) * smooth(p[2], 0.652, 0.662) * smooth(0.696 - p[2], 0.0, 0.006)
    wobble = 0.0012 * wp.sin(p[0] * 160.0)
    lines = (
        bell(p[2] + wobble - 0.770, 0.0011) + bell(p[2] + wobble - 0.779, 0.0011) + bell(p[2] - wobble - 0.788, 0.0011)
    )
    lines = lines * smooth(0.045 - x, 0.0, 0.015)
    feet = wp.max(0.0, wp.sin(p[2] * 900.0 + (x - 0.05) * 250.0)) * bell(x - 0.0545, 0.005) * bell(p[2] - 0.727, 0.009)
    frown = bell(x - 0.0055, 0.0011) * bell(p[2] - 0.750, 0.007)
    return (0.75 * fold + 0.35 * lines + 0.30 * feet + 0.35 * frown) * smooth(-p[1], 0.085, 0.105)


@wp.func
def skin_colour(p: wp.vec3, lip: float, ear: float, look: Look):
    x = wp.abs(p[0])
    one = wp.vec3(1.0, 1.0, 1.0)
    c = look.skin * (1.0 + 0.022 * waves(p, look.phase, 60.0) + 0.016 * waves(p, look.phase, 150.0))
    red = (
        bell(x - 0.038, 0.017) * bell(p[2] - 0.690, 0.015)
        + 0.6 * bell(p[0], 0.012) * bell(p[2] - 0.695, 0.012)
        + 0.4 * ear
    )
    c = wp.cw_mul(c, one - look.blush * red * wp.vec3(0.0, 0.45, 0.38))
    c = wp.cw_mul(
        c, one - 0.8 * look.bags * bell(x - 0.029, 0.013) * bell(p[2] - 0.7125, 0.0045) * wp.vec3(0.7, 0.9, 0.8)
    )
    if look.wrinkles > 0.0:
        c = c * (1.0 - 0.45 * look.wrinkles * wrinkle_mask(p))
    if look.freckles > 0.0:
        spots = smooth(wp.sin(p[0] * 1400.0 + look.phase[0]) * wp.sin(p[2] * 1500.0 + look.phase[1]), 0.2, 0.9)
        spots = spots * smooth(-p[1], 0.11, 0.14) * bell(p[2] - 0.698, 0.022)
        c = wp.cw_mul(c, one - look.freckles * spots * wp.vec3(0.6, 0.9, 1.1))
    for k in range(3):
        r = look.moles[k, 2]
        if r > 0.0:
            d = (p[0] - look.moles[k, 0]) * (p[0] - look.moles[k, 0]) + (p[2] - look.moles[k, 1]) * (
                p[2] - look.moles[k, 1]
            )
            c = c * (1.0 - 0.65 * wp.exp(-d / (r * r)) * smooth(-p[1], 0.08, 0.09))
    if look.makeup > 0.0:
        lid = bell(x - look.left_eye[0], 0.017) * smooth(p[2], 0.7305, 0.7345) * smooth(0.7460 - p[2], 0.0, 0.006)
        shadow = 0.65 * look.makeup * lid * smooth(-p[1], 0.115, 0.125)
        c = c * (1.0 - shadow) + wp.cw_mul(look.eyeshadow, look.skin) * (1.6 * shadow)
    paint = 0.9 * wp.clamp(lip, 0.0, 1.0)
    c = c * (1.0 - paint) + look.lips * paint
    if look.beard[0] + look.beard[1] > 0.0 and p[2] < 0.73:
        beard = beard_mask(p, look) * (1.0 - wp.clamp(lip, 0.0, 1.0)) * (1.0 - ear)
        c = c * (1.0 - beard) + (look.hair * 0.8 + look.skin * 0.08) * beard
    if p[2] > 0.72 and p[2] < 0.78:
        brow = brow_mask(p, look)
        c = c * (1.0 - brow) + (look.hair * 0.75 + look.skin * 0.03) * brow
    return c


@wp.func
def eye_colour(p: wp.vec3, centre: wp.vec3, look: Look):
    r = wp.sqrt((p[0] - centre[0]) * (p[0] - centre[0]) + (p[2] - centre[2]) * (p[2] - centre[2]))
    white = wp.vec3(0.80, 0.77, 0.74) * (1.0 - 0.25 * smooth(r, 0.008, 0.012))
    ring = smooth(r, 0.0046, 0.0060)
    iris = look.iris * (1.0 - 0.55 * ring) * (1.0 + 0.2 * wp.sin(wp.atan2(p[2] - centre[2], p[0] - centre[0]) * 14.0))
    c = wp.lerp(iris, white, smooth(r, 0.0058, 0.0066))
    return wp.lerp(wp.vec3(0.015, 0.015, 0.015), c, smooth(r, 0.0021, 0.0028))


@wp.func
def background(u: float, v: float, look: Look):
    t = wp.clamp(0.5 + 0.5 * (u * wp.cos(look.background_angle) + v * wp.sin(look.background_angle)) / 1.4, 0.0, 1.0)
    q = wp.vec3(u, v, 0.5)
    texture = waves(q, look.background_phase, 2.0) + 0.6 * waves(q, look.background_phase, 5.0)
    return wp.lerp(look.background_a, look.background_b, t) * (1.0 + look.background_texture * texture)


@wp.func
def unshadowed(mesh: wp.uint64, point: wp.vec3, n: wp.vec3, look: Look):
    """1 where the key light reaches a point of the surface, else 0."""
    if wp.dot(n, look.light) <= 0.0:
        return 1.0
    blocked = wp.mesh_query_ray_anyhit(mesh, point + n * 0.003 + look.light * 0.006, look.light, 0.3)
    return wp.where(blocked, 0.0, 1.0)


@wp.func
def shade(
    lit: float,
    face: int,
    bu: float,
    bv: float,
    d: wp.vec3,
    normals: wp.array(dtype=wp.vec3),
    canonical: wp.array(dtype=wp.vec3),
    masks: wp.array(dtype=wp.vec2),
    index: wp.array(dtype=int),
    material: wp.array(dtype=int),
    look: Look,
):
    a, b, c = index[3 * face], index[3 * face + 1], index[3 * face + 2]
    w = 1.0 - bu - bv
    n = wp.normalize(normals[a] * bu + normals[b] * bv + normals[c] * w)
    if wp.dot(n, d) > 0.0:
        n = -n
    p = canonical[a] * bu + canonical[b] * bv + canonical[c] * w
    mask = masks[a] * bu + masks[b] * bv + masks[c] * w
    kind = material[face]
    hairy = float(0.0)  # warp: a variable, not a constant
    shine = look.gloss
    power = float(22.0)
    albedo = look.skin
    if kind == SKIN:
        cloth = smooth(
            0.598 + 0.10 * wp.max(0.0, wp.abs(p[0]) - 0.02) - 0.25 * wp.max(0.0, -p[1] - 0.02) - p[2], -0.002, 0.004
        )
        hairy = hair_grows(p, look) * (1.0 - mask[1] * (1.0 - look.curtain)) * look.hair_cover * (1.0 - cloth)
        if hairy < 1.0:
            albedo = skin_colour(p, mask[0], mask[1], look)
        if hairy > 0.0:
            albedo = wp.lerp(albedo, hair_colour(p, look), hairy)
        albedo = albedo * (1.0 - cloth) + look.clothes * cloth * (1.0 + 0.1 * waves(p, look.phase, 80.0))
        shine = shine * (1.0 - cloth) + 0.25 * mask[0] * look.makeup * (1.0 - cloth)
    elif kind == HAIR:
        albedo = hair_colour(p, look)
        hairy = 1.0
    elif kind == LEFT_EYE or kind == RIGHT_EYE:  # noqa: SIM109 (warp knows no `in`)
        centre = look.left_eye
        if kind == RIGHT_EYE:
            centre = look.right_eye
        albedo = eye_colour(p, centre, look)
        shine = 0.7
        power = 80.0
    elif kind == TEETH:
        albedo = wp.vec3(0.80, 0.77, 0.69)
    elif kind == TONGUE:
        albedo = wp.vec3(0.50, 0.22, 0.22)
    elif kind == LASHES:
        albedo = look.hair * 0.3
    elif kind == GLASSES:
        albedo = look.glasses
        shine = 0.5
    facing = wp.dot(n, look.light)
    direct = look.key * (0.85 * wp.max(facing, 0.0) * lit + 0.15 * wp.max((facing + 0.3) / 1.3, 0.0))
    filled = look.fill * wp.max(wp.dot(n, look.fill_light) * 0.8 + 0.2, 0.0)
    sky = look.ambient * (0.82 + 0.18 * wp.dot(n, look.up)) + 0.10 * wp.max(-wp.dot(n, d), 0.0)
    half = wp.normalize(look.light - d)
    gleam = wp.max(wp.dot(n, half), 0.0)
    spec = float(0.0)
    if lit > 0.0 and gleam > 0.7:
        spec = look.key * lit * (wp.pow(gleam, power) * shine * (1.0 - hairy) + wp.pow(gleam, 12.0) * 0.10 * hairy)
    glow = direct + filled + sky
    warm = wp.vec3(1.0, 1.0, 1.0)
    if kind == SKIN:  # light scatters red through skin where it fades
        warm = wp.vec3(1.0 + 0.06 * bell(facing - 0.1, 0.25), 1.0, 1.0)
    return wp.cw_mul(albedo, warm) * glow + wp.vec3(spec, spec, spec)


@wp.kernel
def project(points: wp.array(dtype=wp.vec3), look: Look, place: wp.array(dtype=wp.vec3)):
    """A vertex on the image plane: u and v in its units, and one over its distance in units of the plane's."""
    plane = wp.matrix_from_cols(look.right, look.down, look.centre - look.origin)
    seen = wp.inverse(plane) * (points[wp.tid()] - look.origin)
    place[wp.tid()] = wp.vec3(seen[0], seen[1], 1.0) / seen[2]


@wp.func
def sample(i: int, side: int):
    """Where the i-th of ``side`` samples lies on the image plane, -1..1."""
    return (float(i) + 0.5) / float(side) * 2.0 - 1.0


@wp.func
def opposite_areas(u: float, v: float, a: wp.vec3, b: wp.vec3, c: wp.vec3):
    """Areas of the triangles that a sample makes with bc, ca and ab, signed: of one sign inside of abc."""
    ax, ay, bx, by, cx, cy = a[0] - u, a[1] - v, b[0] - u, b[1] - v, c[0] - u, c[1] - v
    return wp.vec3(bx * cy - cx * by, cx * ay - ax * cy, ax * by - bx * ay)


@wp.func
def in_perspective(areas: wp.vec3, a: wp.vec3, b: wp.vec3, c: wp.vec3):
    """Weights of a, b and c in the point of the triangle that a sample sees, before they are divided by their sum."""
    return wp.vec3(areas[0] * a[2], areas[1] * b[2], areas[2] * c[2])


@wp.kernel
def rasterise(place: wp.array(dtype=wp.vec3), index: wp.array(dtype=int), side: int, nearest: wp.array(dtype=wp.int64)):
    """The nearest triangle of every sample of a square: its distance and its number, packed so that less is nearer."""
    face = wp.tid()
    a, b, c = place[index[3 * face]], place[index[3 * face + 1]], place[index[3 * face + 2]]
    low, high = wp.min(wp.min(a, b), c), wp.max(wp.max(a, b), c)
    half = 0.5 * float(side)
    left, right = wp.int(wp.ceil((low[0] + 1.0) * half - 0.5)), wp.int(wp.floor((high[0] + 1.0) * half - 0.5))
    top, bottom = wp.int(wp.ceil((low[1] + 1.0) * half - 0.5)), wp.int(wp.floor((high[1] + 1.0) * half - 0.5))
    for row in range(wp.max(top, 0), wp.min(bottom, side - 1) + 1):
        for column in range(wp.max(left, 0), wp.min(right, side - 1) + 1):
            areas = opposite_areas(sample(column, side), sample(row, side), a, b, c)
            area = areas[0] + areas[1] + areas[2]
            if area != 0.0 and wp.min(areas / area) >= 0.0:
                weights = in_perspective(areas, a, b, c)
                distance = area / (weights[0] + weights[1] + weights[2])
                packed = wp.int64(distance * STEPS) * FACES + wp.int64(face)
                wp.atomic_min(nearest, row * side + column, packed)


@wp.kernel
def render(
    mesh: wp.uint64,
    points: wp.array(dtype=wp.vec3),
    place: wp.array(dtype=wp.vec3),
    nearest: wp.array(dtype=wp.int64),
    normals: wp.array(dtype=wp.vec3),
    canonical: wp.array(dtype=wp.vec3),
    masks: wp.array(dtype=wp.vec2),
    index: wp.array(dtype=int),
    material: wp.array(dtype=int),
    look: Look,
    size: int,
    samples: int,
    image: wp.array(dtype=wp.vec3),
):
    tid = wp.tid()
    side = size * samples
    total = wp.vec3(0.0, 0.0, 0.0)
    lit = float(-1.0)  # one shadow ray a pixel, at its first sample that hits
    for k in range(samples * samples):
        row, column = tid // size * samples + k // samples, tid % size * samples + k % samples
        u, v = sample(column, side), sample(row, side)
        seen = nearest[row * side + column]
        if seen < NOTHING:
            face = wp.int(seen % FACES)
            d = wp.normalize(look.centre + look.right * u + look.down * v - look.origin)
            a, b, c = index[3 * face], index[3 * face + 1], index[3 * face + 2]
            areas = opposite_areas(u, v, place[a], place[b], place[c])
            weights = in_perspective(areas, place[a], place[b], place[c])
            weights = weights / (weights[0] + weights[1] + weights[2])
            if lit < 0.0:
                n = wp.normalize(wp.cross(points[b] - points[a], points[c] - points[a]))
                if wp.dot(n, d) > 0.0:
                    n = -n
                point = points[a] * weights[0] + points[b] * weights[1] + points[c] * weights[2]
                lit = unshadowed(mesh, point, n, look)
            total += shade(lit, face, weights[0], weights[1], d, normals, canonical, masks, index, material, look)
        else:
            total += background(u, v, look)
    image[tid] = total / float(samples * samples)


class Rasteriser:
    """Renders meshes of one topology. Not for sharing between threads: its BVH is refitted for every image."""

    def __init__(
        self, faces: np.ndarray, materials: np.ndarray, masks: np.ndarray, first: np.ndarray, device: str | None = None
    ):
        """``first``: points (V, 3) with every part unfolded; the BVH is built on them, the same for every image."""
        self.device = wp.get_device(device)
        with wp.ScopedDevice(self.device):
            self._index = wp.array(faces.ravel(), dtype=int)
            self._materials = wp.array(materials, dtype=int)
            self._masks = wp.array(masks, dtype=wp.vec2)
            self._mesh = wp.Mesh(points=wp.array(first, dtype=wp.vec3), indices=self._index, bvh_leaf_size=1)

    def __call__(
        self, points: np.ndarray, normals: np.ndarray, canonical: np.ndarray, look: Look, size: int, samples: int
    ) -> np.ndarray:
        """float32 (size, size, 3), linear light, of a mesh (V, 3) with its normals and texture positions."""
        with wp.ScopedDevice(self.device):
            self._mesh.points.assign(points)
            self._mesh.refit()
            place, nearest = self._nearest(self._mesh.points, look, size * samples)
            image = wp.empty(size * size, dtype=wp.vec3)
            arrays = [self._mesh.points, place, nearest, *(wp.array(a, dtype=wp.vec3) for a in (normals, canonical))]
            inputs = [self._mesh.id, *arrays, self._masks, self._index, self._materials, look, size, samples]
            wp.launch(render, dim=size * size, inputs=inputs, outputs=[image])
            return image.numpy().reshape(size, size, 3)

    def visible(self, points: np.ndarray, look: Look, side: int) -> np.ndarray:
        """int64 (side, side): the triangle that each sample of the image plane sees, -1 where it sees none."""
        with wp.ScopedDevice(self.device):
            nearest = self._nearest(wp.array(points, dtype=wp.vec3), look, side)[1].numpy().reshape(side, side)
            return np.where(nearest < NOTHING.value, nearest % FACES.value, -1)

    def _nearest(self, points: wp.array, look: Look, side: int) -> tuple[wp.array, wp.array]:
        """The projected vertices, and of each sample what it sees, as ``rasterise`` packs it."""
        place = wp.empty_like(points)
        nearest = wp.full(side * side, NOTHING, dtype=wp.int64)
        wp.launch(project, dim=len(place), inputs=[points, look], outputs=[place])
        wp.launch(rasterise, dim=len(self._materials), inputs=[place, self._index, side], outputs=[nearest])
        return place, nearest
