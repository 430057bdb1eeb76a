from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from facetransport import __version__, files, version
from facetransport.companion import artifacts
from facetransport.companion.artifacts import CorruptArtifact, Recipe, Store, ship
from facetransport.companion.experiments.fitting import fit
from facetransport.files import DiskFull
from facetransport.tensors import read_model
from facetransport.training import TrainingConfig


def write(text: str) -> Callable[[Path, tuple[Path, ...]], None]:
    def make(folder: Path, upstream: tuple[Path, ...]) -> None:
        (folder / "data.txt").write_text(text + "".join((u / "data.txt").read_text() for u in upstream))

    return make


def never(folder: Path, upstream: tuple[Path, ...]) -> None:
    raise AssertionError("built what was already there")


def recipe(
    make: artifacts.Maker = never, stage: str = "a.b", upstream: tuple[Recipe, ...] = (), **config: object
) -> Recipe:
    return Recipe(stage, config, make, upstream=upstream)


def content(folder: Path) -> str:
    return (folder / "data.txt").read_text()


# -------------------------------------------------------------------------------------------------------------- keys


def test_the_key_depends_on_everything_that_decides_the_content() -> None:
    base = recipe(x=1)
    others = [
        recipe(x=2),
        recipe(x=1, stage="a.c"),
        recipe(x=1, upstream=(recipe(y=1),)),
        recipe(x=1, upstream=(recipe(y=2),)),
        Recipe("a.b", {"x": 1}, never, version=2),
    ]
    assert len({r.key for r in [base, *others]}) == 6


def test_a_label_is_for_people_and_not_part_of_the_key() -> None:
    plain = Recipe("tiny.first", {"a": 1}, lambda folder, _: None)
    assert replace(plain, label="seed 3").key == plain.key


def test_the_key_is_stable_and_blind_to_order_and_maker() -> None:
    assert recipe(a=1, b=(2, 3)).key == recipe(write("x"), b=[2, 3], a=1).key
    canonical = hashlib.sha256(b'["a.b",{"a":1},1,[]]').hexdigest()
    assert recipe(a=1).key == canonical, "keys of shipped weights must not change under users"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x"), np.float32(1)])
def test_configuration_that_is_not_json_is_refused_at_once(value: object) -> None:
    with pytest.raises(ValueError, match="expected plain JSON data"):
        recipe(x=value)


@pytest.mark.parametrize("stage", ["", "A", "a/b", "../x", "a."])
def test_bad_stage_names_are_refused(stage: str) -> None:
    with pytest.raises(ValueError, match="stage: expected a dotted lower-case name"):
        recipe(stage=stage)


# ----------------------------------------------------------------------------------------------------- building once


def test_upstream_is_built_first_and_everything_once(store: Store) -> None:
    below = recipe(write("below"), stage="below")
    folder = store.get(recipe(write("top+"), upstream=(below,)))
    assert content(folder) == "top+below"
    assert store.get(recipe(never, upstream=(recipe(never, stage="below"),))) == folder
    assert store.status(below) == "cached"


def test_upstream_is_not_needed_for_what_is_there(store: Store) -> None:
    store.get(recipe(write("top"), upstream=(recipe(write("below"), stage="below"),)))
    shutil.rmtree(store.root / "below")
    assert store.has(recipe(never, upstream=(recipe(never, stage="below"),)))


def test_the_manifest_says_what_it_is(store: Store) -> None:
    made = recipe(write("x"), upstream=(recipe(write("y"), stage="below"),), size=3)
    manifest = json.loads((store.get(made) / "manifest.json").read_text())
    assert manifest["key"] == made.key
    assert manifest["config"] == {"size": 3}
    assert manifest["upstream"] == {"below": made.upstream[0].key}
    assert manifest["code_version"] == version.code_version()
    assert manifest["files"]["data.txt"]["size"] == 2


def test_a_maker_that_writes_nothing_is_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError, match=r"a\.b: its maker wrote no file"):
        store.get(recipe(lambda folder, upstream: None))


def test_what_a_killed_write_left_is_not_part_of_the_artefact(store: Store) -> None:
    made = recipe(write("x"))
    partial = store.folder(made).with_name(store.folder(made).name + ".partial")
    partial.mkdir(parents=True)
    (partial / ".123-data.txt").write_text("half")
    assert sorted(p.name for p in store.get(made).iterdir()) == ["data.txt", "manifest.json"]


