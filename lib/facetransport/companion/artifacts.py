"""Expensive things are made once: a cache addressed by what was asked for, verified by digest.

A ``Recipe`` says how one thing is made (a rendered split, a trained network) from plain configuration and other
recipes. Its key is the SHA-256 of that description, so it is known without building anything. A ``Store`` finds the
folder under that key, among the weights shipped with the package first, then in its cache, and otherwise makes it: into
a ``.partial`` folder that survives a kill (makers resume from it), then a manifest with the digest of every file, then
one rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from facetransport.files import TEMPORARY, clear_when_full, file_digest, sync, write_json
from facetransport.version import checkout, code_version

WEIGHTS = Path(__file__).with_name("weights")
MANIFEST = "manifest.json"
VARIABLE = "FACETRANSPORT_CACHE"
log = logging.getLogger(__name__)

Maker = Callable[[Path, tuple[Path, ...]], None]


class CorruptArtifact(RuntimeError):
    """A shipped artefact whose files differ from its manifest."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one artefact is made.

    stage: dotted name, also the folder's name (``rendered.train``, ``idiff_face.cpd25``).
    config: plain JSON data; everything that decides the content belongs here or in ``upstream``.
    make: ``make(folder, upstream_folders)`` writes files into ``folder``, which may hold what an earlier, interrupted
        attempt with the same key left there.
    version: raise it when the code changes what the same config means.
    label: for people: which of many artefacts of one stage. Not part of the key.
    """

    stage: str
    config: Mapping[str, Any]
    make: Maker
    version: int = 1
    upstream: tuple[Recipe, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", self.stage):
            raise ValueError(f"stage: expected a dotted lower-case name such as 'rendered.train', got {self.stage!r}")
        digest(self.config)  # refuses what is not JSON here, not hours later

    @property
    def key(self) -> str:
        """Hex SHA-256 of stage, config, version and upstream keys."""
        return digest([self.stage, dict(self.config), self.version, [u.key for u in self.upstream]])

    @property
    def place(self) -> Path:
        """Relative folder of the artefact in a store and among the shipped weights."""
        return Path(self.stage) / self.key[:16]


def digest(data: object) -> str:
    """Hex SHA-256 of plain JSON data (finite numbers, text keys) in canonical form."""
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_mapping)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config: expected plain JSON data (finite numbers, text, lists, mappings): {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


def _mapping(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


# ------------------------------------------------------------------------------------------------------- the store


class Store:
    """Folders by recipe: shipped, cached, or made now.

    root: the cache; created when first written to.
    shipped: read-only folders with the same layout, looked into first; by default the package's own weights.
    """

    def __init__(self, root: Path, shipped: Sequence[Path] | None = None) -> None:
        self.root = Path(root)
        self.shipped = (WEIGHTS,) if shipped is None else tuple(shipped)

    def get(self, recipe: Recipe) -> Path:
        """The verified folder of ``recipe``; made, after its upstream, if it is not there.

        Raises CorruptArtifact for damaged shipped weights, DiskFull where there is no room. A damaged cached artefact
        is reported by a warning, moved aside and made anew.
        """
        found = self.find(recipe)
        return found if found else self._build(recipe)

    def find(self, recipe: Recipe) -> Path | None:
        """The verified folder if shipped or cached, else None; builds nothing."""
        for folder in (shipped / recipe.place for shipped in self.shipped):
            if folder.is_dir():
                return self._sound_shipped(folder, recipe)
        folder = self.folder(recipe)
        return folder if folder.is_dir() and self.problem(folder, recipe) is None else None

    def has(self, recipe: Recipe) -> bool:
        """Whether ``get`` would build nothing."""
        return self.find(recipe) is not None

    def status(self, recipe: Recipe) -> str:
        """``shipped``, ``cached``, ``corrupt``, ``partial`` (an interrupted build) or ``to build``."""
        found = self.find(recipe)
        if found:
            return "cached" if found == self.folder(recipe) else "shipped"
        if self.folder(recipe).is_dir():
            return "corrupt"
        return "partial" if _beside(self.folder(recipe), ".partial").is_dir() else "to build"

    def folder(self, recipe: Recipe) -> Path:
        """Where the cache keeps ``recipe``, whether or not it is there."""
        return self.root / recipe.place

    def problem(self, folder: Path, recipe: Recipe) -> str | None:
        """What is wrong with a finished folder, in words that name the file; None when every digest agrees."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files, key = manifest["files"], manifest["key"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{folder / MANIFEST}: unreadable ({error})"
        if key != recipe.key:
            return f"{folder / MANIFEST}: belongs to key {key}, expected {recipe.key}"
        return self._compare(folder, files)

    def _compare(self, folder: Path, files: Mapping[str, Any]) -> str | None:
        memo = self.root / ".verified" / f"{digest(str(folder.absolute()))[:16]}.json"
        seen, now = _read_memo(memo), {}
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{path}: missing"
            now[name] = [_fingerprint(path), expected["sha256"]]
            if seen.get(name) == now[name]:
                continue  # same size and time as when its digest was last computed: a warm start is fast
            if path.stat().st_size != expected["size"]:
                return f"{path}: {path.stat().st_size} bytes, expected {expected['size']}"
            if file_digest(path) != expected["sha256"]:
                return f"{path}: digest differs from the manifest's"
        if now != seen:
            _write_memo(memo, now)
        return None

    def _sound_shipped(self, folder: Path, recipe: Recipe) -> Path:
        problem = self.problem(folder, recipe)
        if problem is None:
            return folder
        raise CorruptArtifact(
            f"{problem}. Shipped weights are damaged: reinstall the package (a checkout: `git checkout -- {folder}`), "
            f"or delete {folder} and run `python -m facetransport train` to make them anew"
        )

    def _build(self, recipe: Recipe) -> Path:
        folder = self.folder(recipe)
        with clear_when_full(folder), _locked(_beside(folder, ".lock"), recipe):
            if folder.is_dir() and self._still_good(folder, recipe):
                return folder  # another process made it while this one waited
            upstream = tuple(self.get(u) for u in recipe.upstream)
            log.info("building %s (%s)", recipe.stage, recipe.key[:16])
            _make(recipe, folder, upstream)
        self.problem(folder, recipe)  # remembers the digests while the files are warm
        return folder

    def _still_good(self, folder: Path, recipe: Recipe) -> bool:
        problem = self.problem(folder, recipe)
        if problem:
            _move_aside(folder)
            warnings.warn(f"{problem}. Corrupt artefact: moved aside and made anew", stacklevel=4)
        return problem is None


