"""The one face geometry of the project: InsightFace's five-point template with a margin of one sixteenth on every side.

At 128 px the middle 112 x 112 pixels of an image are exactly InsightFace's ``arcface_dst`` crop; the margin shows
hair and chin.
"""

from __future__ import annotations

import numpy as np

ARCFACE_112 = np.array(  # insightface.utils.face_align.arcface_dst (a test compares): eyes, nose, mouth corners
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
MARGIN = 1 / 16


def template(size: float) -> np.ndarray:
    """(5, 2): where the five points lie in an image of ``size`` pixels (x right, y down)."""
    return (ARCFACE_112 + 8) * (size / 128)


def crop_box(size: int) -> slice:
    """Rows (and columns) of an image that are the recogniser's crop: 4:60 at 64 px, 8:120 at 128 px."""
    edge = size * MARGIN
    if edge != int(edge):
        raise ValueError(f"size: expected a multiple of 16 so that the recogniser's crop falls on pixels, got {size}")
    return slice(int(edge), size - int(edge))
