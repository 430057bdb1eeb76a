"""InsightFace's verification sets: pairs read back, every way they are pickled, and nothing run."""

from __future__ import annotations

import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetransport.data.photographs import to_faceset
from facetransport.data.verification_bin import read, verification_bin


def picture(level: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((112, 112, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES, SAME = [picture(10 * i) for i in range(6)], [True, False, True]
ARRAYS = [np.frombuffer(image, np.uint8) for image in IMAGES]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("content", [(IMAGES, SAME), (ARRAYS, np.array(SAME)), [ARRAYS, list(np.array(SAME))]])
def test_pairs_come_back_however_they_were_pickled(content: object, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(content, protocol))
    pairs = read(tmp_path / "lfw.bin")
    assert pairs.images == IMAGES and pairs.same.tolist() == SAME


def test_faces_pair_by_pair(tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, SAME)))
    faces, lost = to_faceset(verification_bin(tmp_path / "lfw.bin"), tmp_path / "out", 64, workers=1)
    assert not lost and faces.images[:, 9, 9, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert faces.table["pair"].tolist() == [0, 0, 1, 1, 2, 2] and faces.table["side"].tolist() == [0, 1] * 3
    one, other = faces.identity[0::2], faces.identity[1::2]
    assert (one == other).tolist() == SAME and len(set(faces.identity)) == 4


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.bin").write_bytes(pickle.dumps((IMAGES, [Hostile(tmp_path / "made")])))
    with pytest.raises(ValueError, match=r"evil\.bin: .*asks for posix\.mkdir, which no verification set needs"):
        read(tmp_path / "evil.bin")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(3), pickle.dumps((IMAGES[:5], SAME))])
def test_other_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin: expected"):
        read(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError, match="expected a verification set"):
        read(tmp_path / "b.bin")
