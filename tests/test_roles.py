"""Photographs in the place of rendered people: which rows, under which key, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import idiff_face as experiment
from facetransport.companion.experiments import recognisers, roles
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet


def photographs(folder: Path, views: dict[int, int], size: int, start: int = 0) -> Path:
    """Person -> number of images; pixel values count images."""
    identity = np.repeat(list(views), list(views.values()))
    images = np.zeros((len(identity), size, size, 3), np.uint8) + np.arange(len(identity))[:, None, None, None] + start
    FaceSet(images.astype(np.uint8), pd.DataFrame({"identity": identity})).save(folder)
    return folder


def with_role(profile: Profile, role: str, folder: Path, **asked: int) -> Profile:
    people = {**profile.rendered.roles, role: replace(profile.rendered.roles[role], **asked)}
    world = replace(profile.rendered, roles=people)
    evaluation = replace(profile.evaluation, galleries=(2,))  # not more than the people of these tests
    return replace(profile, rendered=world, photographs={role: str(folder)}, evaluation=evaluation)


def test_without_photographs_everybody_is_rendered(smoke: Profile) -> None:
    for role in smoke.rendered.roles:
        assert roles.recipe(smoke, role).key == roles.rendered_recipe(smoke, role).key
        assert roles.identities(smoke, role) == smoke.rendered.roles[role].identities


def test_roles_that_judge_take_equally_many_images_of_each(smoke: Profile, store: Store, tmp_path: Path) -> None:
    size = smoke.rendered.size
    folder = photographs(tmp_path / "faces", {5: 2, 3: 3, 9: 1, 4: 2}, size)
    profile = with_role(smoke, "gallery", folder, identities=2, views=2)
    faces = roles.load(profile, "gallery", store)
    assert faces.identity.tolist() == [3, 3, 4, 4] and faces.table["view"].tolist() == [0, 1, 0, 1]
    assert faces.images[:, 0, 0, 0].tolist() == [2, 3, 6, 7]
    assert np.array_equal(roles.glimpse(profile, "gallery", [2, 0], store).images, faces.images[[2, 0]])
    assert roles.identities(profile, "gallery") == 2
    with pytest.raises(
        ValueError, match=r"photographs\.gallery: expected 3 people with 3 photographs each, got 1 of 4; set rendered"
    ):
        roles.recipe(with_role(smoke, "gallery", folder, identities=3, views=3), "gallery")  # before anything is built


def test_images_stay_with_their_people(smoke: Profile, store: Store, tmp_path: Path) -> None:
    """Every row is taken, in another order than it lies in the folder."""
    folder = photographs(tmp_path / "faces", {5: 2, 3: 2}, smoke.rendered.size)
    faces = roles.load(with_role(smoke, "gallery", folder, identities=2, views=2), "gallery", store)
    assert faces.identity.tolist() == [3, 3, 5, 5]
    assert faces.images[:, 0, 0, 0].tolist() == [2, 3, 0, 1]


def test_some_of_a_role_are_its_first_people(smoke: Profile, store: Store, tmp_path: Path) -> None:
    folder = photographs(tmp_path / "faces", {5: 2, 3: 3, 9: 1}, smoke.rendered.size)
    profile = with_role(smoke, "authentic", folder)
    assert roles.some(profile, "authentic", 2, 2, store).identity.tolist() == [3, 3, 5, 5]
    rendered, views = roles.some(smoke, "val", 2, 2, store), smoke.rendered.roles["val"].views
    assert np.array_equal(rendered.images, roles.glimpse(smoke, "val", [0, 1, views, views + 1], store).images)


def test_roles_that_train_take_all(smoke: Profile, store: Store, tmp_path: Path) -> None:
    folder = photographs(tmp_path / "faces", {5: 2, 3: 3, 9: 1}, smoke.rendered.size)
    profile = with_role(smoke, "train", folder)
    faces = roles.load(profile, "train", store)
    assert faces.identity.tolist() == [5, 5, 3, 3, 3, 9] and faces.table["view"].tolist() == [0, 1, 0, 1, 2, 0]
    assert roles.identities(profile, "train") == 3


def test_the_key_follows_contents_not_the_place(smoke: Profile, tmp_path: Path) -> None:
    size = smoke.rendered.size
    here, there = (photographs(tmp_path / name, {1: 2, 2: 2}, size) for name in ("here", "there"))
    keys = [roles.recipe(with_role(smoke, "train", folder), "train").key for folder in (here, there)]
    assert keys[0] == keys[1] != roles.rendered_recipe(smoke, "train").key
    photographs(there, {1: 2, 3: 2}, size)
    assert roles.recipe(with_role(smoke, "train", there), "train").key != keys[0]
    photographs(there, {1: 2, 2: 2}, size, start=1)  # the same table, other images
    assert roles.recipe(with_role(smoke, "train", there), "train").key != keys[0]


def test_networks_learn_from_them(smoke: Profile, tmp_path: Path) -> None:
    folder = photographs(tmp_path / "faces", {1: 2, 2: 2}, smoke.rendered.size)
    profile = with_role(smoke, "generator", folder)
    assert experiment.training_data(profile).upstream[0].stage == "photographs.generator"
    assert recognisers.recipe(profile).key == recognisers.recipe(smoke).key  # another role's
    assert experiment.recipe(profile).key != experiment.recipe(smoke).key


def test_all_that_is_missing_is_said_at_once_with_what_would_fit(smoke: Profile, tmp_path: Path) -> None:
    size = smoke.rendered.size
    folders = {"test": {5: 2, 3: 3}, "gallery": {5: 9, 3: 9, 4: 1}, "train": {1: 1}}
    given = {role: str(photographs(tmp_path / role, views, size)) for role, views in folders.items()}
    with pytest.raises(ValueError, match="Ask for as many as there are, or import more") as refused:
        roles.recipe(replace(smoke, photographs=given), "gallery")
    words = str(refused.value)
    assert "photographs.test: expected 10 people with 3 photographs each, got 1 of 2; set rendered.roles.test" in words
    assert "to 1 and evaluation.verification_identities, evaluation.identities, evaluation.folds to at most" in words
    assert "photographs.gallery: expected 12 people with 3 photographs each, got 2 of 3" in words


def test_what_cannot_play_a_role_is_refused(smoke: Profile, tmp_path: Path) -> None:
    size = smoke.rendered.size
    folder = photographs(tmp_path / "faces", {1: 2}, size)
    photographs(tmp_path / "small", {1: 2}, size // 2)
    with pytest.raises(ValueError, match=rf"photographs\.train: expected images of {size} x {size} pixels"):
        roles.recipe(with_role(smoke, "train", tmp_path / "small"), "train")
    with pytest.raises(FileNotFoundError, match=r"images\.npy: not there; a FaceSet folder holds"):
        roles.recipe(with_role(smoke, "train", tmp_path / "nowhere"), "train")
    with pytest.raises(ValueError, match=r"photographs: expected roles among generator, train.*got judge"):
        replace(smoke, photographs={"judge": str(folder)})
    with pytest.raises(ValueError, match="is given to two roles, which must share no person"):
        replace(smoke, photographs={"val": str(folder), "test": str(folder)})
