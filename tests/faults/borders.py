"""Files from elsewhere: how each kind is read, one that is sound, and ways to break it.

Used by the tests beside this file, and by hand for as long as one likes: ``python tests/faults/borders.py bin 10``
breaks files for ten minutes and says how many were tried, and the slowest and the largest reading.
"""

from __future__ import annotations

import io
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from facetransport.checkpoints import read_checkpoint
from facetransport.companion import profiles
from facetransport.data import recordio, verification_bin
from facetransport.data.photographs import decode
from facetransport.data.webdataset import webdataset
from facetransport.diffusion.official import import_unet, import_vq
from facetransport.recognition.iresnet import from_state_dict

MOST, SLOWEST, LARGEST = 4096, 5.0, 2**30  # bytes of a file; seconds and bytes that reading one may take
Edit = tuple[str, float, bytes]
"""What is done, where (a share of the length), and with which bytes."""
OPERATIONS = ("replace", "insert", "remove", "repeat", "cut")


@dataclass(frozen=True)
class Border:
    """name: of the file that is broken; sound: its bytes; read: reads it, and lets nothing but ValueError through."""

    name: str
    sound: bytes
    read: Callable[[Path], object]


def broken(data: bytes, edits: list[Edit]) -> bytes:
    """The bytes after some edits, at most ``MOST`` of them, or as many as there were."""
    most = max(MOST, len(data))
    for operation, where, new in edits:
        place = int(where * len(data))
        end = place + max(1, len(new))
        if operation == "replace":
            data = data[:place] + new + data[place + len(new) :]
        elif operation == "insert":
            data = data[:place] + new + data[place:]
        elif operation == "remove":
            data = data[:place] + data[end:]
        elif operation == "repeat":
            data = data[:place] + data[place:end] * (1 + len(new)) + data[end:]
        else:
            data = data[:place]
    return data[:most]


# --------------------------------------------------------------------------------------------------------- the kinds


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
    return buffer.getvalue()


def records(path: Path) -> None:
    """Two images of two people, without a header."""
    chunks = [struct.pack("<IfQQ", 0, float(i), 0, 0) + picture("PNG") for i in range(2)]
    whole = [struct.pack("<II", recordio.MAGIC, len(c)) + c + b"\0" * (-len(c) % 4) for c in chunks]
    path.write_bytes(b"".join(whole))
    path.with_suffix(".idx").write_text(f"0\t0\n1\t{len(whole[0])}\n")


def read_records(path: Path) -> None:
    records_of = path.with_suffix(".rec")
    for needed in (records_of, records_of.with_suffix(".idx")):  # the one that is not broken
        if needed != path:
            data = path.read_bytes()
            records(records_of)
            path.write_bytes(data)
    collection = recordio.recordio(records_of)
    for source in collection.table["source"]:
        collection.read(source)


def sound_records(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        records(Path(folder) / "a.rec")
        return (Path(folder) / f"a{suffix}").read_bytes()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in {"x.png": picture("PNG"), "x.json": b'{"identity": 3}'}.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return buffer.getvalue()[:3072]


def read_tar(path: Path) -> None:
    collection = webdataset(path)
    for source in collection.table["source"]:
        collection.read(source)


def read_pairs(path: Path) -> None:
    collection = verification_bin.verification_bin(path)
    for source in collection.table["source"]:
        collection.read(source)


def state() -> dict[str, torch.Tensor]:
    """A few tensors under names of every network that is imported."""
    return {
        "image_proj.weight": torch.ones(2, 3, 1, 1),
        "down.1.conv.weight": torch.ones(2),
        "down.0.res.conv2.weight": torch.ones(2, 1),
        "betas": torch.linspace(1e-4, 0.02, 4),
        "encoder.conv_in.weight": torch.ones(4, 3, 1, 1),
        "quantize.embedding.weight": torch.ones(2, 3),
        "conv1.weight": torch.ones(2, 3, 3, 3),
        "fc.weight": torch.ones(4, 4),
        **{f"layer{i}.0.conv2.weight": torch.ones(2, 1) for i in range(1, 5)},
    }


def saved(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": state()}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def instructions() -> bytes:
    """The pickle inside a checkpoint."""
    with zipfile.ZipFile(io.BytesIO(saved(True))) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def wrapped(pickled: bytes) -> bytes:
    """A sound checkpoint with other instructions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(True))) as archive, zipfile.ZipFile(buffer, "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, pickled if name.endswith("data.pkl") else archive.read(name))
    return buffer.getvalue()


def read_weights(path: Path) -> None:
    """By every importer; what one takes for no network of its own may be another's."""
    out = path.with_name("out.safetensors")
    importers = (import_unet, lambda file, to: import_vq([file], to), lambda file, to: from_state_dict(tensors, "a"))
    tensors = read_checkpoint(path)
    for importer in importers:
        try:
            importer(path, out)
        except ValueError as error:
            assert str(path) in str(error) or str(error).startswith("a: "), error


def read_instructions(path: Path) -> None:
    path.write_bytes(wrapped(path.read_bytes()))
    read_weights(path)


PROFILE = (profiles.FOLDER / "smoke.yaml").read_bytes()
BORDERS = {
    "bin": Border(
        "a.bin", pickle.dumps(([picture("PNG"), np.frombuffer(picture("BMP"), np.uint8)], [True]), 4), read_pairs
    ),
    "rec": Border("a.rec", sound_records(".rec"), read_records),
    "idx": Border("a.idx", sound_records(".idx"), read_records),
    "tar": Border("a.tar", tar(), read_tar),
    "checkpoint": Border("a.pt", saved(False), read_weights),
    "instructions": Border("a.pt", instructions(), read_instructions),
    "profile": Border("a.yaml", PROFILE, profiles.load),
    **{
        kind.lower(): Border(f"a.{kind.lower()}", picture(kind), lambda path: decode(path.read_bytes(), str(path)))
        for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
    },
}


# ------------------------------------------------------------------------------------------------------------ by hand


def peak() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(border: Border, data: bytes, folder: Path) -> float:
    """Processor seconds that reading took. AssertionError where anything but a sentence that names the file came."""
    path, began = folder / border.name, time.process_time()
    path.write_bytes(data)
    try:
        border.read(path)
    except (ValueError, FileNotFoundError) as error:
        assert f"{folder / 'a'}" in str(error), f"does not name the file: {error}"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    return time.process_time() - began


def some_edits(rng: random.Random) -> list[Edit]:
    return [
        (rng.choice(OPERATIONS), rng.random(), rng.randbytes(rng.randrange(17))) for _ in range(rng.randrange(1, 9))
    ]


def run(kind: str, minutes: float, seed: int = 0) -> None:
    """Break files for so long; stops at the first that does harm and keeps it."""
    rng, border, end = random.Random(seed), BORDERS[kind], time.monotonic() + 60 * minutes
    before, tried, slowest = peak(), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            data = broken(border.sound, some_edits(rng)) if tried % 20 else rng.randbytes(rng.randrange(MOST))
            Path(f"harmful-{kind}").write_bytes(data)  # there, if this process dies of it
            slowest = max(slowest, attempt(border, data, Path(folder)))
            assert slowest < SLOWEST and peak() - before < LARGEST, f"{slowest:.1f} s, {peak() - before:,} bytes"
            tried += 1
    Path(f"harmful-{kind}").unlink()
    print(f"{kind}: {tried:,} files, slowest {slowest:.2f} s, {(peak() - before) >> 20} MiB more, none did harm")


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]))
