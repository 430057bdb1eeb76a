"""Figures in one style: legible at full size, colours told apart by colour-blind readers, nothing clipped.

Functions take arrays and frames and return a matplotlib Figure; ``results.Run.figure`` saves it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008), without yellow, which is too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GENUINE, IMPOSTOR = COLOURS[0], COLOURS[1]
LINES = ("-", "--", "-.", ":")
MARK: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}  # a reference

_STYLE: dict[Any, Any] = {
    **sns.axes_style("whitegrid", {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "0.9"}),
    **sns.plotting_context("notebook", font_scale=0.85),
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own: the same picture on every machine
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.titlesize": 11,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.bbox": "standard",
    "image.interpolation": "nearest",
}
_styled = matplotlib.rc_context(_STYLE)  # as a decorator: draws in the house style whatever the caller's settings are


def style() -> None:
    """Set the house style for every figure that follows."""
    plt.rcParams.update(_STYLE)


@_styled
def new(width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure in the house style with ``columns`` axes beside each other; sizes in inches."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return figure, list(axes[0])


def _legend(axes: Axes, title: str = "") -> None:
    """The legend, beside the axes, where it covers nothing; the figure grows by what it takes."""
    figure, shown = axes.figure.get_figure(root=True), axes.get_legend() or axes.legend()
    shown.set_title(title)
    figure.set_figwidth(figure.get_figwidth() + shown.get_window_extent().width / figure.dpi)
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), alignment="left")


# ---------------------------------------------------------------------------------------------------------- images


def tile(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, 3) -> one uint8 picture (rows, columns), white gaps of ``gap`` pixels between."""
    _check_images(images)
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + gap, width + gap, 3), 255, np.uint8)
    cells[:n, :height, :width] = images
    sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(rows * (height + gap), -1, 3)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