def test_a_failing_maker_leaves_its_partial_folder_and_a_note(store: Store) -> None:
    def fails(folder: Path, upstream: tuple[Path, ...]) -> None:
        (folder / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        store.get(recipe(fails))
    assert "while building a.b" in caught.value.__notes__[0]
    assert store.status(recipe()) == "partial"
    assert not store.folder(recipe()).exists()


# ------------------------------------------------------------------------------------------------------------ shipped


def test_shipped_artefacts_are_found_first_under_the_same_key(store: Store, tmp_path: Path) -> None:
    made = recipe(write("weights"), upstream=(recipe(write("people"), stage="below"),))
    shipped = artifacts.ship(made, store, tmp_path / "shipped")
    elsewhere = Store(tmp_path / "other cache", shipped=(tmp_path / "shipped",))
    assert elsewhere.get(recipe(never, upstream=(recipe(never, stage="below"),))) == shipped
    assert elsewhere.status(made) == "shipped"
    assert not (tmp_path / "other cache" / "a.b").exists()


def test_shipping_replaces_what_lies_there_and_may_be_repeated(store: Store, tmp_path: Path) -> None:
    made = recipe(write("weights"))
    first = artifacts.ship(made, store, tmp_path / "out")
    (first / "data.txt").write_text("damaged")
    assert content(artifacts.ship(made, store, tmp_path / "out")) == "weights"
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_damaged_shipped_weights_are_an_error_with_the_cure(store: Store, tmp_path: Path) -> None:
    made = recipe(write("weights"))
    shipped = artifacts.ship(made, store, tmp_path / "shipped")
    (shipped / "data.txt").write_text("wEights")
    with pytest.raises(CorruptArtifact, match=r"data\.txt: digest differs.*git checkout -- .*facetransport train"):
        store.get(made)


# --------------------------------------------------------------------------------------------------------- corruption


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "data.txt").write_text("gOod"), r"data\.txt: digest differs"),
        (lambda f: (f / "data.txt").write_text("goo"), r"data\.txt: 3 bytes, expected 4"),
        (lambda f: (f / "data.txt").unlink(), r"data\.txt: missing"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: unreadable"),
        (lambda f: claim(f, key="0"), r"manifest\.json: belongs to key 0"),
        (lambda f: claim(f, files={}), r"manifest\.json: unreadable \(Dictionary should have at least 1 item"),
        (lambda f: claim(f, files=[]), r"manifest\.json: unreadable \(Input should be"),
        (lambda f: claim(f, files=None), r"manifest\.json: unreadable \(Input should be"),
        (lambda f: (f / "more.txt").write_text("?"), r"more\.txt: not in the manifest"),
        (lambda f: rot(f / "data.txt"), r"data\.txt: digest differs"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: unreadable"),
    ],
)
def test_a_corrupt_artefact_is_reported_and_rebuilt(store: Store, damage: Callable[[Path], object], said: str) -> None:
    folder = store.get(recipe(write("good")))
    damage(folder)
    assert store.status(recipe()) == "corrupt"
    with pytest.warns(UserWarning, match=f"{said}.*moved aside and made anew"):
        again = store.get(recipe(write("good")))
    assert (again, content(again)) == (folder, "good")
    assert folder.with_name(folder.name + ".corrupt").is_dir()


def claim(folder: Path, **changes: object) -> None:
    """Another manifest over files that stay as they are."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rot(path: Path) -> None:
    """Other bytes, same size and time: as a disk forgets."""
    stat = path.stat()
    path.write_text("gOod")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def save_images(folder: Path, upstream: tuple[Path, ...]) -> None:
    np.save(folder / "images.npy", np.zeros(4))


def test_digests_of_images_are_computed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.get(recipe(save_images))

    def refuse(path: Path) -> str:
        raise AssertionError("digest computed again")

    monkeypatch.setattr(artifacts, "file_digest", refuse)
    assert Store(store.root, store.shipped).has(recipe())


def test_a_damaged_memory_of_digests_does_no_harm(store: Store) -> None:
    folder = store.get(recipe(save_images))
    assert list((store.root / ".verified").iterdir())
    for memo in (store.root / ".verified").iterdir():
        memo.write_text("nonsense")
    assert store.get(recipe()) == folder


# --------------------------------------------------------------------------------------------------------- kill, race

MAKER = """
import sys, time
from pathlib import Path
from facetransport.companion.artifacts import Recipe, Store

def make(folder, upstream):
    with open(r"{log}", "a") as log:
        log.write("start " + ",".join(sorted(p.name for p in folder.iterdir())) + "\\n")
    for i in range(5):
        part = folder / f"part{{i}}"
        if not part.exists():
            part.write_text(str(i))
            time.sleep({delay})

