"""Turns of notebooks that run side by side: together, except for cells that measure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import nbformat.v4
import pytest

from facetransport.companion.turns import TAG, Turns

ORDINARY, MEASURING = (nbformat.v4.new_code_cell(metadata={"tags": tags}) for tags in ([], [TAG]))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., tuple[Turns, threading.Event]]]:
    with ExitStack() as stack:

        def begin(cell: nbformat.NotebookNode) -> tuple[Turns, threading.Event]:
            """A notebook that waits for a cell's turn, and whether it has it."""
            turns, begun = stack.enter_context(closing(Turns(tmp_path))), threading.Event()
            threading.Thread(target=lambda: (turns.start(cell, 0), begun.set()), daemon=True).start()
            return turns, begun

        yield begin


def test_ordinary_cells_run_together(begin):
    for _, begun in [begin(ORDINARY) for _ in range(3)]:
        assert begun.wait(5)


def test_a_measuring_cell_runs_alone_and_is_not_starved(begin):
    first, first_begun = begin(ORDINARY)
    assert first_begun.wait(5)
    alone, alone_begun = begin(MEASURING)
    assert not alone_begun.wait(0.2)
    later, later_begun = begin(ORDINARY)
    assert not later_begun.wait(0.2), "a cell began while another waited to be alone"
    first.end(ORDINARY, 0)
    assert alone_begun.wait(5)
    assert not later_begun.wait(0.2), "a cell ran beside one that measures"
    alone.end(MEASURING, 0)
    assert later_begun.wait(5)
    later.end(ORDINARY, 0)


def test_who_dies_gives_up_the_turn(begin, tmp_path: Path):
    dead = Turns(tmp_path)
    dead.start(MEASURING, 0)
    _, begun = begin(ORDINARY)
    assert not begun.wait(0.2)
    dead.close()  # as the end of its process does
    assert begun.wait(5)
