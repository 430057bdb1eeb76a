"""Figures in one style: legible at full size, colours told apart by colour-blind readers, nothing clipped.

Functions take arrays and frames and return a matplotlib Figure; ``results.Run.figure`` saves it.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

# Okabe and Ito (2008), without yellow, which is too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GENUINE, IMPOSTOR = COLOURS[0], COLOURS[1]
LINES = ("-", "--", "-.", ":")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "figure.dpi": 100,
    "savefig.bbox": "standard",
    "image.interpolation": "nearest",
}


def style() -> None:
    """Set the house style for every figure that follows."""
    plt.rcParams.update(_STYLE)


def _styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Draw in the house style whatever the caller's settings are."""

    @functools.wraps(draw)
    def styled(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        with plt.rc_context(_STYLE):
            return draw(*arguments, **keywords)

    return styled


@_styled
def new(width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure in the house style with ``columns`` axes beside each other; sizes in inches."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return figure, list(axes[0])


# ---------------------------------------------------------------------------------------------------------- images


def tile(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, 3) -> one uint8 picture (rows, columns), white gaps of ``gap`` pixels between."""
    _check_images(images)
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def contact_sheet(images: np.ndarray, columns: int = 8, title: str = "", inches: float = 1.0) -> Figure:
    """uint8 (N, H, W, 3), left to right, top to bottom, each image ``inches`` wide."""
    return identity_grid(images, columns, [], title, inches=inches)


@_styled
def identity_grid(
    images: np.ndarray,
    columns: int,
    rows: Sequence[str] = (),
    title: str = "",
    heads: Sequence[str] = (),
    inches: float = 1.0,
) -> Figure:
    """A contact sheet with a label beside each row and above each column.

    images: uint8 (N, H, W, 3), row by row. rows, heads: labels, one per row or column; empty for none.
    inches: the width of one image.
    """
    sheet = tile(images, columns)
    count = -(-len(images) // columns)
    _check_labels("rows", rows, count)
    _check_labels("heads", heads, columns)
    left, top = 0.15 + 0.09 * max([0, *map(len, rows)]), 0.1 + 0.25 * bool(title) + 0.25 * bool(heads)
    size = columns * inches, columns * inches * sheet.shape[0] / sheet.shape[1]
    width, height = left + max(size[0], 0.09 * len(title)) + 0.1, top + size[1] + 0.1
    figure = plt.figure(figsize=(width, height), layout="none")  # a place for every inch, at most 0.09 of them a letter
    axes = figure.add_axes((left / width, 0.1 / height, size[0] / width, size[1] / height))
    axes.imshow(sheet, aspect="auto")
    axes.set_title(title)
    _label(axes, rows, heads, (sheet.shape[0] + 2) / count, (sheet.shape[1] + 2) / columns)
    return figure


@_styled
def described_faces(
    images: np.ndarray,
    texts: Sequence[str],
    title: str = "",
    notes: Sequence[str] = (),
    framed: Sequence[int] = (),
    inches: float = 1.0,
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
        figsize=(4.2 + columns * inches, len(texts) * (inches + 0.25 * bool(notes)) + 0.5),
        width_ratios=[4.2 / inches, *[1] * columns],
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
        axes.set_xlabel(notes[i] if notes else "", size=8)
        if i in framed:
            axes.spines[:].set(visible=True, color=COLOURS[1], linewidth=3)
    figure.suptitle(title, x=0.01, ha="left", size=11)
    return figure


def _label(axes: Axes, rows: Sequence[str], heads: Sequence[str], height: float, width: float) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([(i + 0.5) * height - 1 for i in range(len(rows))], labels=rows)
    axes.set_xticks([(i + 0.5) * width - 1 for i in range(len(heads))], labels=heads)
    axes.tick_params(length=0, bottom=False, top=False, labelbottom=False, labeltop=True)


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images: expected uint8 (N, H, W, 3) with N >= 1, got {images.dtype} {images.shape}")


def _check_labels(name: str, labels: Sequence[str], count: int) -> None:
    if labels and len(labels) != count:
        raise ValueError(f"{name}: expected {count} labels, one each, or none; got {len(labels)}")


# ---------------------------------------------------------------------------------------------------- verification


@_styled
def score_histograms(
    genuine: np.ndarray, impostor: np.ndarray, threshold: float | None = None, title: str = ""
) -> Figure:
    """Densities of two sets of comparison scores (any shape; higher = more alike), and where the decision falls."""
    genuine, impostor = _scores("genuine", genuine), _scores("impostor", impostor)
    figure, (axes,) = new()
    bins = np.linspace(min(genuine.min(), impostor.min()), max(genuine.max(), impostor.max()) + 1e-9, 60).tolist()
    for scores, label, colour in ((impostor, "different people", IMPOSTOR), (genuine, "same person", GENUINE)):
        axes.hist(scores, bins, density=True, alpha=0.55, color=colour, label=f"{label} ({len(scores):,} pairs)")
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.2, label=f"threshold {threshold:.3f}")
    axes.set(xlabel="cosine similarity", ylabel="density", title=title)
    axes.margins(y=0.3)  # room for the legend
    axes.legend()
    return figure


def _scores(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64).ravel()
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"{name}: expected at least one score, all finite; got {scores.size} scores")
    return scores


@_styled
def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "", lowest: float = 1e-4) -> Figure:
    """``{label: (false match rate, true match rate)}``; fractions; the x axis is logarithmic from ``lowest``."""
    figure, (axes,) = new()
    for i, (label, (false, true)) in enumerate(curves.items()):
        axes.plot(np.maximum(false, lowest), true, LINES[i % len(LINES)], label=label, drawstyle="steps-post")
    axes.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.02), title=title)
    axes.set(xlabel="false match rate", ylabel="true match rate")
    axes.legend()
    return figure


@_styled
def cmc_curves(curves: Mapping[str, np.ndarray], title: str = "", logx: bool = False) -> Figure:
    """``{label: (R,) identification rate at rank 1..R}``, as fractions. logx: for large galleries."""
    figure, (axes,) = new()
    for i, (label, rates) in enumerate(curves.items()):
        axes.plot(np.arange(1, len(rates) + 1), rates, LINES[i % len(LINES)], label=label)
    axes.set(xlabel="rank", ylabel="identified within rank", ylim=(0, 1.02), title=title)
    if logx:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()
    return figure


# --------------------------------------------------------------------------------------------------------- numbers


@_styled
def interval_bars(
    frame: pd.DataFrame,
    title: str = "",
    xlabel: str = "",
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
    digits: int = 3,
) -> Figure:
    """One horizontal bar per row, with its interval and its number.

    frame: columns ``name``, ``value``, and ``low``, ``high`` where there is an interval (as ``results.read`` gives).
    reference: a vertical line to compare with. limits: of the x axis. digits: decimals of the printed numbers.
    """
    if frame.empty or frame["value"].isna().any():
        raise ValueError("frame: expected at least one row and a number in each 'value', got an empty frame or a gap")
    figure, (axes,) = new(height=0.45 * len(frame) + 1.3)
    places, values = np.arange(len(frame)), frame["value"].to_numpy(float)
    axes.barh(places, values, color=COLOURS[0], alpha=0.75, xerr=_errors(frame, values), ecolor="black", capsize=3)
    ends = frame["high"].fillna(frame["value"]).to_numpy(float) if "high" in frame else values
    for place, number, end in zip(places, values, ends, strict=True):
        _number(axes, f"{number:.{digits}f}", float(max(end, number)), float(place))
    if reference is not None:
        axes.axvline(reference, color="black", linestyle="--", linewidth=1.2)
    axes.set_yticks(places, labels=list(frame["name"]))
    axes.set(xlabel=xlabel, title=title, xlim=limits)
    axes.margins(x=0.18)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure


def _number(axes: Axes, text: str, x: float, y: float) -> None:
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # readable across a reference line
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", size=9, bbox=plate)


def _errors(frame: pd.DataFrame, values: np.ndarray) -> np.ndarray | None:
    if "low" not in frame or frame["low"].isna().all():
        return None
    low, high = frame["low"].to_numpy(float), frame["high"].to_numpy(float)
    return np.nan_to_num(np.maximum(0, [values - low, high - values]))


@_styled
def line_with_band(
    frame: pd.DataFrame,
    x: str,
    by: str | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    logx: bool = False,
) -> Figure:
    """Lines of ``value`` over ``x`` with a band from ``low`` to ``high``, one line per group of ``by``."""
    figure, (axes,) = new()
    groups = [(None, frame)] if by is None else list(frame.groupby(by, sort=False))
    for i, (label, group) in enumerate(groups):
        group = group.sort_values(x)
        axes.plot(group[x], group["value"], LINES[i % len(LINES)], marker="o", markersize=4, label=label)
        if "low" in group:
            low, high = group["low"].to_numpy(float), group["high"].to_numpy(float)
            axes.fill_between(group[x], low, high, color=COLOURS[i % len(COLOURS)], alpha=0.2, linewidth=0)
    axes.set(xlabel=xlabel or x, ylabel=ylabel, title=title)
    if logx:
        axes.set_xscale("log")
        axes.set_xticks(sorted(frame[x].unique()), labels=[f"{n:g}" for n in sorted(frame[x].unique())])
        axes.xaxis.set_minor_locator(NullLocator())
    if by is not None:
        axes.legend(title=by)
    return figure
