"""Which code it was: the package's version and, in a checkout, the commit."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from facetransport import __version__


def checkout() -> Path | None:
    """The repository this package runs from, or None when it is installed as a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "lib" / "facetransport").is_dir() else None


@functools.cache
def code_version() -> str:
    """Package version, and the commit when running from a git checkout: ``0.1.0+g1a2b3c4`` (``.dirty`` if edited)."""
    root = checkout()
    commit = git(root, "rev-parse", "--short=8", "HEAD") if root and (root / ".git").exists() else None
    if not root or not commit:
        return __version__
    edited = git(root, "status", "--porcelain", "--untracked-files=no", "--", "lib", "notebooks")
    return f"{__version__}+g{commit}{'.dirty' if edited else ''}"


def git(root: Path, *arguments: str) -> str | None:
    """What a git command prints, None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
