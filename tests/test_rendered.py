"""Rendered people: purity, geometry, attributes, splits, resume after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import warp as wp
from insightface.utils.face_align import arcface_dst

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import roles
from facetransport.companion.profiles import ROLES, Profile
from facetransport.data.faceset import LANDMARKS, FaceSet
from facetransport.data.template import ARCFACE_112, crop_box, template
from facetransport.world import grammar, people, rendered
from facetransport.world.head import Head, save_arrays
from facetransport.world.rasteriser import Look


@pytest.fixture(scope="module")
def head_folder(smoke_store: Store) -> Path:
    return smoke_store.get(roles.head_recipe())


@pytest.fixture(scope="module")
def head(head_folder: Path) -> Head:
    return Head.load(head_folder)


@pytest.fixture(scope="module")
def renderer(head: Head) -> rendered.Renderer:
    return rendered.Renderer(head, world_seed=7, size=32, supersampling=1)


@pytest.fixture(scope="module")
def frontal() -> people.View:
    return people.View(
        yaw=0, pitch=0, roll=0, actions=dict.fromkeys(people.draw_expression(np.random.default_rng(0)), 0.0),
        light=np.array([0.0, -1, 0.2]), key=0.6, fill_light=np.array([0.0, -1, 0]), fill=0.1, ambient=0.4,
        tint=np.ones(3),
        exposure=1.0, background=np.full((2, 3), 0.5), background_angle=0.0, background_texture=0.0, glasses=True,
        shift=np.zeros(2), zoom=1.0, distance=1.0, blur=0.0, noise=0.0, saturation=1.0, phase=np.zeros(3),
    )  # fmt: skip


PAIRS = [(0, 0), (0, 1), (5, 0), (20_000_003, 2)]


def test_an_image_depends_on_its_seed_identity_and_view_only(renderer: rendered.Renderer):
    together, alone = renderer.render(PAIRS), [renderer.render([pair]) for pair in reversed(PAIRS)][::-1]
    np.testing.assert_array_equal(together.images, np.concatenate([a.images for a in alone]))
    for row, one in enumerate(alone):
        assert one.table.iloc[0].to_dict() == together.table.iloc[row].to_dict()
    other_world = rendered.Renderer(renderer.head, world_seed=8, size=32, supersampling=1).render(PAIRS)
    assert not np.array_equal(other_world.images, together.images)


@wp.kernel
def cast_rays(mesh: wp.uint64, look: Look, side: int, face: wp.array(dtype=int)):
    """The triangle that a ray through each sample meets first, by warp's own BVH."""
    u = (float(wp.tid() % side) + 0.5) / float(side) * 2.0 - 1.0
    v = (float(wp.tid() // side) + 0.5) / float(side) * 2.0 - 1.0
    ray = wp.normalize(look.centre + look.right * u + look.down * v - look.origin)
    hit = wp.mesh_query_ray(mesh, look.origin, ray, 10.0)
    face[wp.tid()] = wp.where(hit.result, hit.face, -1)


def test_samples_see_what_rays_hit(renderer: rendered.Renderer):
    side, faces = 64, wp.array(renderer.builder.faces.ravel(), dtype=int)
    for index in range(8):  # long hair, buns, glasses, turned heads
        person = renderer.person(index)
        view = people.draw_view(7, person, 0)
        mesh = renderer.mesh(person, view)
        look = rendered.look_of(person, view, renderer.head, rendered.frame(mesh, view))
        solid, hit = wp.Mesh(wp.array(mesh.points, dtype=wp.vec3), faces), wp.empty(side * side, dtype=int)
        wp.launch(cast_rays, dim=side * side, inputs=[solid.id, look, side], outputs=[hit])
        seen, met = renderer._rasteriser.visible(mesh.points, look, side), hit.numpy().reshape(side, side)
        assert 0.3 < np.mean(met >= 0) < 1
        assert np.sum(seen != met) <= 2  # where triangles touch, rounding decides


def test_the_template_is_insightfaces_with_a_margin():
    np.testing.assert_allclose(ARCFACE_112, arcface_dst, atol=1e-3)
    np.testing.assert_allclose(template(128) - 8, arcface_dst, atol=1e-3)
    assert crop_box(64) == slice(4, 60) and crop_box(128) == slice(8, 120)
    with pytest.raises(ValueError, match="multiple of 16"):
        crop_box(70)


def test_frontal_landmarks_lie_on_the_template(renderer: rendered.Renderer, frontal: people.View):
    """Individual proportions differ, so a similarity leaves some pixels of error, but not many."""
    aims = [rendered.frame(renderer.mesh(renderer.person(i), frontal), frontal) for i in range(40)]
    pixels = (np.stack([a.landmarks for a in aims]) + 1) * 32
    assert np.abs(pixels.mean(0) - template(64)).max() < 2.0
    assert np.linalg.norm(pixels - template(64), axis=-1).max() < 6.0


def test_positive_yaw_turns_the_nose_to_the_right_of_the_image(renderer: rendered.Renderer, frontal: people.View):
    from dataclasses import replace

    def nose_between_eyes(yaw: float) -> float:
        view = replace(frontal, yaw=yaw)
        points = rendered.frame(renderer.mesh(renderer.person(1), view), view).landmarks
        left, right, nose = (points[LANDMARKS.index(n)][0] for n in ("left_eye", "right_eye", "nose"))
        return (nose - left) / (right - left)

    assert nose_between_eyes(-30) < nose_between_eyes(0) - 0.2
    assert nose_between_eyes(30) > nose_between_eyes(0) + 0.2


def test_arrays_of_the_head_come_back_as_numpy_writes_them(tmp_path: Path):
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "names": np.array(["x", "yy"]), "z": np.zeros((9, 4))}
    save_arrays(tmp_path / "head.npz", **arrays)
    with np.load(tmp_path / "head.npz", allow_pickle=False) as found:
        assert found.files == list(arrays)
        assert all(
            np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
        )
    assert (tmp_path / "head.npz").stat().st_size < 700


def test_macro_shape_is_exact_at_its_corners_and_linear_in_between(head: Head):
    none = np.zeros((1, len(head.names)))
    corner = dict(gender=1.0, age=1.0, weight=0.5, african=0.0, asian=1.0, caucasian=0.0)
    np.testing.assert_allclose(head.vertices([corner], none)[0], head.macro[1, 2, 1, 1], atol=1e-6)
    half = corner | {"gender": 0.5}
    middle = (head.macro[0, 2, 1, 1] + head.macro[1, 2, 1, 1]) / 2
    np.testing.assert_allclose(head.vertices([half], none)[0], middle, atol=1e-6)


def test_left_and_right_follow_one_local_parameter(head: Head):
    weights = head.shape_weights({"cheek-volume-incr": 0.5, "chin-width-incr": -0.25}, {"jawOpen": 0.3})
    on = {head.names[i]: w for i, w in enumerate(weights) if w}
    assert on == {"l-cheek-volume-incr+": 0.5, "r-cheek-volume-incr+": 0.5, "chin-width-incr-": 0.25, "jawOpen": 0.3}


def test_people_vary_as_they_should(head: Head):
    crowd = [people.draw_identity(7, i, head.local_names) for i in range(1500)]
    ages = np.array([p.age for p in crowd])
    assert ages.min() < 21 and ages.max() > 74
    assert len({p.style for p in crowd}) == len(people.HAIR_STYLES) >= 8
    assert {p.hair_colour for p in crowd} == set(people.HAIR_COLOURS)
    attributes = {
        k: np.mean([people.identity_attributes(p)[k] for p in crowd]) for k in people.identity_attributes(crowd[0])
    }
    assert all(0.003 < rate < 0.97 for rate in attributes.values()), attributes
    assert not any(p.beard["jaw"] and not p.male for p in crowd)
    yaw = [people.draw_view(7, crowd[0], k).yaw for k in range(1500)]
    assert max(yaw) == 45 and min(yaw) == -45


def test_every_attribute_has_words_and_there_are_at_least_32(renderer: rendered.Renderer):
    names = rendered.attribute_names(renderer.render(PAIRS[:1]).table)
    assert set(names) == set(grammar.known_names()) and len(names) >= 32


def test_attributes_need_no_rendering(renderer: rendered.Renderer, head_folder: Path):
    table = renderer.render(PAIRS).table
    drawn = rendered.attributes(PAIRS, head_folder, world_seed=7)
    assert drawn.equals(table[rendered.attribute_names(table)])
    assert not drawn.equals(rendered.attributes(PAIRS, head_folder, world_seed=8))


def test_attributes_of_a_role_are_those_of_its_table(smoke: Profile, smoke_store: Store, head_folder: Path):
    table = roles.load_rendered(smoke, "test", smoke_store).table
    pairs = roles.role_pairs(roles.rendered_recipe(smoke, "test").config)
    drawn = rendered.attributes(pairs, head_folder, smoke.rendered.world_seed)
    assert drawn.equals(table[rendered.attribute_names(table)])


def test_another_photograph_differs_in_attributes_of_the_view_only(head_folder: Path):
    views = [rendered.attributes([(i, k) for i in range(200)], head_folder, world_seed=7) for k in (0, 5)]
    differs = (views[0] != views[1]).any()
    assert set(differs.index[differs]) == {"Eyeglasses", "Smiling", "Mouth_Open", "Eyes_Closed", "Frowning"}


def test_splits_share_no_person(smoke: Profile, smoke_store: Store, head: Head):
    sets = {role: roles.load_rendered(smoke, role, smoke_store) for role in ROLES}
    identities = {role: set(faces.identity.tolist()) for role, faces in sets.items()}
    shapes = {
        role: np.stack(
            [people.draw_identity(smoke.rendered.world_seed, i, head.local_names).shape_vector for i in sorted(ids)]
        )
        for role, ids in identities.items()
    }
    for a in ROLES:
        for b in ROLES:
            if a < b:
                assert not identities[a] & identities[b]
                nearest = np.linalg.norm(shapes[a][:, None] - shapes[b][None], axis=-1).min()
                assert nearest > 0.5  # two draws this near would be look-alikes


def test_roles_have_the_size_of_the_profile(smoke: Profile, smoke_store: Store):
    for role, size in smoke.rendered.roles.items():
        faces = roles.load_rendered(smoke, role, smoke_store)
        assert len(faces) == size.identities * size.views
        assert faces.images.shape[1:] == (smoke.rendered.size, smoke.rendered.size, 3)
    with pytest.raises(ValueError, match="role"):
        roles.rendered_recipe(smoke, "everybody")


def test_changing_one_knob_changes_the_key(smoke: Profile):
    from dataclasses import replace

    other = replace(smoke, rendered=replace(smoke.rendered, world_seed=1))
    assert roles.rendered_recipe(smoke, "val").key != roles.rendered_recipe(other, "val").key
    assert roles.rendered_recipe(smoke, "val").key == roles.rendered_recipe(replace(smoke, seed=99), "val").key


SCRIPT = """
import sys
from pathlib import Path
from facetransport.world import rendered
rendered.SHARD = 4
rendered.render_shards([(i, 0) for i in range(40)], Path(sys.argv[1]), Path(sys.argv[2]), 7, 32, 1, workers=1)
"""


def test_a_killed_run_resumes_to_the_same_images(tmp_path: Path, head_folder: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(killed), str(head_folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("shard-*[0-9].npy"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {p: p.stat().st_mtime_ns for p in killed.glob("shard-*[0-9].npy")}
    assert left and not (killed / "images.npy").exists()
    subprocess.run([sys.executable, "-c", SCRIPT, str(whole), str(head_folder)], check=True, capture_output=True)
    subprocess.run(command, check=True, capture_output=True)
    np.testing.assert_array_equal(FaceSet.load(killed).images, FaceSet.load(whole).images)
    assert FaceSet.load(killed).table.equals(FaceSet.load(whole).table)
    assert not list(killed.glob("shard-*"))


def test_nothing_to_render_is_refused(tmp_path: Path, head_folder: Path):
    with pytest.raises(ValueError, match="at least one"):
        rendered.render_shards([], tmp_path, head_folder, 7, 32, 1)


def test_a_glimpse_is_the_rows_themselves(smoke: Profile, smoke_store: Store):
    whole, some = (
        roles.load_rendered(smoke, "test", smoke_store),
        roles.glimpse_rendered(smoke, "test", [4, 1], smoke_store),
    )
    np.testing.assert_array_equal(some.images, whole.images[[4, 1]])
    assert some.identity.tolist() == whole.identity[[4, 1]].tolist()
