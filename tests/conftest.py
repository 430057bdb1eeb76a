"""What every test starts from."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from facetransport.companion import artifacts, profiles
from facetransport.companion.artifacts import Store
from facetransport.companion.profiles import Profile


def pytest_configure() -> None:
    """No window, no network, no progress bars; notebooks, which nbval runs as they are, take the smoke profile."""
    matplotlib.use("Agg")  # not by MPLBACKEND: kernels inherit it and would show no figures
    os.environ.setdefault(profiles.VARIABLE, "smoke")
    os.environ.update({"HF_HUB_OFFLINE": "1", "JUPYTER_PREFER_ENV_PATH": "1", "TQDM_DISABLE": "1"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a temporary folder, with an empty folder of shipped weights."""
    return Store(tmp_path / "cache", shipped=(tmp_path / "shipped",))


@pytest.fixture(scope="session")
def smoke() -> Profile:
    """The profile that tests and notebooks run at."""
    return profiles.load("smoke")


@pytest.fixture(scope="session")
def smoke_store() -> Store:
    """The cache that notebooks use too: what a test builds at the smoke profile is there for them, and back."""
    return artifacts.default_store()


@pytest.fixture(autouse=True)
def same_start(request: pytest.FixtureRequest) -> None:
    """Ambient randomness, which the library must not use, starts the same for each test of ours."""
    if request.node.fspath.ext == ".py":  # not for notebook cells: they run in a process of their own
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        plt.close("all")
