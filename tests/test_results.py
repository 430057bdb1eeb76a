from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from facetransport import version
from facetransport.companion import results
from facetransport.companion.artifacts import Recipe
from facetransport.companion.profiles import Profile
from facetransport.companion.results import Run


@pytest.fixture
def run(tmp_path: Path, smoke: Profile, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(results.VARIABLE, str(tmp_path / "figures"))
    return Run(notebook="99_test", profile=smoke)


def written(run: Run) -> list[dict[str, object]]:
    return json.loads(run.path.read_text())


# ----------------------------------------------------------------------------------------------------------- numbers


def test_a_record_has_every_field_and_where_it_came_from(run: Run) -> None:
    run.record("orl.dlib.accuracy", 0.998, low=0.99, high=1.0, n=10, seeds=[0, 1], unit="fraction", protocol="10 folds")
    (record,) = written(run)
    assert tuple(record) == results.FIELDS
    assert record["context"] == {"protocol": "10 folds"}
    assert (record["notebook"], record["profile"]) == ("99_test", "smoke")
    assert record["code_version"] == version.code_version()
    assert re.fullmatch("[0-9a-f]{16}", str(record["data_digest"]))


def test_recording_again_replaces_and_the_same_is_the_same_file(run: Run) -> None:
    run.record("b.x", 1.0)
    run.record("a.x", 2)
    before = run.path.read_bytes()
    run.record("b.x", 1.0)
    assert run.path.read_bytes() == before
    run.record("b.x", 3.0)
    assert [(r["name"], r["value"]) for r in written(run)] == [("a.x", 2), ("b.x", 3.0)]


def test_numpy_numbers_become_plain_ones(run: Run) -> None:
    context = {"steps": np.arange(2), "by": {"a": np.float32(0.5)}}
    run.record("x", np.float32(0.5), n=np.int64(3), seeds=range(2), **context)  # type: ignore[arg-type]
    (record,) = written(run)
    assert (record["value"], record["n"], record["seeds"]) == (0.5, 3, [0, 1])
    assert record["context"] == {"steps": [0, 1], "by": {"a": 0.5}}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -np.inf, np.float32("nan")])
def test_what_is_not_finite_is_refused(run: Run, bad: float) -> None:
    with pytest.raises(ValueError, match="x: expected a finite number"):
        run.record("x", bad)
    with pytest.raises(ValueError, match="x low: expected a finite number"):
        run.record("x", 1.0, low=bad, high=2.0)
    with pytest.raises(ValueError, match="expected finite numbers"):
        run.record("x", 1.0, note=bad)
    assert not run.path.exists()


def test_none_needs_a_reason(run: Run) -> None:
    with pytest.raises(ValueError, match="say why with reason="):
        run.record("x", None)
    run.record("x", None, reason="dlib found no face")
    assert written(run)[0]["value"] is None


def test_bad_numbers_names_and_intervals_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="expected a number, got 'high'"):
        run.record("x", "high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both low and high or neither"):
        run.record("x", 1.0, low=0.5)
    with pytest.raises(ValueError, match="expected low <= high"):
        run.record("x", 1.0, low=2.0, high=1.0)
    for name in ("", "A", "a b", "a..b", "../a"):
        with pytest.raises(ValueError, match="name: expected lower-case words"):
            run.record(name, 1.0)
    with pytest.raises(ValueError, match="notebook: expected"):
        Run("../x", run.profile)


def test_finish_forgets_what_this_run_did_not_record(run: Run) -> None:
    run.record("old.name", 1.0)
    again = Run(run.notebook, run.profile)
    again.record("new.name", 2.0)
    assert list(again.finish()["name"]) == ["new.name"]
    assert [r["name"] for r in written(run)] == ["new.name"]


def test_read_gathers_all_notebooks_of_a_profile(run: Run, smoke: Profile) -> None:
    assert results.read(smoke).empty
    run.record("x.y", 0.25, n=4)
    Run("98_other", smoke).record("z", 7)
    frame = results.read(smoke)
    assert list(frame.columns) == list(results.FIELDS)
    assert dict(zip(frame["name"], frame["notebook"], strict=True)) == {"x.y": "99_test", "z": "98_other"}
    assert results.value(smoke, "x.y") == 0.25
    assert results.read("laptop", run.folder.parent).empty


def test_a_number_that_is_not_there_says_how_to_get_it(run: Run, smoke: Profile) -> None:
    run.record("x", None, reason="no data")
    for name in ("x", "y"):
        with pytest.raises(ValueError, match=f"{name}: no such number.*make figures"):
            results.value(smoke, name)


def test_a_damaged_file_is_named(run: Run, smoke: Profile) -> None:
    run.record("x", 1)
    run.path.write_text("[{")
    with pytest.raises(ValueError, match=r"99_test\.json: not JSON.*make figures"):
        results.read(smoke)


def test_the_data_digest_follows_the_data(smoke: Profile) -> None:
    data = [Recipe("rendered.test", {"seed": seed}, lambda folder, upstream: None) for seed in (1, 2)]
    digests = {Run("n", smoke, part).data_digest for part in (data[:1], data[1:], data, [])}
    assert len(digests) == 4


# ---------------------------------------------------------------------------------------------- pictures and tables


