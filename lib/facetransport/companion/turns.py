"""Notebooks that run side by side, and their cells that measure speed, which run alone.

The process that runs a notebook takes a turn for each cell: cells run together, except that one tagged ``alone`` waits
until no other notebook runs a cell, and holds the others back. Locks die with their process, so a kill leaves nothing.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

TAG = "alone"


class Turns:
    """The turns of one notebook among those that share ``folder``; ``start`` and ``end`` are nbclient's hooks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._gate, self._cores = (_open(folder / f"{name}.lock") for name in ("gate", "cores"))

    def start(self, cell: Any, cell_index: int) -> None:
        """Wait for the turn of a cell. Who waits to be alone holds the gate, so that no other cell begins meanwhile."""
        mode = fcntl.LOCK_EX if TAG in cell.metadata.get("tags", ()) else fcntl.LOCK_SH
        fcntl.flock(self._gate, mode)
        fcntl.flock(self._cores, mode)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def end(self, cell: Any, cell_index: int, execute_reply: Any = None) -> None:
        fcntl.flock(self._cores, fcntl.LOCK_UN)

    def close(self) -> None:
        self._gate.close()
        self._cores.close()


def _open(path: Path) -> IO[str]:
    return path.open("a", encoding="utf-8")
