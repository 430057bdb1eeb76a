"""Expensive things are made once: a cache addressed by what was asked for, verified by digest.

A ``Recipe`` says how one thing is made (a rendered split, a trained network) from plain configuration and other
recipes. Its key is the SHA-256 of that description, so it is known without building anything. A ``Store`` finds the
folder under that key, among the weights shipped with the package first, then in its cache, and otherwise makes it: into
a ``.partial`` folder that survives a kill (makers resume from it), then a manifest with the digest of every file, then
one rename.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from facetransport import devices
from facetransport.files import TEMPORARY, clear_when_full, file_digest, sync, write_json
from facetransport.version import checkout, code_version

WEIGHTS = Path(__file__).with_name("weights")
MANIFEST = "manifest.json"
VARIABLE = "FACETRANSPORT_CACHE"
log = logging.getLogger(__name__)

IMAGES = {".npy"}
"""Folders of images may be many gigabytes: their digests are computed once, and again when size or time changed. All
other files, networks first, are verified whenever they are asked for, because bit rot changes neither."""

Maker = Callable[[Path, tuple[Path, ...]], None]


class _File(BaseModel):
    size: int
    sha256: str


class _Manifest(BaseModel):
    key: str
    files: dict[str, _File] = Field(min_length=1)


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
    collective: whether all processes of a run make it together (`training.train`); else the main one does and the
        others wait. Not part of the key.
    """

    stage: str
    config: Mapping[str, Any]
    make: Maker
    version: int = 1
    upstream: tuple[Recipe, ...] = ()
    label: str = ""
    collective: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", self.stage):
            raise ValueError(f"stage: expected a dotted lower-case name such as 'rendered.train', got {self.stage!r}")
        digest(self.config)  # refuses what is not JSON here, not hours later

    @cached_property
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
        self._alone = False  # inside a maker that the main process runs while the others wait

    def get(self, recipe: Recipe) -> Path:
        """The verified folder of ``recipe``; made, after its upstream, if it is not there.

        Raises CorruptArtifact for damaged shipped weights, DiskFull where there is no room. A damaged cached artefact
        is reported by a warning, moved aside and made anew.
        """
        if devices.several() and not self._alone:
            return self._get_together(recipe)
        found = self.find(recipe)
        return found if found else self._build(recipe)

    def find(self, recipe: Recipe) -> Path | None:
        """The verified folder if shipped or cached, else None; builds nothing."""
        for folder in (shipped / recipe.place for shipped in self.shipped):
            if folder.is_dir():
                return self._sound_shipped(folder, recipe)
        folder = self.folder(recipe)
        return folder if folder.is_dir() and self.problem(folder, recipe) is None else None

    def part(self, recipe: Recipe) -> Path:
        """Run a maker that makes a share of an artefact, beside other jobs that make the others and without waiting for
        them; returns the unfinished folder. ``get`` of the whole, once all have ended, joins and seals.
        """
        upstream = tuple(self.get(u) for u in recipe.upstream)  # made by whichever job is first
        partial = _beside(self.folder(recipe), ".partial")
        partial.mkdir(parents=True, exist_ok=True)  # what others write there now is left alone
        with clear_when_full(partial):
            _run(recipe, partial, upstream)
        return partial

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
            manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except OSError as error:
            return f"{folder / MANIFEST}: unreadable ({error.strerror})"
        except ValidationError as error:
            return f"{folder / MANIFEST}: unreadable ({error.errors()[0]['msg']})"
        if manifest.key != recipe.key:
            return f"{folder / MANIFEST}: belongs to key {manifest.key}, expected {recipe.key}"
        strangers = {p.relative_to(folder).as_posix() for p in _contents(folder)} - set(manifest.files)
        if strangers:
            return f"{folder / min(strangers)}: not in the manifest, so nothing says what it should hold"
        return self._compare(folder, manifest.files)

    def _compare(self, folder: Path, files: Mapping[str, _File]) -> str | None:
        memo = self.root / ".verified" / f"{digest(str(folder.absolute()))[:16]}.json"
        seen, now = _read_memo(memo), {}
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{path}: missing"
            if path.suffix in IMAGES:
                now[name] = [_fingerprint(path), expected.sha256]
                if seen.get(name) == now[name]:
                    continue  # same size and time as when its digest was last computed: a warm start is fast
            if path.stat().st_size != expected.size:
                return f"{path}: {path.stat().st_size} bytes, expected {expected.size}"
            if file_digest(path) != expected.sha256:
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

    def _build(self, recipe: Recipe, upstream: tuple[Path, ...] | None = None) -> Path:
        folder = self.folder(recipe)
        with clear_when_full(folder), _locked(folder, recipe):
            if folder.is_dir() and self._still_good(folder, recipe):
                return folder  # another process made it while this one waited
            upstream = tuple(self.get(u) for u in recipe.upstream) if upstream is None else upstream
            log.info("building %s (%s)", recipe.stage, recipe.key[:16])
            partial = _begun(folder)
            _run(recipe, partial, upstream)
            _finish(recipe, partial, folder)
        self.problem(folder, recipe)  # remembers the digests while the files are warm
        return folder

    def _get_together(self, recipe: Recipe) -> Path:
        """``get`` by all processes of a run: the main one decides, builds and seals; a collective maker runs on all."""
        found = _told(lambda: self.find(recipe))
        if found:
            return found
        upstream = tuple(self.get(u) for u in recipe.upstream)
        if not recipe.collective:
            return _told(lambda: self._build_alone(recipe, upstream))
        folder, main = self.folder(recipe), devices.processes().is_main_process
        with _locked(folder, recipe) if main else nullcontext():
            if _told(lambda: folder.is_dir() and self._still_good(folder, recipe)):
                return folder  # another run made it while this one waited
            partial = _told(lambda: _begun(folder))
            _run(recipe, partial, upstream)
            devices.processes().wait_for_everyone()
            _told(lambda: _finish(recipe, partial, folder))
        return folder

    def _build_alone(self, recipe: Recipe, upstream: tuple[Path, ...]) -> Path:
        """On the main process: what the maker asks this store for is made there too, the others are not told of it."""
        self._alone = True
        try:
            return self._build(recipe, upstream)
        finally:
            self._alone = False

    def _still_good(self, folder: Path, recipe: Recipe) -> bool:
        problem = self.problem(folder, recipe)
        if problem:
            _move_aside(folder)
            warnings.warn(f"{problem}. Corrupt artefact: moved aside and made anew", stacklevel=4)
        return problem is None


