"""Notebooks that run side by side, and their cells that measure all cores, which run alone.

The process that runs a notebook takes a turn for each cell: cells run together, except that one tagged ``alone`` waits
until no other notebook runs a cell, and holds the others back. Locks die with their process: what a kill leaves of them
is an empty file, which nobody waits for.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

TAG = "alone"


class Turns:
    """The turns of one notebook among those that share ``folder``; ``start`` and ``end`` are nbclient's hooks.

    A cell holds its notebook's lock while it runs and passes a gate before it begins; who must be alone keeps the gate.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._gate = folder, _lock(folder / "gate.lock")
        self._own = _lock(folder / f"notebook-{uuid.uuid4().hex}.lock")

    def start(self, cell: Any, cell_index: int) -> None:
        """Wait for the turn of a cell."""
        self._gate.acquire()
        if TAG not in cell.metadata.get("tags", ()):
            self._own.acquire()
            self._gate.release()
            return
        for other in self.folder.glob("notebook-*.lock"):
            with _lock(other):
                pass  # its cell has ended

    def end(self, cell: Any, cell_index: int, execute_reply: Any = None) -> None:
        self._gate.release()
        self._own.release()

    def close(self) -> None:
        self.end(None, 0)
        Path(self._own.lock_file).unlink(missing_ok=True)


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)
