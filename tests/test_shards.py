"""Shards: what parts make is one FaceSet, whoever makes them and whenever they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from facetransport.companion.artifacts import Recipe, Store
from facetransport.data import shards
from facetransport.data.faceset import FaceSet


def images_of(part: range, size: int = 4) -> FaceSet:
    """Every image is of one value, its number."""
    images = np.stack([np.full((size, size, 3), i % 256, np.uint8) for i in part])
    return FaceSet(images, pd.DataFrame({"identity": list(part), "word": ["ab" * (1 + i % 3) for i in part]}))


PARTS = [range(0, 3), range(3, 6), range(6, 7)]
SIZES = [3, 3, 1]


def check(faces: FaceSet | None) -> None:
    assert faces is not None and faces.images[:, 0, 0, 0].tolist() == faces.identity.tolist() == list(range(7))
    assert faces.table["word"].tolist() == ["ab" * (1 + i % 3) for i in range(7)]


def test_parts_become_one_set(tmp_path: Path) -> None:
    check(shards.build(tmp_path, PARTS, SIZES, images_of, workers=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npy", "table.npz"]


def test_parts_that_are_there_are_kept(tmp_path: Path) -> None:
    done: list[range] = []

    def make(part: range) -> FaceSet:
        if part == PARTS[2] and not done[2:]:
            done.append(part)
            raise RuntimeError("out of luck")
        done.append(part)
        return images_of(part)

    with pytest.raises(RuntimeError, match="out of luck"):
        shards.build(tmp_path, PARTS, SIZES, make, workers=1)
    (tmp_path / ".99-shard-000002.npy").write_bytes(b"half written")
    check(shards.build(tmp_path, PARTS, SIZES, make, workers=1))
    assert done == [*PARTS, PARTS[2]]
    assert not list(tmp_path.glob("*shard-*"))


def test_jobs_share_the_parts_and_the_last_joins_them(tmp_path: Path) -> None:
    made: list[range] = []

    def make(part: range) -> FaceSet:
        made.append(part)
        return images_of(part)

    assert shards.build(tmp_path, PARTS, SIZES, make, workers=1, share=(1, 2)) is None and made == [PARTS[1]]
    check(shards.build(tmp_path, PARTS, SIZES, make, workers=1, share=(0, 2)))
    assert made == [PARTS[1], PARTS[0], PARTS[2]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npy", "table.npz"]
    with pytest.raises(ValueError, match=r"share: expected \(i, n\) with 0 <= i < n, got \(2, 2\)"):
        shards.build(tmp_path, PARTS, SIZES, make, share=(2, 2))


def test_bad_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        shards.build(tmp_path, [], [], images_of)
    with pytest.raises(ValueError, match="a size for each"):
        shards.build(tmp_path, PARTS, [3], images_of)
    with pytest.raises(ValueError, match=r"expected images \(3, 4, 4, 3\), got \(3, 5, 5, 3\)"):
        shards.build(tmp_path, PARTS, SIZES, lambda part: images_of(part, 5 if part[0] == 3 else 4), workers=1)


def test_memory_does_not_grow_with_the_number_of_parts(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        parts = [range(4 * i, 4 * i + 4) for i in range(count)]
        tracemalloc.start()
        shards.build(tmp_path / str(count), parts, [4] * count, partial(images_of, size=256), workers=1)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    for count in (3, 24):
        (tmp_path / str(count)).mkdir()
    few, many = peak(3), peak(24)
    assert many < 1.1 * few and few > 4 * 256 * 256 * 3


def test_a_claimed_folder_keeps_to_its_plan(tmp_path: Path) -> None:
    plan = {"seed": 1, "steps": (1, 2)}
    assert not shards.claim(tmp_path / "new", plan)
    assert not shards.claim(tmp_path / "new", plan)
    with pytest.raises(ValueError, match="begun with seed 1, now 2; use another folder"):
        shards.claim(tmp_path / "new", plan | {"seed": 2})
    shards.build(tmp_path / "new", PARTS, SIZES, images_of, workers=1)
    assert shards.claim(tmp_path / "new", plan)
    images_of(range(3)).save(tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"holds images, but no plan\.json"):
        shards.claim(tmp_path / "foreign", plan)


def test_an_artefact_of_parts(store: Store) -> None:
    recipe = Recipe("tiny.set", {}, lambda folder, _: shards.build(folder, PARTS, SIZES, images_of, 1) and None)
    check(FaceSet.load(store.get(recipe)))


SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from facetransport.data import shards
from test_shards import images_of

def slowly(part):
    (Path(sys.argv[1]) / f"pid-{os.getpid()}").touch()
    time.sleep(0.1)
    return images_of(part)

if __name__ == "__main__":
    parts = [range(3 * i, 3 * i + 3) for i in range(16)]
    shards.build(Path(sys.argv[1]), parts, [3] * 16, slowly, workers=2)
"""


def test_workers_die_with_a_killed_parent_and_the_next_run_finishes(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "set"
    folder.mkdir()
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(folder.glob("shard-*[0-9].npy"))) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = [int(p.name[4:]) for p in folder.glob("pid-*")]
    assert workers and process.pid not in workers
    assert 2 <= len(list(folder.glob("shard-*[0-9].npy"))) < 16 and not (folder / "images.npy").exists()
    wait_until(lambda: not any(alive(pid) for pid in workers))
    parts = [range(3 * i, 3 * i + 3) for i in range(16)]
    faces = shards.build(folder, parts, [3] * 16, images_of, workers=1)
    assert faces is not None and faces.identity.tolist() == list(range(48)) == faces.images[:, 0, 0, 0].tolist()


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
