"""InsightFace's RecordIO training sets (CASIA, MS1MV2, WebFace: ``train.rec`` and ``train.idx``), in plain Python.

A record is a uint32 magic, a uint32 whose upper 3 bits say whether the payload goes on in the next record and whose
lower 29 are its length, and the payload, padded to 4 bytes. A payload is a header (flag, label, id, id2; flag float32
labels more where flag > 0) and an image file. Record 0 of a training set is a header alone: its labels are the first
key of the records of identities, which come behind those of images, and the end.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from facetransport.data.photographs import Collection, Grey, decode
from facetransport.files import replacing

MAGIC = 0xCED7230A
_PREFIX, _HEADER = struct.Struct("<II"), struct.Struct("<IfQQ")
_WHOLE, _LAST = (0, 3), 3  # continuation flags: a record of its own or the last part; 1 and 2 are followed by more


@dataclass(frozen=True)
class Record:
    """labels: one, or ``flag`` of them. image: the bytes of an image file, none in headers."""

    labels: tuple[float, ...]
    image: bytes


class RecordFile:
    """Records by key. Opened anew at each reading, so that it travels to other processes."""

    def __init__(self, path: Path) -> None:
        for needed in (path, path.with_suffix(".idx")):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed}: not there; a set is a .rec file with its .idx beside it")
        self.path = path

    @cached_property
    def offsets(self) -> dict[int, int]:
        """Key -> place in the file, from the ``.idx`` file's lines ``key<TAB>offset``."""
        index = self.path.with_suffix(".idx")
        try:
            lines = pd.read_csv(index, sep="\t", header=None, dtype=np.int64)
            lines.columns = pd.Index(["key", "offset"])  # refuses any other number of columns
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{index}: expected lines of a key, a tab and an offset: {error}") from None
        size = self.path.stat().st_size
        wrong = lines[(lines["key"] < 0) | ~lines["offset"].between(0, size - 1)]
        if len(wrong):
            key, offset = wrong.iloc[0]
            raise ValueError(
                f"{index}: record {key} is said to begin at {offset}, expected a place in the {size:,} bytes of "
                f"{self.path.name}; one is cut short, or they do not belong together"
            )
        for column in lines:
            again = lines[column][lines[column].duplicated()]
            if len(again):
                raise ValueError(f"{index}: {column} {again.iloc[0]} stands in it twice; expected each record once")
        return dict(lines.itertuples(index=False, name=None))

    def read(self, key: int) -> Record:
        with self.path.open("rb") as file:
            return self._read(file, key)

    def read_all(self, keys: Iterable[int]) -> Iterator[Record]:
        with self.path.open("rb") as file:
            for key in keys:
                yield self._read(file, key)

    def _read(self, file: BinaryIO, key: int) -> Record:
        if key not in self.offsets:
            raise ValueError(f"{self.path}: no record {key} in its index of {len(self.offsets)}")
        file.seek(self.offsets[key])
        try:
            return _unpack(_payload(file))
        except (struct.error, EOFError) as error:
            raise ValueError(f"{self.path}: record {key} is broken ({error}); fetch the file again") from None


def _payload(file: BinaryIO) -> bytes:
    """A record's bytes; those that held the magic were cut there, and go on in the next records."""
    parts, more = [], True
    while more:
        magic, length = _PREFIX.unpack(_exactly(file, _PREFIX.size))
        if magic != MAGIC:
            raise EOFError(f"expected {MAGIC:#x} where a record begins, got {magic:#x}")
        flag, size = length >> 29, length & (1 << 29) - 1
        parts.append(_exactly(file, size))
        file.seek(-size % 4, 1)
        more = flag not in (0, _LAST)
    return struct.pack("<I", MAGIC).join(parts)


def _exactly(file: BinaryIO, size: int) -> bytes:
    left = os.fstat(file.fileno()).st_size - file.tell()  # before room for what is claimed is made
    if size > left:
        raise EOFError(f"expected {size} bytes, the file ends after {max(left, 0)}")
    return file.read(size)


