"""Embeddings of whole folders: in shards as in one, resumed, of one recogniser only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from facetransport.companion import cli
from facetransport.data.faceset import FaceSet, load_table
from facetransport.devices import WHOLE
from facetransport.recognition import embedded
from facetransport.recognition.embedded import embed_into
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.recognition.recogniser import embed_faceset
from facetransport.recognition.training import save_network


class Counting:
    """The means of three rows of pixels, and how many images were looked at."""

    name, dim = "counting", 3

    def __init__(self) -> None:
        self.seen = 0

    def embed(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return torch.nn.functional.normalize(images[:, :, :3].mean((1, 3)) + 2, dim=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    FaceSet(images, pd.DataFrame({"identity": np.arange(10) // 2})).save(tmp_path / "faces")
    return tmp_path / "faces"


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_jobs_beside_each_other_make_what_one_makes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(embedded, "PART", 4)
    shares = [(i, jobs) for i in range(jobs)] if jobs > 1 else [WHOLE]
    *early, found = [embed_into(tmp_path / "out", source, Counting(), share=share) for share in shares]
    assert early == [None] * (jobs - 1)
    np.testing.assert_array_equal(found, embed_faceset(Counting(), FaceSet.load(source)))
    assert load_table(tmp_path / "out" / "table.npz")["identity"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["embeddings.npy", "plan.json", "table.npz"]


def test_a_kill_costs_one_part(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PART", 4)

    class Killed(Counting):
        def embed(self, images: Tensor) -> Tensor:
            if self.seen >= 8:
                raise KeyboardInterrupt
            return super().embed(images)

    with pytest.raises(KeyboardInterrupt):
        embed_into(tmp_path / "out", source, Killed())
    again = Counting()
    found = embed_into(tmp_path / "out", source, again)
    assert found is not None and again.seen == 2
    np.testing.assert_array_equal(found, embed_faceset(Counting(), FaceSet.load(source)))


def test_a_folder_is_of_one_recogniser(source: Path, tmp_path: Path) -> None:
    embed_into(tmp_path / "out", source, Counting(), "one")
    with pytest.raises(ValueError, match="begun with made_by one, now two; use another folder"):
        embed_into(tmp_path / "out", source, Counting(), "two")


def test_other_images_under_the_same_table_are_another_set(source: Path, tmp_path: Path) -> None:
    embed_into(tmp_path / "out", source, Counting())
    faces = FaceSet.load(source)
    FaceSet(255 - faces.images, faces.table).save(tmp_path / "negatives")
    with pytest.raises(ValueError, match="begun with images .*use another folder"):
        embed_into(tmp_path / "out", tmp_path / "negatives", Counting())


def test_the_command_takes_a_file(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), input_size=16, dim=5))
    save_network(tmp_path / "mine.safetensors", model)
    command = ["embed", str(source), str(tmp_path / "out"), "--recogniser", str(tmp_path / "mine.safetensors")]
    command += ["--profile", "smoke"]
    assert cli.main([*command, "--shard", "1/1"]) == 0
    assert "10 embeddings of 5 numbers, mine" in capsys.readouterr().out
    np.testing.assert_allclose(np.linalg.norm(np.load(tmp_path / "out" / "embeddings.npy"), axis=1), 1, atol=1e-5)
    assert cli.main([*command, "--plain"]) == 1
    assert "now" in capsys.readouterr().err
