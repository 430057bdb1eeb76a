from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
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
PAIRS = {"different people": SCORES[1], "same person": SCORES[0] + 2}
PEOPLE = pd.DataFrame(
    {
        "age, years": SCORES[0],
        "yaw, degrees": SCORES[1],
        "person": ["man", "woman"] * 200,
        "of": ["a"] * 200 + [LONG] * 200,
    }
)
MATRIX = pd.DataFrame([[1.0, -0.5], [0.25, 1.0], [0.0, 0.1]], index=[LONG, "b", "c"], columns=["d", LONG])

FIGURES: dict[str, Callable[[], Figure]] = {
    "contact_sheet": lambda: plots.identity_grid(IMAGES, 3, title="six people"),
    "identity_grid": lambda: plots.identity_grid(IMAGES, 3, [LONG, "b"], "people", ["x", "y", "z"]),
    "described_faces": lambda: plots.described_faces(IMAGES, [LONG * 3, "b"], "people", list("abcdef"), [1]),
    "score_histograms": lambda: plots.score_histograms(PAIRS, 1.0, "dlib"),
    "roc_curves": lambda: plots.roc_curves({LONG: (RATES, RATES**0.3), "b": (RATES, RATES)}, "ROC"),
    "cmc_curves": lambda: plots.cmc_curves({LONG: RATES, "b": RATES**2}, "CMC"),
    "interval_bars": lambda: plots.interval_bars(RESULTS, "AUC", "judged by dlib", reference=0.99),
    "line_with_band": lambda: plots.line_with_band(LINES, "steps", "solver", "cost", ylabel="AUC", logx=True),
    "distributions": lambda: plots.distributions(PEOPLE, "yaw, degrees", "person", "of", "pose"),
    "heat_map": lambda: plots.heat_map(MATRIX, "how they go together", "correlation", digits=2),
    "pair_plot": lambda: plots.pair_plot(PEOPLE, "person", "people"),
}


# seaborn 0.13.2's heat maps call methods that matplotlib 3.11 will deprecate
@pytest.mark.filterwarnings("ignore:The set_(bad|extremes|over|under) function:PendingDeprecationWarning")
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


@pytest.mark.parametrize("name", ["score_histograms", "roc_curves", "line_with_band", "distributions"])
def test_a_legend_covers_nothing_that_is_drawn(name: str) -> None:
    figure = FIGURES[name]()
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


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
        plots.identity_grid(images, 3)


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected 2 labels, one each, or none; got 3"):
        plots.identity_grid(IMAGES, 3, ["a", "b", "c"])
    with pytest.raises(ValueError, match="columns: expected at least 1"):
        plots.tile(IMAGES, 0)


@pytest.mark.parametrize("bad", [np.array([]), np.array([0.0, np.nan])])
def test_empty_and_nan_scores_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="impostor: expected at least one number, all finite"):
        plots.score_histograms({"genuine": SCORES[0], "impostor": bad})


def test_histograms_are_densities_in_common_bins() -> None:
    axes = plots.score_histograms(PAIRS).axes[0]
    areas = [sum(bar.get_width() * bar.get_height() for bar in bars) for bars in axes.containers]
    np.testing.assert_allclose(areas, 1)
    first, second = ([bar.get_x() for bar in bars] for bars in axes.containers)
    np.testing.assert_array_equal(first, second)
    assert len(first) == 20  # of 400 scores


def test_scores_that_are_all_the_same_can_be_drawn() -> None:
    assert plots.score_histograms({"a": np.ones(3), "b": np.ones(3)}).axes


@pytest.mark.parametrize(
    "frame", [RESULTS[:0], RESULTS.assign(value=np.nan), RESULTS.assign(name="the same")], ids=["empty", "gap", "twice"]
)
def test_bars_need_numbers_and_names_of_their_own(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"expected rows, each with a number in 'value', of distinct \['name'\]"):
        plots.interval_bars(frame)


def _ends(axes: Axes) -> list[list[float]]:
    """Smallest and largest x of each interval that is drawn."""
    spans = [np.asarray(line.get_xdata(), float) for line in axes.lines]
    return [[np.nanmin(x), np.nanmax(x)] for x in spans if np.isfinite(x).any()]


