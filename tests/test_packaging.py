"""The promises around the code: pins, licence, what is installed, what Make does, how big the weights are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import facetransport
from facetransport.companion import artifacts

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines: list[str]) -> dict[str, str]:
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for requirement in requirements:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement}: expected one exact version"
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())


def test_conda_has_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (listed,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pins(listed) == LOCK, "run `make environment.yml`"


def test_what_runs_is_what_is_locked() -> None:
    installed = {name: metadata.version(name).split("+")[0] for name in LOCK}
    assert installed == LOCK


def test_the_lock_is_closed() -> None:
    """Whatever a locked package needs is locked too, so that pip has nothing to choose."""
    todo, seen = [(name, "") for name in [*LOCK, "facetransport"]], set()
    while todo:
        name, extra = todo.pop()
        seen.add((name, extra))
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                assert canonicalize_name(needed.name) in LOCK, f"{name} needs {needed.name}"
                todo += {(needed.name, wanted) for wanted in needed.extras} - seen


def test_the_lock_has_no_gpu_wheels_and_no_torchvision() -> None:
    assert not [name for name in LOCK if name.startswith(("nvidia", "triton", "torchvision"))]


def test_versions_and_licence_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == facetransport.__version__ == metadata.version("facetransport")
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_every_import_of_the_library_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(name) for name in PROJECT["dependencies"]}
    providers = metadata.packages_distributions()
    imports = re.compile(r"^\s*(?:import|from) ([a-zA-Z_0-9]+)", re.MULTILINE)
    for path in sorted((ROOT / "lib").rglob("*.py")):
        for module in imports.findall(path.read_text()):
            names = {canonicalize_name(name) for name in providers.get(module, [])}
            assert not names or names & (declared | {"facetransport"}), f"{path}: import {module} is not declared"


def test_shipped_weights_are_small() -> None:
    total = sum(path.stat().st_size for path in artifacts.WEIGHTS.rglob("*") if path.is_file())
    assert total <= 95.1e6, f"{total / 1e6:.2f} MB of weights, expected at most 95.1 (the goal is 90)"


# ---------------------------------------------------------------------------------------------------------------- make


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"} | variables
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small copy in a path with a space; its Python only writes down what it was asked to run."""
    root = tmp_path / "a clone"
    (root / "lib" / "facetransport" / "companion" / "profiles").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("laptop", "smoke"):
        (root / "lib" / "facetransport" / "companion" / "profiles" / f"{name}.yaml").touch()
    for name in ("notebooks/00_a.ipynb", "notebooks/01_b.ipynb", "lib/facetransport/x.py", ".venv/.installed"):
        (root / name).touch()
    fake = root / ".venv" / "bin" / "python"
    fake.write_text('#!/bin/sh\necho "$@" >> ran\ncase "$*" in *execute*) [ ! -e broken ];; esac\n')
    fake.chmod(0o755)
    return root


def ran(clone: Path) -> list[str]:
    """The notebooks that were run since the last call, sorted: they run side by side."""
    path = clone / "ran"
    lines = [line for line in path.read_text().splitlines() if "verdict" not in line] if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(re.sub(r".*execute notebooks/(\w+)\.ipynb --profile (\w+)", r"\1 \2", line) for line in lines)


def touch(path: Path) -> None:
    """Make a file newer than everything, on file systems with coarse times too."""
    path.touch()
    later = max(p.stat().st_mtime for p in path.parents[0].rglob("*")) + 2
    os.utime(path, (later, later))


def test_help_is_the_default_and_lists_the_targets() -> None:
    shown = make(ROOT).stdout
    for target in ("figures", "smoke", "train", "test", "lab", "clean"):
        assert re.search(rf"^make {target} ", shown, re.MULTILINE)


