"""Folders that cannot be written, that are files, that are full, that two write at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetransport.companion import artifacts, cli
from facetransport.data.faceset import FaceSet

FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, pandas as pd
from facetransport.data import shards
from facetransport.data.faceset import FaceSet
from facetransport.files import DiskFull

def make(part):
    return FaceSet(np.zeros((part, 64, 64, 3), np.uint8), pd.DataFrame({"identity": np.arange(part)}))

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        shards.build(Path(sys.argv[1]), [10, 40], [10, 40], make, workers=int(sys.argv[2]))
    except DiskFull as error:
        print(error)
"""


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--profile", "smoke", "--only", "rendered.head"],
        ["execute", "notebooks/00_start_here.ipynb", "--profile", "smoke"],
        ["generate", "uniform", "--profile", "smoke", "--identities", "2"],
    ],
)
def test_a_file_in_the_place_of_the_cache_is_a_sentence(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "cache"))
    if command[0] == "train":
        monkeypatch.setattr(artifacts, "WEIGHTS", tmp_path / "none")
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'cache'}" in said and "expected a place to read and write in" in said
    assert (tmp_path / "cache").read_text() == "not a folder"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_full_disk_is_a_sentence_in_every_process(workers: str, tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(FULL)
    command = [sys.executable, str(tmp_path / "full.py"), str(tmp_path / "set"), workers]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "no room to write" in done.stdout and "run the same command again" in done.stdout, done.stderr
    assert not [p for p in (tmp_path / "set").iterdir() if p.name.startswith(".")]


def test_two_imports_into_one_folder_both_end_well(tmp_path: Path) -> None:
    for person in range(3):
        (tmp_path / "photographs" / str(person)).mkdir(parents=True)
        for i in range(100):
            picture = Image.fromarray(np.full((32, 32, 3), 10 * person + i, np.uint8))
            picture.save(tmp_path / "photographs" / str(person) / f"{i}.png")
    command = [sys.executable, "-m", "facetransport", "import-faces", "folders", str(tmp_path / "photographs")]
    command += [str(tmp_path / "faces"), "--size", "32", "--geometry", "whole"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(FaceSet.load(tmp_path / "faces")) == 300
    assert not (tmp_path / "faces" / ".lock").exists()
