"""From files to a FaceSet: geometry, colours, broken and missing files, a kill."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from facetransport.data import orl, photographs
from facetransport.data.alignment import align
from facetransport.data.faceset import LANDMARK_COLUMNS, LANDMARKS
from facetransport.data.photographs import Collection, aligned, decode, read_file, to_faceset
from facetransport.data.template import ARCFACE_112, crop_box, template

COLOURS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def encoded(image: np.ndarray, format: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def listing(root: Path, images: list[np.ndarray], geometry: str = "whole", **columns: object) -> Collection:
    """Images as files of a folder, all of one person."""
    for i, image in enumerate(images):
        (root / f"{i}.png").write_bytes(encoded(image))
    names = [f"{i}.png" for i in range(len(images))]
    table = pd.DataFrame({"identity": 7, "source": names, **columns})
    return Collection(table, partial(read_file, root, "refuse"), geometry)  # type: ignore[arg-type]


def test_colours_are_red_green_blue() -> None:
    assert np.array_equal(decode(encoded(COLOURS), "a.png"), COLOURS)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert decode(encoded(red, "JPEG"), "a.jpg")[..., 0].mean() > 180


def test_grey_is_refused_or_repeated_as_asked() -> None:
    grey = encoded(COLOURS[..., 0])
    with pytest.raises(ValueError, match=r"b\.png: expected colour, got a grey image; allow it by grey='repeat'"):
        decode(grey, "b.png")
    assert np.array_equal(decode(grey, "b.png", "repeat"), np.repeat(COLOURS[..., :1], 3, -1))


@pytest.mark.parametrize("data", [b"", b"no image", encoded(COLOURS, "JPEG")[:-60], encoded(COLOURS)[:-30]])
def test_broken_files_are_named(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"c\.jpg: not an image that can be read whole"):
        decode(data, "c.jpg")


def test_sixteen_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"d\.png: expected 8 bits a channel, got mode I;16"):
        decode(encoded(np.zeros((4, 4), np.uint16)), "d.png", "repeat")


def test_insightface_crops_are_the_middle_of_the_template() -> None:
    crop = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8), (0, 0), 3)
    found = aligned(crop, None, "insightface", 128)
    assert found is not None
    assert np.abs(found[0][crop_box(128), crop_box(128)].astype(int) - crop).max() <= 1
    np.testing.assert_allclose(found[1], template(128), atol=1e-3)


def test_landmarks_bring_a_face_into_the_template() -> None:
    points = ARCFACE_112 * 1.7 + (30, 11)
    image = np.zeros((260, 240, 3), np.uint8)
    for x, y in points.astype(int):
        cv2.circle(image, (int(x), int(y)), 6, (0, 255, 0), -1)
    found = aligned(image, points, "landmarks", 64)
    assert found is not None
    np.testing.assert_allclose(found[1], template(64), atol=0.01)
    assert np.array_equal(found[0], align(image, points, 64))
    assert all(found[0][int(y), int(x), 1] > 150 for x, y in template(64))


def test_a_whole_photograph_is_resized_about_pixel_centres() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (96, 96, 3), dtype=np.uint8), (0, 0), 4)
    found = aligned(image, None, "whole", 48)
    assert found is not None and found[1] is None
    expected = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(found[0].astype(int) - expected).max() <= 2
    with pytest.raises(ValueError, match="expected 96 x 96 pixels for geometry 'whole', got 96 x 90"):
        aligned(image[:90], None, "whole", 48)
    with pytest.raises(ValueError, match="expected 112 x 112 pixels for geometry 'insightface', got 96 x 96"):
        aligned(image, None, "insightface", 48)


def test_faces_are_found_and_what_has_none_is_listed(tmp_path: Path) -> None:
    faces = [np.repeat(orl.read(path)[..., None], 3, -1) for _, _, path in islice(orl.photographs(), 3)]
    noise = np.random.default_rng(3).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    collection = listing(tmp_path, [faces[0], noise, *faces[1:]], "detect", note=["a", "b", "c", "d"])
    found, lost = to_faceset(collection, tmp_path / "out", 64, workers=1)
    assert lost == {"1.png": "no face found"} and found.table["source"].tolist() == ["0.png", "2.png", "3.png"]
    assert found.table["note"].tolist() == ["a", "c", "d"] and found.identity.tolist() == [7, 7, 7]
    reference = orl.align(faces[0][..., 0], 64)
    assert reference is not None
    assert np.abs(found.images[0].astype(int) - reference[0]).mean() < 12  # searched at another scale: a pixel or so
    again, lost_again = to_faceset(collection, tmp_path / "out", 64)
    assert lost_again == lost and np.array_equal(again.images, found.images)


def test_landmarks_in_the_table_follow_the_image(tmp_path: Path) -> None:
    points = template(100) + np.random.default_rng(4).normal(0, 1, (5, 2))
    columns = dict(zip(LANDMARK_COLUMNS, points.ravel(), strict=True))
    collection = listing(tmp_path, [np.zeros((100, 100, 3), np.uint8)] * 2, "landmarks", **columns)
    found, lost = to_faceset(collection, tmp_path / "out", 32, workers=1)
    assert not lost and found.landmarks.shape == (2, len(LANDMARKS), 2)
    moved = aligned(np.zeros((100, 100, 3), np.uint8), points, "landmarks", 32)
    assert moved is not None and moved[1] is not None
    np.testing.assert_allclose(found.landmarks[1], moved[1], atol=1e-3)
    assert np.abs(found.landmarks[1] - template(32)).max() < 1


def test_a_set_in_shards_is_the_set_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(7)]
    collection = listing(tmp_path, images)
    whole, _ = to_faceset(collection, tmp_path / "whole", 16, workers=1)
    monkeypatch.setattr(photographs, "PART", 2)
    parts, _ = to_faceset(collection, tmp_path / "parts", 16, workers=2)
    assert np.array_equal(whole.images, parts.images) and whole.table.equals(parts.table)
    assert whole.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_jobs_read_what_one_reads(jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "PART", 2)
    collection = listing(tmp_path, [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(7)])
    whole, _ = to_faceset(collection, tmp_path / "whole", 16, workers=1)
    shares = [photographs.to_shards(collection, tmp_path / "set", 16, (i, jobs), workers=1) for i in range(jobs)]
    assert all(share is None for share in shares[:-1]) and shares[-1] is not None
    joined, lost = to_faceset(collection, tmp_path / "set", 16, workers=1)
    assert not lost and np.array_equal(joined.images, whole.images) and joined.table.equals(whole.table)


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "PART", 2)
    collection = listing(tmp_path, [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(6)])
    last = tmp_path / "5.png"
    last.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"5\.png: listed, but not there; complete the folder"):
        to_faceset(collection, tmp_path / "out", 16, workers=1)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*[0-9].npy")}
    assert len(done) == 2
    (tmp_path / "away").rename(last)
    for i in range(4):  # not read again
        (tmp_path / f"{i}.png").unlink()
    found, _ = to_faceset(collection, tmp_path / "out", 16, workers=1)
    assert found.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    with pytest.raises(ValueError, match="begun with size 16, now 32"):
        to_faceset(collection, tmp_path / "out", 32)


def test_a_broken_photograph_stops_the_import_by_name(tmp_path: Path) -> None:
    collection = listing(tmp_path, [np.zeros((16, 16, 3), np.uint8)] * 2)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"1\.png: not an image that can be read whole"):
        to_faceset(collection, tmp_path / "out", 16, workers=1)
    Image.fromarray(np.zeros((16, 9, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: expected 9 x 9 pixels for geometry 'whole', got 9 x 16"):
        to_faceset(collection, tmp_path / "out", 16, workers=1)


def test_no_face_anywhere_is_said(tmp_path: Path) -> None:
    collection = listing(tmp_path, [np.zeros((80, 80, 3), np.uint8)] * 2, "detect")
    with pytest.raises(ValueError, match="no face found in any of 2 photographs; try another geometry"):
        to_faceset(collection, tmp_path / "out", 16, workers=1)


def test_a_listing_must_hold_what_its_geometry_needs() -> None:
    read = partial(read_file, Path(), "refuse")
    table = pd.DataFrame({"identity": [0, 0], "source": ["a", "b"]})
    with pytest.raises(ValueError, match="missing left_eye_x, left_eye_y"):
        Collection(table, read, "landmarks")
    with pytest.raises(ValueError, match="geometry: expected one of landmarks, insightface, detect, whole"):
        Collection(table, read, "centre")  # type: ignore[arg-type]
    for wrong in (table[:0], table.assign(source="a")):
        with pytest.raises(ValueError, match="expected at least one row, each of another source"):
            Collection(wrong, read, "whole")


def test_points_of_a_detected_face_are_not_claimed(tmp_path: Path) -> None:
    """dlib's five points know no mouth: the table gets no landmarks from them."""
    face = np.repeat(orl.read(next(orl.photographs())[2])[..., None], 3, -1)
    found, _ = to_faceset(listing(tmp_path, [face], "detect"), tmp_path / "out", 64, workers=1)
    with pytest.raises(ValueError, match="no landmarks in this FaceSet"):
        _ = found.landmarks
