"""The slider: frames drawn beforehand, shown by name and step."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from facetransport.companion.sliders import walk_widget

LEVELS = np.arange(3, dtype=np.uint8)[:, None, None, None]
WALKS = {"a": np.full((3, 4, 4, 3), 10, np.uint8) + LEVELS, "b": np.full((3, 4, 4, 3), 200, np.uint8) + LEVELS}


def test_a_step_and_a_name_show_their_frame() -> None:
    box = walk_widget(WALKS, [-1.0, 0.0, 1.0])
    which, place, image = box.children

    def shown() -> int:
        return int(np.asarray(Image.open(io.BytesIO(image.value)))[0, 0, 0])

    assert shown() == 11
    place.value = 2
    assert shown() == 12
    which.value = "b"
    assert shown() == 202


def test_bad_walks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        walk_widget({}, [0.0])
    with pytest.raises(ValueError, match="a has 3 frames, expected one for each of 2"):
        walk_widget(WALKS, [0.0, 1.0])
