"""What the user brings: weights in the place of networks that a profile would train, text models, verification sets."""

from __future__ import annotations

import shutil
from functools import lru_cache, partial
from pathlib import Path

from facetransport.companion.artifacts import Recipe
from facetransport.companion.experiments.fitting import MODEL
from facetransport.companion.profiles import Profile
from facetransport.diffusion.text import FOLDER
from facetransport.files import file_digest

ONNX, PAIRS = "model.onnx", "pairs.bin"


def recipe(profile: Profile, name: str) -> Recipe | None:
    """The file that ``weights.<name>`` names, known by its contents; None where the profile names none.

    The artefact holds it as ``model.safetensors`` or ``model.onnx``.
    """
    if name not in profile.weights:
        return None
    path = Path(profile.weights[name])
    if not path.is_file():
        raise FileNotFoundError(
            f"weights.{name}: {path} is not there; `facetransport import-weights` writes such a file"
        )
    name_there = ONNX if path.suffix == ".onnx" else MODEL
    return Recipe(f"weights.{name}", contents(path), partial(_take, path, name_there))


def text_model(folder: str | None, setting: str) -> dict[str, str]:
    """What a recipe knows of the text model in a user's folder, which this setting names; nothing of the package's."""
    if not folder:
        return {}
    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{setting}: {weights} is not there; {FOLDER}")
    return {"text": contents(weights)["sha256"]}


def contents(path: Path) -> dict[str, str]:
    """What a recipe knows of a user's file."""
    return {"sha256": _digest(path, path.stat().st_mtime_ns)}


@lru_cache(maxsize=64)
def _digest(path: Path, changed: int) -> str:
    """Of gigabytes, asked for by every recipe that is made of them: computed once in a process."""
    del changed
    return file_digest(path)


def _take(path: Path, name: str, folder: Path, upstream: tuple[Path, ...]) -> None:
    del upstream
    shutil.copyfile(path, folder / name)


def pairs_recipe(name: str, path: str) -> Recipe:
    """A verification set of the profile's ``tests``, as ``pairs.bin``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"tests.{name}: {path} is not there; expected a verification set such as lfw.bin")
    return Recipe("pairs", contents(Path(path)), partial(_take, Path(path), PAIRS), label=name)


def require(profile: Profile) -> None:
    """Refuse to begin where a network is neither trained nor given: now, not after days of training others."""
    if not profile.autoencoder.steps and "autoencoder" not in profile.weights:
        raise ValueError(
            "weights.autoencoder: this profile trains none (autoencoder.steps is 0); fetch LDM's VQ-f4 (model.ckpt, "
            "or IDiff-Face's two first_stage files), write it with `facetransport import-weights FILE vq.safetensors "
            "--kind vq` and name that file there"
        )
