"""WebDataset: written by this package and by plain tarfile, read back; broken files are named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from facetransport.companion import cli
from facetransport.data import exporting
from facetransport.data.faceset import FaceSet
from facetransport.data.photographs import to_faceset
from facetransport.data.webdataset import webdataset


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def test_what_was_exported_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PER_TAR", 3)
    images = np.stack([np.full((16, 16, 3), 30 * i, np.uint8) for i in range(5)])
    faces = FaceSet(images, pd.DataFrame({"identity": [4, 4, 2, 2, 9], "yaw": np.arange(5.0), "Male": True}))
    exporting.webdataset(faces, tmp_path / "tars")
    assert (
        cli.main(["import-faces", "webdataset", str(tmp_path / "tars"), str(tmp_path / "faces"), "--size", "16"]) == 0
    )
    again = FaceSet.load(tmp_path / "faces")
    assert again.identity.tolist() == [4, 4, 2, 2, 9] and again.table["yaw"].tolist() == [0, 1, 2, 3, 4]
    assert np.abs(again.images.astype(int) - images).max() < 3  # JPEG
    assert again.table["source"].tolist()[3] == "000001.tar/000000003.jpg"


def test_labels_as_others_write_them(tmp_path: Path) -> None:
    label = json.dumps({"label": 7, "more": [1]}).encode()
    write(
        tmp_path / "a.tar", **{"x.png": picture(10), "x.json": label, "y.png": picture(90), "y.cls": b"3", "z.txt": b""}
    )
    collection = webdataset(tmp_path / "a.tar")
    assert collection.table["identity"].tolist() == [7, 3]
    faces, lost = to_faceset(collection, tmp_path / "out", 16, workers=1)
    assert not lost and faces.images[:, 5, 5, 0].tolist() == [10, 90]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"x.png": b""}, r"x\.png: expected a \.json with its identity, or a \.cls, beside it"),
        ({"x.png": b"", "x.cls": b"nobody"}, r"x\.png: what is said of it cannot be read \(ValueError"),
        ({"x.png": b"", "x.json": b'{"identity": 3.7}'}, r"x\.png: .*expected a whole number, 0 or more, got 3\.7"),
        ({"x.png": b"", "x.cls": b"-1"}, r"x\.png: .*expected a whole number, 0 or more, got '-1'"),
        ({"x.png": b"", "x.json": b"{}"}, r"x\.png: what is said of it cannot be read \(KeyError"),
        ({"x.png": b"", "x.json": b"[1]"}, r"x\.png: what is said of it cannot be read \(AttributeError"),
        ({"x.png": b"", "x.json": b"[" * 60_000}, r"x\.png: what is said of it cannot be read \(RecursionError"),
        ({"x.png": b"", "x.json": b" " * 70_000}, r"x\.png: .*70,000 bytes, more than"),
        ({"x.txt": b""}, "expected at least one row"),
    ],
)
def test_descriptions_that_say_nothing_are_named(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", **members)
    with pytest.raises(ValueError, match=said):
        webdataset(tmp_path / "a.tar")


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", **{"x.png": picture(10), "x.cls": b"1"})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("x.png"), io.BytesIO())
    with pytest.raises(ValueError, match=r"a\.tar: 1 members have the name of another; expected each once"):
        webdataset(tmp_path)


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.tar in it; expected a WebDataset's folder"):
        webdataset(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 400)
    with pytest.raises(ValueError, match=r"a\.tar: not a tar file that can be read whole"):
        webdataset(tmp_path)