def test_bytecode_is_kept_whatever_the_image_says(clone: Path) -> None:
    asked = make(clone, "--eval", "asked: ; @env", "asked", PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")
    assert "PYTHONUNBUFFERED" in asked.stdout and "PYTHONDONTWRITEBYTECODE" not in asked.stdout


def test_a_second_make_says_that_nothing_is_to_do(clone: Path) -> None:
    assert make(clone, "figures").returncode == 0
    assert ran(clone) == ["00_a laptop", "01_b laptop"]
    again = make(clone, "figures")
    assert again.stdout.strip() == "figures/laptop is up to date: nothing to do"
    assert ran(clone) == []
    make(clone, "-B", "figures", "PYTHON=true")
    assert [line for line in ran(clone) if "laptop" in line] == ["00_a laptop", "01_b laptop"]


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("notebooks/01_b.ipynb", ["01_b laptop"]),
        ("lib/facetransport/x.py", ["00_a laptop", "01_b laptop"]),
        ("lib/facetransport/companion/profiles/laptop.yaml", ["00_a laptop", "01_b laptop"]),
        ("lib/facetransport/companion/profiles/smoke.yaml", []),
        ("README.md", []),
    ],
)
def test_exactly_what_is_stale_is_run_again(clone: Path, changed: str, stale: list[str]) -> None:
    make(clone, "figures")
    ran(clone)
    touch(clone / changed)
    assert make(clone, "figures").returncode == 0
    assert ran(clone) == stale


def test_a_changed_lock_installs_again_and_makes_everything_stale(clone: Path) -> None:
    make(clone, "figures")
    ran(clone)
    touch(clone / "requirements.lock")
    shown = make(clone, "figures", "PYTHON=true").stdout
    assert "pip install" in shown
    assert [line for line in ran(clone) if "laptop" in line] == ["00_a laptop", "01_b laptop"]


def test_a_failing_notebook_fails_make_and_is_run_again(clone: Path) -> None:
    (clone / "broken").touch()
    assert make(clone, "figures", "JOBS=1").returncode != 0
    assert ran(clone) == ["00_a laptop"]
    (clone / "broken").unlink()
    assert make(clone, "figures").returncode == 0
    assert ran(clone) == ["00_a laptop", "01_b laptop"]


@pytest.mark.parametrize("jobs", [1, 2, 1000])
def test_notebooks_side_by_side_share_the_cores(clone: Path, jobs: int) -> None:
    shown = make(clone, "figures", f"JOBS={jobs}").stdout
    assert shown.count(f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // jobs)} ") == 2


def test_the_verdict_comes_last_and_what_it_needs_is_set_aside_first(clone: Path) -> None:
    make(clone, "figures", "JOBS=1")
    asked = [re.sub(r"^-m facetransport ", "", line) for line in (clone / "ran").read_text().splitlines()]
    assert asked[0] == "verdict --keep --profile laptop" and asked[-1] == "verdict --profile laptop"
    (clone / "ran").unlink()
    make(clone, "figures")
    assert (clone / "ran").read_text().splitlines() == ["-m facetransport verdict --profile laptop"]


def test_profiles_have_their_own_stamps_and_unknown_ones_are_refused(clone: Path) -> None:
    make(clone, "figures")
    ran(clone)
    assert make(clone, "smoke").returncode == 0
    assert ran(clone) == ["00_a smoke", "01_b smoke"]
    unknown = make(clone, "figures", "PROFILE=desktop")
    assert unknown.returncode != 0 and "PROFILE=desktop: expected one of: laptop smoke" in unknown.stdout


def test_training_ships_only_the_laptop_weights(clone: Path) -> None:
    make(clone, "train")
    make(clone, "train", "PROFILE=smoke")
    assert ran(clone) == ["-m facetransport train --profile laptop --ship", "-m facetransport train --profile smoke"]


def test_clean_forgets_stamps_and_smoke_figures_only(clone: Path) -> None:
    make(clone, "figures")
    for kept in ("figures/laptop/x.png", "figures/smoke/x.png", ".cache/rendered.test/x"):
        (clone / kept).parent.mkdir(parents=True, exist_ok=True)
        (clone / kept).touch()
    make(clone, "clean")
    assert (clone / "figures/laptop/x.png").exists() and (clone / ".cache/rendered.test/x").exists()
    assert not (clone / "figures/smoke").exists() and not (clone / ".cache/stamps").exists()


def test_an_old_python_is_refused_by_name(clone: Path) -> None:
    (clone / ".venv" / ".installed").unlink()
    old = clone / "python3.9"
    old.write_text('#!/bin/sh\necho "facetransport needs Python 3.11 or later" >&2; exit 1\n')
    old.chmod(0o755)
    assert make(clone, "figures", "PYTHON=./python3.9").returncode != 0
    assert not (clone / ".venv" / ".installed").exists()
