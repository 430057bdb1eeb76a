"""Sets as other people's code reads them, read back by code that shares nothing with the writers."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from facetransport.companion import cli
from facetransport.data import exporting, verification_bin
from facetransport.data.faceset import FaceSet

IDENTITY = [7, 3, 7, 3, 3]


@pytest.fixture
def faces() -> FaceSet:
    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((128, 128)) for _ in IDENTITY]
    table = pd.DataFrame(
        {"identity": IDENTITY, "yaw": np.linspace(-20, 20, 5), "Male": [True, False, True, False, False]}
    )
    return FaceSet(np.stack([np.asarray(image) for image in smooth]), table)


def test_folders_hold_the_images_as_they_are(faces: FaceSet, tmp_path: Path) -> None:
    out = exporting.imagefolder(faces, tmp_path / "out")
    read = {path.relative_to(out).as_posix(): np.asarray(Image.open(path)) for path in out.rglob("*.png")}
    assert sorted(read) == sorted(f"{identity:08d}/{i:08d}.png" for i, identity in enumerate(IDENTITY))
    assert all(
        np.array_equal(read[f"{identity:08d}/{i:08d}.png"], faces.images[i]) for i, identity in enumerate(IDENTITY)
    )
    assert pd.read_csv(out / "table.csv")["yaw"].tolist() == faces.table["yaw"].tolist()


def records(path: Path) -> list[tuple[tuple[float, ...], bytes]]:
    """(labels, image) of every record, by the description of the format."""
    offsets = [int(line.split("\t")[1]) for line in path.with_suffix(".idx").read_text().splitlines()]
    data, found = path.read_bytes(), []
    for start in offsets:
        magic, length = struct.unpack_from("<II", data, start)
        assert magic == 0xCED7230A
        flag, label = struct.unpack_from("<If", data, start + 8)
        labels = struct.unpack_from(f"<{flag}f", data, start + 32) if flag else (label,)
        found.append((labels, data[start + 32 + 4 * flag : start + 8 + length]))
    return found


def test_recordio_is_insightfaces(faces: FaceSet, tmp_path: Path) -> None:
    out = exporting.rec(faces, tmp_path / "out")
    header, *rest = records(out / "train.rec")
    assert header[0] == (6.0, 8.0) and [labels for labels, _ in rest] == [(0,), (0,), (0,), (1,), (1,), (1, 4), (4, 6)]
    for (_, image), row in zip(rest, (1, 3, 4, 0, 2), strict=False):
        crop = np.asarray(Image.open(io.BytesIO(image)), float)
        assert crop.shape == (112, 112, 3) and np.abs(crop - faces.images[row][8:120, 8:120]).mean() < 3
    assert (out / "property").read_text() == "2,112,112\n"


def test_small_images_are_enlarged_to_insightfaces_size(tmp_path: Path) -> None:
    small = FaceSet(np.full((2, 64, 64, 3), 90, np.uint8), pd.DataFrame({"identity": [0, 1]}))
    image = records(exporting.rec(small, tmp_path / "out") / "train.rec")[1][1]
    assert Image.open(io.BytesIO(image)).size == (112, 112)


def test_webdataset_is_tar_files_of_pairs(faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PER_TAR", 3)
    out = exporting.webdataset(faces, tmp_path / "out")
    found: dict[str, bytes] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert [path.name for path in sorted(out.iterdir())] == ["000000.tar", "000001.tar"] and len(found) == 10
    assert json.loads(found["000000003.json"]) == {"identity": 3, "yaw": 10.0, "Male": False}
    assert np.abs(np.asarray(Image.open(io.BytesIO(found["000000003.jpg"])), float) - faces.images[3]).mean() < 3
    again = exporting.webdataset(faces, tmp_path / "again")
    assert (again / "000001.tar").read_bytes() == (out / "000001.tar").read_bytes()


@pytest.mark.parametrize("kind", list(exporting.FORMATS))
def test_the_command_writes_each_and_overwrites_nothing(
    faces: FaceSet, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    faces.save(tmp_path / "set")
    command = ["export", str(tmp_path / "set"), str(tmp_path / "out"), "--format", kind]
    assert cli.main(command) == 0 and any((tmp_path / "out").iterdir())
    assert cli.main(command) == 1 and "expected a new or an empty folder" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- verification sets


def people(count: int, each: int) -> FaceSet:
    """Flat images, each of its own grey, which JPEG keeps to a level or two."""
    levels = np.arange(count * each)
    images = np.broadcast_to((levels * 255 // levels[-1])[:, None, None, None], (len(levels), 128, 128, 3))
    return FaceSet(images.astype(np.uint8), pd.DataFrame({"identity": levels % count}))


def test_verification_sets_are_insightfaces(tmp_path: Path) -> None:
    faces = people(20, 4)
    out = exporting.verification(faces, tmp_path / "mine.bin", pairs=40, seed=3, folds=5)
    images, same = pickle.loads(out.read_bytes(), encoding="bytes")  # as arcface_torch's load_bin does
    shown = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
    assert len(images) == 80 and same == ([True] * 4 + [False] * 4) * 5
    assert all(image.shape == (112, 112, 3) for image in shown)
    levels = faces.images[:, 0, 0, 0].astype(int)
    rows = np.array([np.abs(levels - image.mean()).argmin() for image in shown]).reshape(-1, 2)
    who = faces.identity[rows]
    assert ((who[:, 0] == who[:, 1]) == same).all()
    assert (rows[:, 0] != rows[:, 1]).all() and len(np.unique(np.sort(rows, axis=1), axis=0)) == 40
    folds = [set(part.ravel()) for part in np.split(who, 5)]
    assert sum(map(len, folds)) == len(set.union(*folds))  # nobody is in two
    ours = verification_bin.read(out)
    assert ours.images == images and ours.same.tolist() == same


def test_the_pairs_are_the_seeds(tmp_path: Path) -> None:
    identity = people(20, 4).identity
    one, again, other = (exporting.draw_pairs(identity, 40, seed, 5)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_sets_too_small_for_their_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people(20, 4).save(tmp_path / "faces")
    command = ["export", str(tmp_path / "faces"), str(tmp_path / "mine.bin"), "--format", "verification"]
    assert cli.main([*command, "--pairs", "100"]) == 0
    assert cli.main([*command, "--pairs", "100"]) == 1
    assert "mine.bin: exists; name a new file" in capsys.readouterr().err
    command[2] = str(tmp_path / "other.bin")
    assert cli.main(command) == 1
    assert "a fold has 12 genuine pairs for 300" in capsys.readouterr().err
    assert cli.main([*command, "--pairs", "30"]) == 1
    assert "expected a multiple of 20" in capsys.readouterr().err
    assert not (tmp_path / "other.bin").exists()
    with pytest.raises(ValueError, match="a fold has 0 genuine pairs for 1"):
        exporting.draw_pairs(np.arange(8), 4, 0, 2)
    with pytest.raises(ValueError, match="a fold has 0 impostor pairs for 1"):
        exporting.draw_pairs(np.repeat([0, 1], 4), 4, 0, 2)