@_styled
def identity_grid(
    images: np.ndarray, columns: int, rows: Sequence[str] = (), title: str = "", heads: Sequence[str] = ()
) -> Figure:
    """A contact sheet, each image an inch wide, with a label beside each row and above each column.

    images: uint8 (N, H, W, 3), row by row. rows, heads: labels, one per row or column; empty for none.
    """
    sheet = tile(images, columns)
    count = -(-len(images) // columns)
    _check_labels("rows", rows, count)
    _check_labels("heads", heads, columns)
    left, top = 0.15 + 0.09 * max([0, *map(len, rows)]), 0.1 + 0.25 * bool(title) + 0.25 * bool(heads)
    size = columns, columns * sheet.shape[0] / sheet.shape[1]
    width, height = left + max(size[0], 0.09 * len(title)) + 0.1, top + size[1] + 0.1
    figure = plt.figure(figsize=(width, height), layout="none")  # a place for every inch, at most 0.09 of them a letter
    axes = figure.add_axes((left / width, 0.1 / height, size[0] / width, size[1] / height))
    axes.imshow(sheet, aspect="auto")
    axes.set_title(title)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    high, wide = (sheet.shape[0] + 2) / count, (sheet.shape[1] + 2) / columns  # of an image with its gap
    axes.set_yticks([(i + 0.5) * high - 1 for i in range(len(rows))], labels=rows)
    axes.set_xticks([(i + 0.5) * wide - 1 for i in range(len(heads))], labels=heads)
    axes.tick_params(length=0, bottom=False, top=False, labelbottom=False, labeltop=True)
    return figure


@_styled
def described_faces(
    images: np.ndarray, texts: Sequence[str], title: str = "", notes: Sequence[str] = (), framed: Sequence[int] = ()
) -> Figure:
    """Texts, each beside its row of images.

    images: uint8 (len(texts) * k, H, W, 3), row by row. notes: one below each image, such as its score; empty for none.
    framed: numbers of images with a frame around them, such as the person that was meant.
    """
    _check_images(images)
    columns, rest = divmod(len(images), max(1, len(texts)))
    if not texts or rest or not columns:
        raise ValueError(f"images: expected as many for each of {len(texts)} texts, got {len(images)} in all")
    _check_labels("notes", notes, len(images))
    figure, grid = plt.subplots(
        len(texts),
        columns + 1,
        figsize=(4.2 + columns, len(texts) * (1 + 0.25 * bool(notes)) + 0.5),
        width_ratios=[4.2, *[1] * columns],
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.ravel():
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, text in zip(grid, texts, strict=True):
        row[0].text(0, 0.5, textwrap.fill(text, 58), va="center", size=9, transform=row[0].transAxes)
    for i, (axes, image) in enumerate(zip(grid[:, 1:].ravel(), images, strict=True)):
        axes.imshow(image)
        axes.set_xlabel(notes[i] if notes else "", size=9)
        if i in framed:
            axes.spines[:].set(visible=True, color=COLOURS[1], linewidth=3)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images: expected uint8 (N, H, W, 3) with N >= 1, got {images.dtype} {images.shape}")


def _check_labels(name: str, labels: Sequence[str], count: int) -> None:
    if labels and len(labels) != count:
        raise ValueError(f"{name}: expected {count} labels, one each, or none; got {len(labels)}")


# ---------------------------------------------------------------------------------------------------- verification


@_styled
def score_histograms(
    groups: Mapping[str, np.ndarray], threshold: float | None = None, title: str = "", xlabel: str = "cosine similarity"
) -> Figure:
    """Densities of sets of scores over common bins, and where the decision falls. groups: ``{label: scores}``."""
    scores = {f"{label} ({np.size(x):,})": _finite(label, x) for label, x in groups.items()}
    count = int(np.clip(min(map(len, scores.values())) ** 0.5, 10, 60))
    bins = np.histogram_bin_edges(np.concatenate([*scores.values()]), count)
    figure, (axes,) = new()
    for (label, x), colour in zip(scores.items(), (IMPOSTOR, GENUINE, *COLOURS[2:]), strict=False):
        sns.histplot(x=x, bins=bins, stat="density", color=colour, alpha=0.5, linewidth=0.3, label=label, ax=axes)
    if threshold is not None:
        axes.axvline(threshold, **MARK)
    axes.set(xlabel=xlabel, ylabel="density", title=title)
    _legend(axes, "" if threshold is None else f"dashed: {threshold:.3f}")
    return figure


def _finite(name: str, numbers: np.ndarray) -> np.ndarray:
    numbers = np.asarray(numbers, dtype=np.float64).ravel()
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected at least one number, all finite; got {numbers.size} numbers")
    return numbers


@_styled
def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "", lowest: float = 1e-4) -> Figure:
    """``{label: (false match rate, true match rate)}``; fractions; the x axis is logarithmic from ``lowest``."""
    lines = {label: (np.maximum(false, lowest), true) for label, (false, true) in curves.items()}
    figure = _curves(lines, drawstyle="steps-post")
    figure.axes[0].set(xscale="log", xlim=(lowest, 1), title=title, xlabel="false match rate", ylabel="true match rate")
    return figure


@_styled
def cmc_curves(curves: Mapping[str, np.ndarray], title: str = "", logx: bool = False) -> Figure:
    """``{label: (R,) identification rate at rank 1..R}``, as fractions. logx: for large galleries."""
    figure = _curves({label: (np.arange(1, len(rates) + 1), rates) for label, rates in curves.items()})
    axes = figure.axes[0]
    axes.set(xlabel="rank", ylabel="identified within rank", title=title)
    axes.locator_params(axis="x", integer=True)
    if logx:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    return figure


def _curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], **look: Any) -> Figure:
    figure, (axes,) = new()
    for i, (label, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, LINES[i % len(LINES)], label=label, **look)
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return figure


# ---------------------------------------------------------------------------------------- intervals, distributions

# seaborn takes intervals from observations: here value, low and high are three of them, their range is the interval
_INTERVAL: dict[str, Any] = {"estimator": lambda three: three.iloc[0], "errorbar": ("pi", 100)}


