"""Files written whole or not at all, and one sentence where a disk is full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = re.compile(r"\.\d+-.+")  # the names that `replacing` writes under


class DiskFull(OSError):
    """A write that found no room (full disk, quota or file-size limit)."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, renamed over it when the block succeeds and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the suffix: many writers look at it
    try:
        with clear_when_full(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_new_folder(folder: Path) -> None:
    """ValueError unless ``folder`` is empty or not there yet: what is in it would be lost."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: holds something already; expected a new or an empty folder")


def write_json(path: Path, data: object) -> None:
    """Readable JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def clear_when_full(path: Path) -> Iterator[None]:
    """Turn the many faces of a full disk into one sentence."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFull(
            errno.ENOSPC,
            f"no room to write ({_free_mib(path)} MiB free, or a quota or file-size limit): nothing half-written is "
            f"kept; free some space or name a roomier disk (the cache: set FACETRANSPORT_CACHE), then run the same "
            "command again",
            str(path),
        ) from error


def _is_full(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in codes
    # numpy says "N requested and M written", safetensors "(os error 28)"
    return "requested and" in str(error) or any(f"(os error {code})" in str(error) for code in codes)


def _free_mib(path: Path) -> int:
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free >> 20


def sync(path: Path) -> None:
    """Onto the disk; Windows opens no folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
