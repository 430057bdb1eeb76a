"""House rules for notebooks: sources without outputs, short cells, literal parameters, definitions in the library."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted((ROOT / "figures" / "laptop" / "notebooks").glob("*.ipynb"))
MARK = "NBVAL_CHECK_OUTPUT"
Cell = Any


def problems(book: Any) -> list[str]:
    """Every broken rule of a notebook, in words."""
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    found = [*_metadata(book), *_parameters(cells)]
    if not any(cell.cell_type == "markdown" and cell.source.strip() for cell in book.cells):
        found.append("no markdown: expected a story")
    return found + [f"cell {i}: {said}" for i, cell in enumerate(cells) for said in _cell(cell)]


def _metadata(book: Any) -> list[str]:
    found = []
    if book.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append(f"kernelspec: expected python3, got {book.metadata.get('kernelspec')}")
    extra = set(book.metadata) - {"kernelspec", "language_info"}
    return found + ([f"metadata: expected kernelspec and language_info only, got {sorted(extra)}"] if extra else [])


def _parameters(cells: list[Cell]) -> list[str]:
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        return [f"expected one cell tagged 'parameters', got {len(tagged)}"]
    statements = ast.parse(tagged[0].source).body
    literal = all(isinstance(s, ast.Assign) and _is_literal(s.value) for s in statements)
    profile = any(isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "profile" for s in statements)
    return ([] if literal else ["parameters: expected literals only"]) + ([] if profile else ["parameters: no profile"])


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _cell(cell: Cell) -> list[str]:
    found = []
    lines = cell.source.strip().splitlines()
    if len(lines) > 20:
        found.append(f"{len(lines)} lines, expected at most 20")
    if not lines:
        found.append("empty")
    if re.search(r"^\s*class ", cell.source, re.MULTILINE):
        found.append("defines a class: it belongs into the library")
    if re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
        found.append("shell or magic command")
    if "sys.path" in cell.source or ".cuda(" in cell.source:
        found.append("sys.path or .cuda()")
    if MARK in cell.source and not (cell.outputs and cell.execution_count):
        found.append("marked, but without the output and execution count that nbval compares with")
    if MARK not in cell.source and (cell.outputs or cell.execution_count is not None):
        found.append("has outputs: sources are committed without them")
    if set(cell.metadata) - {"tags"}:
        found.append(f"metadata {sorted(cell.metadata)}, expected tags only")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert problems(book) == []


def test_notebooks_are_numbered_once_each() -> None:
    assert NOTEBOOKS, "no notebooks"
    assert [path.stem for path in NOTEBOOKS if not re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)] == []
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_an_executed_copy_shows_nothing_of_the_machine(path: Path) -> None:
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", ())]
    shown = [o.get("text", "") + "".join(t for k, t in o.get("data", {}).items() if "text" in k) for o in outputs]
    assert shown and not [text for text in shown if re.search(r"/tmp/|/home/|/root/|'speed\.", text)]


def good() -> Any:
    book = nbformat.v4.new_notebook()
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell('profile = "laptop"', metadata={"tags": ["parameters"]})
    book.cells = [nbformat.v4.new_markdown_cell("# Story"), parameters, nbformat.v4.new_code_cell("1 + 1")]
    return book


def test_a_good_notebook_has_no_problems() -> None:
    assert problems(good()) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n" * 21, "21 lines"),
        ("class A:\n    pass", "defines a class"),
        ("!pip install x", "shell or magic"),
        ("%matplotlib inline", "shell or magic"),
        ("import sys\nsys.path.append('..')", "sys.path"),
        ("", "empty"),
    ],
)
def test_a_bad_cell_is_found(source: str, said: str) -> None:
    book = good()
    book.cells.append(nbformat.v4.new_code_cell(source))
    (found,) = problems(book)
    assert said in found


def test_bad_parameters_outputs_and_metadata_are_found() -> None:
    book = good()
    book.cells[1].source = "profile = str(3)"
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="2\n")]
    book.cells[2].metadata["scrolled"] = True
    book.metadata["papermill"] = {}
    book.metadata.kernelspec["name"] = "my-env"
    found = " ".join(problems(book))
    for said in ("literals only", "has outputs", "scrolled", "papermill", "kernelspec"):
        assert said in found
    book.cells[2].source = f"# {MARK}\n1 + 1"
    assert "marked, but without" in " ".join(problems(book))
    book.cells[2].execution_count = 1
    assert "cell 1: metadata ['scrolled']" in [found.split(",")[0] for found in problems(book)]
    assert "outputs" not in " ".join(problems(book))


def test_a_notebook_needs_one_parameters_cell_and_a_story() -> None:
    book = good()
    book.cells = [nbformat.v4.new_code_cell("1")]
    assert [p.split(":")[0] for p in problems(book)] == ["expected one cell tagged 'parameters', got 0", "no markdown"]