def test_bars_show_value_interval_and_number() -> None:
    axes = plots.interval_bars(RESULTS).axes[0]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == [0.95, 0.7]
    np.testing.assert_allclose(_ends(axes), [[0.93, 0.97]])  # the other has none
    assert [label.get_text() for label in axes.get_yticklabels()] == [LONG, "b"]
    assert [text.get_text() for text in axes.texts] == ["0.950", "0.700"]


def test_a_value_outside_its_interval_is_shown_as_it_is() -> None:
    axes = plots.interval_bars(pd.DataFrame({"name": ["a"], "value": [0.5], "low": [0.6], "high": [0.7]})).axes[0]
    assert axes.patches[0].get_width() == 0.5  # type: ignore[attr-defined]
    np.testing.assert_allclose(_ends(axes), [[0.5, 0.7]])


def test_lines_are_sorted_along_x_within_their_band() -> None:
    frame = LINES.drop(columns="solver")
    axes = plots.line_with_band(frame, "steps").axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[5, 0.7], [10, 0.8], [20, 0.9]])
    np.testing.assert_allclose(axes.collections[0].get_paths()[0].get_extents().extents, [5, 0.6, 20, 0.95])


def test_lines_keep_the_order_of_their_groups() -> None:
    axes = plots.line_with_band(LINES.assign(solver=["b", "a", "a"]), "steps", "solver").axes[0]
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["b", "a"]
    assert [to_hex(line.get_color()).upper() for line in axes.lines[:2]] == list(plots.COLOURS[:2])
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), [5, 10])
    (bar,) = [part for part in axes.collections if isinstance(part, LineCollection)]  # of the group of one
    np.testing.assert_allclose(bar.get_segments(), [[[20, LINES["low"].iloc[0]], [20, LINES["high"].iloc[0]]]])
    assert to_hex(bar.get_color()[0]).upper() == plots.COLOURS[0]
    with pytest.raises(ValueError, match=r"of distinct \['steps'\]"):
        plots.line_with_band(pd.concat([LINES, LINES]), "steps")


def test_a_violin_is_as_wide_as_its_data() -> None:
    axes = plots.distributions(PEOPLE, "yaw, degrees", "person").axes[0]
    for body, (_, rows) in zip(axes.collections, PEOPLE.groupby("person", sort=False), strict=True):
        span = body.get_paths()[0].get_extents()
        np.testing.assert_allclose([span.x0, span.x1], [rows["yaw, degrees"].min(), rows["yaw, degrees"].max()])
    with pytest.raises(ValueError, match="age, years: expected at least one number, all finite"):
        plots.distributions(PEOPLE[:0], "age, years", "person")


@pytest.mark.filterwarnings("ignore:The set_(bad|extremes|over|under) function:PendingDeprecationWarning")  # as above
def test_a_heat_map_is_white_at_zero_and_labels_every_cell() -> None:
    axes = plots.heat_map(MATRIX, digits=2).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "-0.50", "0.25", "1.00", "0.00", "0.10"]
    assert [len(axes.get_xticklabels()), len(axes.get_yticklabels())] == [2, 3]
    mesh = axes.collections[0]
    red, _, blue, _ = np.array(mesh.cmap(mesh.norm(np.array([-0.5, 0.0, 1.0])))).T
    assert red[0] < blue[0] and red[2] > blue[2]
    assert min(red[1], blue[1]) > 0.95
    with pytest.raises(ValueError, match="frame: expected at least one number, all finite"):
        plots.heat_map(MATRIX.replace(0.0, np.nan))


def test_a_pair_plot_has_a_panel_for_each_pair() -> None:
    figure = plots.pair_plot(PEOPLE, "person")
    (scatter,) = (axes for axes in figure.axes if axes.get_ylabel() == "yaw, degrees" and axes.get_xlabel())
    assert scatter.get_xlabel() == "age, years"
    np.testing.assert_array_equal(scatter.collections[0].get_offsets(), SCORES.T)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["man", "woman"]


def test_colours_are_distinct() -> None:
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)
