from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from facetransport.companion import plots

LONG = "IDiff-Face, CPD 25 %, uniform contexts"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
SCORES = np.random.default_rng(1).normal(size=(2, 400))
RESULTS = pd.DataFrame({"name": [LONG, "b"], "value": [0.95, 0.7], "low": [0.93, np.nan], "high": [0.97, np.nan]})
LINES = pd.DataFrame(
    {"steps": [20, 5, 10], "value": [0.9, 0.7, 0.8], "low": 0.6, "high": 0.95, "solver": ["a", "a", "b"]}
)
RATES = np.linspace(0, 1, 50)

FIGURES: dict[str, Callable[[], Figure]] = {
    "contact_sheet": lambda: plots.contact_sheet(IMAGES, 3, "six people"),
    "identity_grid": lambda: plots.identity_grid(IMAGES, 3, [LONG, "b"], "people", ["x", "y", "z"]),
    "score_histograms": lambda: plots.score_histograms(SCORES[0] + 2, SCORES[1], 1.0, "dlib"),
    "roc_curves": lambda: plots.roc_curves({LONG: (RATES, RATES**0.3), "b": (RATES, RATES)}, "ROC"),
    "cmc_curves": lambda: plots.cmc_curves({LONG: RATES, "b": RATES**2}, "CMC"),
    "interval_bars": lambda: plots.interval_bars(RESULTS, "AUC", "judged by dlib", reference=0.99, limits=(0.5, 1.1)),
    "line_with_band": lambda: plots.line_with_band(LINES, "steps", "solver", "cost", ylabel="AUC", logx=True),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_legible_and_nothing_is_clipped(name: str) -> None:
    with plt.rc_context():
        plt.rcdefaults()  # whatever the caller's settings are
        figure = FIGURES[name]()
        figure.canvas.draw()
        drawn = figure.get_tightbbox().padded(-0.02)
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    assert texts
    assert min(float(t.get_fontsize()) for t in texts) >= 9
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


def test_the_style_is_legible_too() -> None:
    with plt.rc_context():
        plots.style()
        assert min(plt.rcParams[k] for k in ("xtick.labelsize", "ytick.labelsize", "legend.fontsize")) >= 9


def test_drawing_leaves_the_callers_settings_alone() -> None:
    before = dict(plt.rcParams)
    FIGURES["roc_curves"]()
    assert dict(plt.rcParams) == before


def test_tile_places_each_image_and_leaves_gaps_white() -> None:
    sheet = plots.tile(IMAGES[:5], columns=3, gap=2)
    assert sheet.shape == (34, 52, 3)
    np.testing.assert_array_equal(sheet[18:34, 18:34], IMAGES[4])
    assert (sheet[16:18] == 255).all() and (sheet[18:, 36:] == 255).all()


def test_rows_are_labelled_where_they_are() -> None:
    figure = plots.identity_grid(IMAGES, 2, ["a", "b", "c"])
    ticks = figure.axes[0].get_yticks()
    np.testing.assert_allclose(ticks, [8, 26, 44], atol=0.5)  # middles of 16-pixel images, 2 pixels apart


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES.astype(np.float32), "got float32"),
        (IMAGES[..., 0], r"got uint8 \(6, 16, 16\)"),
        (IMAGES[:0], "N >= 1"),
    ],
)
def test_bad_images_are_refused(images: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=rf"images: expected uint8 \(N, H, W, 3\).*{said}|{said}"):
        plots.contact_sheet(images)


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected 2 labels, one each, or none; got 3"):
        plots.identity_grid(IMAGES, 3, ["a", "b", "c"])
    with pytest.raises(ValueError, match="columns: expected at least 1"):
        plots.tile(IMAGES, 0)


@pytest.mark.parametrize("bad", [np.array([]), np.array([0.0, np.nan])])
def test_empty_and_nan_scores_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="impostor: expected at least one score, all finite"):
        plots.score_histograms(SCORES[0], bad)


def test_scores_that_are_all_the_same_can_be_drawn() -> None:
    assert plots.score_histograms(np.ones(3), np.ones(3)).axes


def test_bars_need_numbers() -> None:
    with pytest.raises(ValueError, match="expected at least one row and a number in each"):
        plots.interval_bars(pd.DataFrame({"name": ["a"], "value": [np.nan]}))


def test_bars_show_value_and_interval() -> None:
    axes = plots.interval_bars(RESULTS).axes[0]
    assert [bar.get_width() for bar in axes.containers[1]] == [0.95, 0.7]
    segments = axes.collections[0].get_segments()  # type: ignore[attr-defined]
    np.testing.assert_allclose(segments[0][:, 0], [0.93, 0.97])
    np.testing.assert_allclose(segments[1][:, 0], [0.7, 0.7])


def test_lines_are_sorted_along_x() -> None:
    axes = plots.line_with_band(LINES.drop(columns="solver"), "steps").axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [5, 10, 20])


def test_colours_are_distinct() -> None:
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)
