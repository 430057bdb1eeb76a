"""Folders of photographs as listings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetransport.data import imagefolder
from facetransport.data.photographs import to_faceset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two people under one more folder, as LFW's, and a file that is no photograph."""
    for i, name in enumerate(["b/zoe/2.jpg", "b/zoe/1.png", "b/ann/1.JPG"]):
        path = tmp_path / "lfw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 50 * (i + 1), np.uint8)).save(path)
    (tmp_path / "lfw" / "readme.txt").write_text("no photograph")
    return tmp_path / "lfw"


def test_a_folder_a_person(root: Path, tmp_path: Path) -> None:
    collection = imagefolder.people(root, "whole")
    assert collection.table["source"].tolist() == ["b/ann/1.JPG", "b/zoe/1.png", "b/zoe/2.jpg"]
    assert collection.table["identity"].tolist() == [0, 1, 1]
    assert collection.table["person"].tolist() == ["b/ann", "b/zoe", "b/zoe"]
    faces, lost = to_faceset(collection, tmp_path / "out", 16, workers=1)
    assert not lost and faces.images[:, 5, 5, 0].tolist() == pytest.approx([150, 100, 50], abs=2)


def test_a_person_a_file(root: Path) -> None:
    collection = imagefolder.ffhq(root)
    assert collection.table["identity"].tolist() == [0, 1, 2] and collection.geometry == "whole"


def test_what_is_missing_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder; expected one with photographs"):
        imagefolder.people(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no photographs in it"):
        imagefolder.ffhq(tmp_path / "empty")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "stray.png")
    with pytest.raises(ValueError, match=r"expected a folder a person, got stray\.png beside them; see ffhq"):
        imagefolder.people(root)