def _begun(folder: Path) -> Path:
    """The folder that an attempt writes into, with what an earlier one left."""
    partial = _beside(folder, ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for half_written in [p for p in partial.rglob(".*") if TEMPORARY.fullmatch(p.name)]:
        half_written.unlink()  # by an attempt that was killed inside `replacing`
    return partial


def _run(recipe: Recipe, partial: Path, upstream: tuple[Path, ...]) -> None:
    try:
        recipe.make(partial, upstream)
    except Exception as error:
        error.add_note(f"while building {recipe.stage}; what is done is kept in {partial}")
        raise


def _finish(recipe: Recipe, partial: Path, folder: Path) -> None:
    _seal(recipe, partial)
    partial.rename(folder)
    sync(folder.parent)


def _seal(recipe: Recipe, folder: Path) -> None:
    paths = _contents(folder)
    if not paths:
        raise RuntimeError(f"{recipe.stage}: its maker wrote no file into {folder}; expected at least one")
    for path in paths:
        sync(path)
    files = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": file_digest(p)} for p in paths}
    write_json(folder / MANIFEST, {**describe(recipe), "code_version": code_version(), "files": files})
    sync(folder)


def _contents(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


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
def _locked(folder: Path, recipe: Recipe) -> Iterator[None]:
    """One builder at a time; the lock dies with its process, so a kill leaves nothing to clean up."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(_beside(folder, ".lock")), _beside(folder, ".owner")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        log.warning("waiting for %s, which is building %s", who, recipe.stage)
        lock.acquire()
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _told(ask: Callable[[], Any]) -> Any:
    """What the main process gets by asking, told to all; its exception ends the others too."""
    from torch.distributed import broadcast_object_list

    answer: list[Any] = [None, None]
    failed: Exception | None = None
    if devices.processes().is_main_process:
        try:
            answer[0] = ask()
        except Exception as error:
            failed, answer[1] = error, f"{type(error).__name__}: {error}"
    broadcast_object_list(answer)
    if failed:
        raise failed
    if answer[1]:
        raise RuntimeError(f"the main process of this run failed: {answer[1]}")
    return answer[0]


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
    """Copy a built artefact to the package's weights (or another folder), whole or not at all.

    Networks are rounded as they say themselves (`tensors.lighten`); raw weights and milestones stay in the cache.
    """
    from facetransport.tensors import lighten

    target = (weights or WEIGHTS) / recipe.place
    store = store or default_store()
    source = store.find(recipe) or store.get(recipe)
    if source.absolute() == target.absolute():
        return target
    partial = _beside(target, ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with clear_when_full(partial):
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("raw.safetensors", "step*.safetensors"))
        for path in partial.rglob("*.safetensors"):
            lighten(path)
        _seal(recipe, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target
