"""What training would cost: counted by hand where that is easy, the papers' sizes, nothing trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from facetransport.companion import cli
from facetransport.companion.plan import cost_of


def test_cost_of_a_matrix_by_hand() -> None:
    with torch.device("meta"):
        network, inputs = (
            nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)),
            (torch.zeros(2, 8),),
        )
    cost = cost_of(network, inputs)
    assert cost.parameters == 8 * 16 + 16 * 4
    assert cost.flops == 2 * (2 * 8 * 16 + 3 * 16 * 4)  # forward, weights, and the gradient of what is between them
    assert cost.mib == pytest.approx(20 * cost.parameters / 2**20)


def test_a_dry_run_tells_sizes_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACETRANSPORT_CACHE", str(tmp_path))
    assert cli.main(["train", "--profile", "paper", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "216,341,187 parameters" in said and "134,595,939 parameters" in said and "295,241,670 parameters" in said
    assert "150,000 steps x 512 = 76,800,000 samples" in said and "to build" in said
    assert "3.2e+18 in all: about 14 h on one A100, 7.4 h on one H100" in said
    assert f"{10_000 * 50 * 128**2 * 3 / 1e9:.1f} GB a set of new people" in said
    assert not list(tmp_path.iterdir())
    assert cli.main(["train", "--profile", "smoke", "--dry-run", "--only", "id3pm.plain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # the network, and the disk