print(Store(Path(r"{root}"), shipped=()).get(Recipe("slow", {{}}, make)), flush=True)
"""


def start(root: Path, log: Path, delay: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(MAKER.format(root=root, log=log, delay=delay))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_kill_9_in_the_middle_then_resume(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    slow = Recipe("slow", {}, never)
    partial = root / slow.place.with_name(slow.place.name + ".partial")
    victim = start(root, log, delay=30)
    wait_for(partial / "part0")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert Store(root, shipped=()).status(slow) == "partial"

    second = start(root, log, delay=0)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert sorted(p.name for p in Path(out.strip()).iterdir()) == ["manifest.json", *(f"part{i}" for i in range(5))]
    assert log.read_text().splitlines() == ["start ", "start part0"]  # the second attempt found the first one's work
    assert not partial.exists()


def test_two_processes_at_once_build_once_and_the_second_says_whom_it_waits_for(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    slow = Recipe("slow", {}, never)
    first = start(root, log, delay=0.6)
    wait_for(root / slow.place.with_name(slow.place.name + ".partial") / "part0")
    second = start(root, log, delay=0.6)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert log.read_text().splitlines() == ["start "]
    assert f"waiting for process {first.pid} on" in outputs[1][1]


# ------------------------------------------------------------------------------------------------------------ no room


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_a_maker_is_one_clear_sentence(store: Store) -> None:
    with pytest.raises(DiskFull, match=r"no room to write .*MiB free.*set FACETRANSPORT_CACHE") as caught:
        store.get(recipe(full))
    assert caught.value.errno == errno.ENOSPC
    assert not store.folder(recipe()).exists()
    assert content(store.get(recipe(write("later")))) == "later"  # once there is room, the same call succeeds


@pytest.mark.parametrize("function", ["fsync", "rename", "replace"])
def test_a_full_disk_while_sealing_leaves_nothing_that_looks_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    with monkeypatch.context() as patch:
        owner = os if function == "fsync" else Path
        patch.setattr(owner, function, full)
        with pytest.raises(DiskFull, match="no room to write"):
            store.get(recipe(write("x")))
    assert not store.folder(recipe()).exists()
    assert not [p for p in store.root.rglob(".*") if p.is_file()]
    assert content(store.get(recipe(write("x")))) == "x"


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from facetransport.companion.artifacts import Recipe, Store
from facetransport.files import DiskFull

def with_numpy(folder, upstream): np.save(folder / "big.npy", np.zeros(1 << 20))
def with_safetensors(folder, upstream): save_file({"x": torch.zeros(1 << 20)}, folder / "big.safetensors")
def with_python(folder, upstream): (folder / "big").write_bytes(bytes(1 << 22))

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for make in (with_numpy, with_safetensors, with_python):
    recipe = Recipe(make.__name__, {}, make)
    store = Store(Path(sys.argv[1]), shipped=())
    try:
        store.get(recipe)
    except DiskFull as error:
        print(make.__name__, "refused", store.folder(recipe).exists(), "no room to write" in str(error))
"""


def test_a_real_file_size_limit_is_reported_whoever_writes(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = [f"with_{name} refused False True" for name in ("numpy", "safetensors", "python")]
    assert done.stdout.splitlines() == expected, done.stderr


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.clear_when_full(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# ------------------------------------------------------------------------------------------------------------- places


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "elsewhere"))
    assert artifacts.default_store().root == tmp_path / "elsewhere"
    monkeypatch.delenv(artifacts.VARIABLE)
    assert artifacts.cache_root().name == ".cache"  # tests run from a checkout


def test_without_a_checkout_the_users_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(artifacts.VARIABLE, raising=False)
    monkeypatch.setattr(artifacts, "checkout", lambda: None)
    assert artifacts.cache_root().name == "facetransport"


def test_the_code_version_starts_with_the_package_version() -> None:
    assert version.code_version().startswith(__version__)


def test_the_code_version_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert version.code_version.__wrapped__() == __version__


def test_a_part_makes_what_it_is_made_from_and_seals_nothing(store: Store) -> None:
    first = Recipe("tiny.first", {}, lambda folder, _: (folder / "a").write_text("a") and None)
    whole = Recipe("tiny.whole", {}, lambda folder, up: (folder / "b").write_text(up[0].name) and None, 1, (first,))
    assert (store.part(whole) / "b").is_file() and store.has(first)
    assert not store.has(whole) and store.status(whole) == "partial"
    assert store.get(whole) == store.folder(whole) and store.has(whole)


def test_what_is_cached_is_whole_and_what_is_shipped_rounded(store: Store, tmp_path: Path) -> None:
    def make(folder: Path, _: tuple[Path, ...]) -> None:
        torch.manual_seed(0)
        network = nn.Linear(64, 64)
        loss = lambda model, rows, generator, step: model(torch.ones(2, 64)).square().mean()  # noqa: E731
        fit(network, loss, 8, TrainingConfig(4, 2, 1e-2, 0, ema=0.9), folder, 2**10, milestones=(2,))

    recipe = Recipe("tiny.network", {}, make)
    folder = store.get(recipe)
    files = {path.stem: load_file(path)["weight"] for path in folder.glob("*.safetensors")}
    assert set(files) == {"model", "raw", "step2"} and {v.dtype for v in files.values()} == {torch.float32}
    assert not torch.equal(files["model"], files["raw"]) and not torch.equal(files["model"], files["step2"])
    shipped = ship(recipe, store, tmp_path / "weights")
    assert sorted(path.name for path in shipped.iterdir()) == ["log.csv", "manifest.json", "model.safetensors"]
    assert load_file(shipped / "model.safetensors")["weight"].dtype == torch.int8
    found = Store(tmp_path / "none", (tmp_path / "weights",)).get(recipe)  # its manifest holds
    tensors, facts = read_model(found / "model.safetensors")
    assert (tensors["weight"] - files["model"]).abs().max() < files["model"].abs().max() / 200 and facts["step"] == 4