def _observations(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Columns ``keys`` and ``number``: every row's value, then lows and highs where there are."""
    if frame.empty or frame["value"].isna().any() or frame.duplicated(keys).any():
        raise ValueError(f"frame: expected rows, each with a number in 'value', of distinct {keys}; got\n{frame}")
    ends = [column for column in ("value", "low", "high") if column in frame]
    return frame.melt(keys, ends, value_name="number").dropna(subset="number")


@_styled
def interval_bars(
    frame: pd.DataFrame, title: str = "", xlabel: str = "", reference: float | None = None, digits: int = 3
) -> Figure:
    """One horizontal bar per row, with its interval and its number.

    frame: columns ``name``, ``value``, and ``low``, ``high`` where there is an interval (as ``results.read`` gives).
    reference: a vertical line to compare with. digits: decimals of the printed numbers.
    """
    long = _observations(frame, ["name"])
    figure, (axes,) = new(height=0.45 * len(frame) + 1.3)
    look = {"alpha": 0.75, "capsize": 0.2, "err_kws": {"color": "black", "linewidth": 1.5}}
    sns.barplot(long, x="number", y="name", orient="y", ax=axes, **_INTERVAL, **look)
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # readable across a reference line
    ends = long.groupby("name", sort=False)["number"].max()
    for i, (value, end) in enumerate(zip(frame["value"], ends, strict=True)):
        text = f"{value:.{digits}f}"
        axes.annotate(text, (end, i), (6, 0), textcoords="offset points", va="center", size=9, bbox=plate)
    if reference is not None:
        axes.axvline(reference, **MARK)
    axes.margins(x=0.18)  # room for the numbers
    axes.set(xlabel=xlabel, ylabel="", title=title)
    return figure


@_styled
def line_with_band(
    frame: pd.DataFrame, x: str, by: str = "", title: str = "", xlabel: str = "", ylabel: str = "", logx: bool = False
) -> Figure:
    """Lines of ``value`` over ``x``, with a band where there are ``low`` and ``high``; one line per group of ``by``,
    or a point and a bar for a group of one value."""
    long = _observations(frame, [x, by] if by else [x]).sort_values(x, kind="stable")
    figure, (axes,) = new()
    look: dict[str, Any] = {"marker": "o" if frame[x].nunique() <= 30 else "", "err_kws": {"linewidth": 0}}
    if by:
        look |= {"hue": by, "hue_order": frame[by].unique(), "style": by, "style_order": frame[by].unique()}
    sns.lineplot(long, x=x, y="number", ax=axes, sort=False, **look, **_INTERVAL)
    axes.set(xlabel=xlabel or x, ylabel=ylabel, title=title)
    if logx:
        axes.set_xscale("log")
        axes.set_xticks(sorted(frame[x].unique()), labels=[f"{n:g}" for n in sorted(frame[x].unique())])
        axes.minorticks_off()
    if by:
        _bars_of_points(axes, frame, x, by)
        _legend(axes, by)
    return figure


def _bars_of_points(axes: Axes, frame: pd.DataFrame, x: str, by: str) -> None:
    """Intervals of groups of one value, where a band has no width."""
    for (_, group), colour in zip(frame.groupby(by, sort=False), COLOURS, strict=False):
        if len(group) == 1 and {"low", "high"} <= set(group):
            axes.vlines(group[x], group["low"], group["high"], color=colour)


@_styled
def distributions(frame: pd.DataFrame, x: str, by: str, halves: str = "", title: str = "") -> Figure:
    """A violin of ``x`` with its quartiles per group of ``by``. halves: a column of two groups, compared in each."""
    _finite(x, frame[x].to_numpy())
    figure, (axes,) = new(height=0.8 * frame[by].nunique() + 1.3)
    look = {"split": bool(halves), "inner": "quart", "cut": 0, "density_norm": "width", "linewidth": 1}
    sns.violinplot(frame, x=x, y=by, hue=halves or by, orient="y", ax=axes, **look)
    axes.set(ylabel="", title=title)
    if halves:
        _legend(axes)
    return figure


@_styled
def heat_map(frame: pd.DataFrame, title: str = "", label: str = "", digits: int | None = None) -> Figure:
    """A matrix in colours, white at zero. label: of the colours. digits: decimals of the cells' numbers; None: none."""
    _finite("frame", frame.to_numpy())
    cell = 0.22 if digits is None else 0.5
    left, below = (0.09 * max(len(str(name)) for name in names) for names in (frame.index, frame.columns))
    width, height = max(cell * frame.shape[1], 0.09 * len(title) - 1.5), cell * frame.shape[0]
    figure, (axes,) = new(left + width + 1.7, below + height + 0.7)
    look = {"annot": digits is not None, "fmt": f".{digits}f", "cbar_kws": {"label": label, "shrink": 0.6}}
    every = {"xticklabels": True, "yticklabels": True}
    sns.heatmap(frame, cmap="vlag", center=0, square=True, linewidths=0.5, ax=axes, **look, **every)
    axes.set(title=title, xlabel="", ylabel="")
    axes.tick_params("x", rotation=90)
    axes.tick_params("y", rotation=0)
    return figure


@_styled
def pair_plot(frame: pd.DataFrame, hue: str | None = None, title: str = "") -> Figure:
    """Every numeric column against every other, and its histogram; columns' names are the labels."""
    grid = sns.pairplot(frame, hue=hue, corner=True, diag_kind="hist", height=2.2, plot_kws={"s": 12, "alpha": 0.6})
    grid.figure.set_layout_engine("constrained")
    grid.figure.suptitle(title, x=0.01, ha="left")
    if hue:
        sns.move_legend(grid, "upper right", bbox_to_anchor=(0.98, 0.95))  # where a corner plot is empty
    return grid.figure
