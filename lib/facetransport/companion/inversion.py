"""A photograph on disk inverted, and walked along a direction: what ``facetransport invert`` and ``walk`` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from facetransport.companion import plots
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import directions, id3pm, id3pm_study
from facetransport.companion.profiles import Profile
from facetransport.data import detection
from facetransport.data.alignment import warp
from facetransport.data.faceset import to_tensor
from facetransport.data.photographs import decode
from facetransport.papers.id3pm import invert

LARGE = 600  # pixels: smaller photographs are enlarged for the search of the face
STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # deviations


def face_of(path: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3): the one face of a photograph, in the template.

    Raises FileNotFoundError, and ValueError where the file is no image, or holds no face or several.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a photograph (.jpg, .png, ...)")
    image = decode(path.read_bytes(), str(path), "repeat")
    faces = detection.detect_all(image, upscale=3.0 if max(image.shape[:2]) < LARGE else 1.0, border=16)
    if not faces:
        raise ValueError(f"{path}: no face found; expected one, upright and seen from the front")
    if len(faces) > 1:
        raise ValueError(f"{path}: {len(faces)} faces found, expected one; crop the photograph to the person")
    return warp(image, detection.to_template(faces[0], size), size)


def inverted(
    profile: Profile, store: Store, path: Path, samples: int, guidance: float | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The aligned face (H, W, 3) and what is drawn from its embedding (samples, H, W, 3), uint8."""
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    face = face_of(path, profile.rendered.size)
    model, y = id3pm.load(profile, store), id3pm.black_box(profile, store).embed(to_tensor(face[None]))
    sampling = id3pm_study.how(profile.inversion)
    sampling |= {} if guidance is None else {"guidance": guidance}
    return face, np.asarray(invert(model, y, samples, seed, **sampling).images)


def walked(
    profile: Profile, store: Store, path: Path, direction: str, steps: Sequence[float] = STEPS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The aligned face and what is drawn at each step along a direction (`directions.NAMES`), from one noise."""
    if direction not in directions.NAMES:
        raise ValueError(f"direction: expected one of {', '.join(directions.NAMES)}, got {direction!r}")
    face = face_of(path, profile.rendered.size)
    model, box = id3pm.load(profile, store), id3pm.black_box(profile, store)
    known = directions.load(profile, store, box)
    walks = known.walk(box.embed(to_tensor(face[None])).numpy(), direction, steps)[0]
    sampling = id3pm_study.how(profile.inversion)
    one_noise = [0] * len(walks)
    return face, np.asarray(invert(model, torch.from_numpy(walks), 1, seed, identities=one_noise, **sampling).images)


def sheet(face: np.ndarray, drawn: np.ndarray, heads: Sequence[str]) -> Figure:
    """The photograph, then the drawings, in one row."""
    return plots.identity_grid(np.concatenate([face[None], drawn]), 1 + len(drawn), heads=["photograph", *heads])
