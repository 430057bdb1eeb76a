from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from facetransport.companion import artifacts, cli, experiments, profiles, results
from facetransport.companion import search as searching
from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.profiles import Profile
from facetransport.data import shards
from facetransport.data.faceset import FaceSet
from facetransport.diffusion.statements import Reading
from facetransport.diffusion.unet import UNet, UNetConfig
from facetransport.evaluation.described import probable
from facetransport.world.captions import UNSAID
from facetransport.world.grammar import known_names
from test_official import ldm_shapes

Out = pytest.CaptureFixture[str]
EXECUTE = [sys.executable, "-m", "facetransport", "execute"]
Execute = Callable[[Path], subprocess.CompletedProcess[str]]


def small_recipes(profile: Profile) -> list[Recipe]:
    """Two quick stand-ins for networks; the second is made from the first."""

    def make(text: str) -> artifacts.Maker:
        def write(folder: Path, upstream: tuple[Path, ...]) -> None:
            (folder / "model.txt").write_text(text)

        return write

    first = Recipe("tiny.first", {"width": profile.idiff_face.width}, make("first"))
    return [first, Recipe("tiny.second", {}, make("second"), upstream=(first,))]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache and a weights folder of their own, and quick recipes; returns the temporary folder."""
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(results.VARIABLE, str(tmp_path / "figures"))
    for name in ("data_recipes", "network_recipes", "experiment_recipes"):
        monkeypatch.setattr(experiments, name, small_recipes if name == "network_recipes" else lambda profile: [])
    monkeypatch.setattr(artifacts, "WEIGHTS", tmp_path / "weights")
    return tmp_path


def test_help_names_every_command(capsys: Out) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    commands = (
        "doctor",
        "profiles",
        "status",
        "train",
        "execute",
        "inspect",
        "search",
        "import-weights",
        "clean-cache",
    )
    for command in commands:
        assert command in shown


def test_profiles_lists_and_prints(capsys: Out) -> None:
    assert cli.main(["profiles"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["smoke", "laptop", "paper"]
    assert cli.main(["profiles", "paper"]) == 0
    assert json.loads(capsys.readouterr().out) == profiles.as_config(profiles.load("paper"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["profiles", "desktop"], "expected one of smoke, laptop, paper"),
        (["inspect", "/no/such/folder"], "images.npy: not there"),
        (["execute", "notebooks/none.ipynb"], "no such notebook"),
        (["train", "--only", "x.y"], "--only: expected one of tiny.first, tiny.second"),
        (["search", ""], "description: expected words"),
        (["import-weights", "none.ckpt", "out", "--kind", "unet"], "none.ckpt: no such file"),
        (["import-weights", "a.pt", "b.pt", "out", "--kind", "unet"], "expected one FILE, got 2"),
    ],
)
def test_bad_input_is_one_sentence(small: Path, capsys: Out, arguments: list[str], said: str) -> None:
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_closed_pipe_is_no_error() -> None:
    command = f"'{sys.executable}' -m facetransport profiles laptop"
    done = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_inspect_describes_a_faceset(tmp_path: Path, capsys: Out) -> None:
    table = pd.DataFrame({"identity": [3, 3, 7], "age": [20.0, 20.0, 50.0]})
    FaceSet(np.zeros((3, 8, 6, 3), np.uint8), table).save(tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3, 8 x 6 pixels" in shown and "2, 1 to 2 images each" in shown and "identity, age" in shown


def test_photographs_are_imported_listed_and_described(tmp_path: Path, capsys: Out) -> None:
    for person, photograph in ((0, 0), (0, 1), (1, 0)):
        path = tmp_path / "people" / f"p{person}" / f"{photograph}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 24, 3), 100, np.uint8)).save(path)
    command = ["import-faces", "folders", str(tmp_path / "people"), str(tmp_path / "out"), "--size", "16"]
    assert cli.main([*command, "--geometry", "whole"]) == 0
    shown = capsys.readouterr().out
    assert "left out     0 without" in shown and "3, 16 x 16 pixels" in shown and "2, 1 to 2 images each" in shown
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == {}
    assert cli.main([*command, "--split", "val"]) == 1
    assert "--split: not for folders; leave it out" in capsys.readouterr().err


class Literal:
    """Reads three words; a reader trained for the few steps of the smoke profile reads at random."""

    names = known_names()

    def read(self, texts: list[str]) -> Reading:
        said = np.full((len(texts), len(self.names)), UNSAID, np.int8)
        for row, text in zip(said, texts, strict=True):
            for word, name, value in (("woman", "Male", 0), ("young", "Young", 1), ("red hair", "Red_Hair", 1)):
                if word in text:
                    row[self.names.index(name)] = value
        return Reading(said, np.ones(said.shape, np.float32), probable(said))


def test_search_lists_how_it_read_and_whom_it_found(
    smoke: Profile, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching.words, "load_reader", lambda profile, store: Literal())
    sheet = tmp_path / "found.png"
    command = ["search", "a young woman with red hair, scowling", "--profile", "smoke", "--top", "20", "--size", "20"]
    assert cli.main([*command, "--sheet", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    understood = "a woman (1.00); young (1.00); red hair (1.00) - not understood: scowling"
    assert lines[0] == f"read as      {understood} - words it was not trained on: scowling"
    people = smoke.rendered.roles["gallery"].identities
    assert lines[1] == f"gallery      {people} people, {20 - people} distractors"
    assert lines[2] == "looked at by pixels"
    rank, score, person, holds = zip(*(line.split(maxsplit=3) for line in lines[3:-1]), strict=True)
    assert rank == tuple(str(i) for i in range(1, 21)) and list(score) == sorted(score, key=float, reverse=True)
    told = [h for p, h in zip(person, holds, strict=True) if p != "-"]
    pattern = r"(NOT )?a woman \d\.\d\d; (NOT )?young .*red hair \d\.\d\d  \[a (wo)?man, (not )?young"
    assert len(told) == people and all(re.match(pattern, h) for h in told)
    assert lines[-1].endswith(str(sheet)) and sheet.read_bytes().startswith(b"\x89PNG")


def test_a_search_for_nothing_is_one_sentence(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching.words, "load_reader", lambda profile, store: Literal())
    assert cli.main(["search", "a person", "--profile", "smoke"]) == 1
    error = capsys.readouterr().err
    assert "'a person' states nothing about a face" in error and "Traceback" not in error


def test_search_cannot_shrink_the_gallery(capsys: Out) -> None:
    assert cli.main(["search", "bald", "--profile", "smoke", "--size", "3"]) == 1
    assert "size: expected at least 12" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["unet", "vq"])
def test_import_weights_says_what_it_recognised(tmp_path: Path, capsys: Out, kind: str) -> None:
    network = UNet(UNetConfig(3, 32, (1, 2), (False, True), blocks=1, context_dim=64))
    state = network.state_dict() if kind == "unet" else {n: torch.zeros(s) for n, s in ldm_shapes(32).items()}
    torch.save({"model": state}, tmp_path / "given.ckpt")
    out = tmp_path / "sub" / "ours"
    assert cli.main(["import-weights", str(tmp_path / "given.ckpt"), str(out), "--kind", kind]) == 0
    shown = capsys.readouterr().out
    count = sum(p.numel() for p in state.values())
    assert f"{'unet_ca' if kind == 'unet' else 'vq'}, {count:,} parameters, names under 'model.'" in shown
    assert f"{out}.safetensors" in shown and Path(f"{out}.safetensors").is_file()


# ------------------------------------------------------------------------------------------------- status and training


def test_train_builds_what_status_then_finds(small: Path, capsys: Out) -> None:
    cli.main(["status", "--profile", "smoke"])
    assert capsys.readouterr().out.count("to build") == 2
    assert cli.main(["train", "--profile", "smoke"]) == 0
    capsys.readouterr()
    cli.main(["status", "--profile", "smoke"])
    assert capsys.readouterr().out.count("cached") == 2


def test_only_builds_one_stage_and_what_it_needs(small: Path) -> None:
    assert cli.main(["train", "--profile", "smoke", "--only", "tiny.first"]) == 0
    assert [p.name for p in (small / "cache").iterdir() if not p.name.startswith(".")] == ["tiny.first"]


def test_shipping_drops_weights_of_older_recipes_only(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["train", "--profile", "smoke", "--ship"]) == 0
    old = list((small / "weights").glob("*/*"))
    assert len(old) == 2

    changed = {"smoke": 99}  # another width: the first recipe's key changes, and with it the second's
    monkeypatch.setattr(experiments, "network_recipes", lambda p: small_recipes(widened(p, changed.get(p.name))))
    assert cli.main(["train", "--profile", "smoke", "--ship"]) == 0
    new = list((small / "weights").glob("*/*"))
    assert len(new) == 2 and not set(old) & set(new)
    cli.main(["train", "--profile", "laptop", "--ship"])
    assert len(list((small / "weights").glob("*/*"))) == 4  # the smoke profile still asks for its own


def widened(profile: Profile, width: int | None) -> Profile:
    if width is None:
        return profile
    return replace(profile, idiff_face=replace(profile.idiff_face, width=width))


def test_train_does_not_count_what_is_shipped(small: Path, capsys: Out) -> None:
    cli.main(["train", "--profile", "smoke", "--ship"])
    cli.main(["clean-cache", "--all", "--yes"])
    capsys.readouterr()
    cli.main(["status", "--profile", "smoke"])
    assert capsys.readouterr().out.count("shipped") == 2
    cli.main(["train", "--profile", "smoke"])
    assert capsys.readouterr().out.count("to build") == 2


def test_the_option_comes_before_the_environment_and_the_environment_before_the_default(
    small: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {name: small_recipes(profiles.load(name))[0].key[:16] for name in ("smoke", "laptop", "paper")}
    monkeypatch.setenv(profiles.VARIABLE, "paper")
    for arguments, expected in ((["--profile", "smoke"], "smoke"), ([], "paper")):
        cli.main(["status", *arguments])
        assert keys[expected] in capsys.readouterr().out
    monkeypatch.delenv(profiles.VARIABLE)
    cli.main(["status"])
    assert keys["laptop"] in capsys.readouterr().out


def test_retrain_forgets_the_cached_network(small: Path, capsys: Out) -> None:
    cli.main(["train", "--profile", "smoke"])
    capsys.readouterr()
    cli.main(["train", "--profile", "smoke", "--retrain"])
    assert capsys.readouterr().out.count("to build") == 2


def test_jobs_draw_shards_and_a_call_without_one_joins_them(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    parts = [range(i, i + 2) for i in range(0, 10, 2)]

    def images(part: range) -> FaceSet:
        return FaceSet(np.full((2, 4, 4, 3), part[0], np.uint8), pd.DataFrame({"identity": list(part)}))

    def dataset(profile: Profile, kind: str, share: tuple[int, int] | None = None, **_: object) -> Recipe:
        def make(folder: Path, upstream: tuple[Path, ...]) -> None:
            shards.build(folder, parts, [2] * 5, images, 1, share=share or (0, 1))

        return Recipe("tiny.set", {"kind": kind}, make)

    monkeypatch.setattr("facetransport.companion.experiments.idiff_face.dataset_recipe", dataset)
    generate = ["generate", "plda", "--profile", "smoke"]
    for job in ("3/3", "1/3"):
        assert cli.main([*generate, "--shard", job]) == 0
        assert f"shard {job.replace('/', ' of ')} is done" in capsys.readouterr().out
    written = {path.stem for path in small.glob("cache/tiny.set/*.partial/shard-*.npy")}
    assert written == {f"shard-{i:06d}" for i in (0, 2, 3)}
    assert cli.main(generate) == 0  # draws what no job did
    faces = FaceSet.load(Path(capsys.readouterr().out.strip()))
    assert faces.identity.tolist() == list(range(10))
    for wrong in ("0/3", "4/3", "two"):
        with pytest.raises(SystemExit):
            cli.main([*generate, "--shard", wrong])
        assert f"expected I/N with 1 <= I <= N, such as 2/8, got '{wrong}'" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- cache


def test_clean_cache_deletes_the_stale_and_damaged_and_nothing_else(small: Path) -> None:
    cli.main(["train", "--profile", "smoke"])
    store = Store(small / "cache", shipped=())
    current = small_recipes(profiles.load("smoke"))
    stale = Recipe("tiny.first", {"width": -1}, current[0].make)
    from_stale = Recipe("notebook.embeddings", {}, current[0].make, upstream=(stale,))
    unknown = Recipe("notebook.other", {}, current[0].make)
    for recipe in (from_stale, unknown):
        store.get(recipe)
    damaged = store.folder(current[1]).with_suffix(".corrupt")
    damaged.mkdir()
    everything = (*current, unknown, stale, from_stale)
    assert cli.main(["clean-cache"]) == 1  # nobody was there to be asked
    assert all(store.has(r) for r in everything) and damaged.exists()
    assert cli.main(["clean-cache", "--yes"]) == 0
    assert [store.has(r) for r in (*current, unknown, stale, from_stale)] == [True, True, True, False, False]
    assert not damaged.exists()


def test_clean_cache_all_leaves_the_users_own_files(small: Path) -> None:
    cli.main(["train", "--profile", "smoke"])
    (small / "cache" / "photos" / "2026").mkdir(parents=True)
    (small / "cache" / "notes.txt").write_text("mine")
    for name in ("stamps/album", "executing/album", "photos/0123456789abcdef", "empty"):  # named as ours are
        (small / "cache" / name).mkdir(parents=True)
    (small / "cache" / "stamps" / "album" / "penny_black.jpg").write_text("mine")
    assert cli.main(["clean-cache", "--all", "--yes"]) == 0
    left = {p.relative_to(small / "cache").as_posix() for p in (small / "cache").rglob("*")}
    assert left == {
        *("notes.txt", "photos", "photos/2026", "photos/0123456789abcdef", "empty", "executing", "executing/album"),
        *("stamps", "stamps/album", "stamps/album/penny_black.jpg"),
    }


def test_clean_cache_keeps_what_profiles_by_path_made(small: Path) -> None:
    mine = small / "mine.yaml"
    mine.write_text((profiles.FOLDER / "smoke.yaml").read_text().replace("  width: 64\n", "  width: 80\n"))
    assert profiles.load(mine).idiff_face != profiles.load("smoke").idiff_face
    cli.main(["train", "--profile", str(mine)])
    made = small_recipes(profiles.load(mine))
    store = Store(small / "cache", shipped=())
    assert cli.main(["clean-cache", "--yes"]) == 0 and all(store.has(recipe) for recipe in made)
    mine.unlink()  # nobody can ask for it any more
    assert cli.main(["clean-cache", "--yes"]) == 0 and not any(store.has(recipe) for recipe in made)


# --------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_reports_and_passes(small: Path, capsys: Out) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in ("torch ", "insightface ", "threads of", "CPUExecutionProvider", str(small / "cache"), "tiny.first"):
        assert part in shown
    assert shown.count("not shipped: trained when first needed") == 2


def test_doctor_fails_on_damaged_weights_and_names_those_of_other_recipes(small: Path, capsys: Out) -> None:
    cli.main(["train", "--profile", "laptop", "--ship"])
    first, second = sorted((small / "weights").glob("*/*"))
    (first / "model.txt").write_text("damaged")
    second.rename(second.with_name("0" * 16))
    capsys.readouterr()
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"tiny\.first +DAMAGED", shown)
    assert f"for another recipe ({'0' * 16})" in shown


def test_doctor_fails_when_something_is_missing(small: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "VERSIONS", ("no-such-package",))
    assert cli.main(["doctor"]) == 1
    assert "no-such-package is not installed: pip install -r requirements.lock" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ notebooks


def notebook(folder: Path, *cells: str) -> Path:
    book = nbformat.v4.new_notebook()
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    book.cells[0].metadata.tags = ["parameters"]
    path = folder / "a folder with spaces" / "01_test.ipynb"
    path.parent.mkdir()
    nbformat.write(book, path)
    return path


@pytest.fixture
def run(small: Path) -> Execute:
    """``facetransport execute`` in a process of its own: it sets environment variables for kernels."""

    def execute(path: Path) -> subprocess.CompletedProcess[str]:
        command = [*EXECUTE, str(path), "--profile", "smoke"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return execute


def test_execute_runs_a_notebook_at_the_profile(small: Path, run: Execute) -> None:
    warn = "import warnings; warnings.warn('on stderr, with a path')"
    look = f'import os; print(profile, os.environ["FACETRANSPORT_PROFILE"], os.getcwd()); {warn}'
    path = notebook(small, 'profile = "laptop"', look)
    done = run(path)
    assert done.returncode == 0, done.stderr
    book = nbformat.read(small / "figures" / "smoke" / "notebooks" / "01_test.ipynb", as_version=4)
    assert [output.text for output in book.cells[-1].outputs] == [f"smoke smoke {path.parent}\n"]
    assert set(book.metadata) == {"kernelspec"}, "timings and paths would change with every run"
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells)
    took = json.loads((small / "figures" / "smoke" / "speed" / "cells" / "01_test.json").read_text())
    assert len(took) == len(book.cells)
    assert all(0 <= seconds < 60 for seconds in took.values())


def test_the_same_run_is_the_same_copy(small: Path, run: Execute) -> None:
    slow = "import time\nfor i in range(3):\n    print(i)\n    time.sleep(0.3)"  # comes in pieces
    path, copies = notebook(small, 'profile = "laptop"', slow), []
    for _ in range(2):
        assert run(path).returncode == 0
        copies.append((small / "figures" / "smoke" / "notebooks" / "01_test.ipynb").read_bytes())
    assert copies[0] == copies[1]
    assert [o.text for o in nbformat.reads(copies[0], as_version=4).cells[-1].outputs] == ["0\n1\n2\n"]


def test_a_profile_of_ones_own_is_a_path_from_anywhere(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = (profiles.FOLDER / "smoke.yaml").read_text().replace("world_seed: ", "world_seed: 7")
    (small / "mine.yaml").write_text(mine)
    monkeypatch.chdir(small)
    look = "from facetransport.companion import profiles; print(profiles.resolve(profile).rendered.world_seed)"
    path = notebook(small, 'profile = "laptop"', look)
    assert subprocess.run([*EXECUTE, str(path), "--profile", "mine.yaml"], timeout=120).returncode == 0
    book = nbformat.read(small / "figures" / "mine" / "notebooks" / "01_test.ipynb", as_version=4)
    assert book.cells[-1].outputs[0].text.startswith("7")


def test_a_failing_cell_is_shown_and_leaves_the_old_copy(small: Path, run: Execute) -> None:
    old = small / "figures" / "smoke" / "notebooks" / "01_test.ipynb"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    done = run(notebook(small, 'profile = "laptop"', 'raise ValueError("the lamp is broken")'))
    assert done.returncode == 1
    assert "ValueError: the lamp is broken" in done.stderr
    assert "a cell failed; what ran until then is in" in done.stderr
    assert old.read_text() == "old"
