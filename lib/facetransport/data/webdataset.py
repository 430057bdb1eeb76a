"""WebDataset: images in tar files, each beside what is known of it, ``<name>.jpg`` and ``<name>.json`` or ``.cls``."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from facetransport.data.imagefolder import SUFFIXES
from facetransport.data.photographs import Collection, Geometry, Grey, decode

KNOWN = 2**16  # bytes that say something of an image, at most
Place = tuple[int, int]  # where a member's bytes begin, and how many there are


def webdataset(root: Path, geometry: Geometry = "whole", grey: Grey = "refuse") -> Collection:
    """The images of a ``.tar``, or of all those in a folder, in order of their names.

    Columns: identity (``identity`` or ``label`` of the .json, or the .cls), source (``<tar>/<member>``), and what each
    .json says in numbers or text, as far as all do. Images are read where they lie, nothing is unpacked.
    """
    tars = [root] if root.is_file() else sorted(root.glob("*.tar"))
    if not tars:
        raise FileNotFoundError(f"{root}: no .tar in it; expected a WebDataset's folder, or one of its files")
    rows, places = list[dict[str, Any]](), dict[str, tuple[Path, Place]]()
    for path in tars:
        for name, place, known in _images(path):
            source = f"{path.name}/{name}"
            rows.append(known | {"source": source})
            places[source] = path, place
    table = pd.DataFrame(rows).dropna(axis="columns") if rows else pd.DataFrame({"identity": [], "source": []})
    return Collection(table, partial(_read_image, places, grey), geometry)


def _images(path: Path) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Name, place and description of each image of a tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            found = [(member.name, (member.offset_data, member.size)) for member in tar if member.isreg()]
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a tar file that can be read whole ({error}); fetch it again") from None
    members = dict(found)
    if len(members) < len(found):
        raise ValueError(f"{path}: {len(found) - len(members)} members have the name of another; expected each once")
    for name, place in found:
        if PurePosixPath(name).suffix.lower() in SUFFIXES:
            yield name, place, _known(path, name, members)


def _known(path: Path, name: str, members: dict[str, Place]) -> dict[str, Any]:
    told, label = (members.get(str(PurePosixPath(name).with_suffix(suffix))) for suffix in (".json", ".cls"))
    try:
        if told:
            known = json.loads(_bytes(path, told, KNOWN))
            plain = {key: value for key, value in known.items() if isinstance(value, (bool, int, float, str))}
            plain["identity"] = _person(known["identity"] if "identity" in known else known["label"])
            return plain
        if label:
            return {"identity": _person(_bytes(path, label, KNOWN).decode())}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path}: {name}: what is said of it cannot be read ({type(error).__name__}: {error})"
        ) from None
    raise ValueError(f"{path}: {name}: expected a .json with its identity, or a .cls, beside it")


def _person(label: Any) -> int:
    number = int(label)
    if number < 0 or number != float(label):
        raise ValueError(f"expected a whole number, 0 or more, got {label!r}")
    return number


def _bytes(path: Path, place: Place, most: int) -> bytes:
    start, size = place
    if size > min(most, path.stat().st_size - start):
        raise ValueError(f"{size:,} bytes, more than are there, or than {most:,}")
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _read_image(places: dict[str, tuple[Path, Place]], grey: Grey, source: str) -> np.ndarray:
    path, place = places[source]
    return decode(_bytes(path, place, path.stat().st_size), f"{path}, {source}", grey)
