"""InsightFace's verification sets: pairs read back, every way they are pickled, and nothing run."""

from __future__ import annotations

import os
import pickle
import tracemalloc
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


@pytest.mark.parametrize("protocol", range(6))
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
    with pytest.raises(ValueError, match=r"evil\.bin: .*asks for (posix|nt)\.mkdir, which no verification set needs"):
        read(tmp_path / "evil.bin")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(3), pickle.dumps((IMAGES[:5], SAME))])
def test_other_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin: expected"):
        read(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError, match="expected a verification set"):
        read(tmp_path / "b.bin")


def forged_dtype() -> bytes:
    """A dtype whose state says that its elements are objects: unpickled, it is a pointer that the file chose."""
    kind = b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt" + kind
    return b"((l" + array + b"I00\nS'AAAAAAAA'\ntba(lt."


HOSTILE = {
    "a dtype of objects": forged_dtype(),
    "a chain of codecs": b"((l" + b"c_codecs\nencode\n(" * 40 + b"S'00'\n" + b"S'hex'\ntR" * 40 + b"a(lt.",
    "an array of 7 GiB": b"\x80\x04\x8e" + (7 << 30).to_bytes(8, "little") + b"short",
    "a memo that is not there": b"h\x07.",
    "a list without end": b"(" * 1000,
    "an append to nothing": b"I1\na.",
    "a list that holds itself": b"]q\x00h\x00a\x85.",
    "a whole number without end": b"I" + b"9" * 100_000 + b"\n.",
    "a name of tuples within tuples": b"("
    + b"I1\nq\x00h\x00\x86"
    + b"q\x00h\x00\x86" * 200
    + b"X\x01\x00\x00\x00a\x93.",
    "no pickle": bytes(range(256)),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_is_hostile_is_refused_at_once_in_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.bin"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"evil\.bin: expected "):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_no_bytes_do_more_than_be_refused(tmp_path: Path) -> None:
    """Anything at all, and small sets of every protocol with some of their bytes changed, left out or doubled."""
    rng, path = np.random.default_rng(0), tmp_path / "any.bin"
    content = ([b"a", np.frombuffer(b"b", np.uint8), b"c", b"d"], [True, np.bool_(False)])
    whole = [pickle.dumps(content, protocol) for protocol in range(6)]
    for case in range(3000):
        data = bytearray(whole[case % 6])
        for _ in range(rng.integers(0, 6)):
            place, much = rng.integers(len(data)), rng.integers(1, 9)
            new = (rng.bytes(1), b"", bytes(data[place : place + much]) * 2)[rng.integers(3)]
            data[place : place + (1 if len(new) == 1 else much)] = new
        path.write_bytes(rng.bytes(rng.integers(4096)) if case % 10 == 9 else bytes(data))
        try:
            pairs = read(path)
        except ValueError as error:
            assert "any.bin: expected" in str(error)
        else:
            assert len(pairs.images) == 2 * len(pairs.same) and {type(image) for image in pairs.images} == {bytes}