def test_pictures_say_what_they_are_and_nothing_of_when_and_where(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    assert run.figure(figure, "line") is figure
    assert not plt.fignum_exists(figure.number)
    with Image.open(run.folder / "line.png") as picture:
        assert picture.info["Title"] == "line (smoke)" and not {"Software", "Description"} & set(picture.info)
        assert picture.mode == "P"
    svg = (run.folder / "line.svg").read_text()
    assert "line (smoke)" in svg and "<dc:date>" not in svg and matplotlib.__version__ not in svg


def test_faces_are_jpeg_charts_png_and_lines_svg_too(run: Run) -> None:
    draw: dict[str, Callable[[Axes], object]] = {
        "line": lambda axes: axes.plot([0, 1]),
        "map": lambda axes: axes.imshow(np.zeros((4, 4, 3))),
        "rasterised": lambda axes: axes.pcolormesh(np.zeros((4, 4)), rasterized=True),
        "heavy": lambda axes: axes.plot(np.random.default_rng(0).random(20_000), color="black", linewidth=0.1),
        "faces": lambda axes: axes.imshow(_noise(256)),
    }
    for name, what in draw.items():
        for part in (draw["line"], what):  # the first: files of an earlier run, which must not stay
            figure, axes = plt.subplots()
            part(axes)
            run.figure(figure, name)
        expected = {"line": ["png", "svg"], "faces": ["jpg"]}.get(name, ["png"])
        assert sorted(path.suffix[1:] for path in run.folder.glob(f"{name}.*")) == expected


def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)


def _as_png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def test_lighter_pictures_look_the_same() -> None:
    face = np.asarray(Image.fromarray(_noise(16)).resize((256, 256), Image.Resampling.BICUBIC))
    chart = np.linspace(0, 255, 128).astype(np.uint8)[:, None, None] * np.ones((1, 128, 3), np.uint8)
    for image, light, rich in ((face, results.jpeg, True), (chart, results.lighter, False)):
        png = _as_png(image)
        assert results.is_rich(png) == rich and light(png) == light(png)
        assert len(light(png)) < 0.4 * len(png) or not rich
        shown = np.asarray(Image.open(io.BytesIO(light(png))).convert("RGB"), float)
        assert np.abs(shown - image).mean() < 6


def test_what_came_out_as_before_keeps_the_version_it_came_out_at_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.record("a.b", 0.5, n=3)
    run.record("a.c", 0.5)
    before = run.path.read_bytes()
    monkeypatch.setattr(version, "code_version", lambda: "9.9.9")
    run.record("a.b", 0.5, n=3)
    run.record("a.c", 0.5)
    run.finish()
    assert run.path.read_bytes() == before
    run.record("a.c", 0.6)
    assert [r["code_version"] == "9.9.9" for r in json.loads(run.path.read_text())] == [False, True]


def test_what_another_hand_has_changed_since_is_kept(run: Run) -> None:
    run.record("a.b", 1.0)
    run.record("a.c", 2.0)
    run.path.write_text(run.path.read_text().replace("2.0", "3.0"))
    run.record("a.d", 4.0)
    assert [r["value"] for r in written(run)] == [1.0, 3.0, 4.0]
    run.path.unlink()
    run.record("a.e", 5.0)
    assert [r["name"] for r in written(run)] == ["a.e"]


def test_speeds_stay_with_the_machine(run: Run) -> None:
    run.record("a.b", 0.5)
    run.record("speed.images_per_second", 80.0)
    run.table(pd.DataFrame({"seconds": [1.0]}), "speed.costs")
    run.finish()
    assert [r["name"] for r in json.loads(run.path.read_text())] == ["a.b"]
    speed = run.folder / "speed"
    assert sorted(p.name for p in speed.iterdir()) == [run.path.name, "speed.costs.csv", "speed.costs.md"]
    assert "cores" in results.machine()


def test_the_same_picture_is_the_same_file(run: Run) -> None:
    def draw() -> tuple[bytes, bytes]:
        figure, axes = plt.subplots()
        axes.plot([0, 1])
        run.figure(figure, "line")
        return (run.folder / "line.png").read_bytes(), (run.folder / "line.svg").read_bytes()

    assert draw() == draw()


def test_tables_are_csv_and_markdown(run: Run) -> None:
    frame = pd.DataFrame({"method": ["a|b", "c"], "auc": [0.987654, 1.0], "n": [3, 4]})
    assert run.table(frame, "main") is frame
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "main.csv"), frame)
    markdown = (run.folder / "main.md").read_text()
    assert markdown == "| method | auc | n |\n| --- | --- | --- |\n| a\\|b | 0.9877 | 3 |\n| c | 1 | 4 |\n"


def test_a_named_index_is_a_column(run: Run) -> None:
    frame = pd.DataFrame({"auc": [0.5]}, index=pd.Index(["dlib"], name="judge"))
    assert results.markdown(frame).splitlines()[2] == "| dlib | 0.5 |"
    run.table(frame, "indexed")
    assert "judge,auc" in (run.folder / "indexed.csv").read_text()


# ------------------------------------------------------------------------------------------------------------ places


def test_figures_lie_in_the_checkout_above_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(results.VARIABLE, raising=False)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "facetransport"\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert results.figures_root() == tmp_path / "figures"


def test_another_projects_checkout_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(results.VARIABLE, raising=False)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    monkeypatch.chdir(tmp_path)
    assert results.figures_root() == Path(__file__).resolve().parents[1] / "figures"
    monkeypatch.setattr(version, "checkout", lambda: None)
    with pytest.raises(FileNotFoundError, match="FACETRANSPORT_FIGURES"):
        results.figures_root()
