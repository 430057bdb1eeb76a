"""CelebA's lists, in its authors' format, on a few made-up photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetransport.data.celeba import celeba
from facetransport.data.photographs import to_faceset
from facetransport.data.template import template

POINTS = np.array([[69, 111], [108, 111], [88, 133], [72, 152], [105, 152]])  # of a typical aligned image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = [f"{i:06d}.jpg" for i in range(1, 5)]
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(np.full((218, 178, 3), 40 * i, np.uint8)).save(folder / name)
    points = " ".join(str(n) for n in POINTS.ravel())
    lists = {
        "identity_CelebA.txt": [f"{n} {p}" for n, p in zip(names, (2880, 2937, 2880, 12), strict=True)],
        "list_eval_partition.txt": [f"{n} {s}" for n, s in zip(names, (0, 1, 0, 2), strict=True)],
        "list_attr_celeba.txt": ["4", "Eyeglasses Male", *(f"{n}  {a} -1" for n, a in zip(names, "1111", strict=True))],
        "list_landmarks_align_celeba.txt": [
            "4",
            " ".join(f"p{i}" for i in range(10)),
            *(f"{n} {points}" for n in names),
        ],
    }
    for name, lines in lists.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_split_with_all_that_is_known(root: Path) -> None:
    (root / "captions.json").write_text(json.dumps({"000003.jpg": {"overall_caption": "She wears glasses."}}))
    table = celeba(root, "train").table
    assert table["source"].tolist() == ["000001.jpg", "000003.jpg"] and table["identity"].tolist() == [2880, 2880]
    assert table["Eyeglasses"].tolist() == [True, True] and table["Male"].tolist() == [False, False]
    assert table["caption"].isna().tolist() == [True, False] and table["left_eye_x"].tolist() == [69, 69]
    assert celeba(root, "val").table["identity"].tolist() == [2937]
    assert len(celeba(root).table) == 4


def test_faces_come_into_the_template_with_their_landmarks(root: Path, tmp_path: Path) -> None:
    faces, lost = to_faceset(celeba(root, "test"), tmp_path / "out", 128, workers=1)
    assert not lost and faces.images.shape == (1, 128, 128, 3)
    assert np.abs(faces.landmarks[0] - template(128)).max() < 3  # CelebA's own alignment is by the eyes alone
    assert faces.table["Eyeglasses"].tolist() == [True]


def test_an_empty_split_is_said(root: Path) -> None:
    (root / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg 0\n" for i in range(1, 5)))
    with pytest.raises(ValueError, match="no photograph in split test; expected CelebA's own lists"):
        celeba(root, "test")


def test_broken_lists_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'dev'"):
        celeba(root, "dev")  # type: ignore[arg-type]
    (root / "list_attr_celeba.txt").write_text("4\nEyeglasses Male\n000001.jpg 1 0\n")
    with pytest.raises(ValueError, match=r"list_attr_celeba\.txt: expected -1 or 1"):
        celeba(root)
    (root / "list_attr_celeba.txt").write_text("4\nEyeglasses Male\n000001.jpg 1\n")
    with pytest.raises(ValueError, match=r"list_attr_celeba\.txt: expected a photograph and 2 whole numbers a line"):
        celeba(root)
    (root / "list_attr_celeba.txt").write_text("1\nEyeglasses Male\n000003.jpg 1 1\n")
    with pytest.raises(ValueError, match=r"000001\.jpg \(of 3\) has no line in the list with columns Eyeglasses, Male"):
        celeba(root)
    (root / "list_landmarks_align_celeba.txt").write_text("4\nx y\n")
    with pytest.raises(ValueError, match="expected five points a line"):
        celeba(root)
    (root / "identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"identity_CelebA\.txt: not there; it comes with CelebA"):
        celeba(root)
