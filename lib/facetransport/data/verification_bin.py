"""InsightFace's verification sets (``lfw.bin``, ``agedb_30.bin``, ``cfp_fp.bin`` ...): pairs of 112-pixel crops.

A file is a pickle of (encoded images, two a pair; whether each pair is one person). Pickles can run anything, so this
one goes through a reader that makes lists, bytes, numbers and NumPy arrays, and refuses all else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from facetransport.data.photographs import Collection, Grey, decode

_ALLOWED = {
    ("_codecs", "encode"),  # bytes in pickles of protocol 2
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True)
class Pairs:
    """Encoded images, 2 P of them, pair by pair; same: bool (P,)."""

    images: list[bytes]
    same: np.ndarray


def verification_bin(path: Path, grey: Grey = "refuse") -> Collection:
    """The images of a file. Columns: identity, source (the image's place), pair, side (0 or 1).

    Who people are is not in the file: identity is right within a pair. For `protocols.verify_pairs` embed, then compare
    side 0 with side 1.
    """
    pairs = read(path)
    place = np.arange(2 * len(pairs.same))
    pair, side = place // 2, place % 2
    identity = 2 * pair + np.where(pairs.same[pair], 0, side)
    table = pd.DataFrame({"identity": identity, "source": place.astype(str), "pair": pair, "side": side})
    return Collection(table, partial(_read_image, pairs.images, str(path), grey), "insightface")


def _read_image(images: list[bytes], name: str, grey: Grey, source: str) -> np.ndarray:
    return decode(images[int(source)], f"{name}, image {source}", grey)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no verification set needs")
        return super().find_class(module, name)


def read(path: Path) -> Pairs:
    """The pairs of a ``.bin`` file; images stay encoded. ValueError where the file is something else, or hostile."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected a verification set such as lfw.bin")
    try:
        images, same = _Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        encoded = [image if isinstance(image, bytes) else np.asarray(image, np.uint8).tobytes() for image in images]
        labels = np.asarray(same).astype(bool)
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(
            f"{path}: expected a pickle of encoded images and booleans ({error}); fetch it again"
        ) from None
    if labels.ndim != 1 or not len(labels) or len(encoded) != 2 * len(labels):
        raise ValueError(f"{path}: expected two images a pair, got {len(encoded)} images and {labels.shape} pairs")
    return Pairs(encoded, labels)
