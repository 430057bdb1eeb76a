"""Walks to slide along: frames drawn beforehand, so that a slider answers at once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
from PIL import Image

SIDE = 256  # pixels of a picture on the screen


def walk_widget(walks: Mapping[str, np.ndarray], steps: Sequence[float] | np.ndarray) -> widgets.VBox:
    """A drop-down of walks by name, a slider over ``steps``, and the frame below.

    walks: uint8 (len(steps), H, W, 3) each. Children: Dropdown, SelectionSlider, Image.
    """
    if not walks:
        raise ValueError("walks: expected at least one, got none")
    for name, frames in walks.items():
        if len(frames) != len(steps):
            raise ValueError(f"walks: {name} has {len(frames)} frames, expected one for each of {len(steps)} steps")
    pictures = {name: [_png(frame) for frame in frames] for name, frames in walks.items()}
    which = widgets.Dropdown(options=list(walks), description="direction")
    labels = [(f"{step:+g}", i) for i, step in enumerate(steps)]
    place = widgets.SelectionSlider(options=labels, value=len(steps) // 2, description="step")
    image = widgets.Image(format="png", width=SIDE)

    def show(_: object = None) -> None:
        image.value = pictures[which.value][place.value]

    which.observe(show, "value")
    place.observe(show, "value")
    show()
    return widgets.VBox([which, place, image])


def _png(frame: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(frame).save(written, "png")
    return written.getvalue()
