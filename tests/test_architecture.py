"""The library and its companion: what imports what. The arrows themselves are import-linter's (`.ci/run`)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import facetransport

LIBRARY = Path(facetransport.__file__).parent
NOTEBOOK_PACKAGES = ["IPython", "ipywidgets", "matplotlib", "nbformat", "papermill", "pydantic", "seaborn"]
HALVES = [path for path in sorted(LIBRARY.rglob("*.py")) if "companion" not in path.parts]


def loaded_by(module: str) -> set[str]:
    """Names of the modules that are there after an import in a fresh process."""
    script = f"import {module}, sys; print(*sys.modules, sep='\\n')"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("paper", ["idiff_face", "diface", "id3pm"])
def test_a_paper_comes_without_companion_and_notebook_packages(paper: str) -> None:
    loaded = loaded_by(f"facetransport.papers.{paper}")
    assert f"facetransport.papers.{paper}" in loaded
    unwanted = {name for name in loaded if name.split(".")[0] in NOTEBOOK_PACKAGES}
    assert not unwanted and not any(name.startswith("facetransport.companion") for name in loaded)


def test_nothing_is_imported_that_only_unix_has() -> None:
    found = [
        (path.name, name)
        for path in LIBRARY.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        if name in ("fcntl", "grp", "pwd", "resource", "termios")
    ]
    assert not found


def imported(node: ast.AST) -> list[str]:
    """Top names of the modules that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []


def test_papers_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (LIBRARY / "papers").glob("*.py")}
    assert len(lengths) > 2 and max(lengths.values()) <= 250, lengths


@pytest.mark.parametrize("path", HALVES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_knows_no_profile_no_command_line(path: Path) -> None:
    text = path.read_text()
    if path.name != "__main__.py":
        assert not any(
            word in text for word in ("from facetransport.companion", "import facetransport.companion", "argparse")
        )