def _unpack(payload: bytes) -> Record:
    flag, label, _, _ = _HEADER.unpack_from(payload)
    labels = struct.unpack_from(f"<{flag}f", payload, _HEADER.size) if flag else (label,)
    return Record(labels, payload[_HEADER.size + 4 * flag :])


def recordio(path: Path, grey: Grey = "refuse") -> Collection:
    """The images of a training set. Columns: identity (the label), source (the record's key)."""
    records = RecordFile(path)
    first = records.read(0)
    # without a header every record is an image, as `im2rec` writes them
    keys = range(1, _whole(first, path, 0)) if not first.image else sorted(records.offsets)
    labels = [_whole(record, path, key) for key, record in zip(keys, records.read_all(keys), strict=True)]
    table = pd.DataFrame({"identity": labels, "source": [str(key) for key in keys]})
    return Collection(table, partial(_read_image, records, grey), "insightface")


def _whole(record: Record, path: Path, key: int) -> int:
    """A label is a float32 in the file, and counts people or records."""
    label = record.labels[0] if record.labels else float("nan")
    if not math.isfinite(label) or label < 0 or label != int(label):
        raise ValueError(f"{path}: record {key} has the label {label}; expected a whole number, 0 or more")
    return int(label)


def _read_image(records: RecordFile, grey: Grey, source: str) -> np.ndarray:
    return decode(records.read(int(source)).image, f"{records.path}, record {source}", grey)


def write(path: Path, images: Iterable[tuple[int, bytes]], counts: Sequence[int] | np.ndarray) -> None:
    """A training set in InsightFace's layout, written in a stream. Writes the ``.idx`` beside it.

    images: (label, image file), person by person; counts: how many each of the labels 0, 1, ... has. Order: header,
    images, a record for each person that says which keys are theirs.
    """
    ends = np.cumsum(counts) + 1
    last = int(ends[-1]) if len(ends) else 1
    index = path.with_suffix(".idx")
    with (
        replacing(path) as there,
        replacing(index) as lines_there,
        there.open("wb") as file,
        lines_there.open("w") as lines,
    ):
        for key, record in enumerate(_records(images, counts, ends, last)):
            lines.write(f"{key}\t{file.tell()}\n")
            file.write(record)


def _records(
    images: Iterable[tuple[int, bytes]], counts: Sequence[int] | np.ndarray, ends: np.ndarray, last: int
) -> Iterator[bytes]:
    yield _pack((last, last + len(ends)))
    seen = np.zeros(len(ends), np.int64)
    for label, image in images:
        seen[label] += 1
        yield _pack((label,), image)
    if not np.array_equal(seen, counts):
        raise ValueError(f"counts: expected those of the images, {seen.tolist()[:8]} ..., got {list(counts)[:8]} ...")
    yield from (_pack((end - count, end)) for end, count in zip(ends, counts, strict=True))


def _pack(labels: tuple[float, ...], image: bytes = b"") -> bytes:
    """One record; its payload is cut wherever it holds the magic at a multiple of 4 bytes."""
    several = len(labels) > 1
    header = _HEADER.pack(len(labels) if several else 0, 0.0 if several else labels[0], 0, 0)
    payload = header + (struct.pack(f"<{len(labels)}f", *labels) if several else b"") + image
    parts = _cut(payload)
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), _LAST]
    return b"".join(
        _PREFIX.pack(MAGIC, flag << 29 | len(part)) + part + b"\0" * (-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


def _cut(payload: bytes) -> list[bytes]:
    magic, start, parts = struct.pack("<I", MAGIC), 0, []
    for place in range(0, len(payload) - 3, 4):
        if payload[place : place + 4] == magic:
            parts.append(payload[start:place])
            start = place + 4
    return [*parts, payload[start:]]
