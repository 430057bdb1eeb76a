"""RecordIO: what is written is read again; bytes as the format's description has them; broken files are named."""

from __future__ import annotations

import struct
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetransport.data.photographs import to_faceset
from facetransport.data.recordio import MAGIC, RecordFile, recordio, write

MARK = struct.pack("<I", MAGIC)


def picture(level: int, side: int = 112) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_people(path: Path, people: list[list[bytes]]) -> None:
    write(path, ((label, image) for label, files in enumerate(people) for image in files), [len(f) for f in people])


@pytest.fixture
def train(tmp_path: Path) -> Path:
    write_people(tmp_path / "train.rec", [[picture(10), picture(20)], [picture(30)], [picture(40), picture(50)]])
    return tmp_path / "train.rec"


def test_written_then_read_is_equal(train: Path, tmp_path: Path) -> None:
    collection = recordio(train)
    assert collection.table["identity"].tolist() == [0, 0, 1, 2, 2]
    assert collection.table["source"].tolist() == ["1", "2", "3", "4", "5"]
    faces, lost = to_faceset(collection, tmp_path / "out", 64, workers=2)
    assert not lost and faces.images[:, 30, 30, 0].tolist() == [10, 20, 30, 40, 50]
    assert faces.landmarks.shape == (5, 5, 2)


def test_the_header_and_the_records_of_people_are_insightfaces(train: Path) -> None:
    records = RecordFile(train)
    assert records.read(0).labels == (6.0, 9.0) and not records.read(0).image
    assert [records.read(key).labels for key in (6, 7, 8)] == [(1.0, 3.0), (3.0, 4.0), (4.0, 6.0)]


def test_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    """A file put together by hand from the description of the format."""
    payload = struct.pack("<IfQQ", 0, 5.0, 0, 0) + picture(70)
    record = struct.pack("<II", MAGIC, len(payload)) + payload + b"\0" * (-len(payload) % 4)
    (tmp_path / "a.rec").write_bytes(record + record)
    (tmp_path / "a.idx").write_text(f"1\t0\n2\t{len(record)}\n")
    records = RecordFile(tmp_path / "a.rec")
    assert records.read(2).labels == (5.0,) and records.read(2).image == picture(70)


@pytest.mark.parametrize("image", [MARK, MARK * 3, b"abcd" + MARK, b"abcd" + MARK + b"ef", b"ab" + MARK, b"x" * 9])
def test_an_image_that_holds_the_magic_survives(image: bytes, tmp_path: Path) -> None:
    write_people(tmp_path / "t.rec", [[image, b"next"]])
    records = RecordFile(tmp_path / "t.rec")
    assert [records.read(key).image for key in (1, 2)] == [image, b"next"]


def test_sets_without_a_header_hold_images_only(tmp_path: Path) -> None:
    payload = struct.pack("<IfQQ", 2, 0.0, 0, 0) + struct.pack("<2f", 4.0, 1.0) + picture(70)
    record = struct.pack("<II", MAGIC, len(payload)) + payload + b"\0" * (-len(payload) % 4)
    (tmp_path / "a.rec").write_bytes(record)
    (tmp_path / "a.idx").write_text("0\t0\n")
    assert recordio(tmp_path / "a.rec").table["identity"].tolist() == [4]


def test_broken_files_are_named(train: Path) -> None:
    whole = train.read_bytes()
    records = RecordFile(train)
    with pytest.raises(ValueError, match=r"train\.rec: no record 99 in its index of 9"):
        records.read(99)
    train.write_bytes(whole[: records.offsets[2] + 30])
    with pytest.raises(ValueError, match=r"train\.rec: record 2 is broken \(expected \d+ bytes, the file ends after"):
        records.read(2)
    train.write_bytes(b"\0" * len(whole))
    with pytest.raises(ValueError, match="record 1 is broken .expected 0xced7230a where a record begins, got 0x0"):
        records.read(1)
    train.with_suffix(".idx").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"train\.idx: expected lines of a key, a tab and an offset"):
        recordio(train)
    train.with_suffix(".idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.idx: not there; a set is a \.rec file with its \.idx"):
        recordio(train)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("0\t0\n1\t-40\n", r"record 1 is said to begin at -40, expected a place in the [\d,]+ bytes of train\.rec"),
        ("0\t0\n1\t99999999\n", "record 1 is said to begin at 99999999, expected a place in"),
        ("-3\t0\n", "record -3 is said to begin at 0"),
        ("0\t0\n1\t40\n2\t40\n", "offset 40 stands in it twice; expected each record once"),
        ("0\t0\n0\t40\n", "key 0 stands in it twice"),
        ("0\n1\n", "expected lines of a key, a tab and an offset"),
        ("0\t0\t7\n", "expected lines of a key, a tab and an offset"),
        ("0\t0\n1\n", "expected lines of a key, a tab and an offset"),
        ("0\t99999999999999999999999\n", "expected lines of a key, a tab and an offset"),
        ("", "expected lines of a key, a tab and an offset"),
    ],
)
def test_an_index_that_cannot_be_is_named(train: Path, lines: str, words: str) -> None:
    train.with_suffix(".idx").write_text(lines)
    with pytest.raises(ValueError, match=r"train\.idx: .*" + words):
        recordio(train)


@pytest.mark.parametrize("label", [float("nan"), float("inf"), -1.0, 0.5])
def test_labels_that_are_no_people_are_refused(tmp_path: Path, label: float) -> None:
    payload = struct.pack("<IfQQ", 0, label, 0, 0) + picture(70)
    record = struct.pack("<II", MAGIC, len(payload)) + payload + b"\0" * (-len(payload) % 4)
    (tmp_path / "a.rec").write_bytes(record)
    (tmp_path / "a.idx").write_text("0\t0\n")
    with pytest.raises(ValueError, match=r"a\.rec: record 0 has the label .*; expected a whole number, 0 or more"):
        recordio(tmp_path / "a.rec")


def test_a_length_that_the_file_cannot_hold_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(struct.pack("<II", MAGIC, (1 << 29) - 1) + b"x" * 40)
    (tmp_path / "a.idx").write_text("0\t0\n")
    tracemalloc.start()
    with pytest.raises(ValueError, match="record 0 is broken .expected 536870911 bytes, the file ends after 40"):
        recordio(tmp_path / "a.rec")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    write_people(tmp_path / "t.rec", [[picture(1, side=96)]])
    with pytest.raises(ValueError, match="1: expected 112 x 112 pixels for geometry 'insightface', got 96 x 96"):
        to_faceset(recordio(tmp_path / "t.rec"), tmp_path / "out", 64, workers=1)


def test_counts_must_be_those_of_the_images_and_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="counts: expected those of the images"):
        write(tmp_path / "t.rec", [(0, b"a"), (1, b"b")], [2, 1])
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write(tmp_path / f"{count}.rec", ((i // 10, bytes(1000)) for i in range(count)), [10] * (count // 10))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(100)
    assert peak(5000) < 1.5 * peak(1000)
    assert RecordFile(tmp_path / "5000.rec").read(5000).labels == (499.0,)
