"""Several processes of one run: what they train is what one process trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from facetransport import devices

RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from facetransport import devices
from facetransport.diffusion import autoencoder, denoisers
from facetransport.diffusion.autoencoder import CodeConfig, LossWeights
from facetransport.diffusion.denoising import denoising_loss
from facetransport.diffusion.schedule import Schedule
from facetransport.recognition.augmentation import Augment
from facetransport.recognition.iresnet import IResNetConfig
from facetransport.recognition.training import HeadConfig, Learner, published, recogniser_loss
from facetransport.tensors import seeded
from facetransport.training import TrainingConfig, train

sys.path.insert(0, sys.argv[2])
from test_recognition_training import some_people

torch.set_num_threads(1)
faces, found = some_people(), {}
config = TrainingConfig(20, 16, 1e-3, 3, ema=0.9, parts=2)
draw = torch.Generator().manual_seed(0)
z, y = torch.randn(24, 2, 4, 4, generator=draw), torch.nn.functional.normalize(torch.randn(24, 8, generator=draw))
with seeded(0):
    denoiser = denoisers.build("mlp", (2, 4, 4), 16, 1, 8, 8, 0.25, Schedule(50))
    code = autoencoder.build(CodeConfig("kl", 4, 8, 8))
network = IResNetConfig((1, 1, 1, 1), (8, 8, 16, 16), (2, 2, 2, 2, 1), 28, 16, 0.1)
learner = Learner.drawn(network, HeadConfig("cosface", 16.0, 0.1), 6, 0)
runs = {
    "denoiser": (denoiser, denoising_loss(z, y, Schedule(50), context_drop=0.1), 24, config),
    "autoencoder": (code, autoencoder.code_loss(faces.images, LossWeights()), 48, config),
    "recogniser": (learner, recogniser_loss(faces, 28, Augment(2)), 48, published(20, 16, 0.05, 1, parts=2)),
}
for name, run in runs.items():
    states = [(float(s.loss), float(s.gradient_norm)) for s in train(*run)]
    weights = torch.cat([v.flatten().double() for n, v in run[0].state_dict().items() if "tracked" not in n])
    found[name] = [states, float(weights.sum()), float(weights.norm())]
if not devices.several() or devices.processes().is_main_process:
    Path(sys.argv[1]).write_text(json.dumps(found))
"""

ENDING = """
import atexit, os, sys
from pathlib import Path

def write():  # registered first, so asked last
    running = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    Path(f"{sys.argv[1]}{os.environ['RANK']}").write_text("".join(running))

atexit.register(write)
from facetransport import devices
devices.processes()
import torch.distributed.nn.functional
torch.distributed.all_reduce(torch.ones(1))
"""


def trained(processes: int, out: Path) -> dict[str, list]:
    command = [*RUN, str(processes)] if processes > 1 else [sys.executable]
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    done = subprocess.run([*command, str(script), str(out), str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Losses and gradients of 20 steps, dropout, augmentation and batch norm included, and the weights after them."""
    one, two = trained(1, tmp_path / "one.json"), trained(2, tmp_path / "two.json")
    assert set(one) == {"denoiser", "autoencoder", "recogniser"}
    for name in one:
        for a, b in zip(one[name][0], two[name][0], strict=True):
            assert a == pytest.approx(b, rel=1e-5), name
        assert one[name][1:] == pytest.approx(two[name][1:], rel=1e-5), name


def test_parts_must_be_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    from facetransport.training import TrainingConfig, _shared

    monkeypatch.setattr(devices, "several", lambda: True)
    monkeypatch.setattr(devices, "processes", lambda: type("State", (), {"process_index": 1, "num_processes": 2}))
    assert _shared(TrainingConfig(1, 8, 1e-3, 0, parts=4)) == (range(1, 4, 2), 4)
    assert _shared(TrainingConfig(1, 8, 1e-3, 0)) == (range(1, 2, 2), 2)  # not named: one each
    with pytest.raises(ValueError, match="parts: expected a multiple of 2, the processes of this run, got 3"):
        _shared(TrainingConfig(1, 8, 1e-3, 0, parts=3))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux alone")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """Else it may meet an interpreter that is going, and abort a process whose work is done."""
    (tmp_path / "script.py").write_text(ENDING)
    command = [*RUN, "2", str(tmp_path / "script.py"), str(tmp_path / "threads")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        assert "gloo" not in (tmp_path / f"threads{rank}").read_text()
