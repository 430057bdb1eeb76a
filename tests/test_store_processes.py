"""One artefact, several processes: made once, ended together, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from facetransport.companion.artifacts import Recipe

RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from facetransport import devices
from facetransport.companion.artifacts import Recipe, Store

what, root = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ["RANK"])

inner = Recipe("zero.inner", {}, lambda folder, upstream: (folder / "made").write_text("inside"))

def write(folder, upstream):
    within = store.get(inner) / "made"  # on the main process alone: the other one waits, and is not told
    (folder / "made").write_text(f"by {rank}, {within.read_text()}")
    if what == "fails":
        raise ValueError("the lamp is broken")

def together(folder, upstream):
    number = torch.tensor(float(rank + 1))
    torch.distributed.all_reduce(number)
    (folder / f"begun{rank}").touch()
    if what == "waits":
        (root / f"pid{rank}").write_text(str(os.getpid()))
        time.sleep(60)
    if rank == 0:
        (folder / "sum").write_text(f"{number} from {(upstream[0] / 'made').read_text()}")

first = Recipe("one.alone", {}, write)
both = Recipe("two.together", {}, together, upstream=(first,), collective=True)
store = Store(root, shipped=())
try:
    folder = store.get(both)
except Exception as error:
    (root / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
    raise
(root / f"found{rank}").write_text(f"{folder} {(folder / 'sum').read_text()}")  # printed lines of two would mix
"""


def start(what: str, root: Path) -> subprocess.Popen[str]:
    script = root / "script.py"
    root.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*RUN, str(script), what, str(root / "cache")]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def test_it_is_made_once_by_all_and_found_by_all(tmp_path: Path) -> None:
    """Where a damaged one lies, too."""
    alone = Recipe("one.alone", {}, lambda folder, upstream: None)
    damaged = tmp_path / "cache" / Recipe("two.together", {}, alone.make, upstream=(alone,)).place
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{}")
    shown = start("works", tmp_path).communicate(timeout=120)[0]
    found = [path.read_text() for path in (tmp_path / "cache").glob("found*")]
    assert len(found) == 2 and len(set(found)) == 1 and found[0].endswith("3.0 from by 0, inside"), shown
    assert {"manifest.json", "sum", "begun0", "begun1"} <= {p.name for p in damaged.iterdir()}
    assert damaged.with_name(damaged.name + ".corrupt").is_dir()


def test_a_maker_that_fails_on_the_main_process_ends_both(tmp_path: Path) -> None:
    process = start("fails", tmp_path)
    process.communicate(timeout=120)
    assert process.returncode != 0
    errors = [(tmp_path / "cache" / f"error{rank}").read_text() for rank in (0, 1)]
    assert errors[0] == "ValueError: the lamp is broken"
    assert errors[1] == "RuntimeError: the main process of this run failed: ValueError: the lamp is broken"


def test_a_killed_process_ends_both_and_the_next_run_resumes(tmp_path: Path) -> None:
    process, pid = start("waits", tmp_path), tmp_path / "cache" / "pid1"
    deadline = time.monotonic() + 60
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    shown = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in shown
    again = start("works", tmp_path).communicate(timeout=120)[0]
    found = [path.read_text() for path in (tmp_path / "cache").glob("found*")]
    assert len(found) == 2 and all(text.endswith("3.0 from by 0, inside") for text in found), again