def _make(recipe: Recipe, folder: Path, upstream: tuple[Path, ...]) -> None:
    partial = _beside(folder, ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for half_written in [p for p in partial.rglob(".*") if TEMPORARY.fullmatch(p.name)]:
        half_written.unlink()  # by an attempt that was killed inside `replacing`
    try:
        recipe.make(partial, upstream)
    except Exception as error:
        error.add_note(f"while building {recipe.stage}; what is done is kept in {partial}")
        raise
    _seal(recipe, partial)
    partial.rename(folder)
    sync(folder.parent)


def _seal(recipe: Recipe, folder: Path) -> None:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    if not paths:
        raise RuntimeError(f"{recipe.stage}: its maker wrote no file into {folder}; expected at least one")
    for path in paths:
        sync(path)
    files = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": file_digest(p)} for p in paths}
    write_json(folder / MANIFEST, {**describe(recipe), "code_version": code_version(), "files": files})
    sync(folder)


def describe(recipe: Recipe) -> dict[str, Any]:
    """What identifies a recipe, as plain JSON data."""
    upstream = {u.stage: u.key for u in recipe.upstream}
    return {
        "stage": recipe.stage,
        "key": recipe.key,
        "version": recipe.version,
        "config": dict(recipe.config),
        "upstream": upstream,
    }


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _move_aside(folder: Path) -> None:
    aside = _beside(folder, ".corrupt")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _fingerprint(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _read_memo(path: Path) -> dict[str, Any]:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(path: Path, memo: Mapping[str, Any]) -> None:
    try:
        write_json(path, memo)
    except OSError as error:  # a read-only cache still serves; it only verifies again next time
        log.debug("not remembering digests: %s", error)


@contextmanager
def _locked(path: Path, recipe: Recipe) -> Iterator[None]:
    """One builder at a time; the lock dies with its process, so a kill leaves nothing to clean up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.warning("waiting for %s, which is building %s", file.read().strip() or "another process", recipe.stage)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def default_store() -> Store:
    """FACETRANSPORT_CACHE, else ``.cache`` of the checkout, else the user's cache folder."""
    return Store(cache_root())


def cache_root() -> Path:
    """Where ``default_store`` keeps what it builds."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser().absolute()
    here = checkout()
    return here / ".cache" if here else platformdirs.user_cache_path("facetransport")


def ship(recipe: Recipe, store: Store | None = None, weights: Path | None = None) -> Path:
    """Copy a built artefact to the package's weights (or another folder), whole or not at all."""
    target = (weights or WEIGHTS) / recipe.place
    source = (store or default_store()).get(recipe)
    if source.absolute() == target.absolute():
        return target
    partial = _beside(target, ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with clear_when_full(partial):
        shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target
