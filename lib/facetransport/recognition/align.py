"""What recognisers see: InsightFace's 112-pixel crop, cut from the project's images (`data.template`) at any size.

An image of the project shows that crop with a margin of one sixteenth of its side around it; photographs are brought
there by `data.alignment` (through ``insightface.utils.face_align``) and `data.detection`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from facetransport.data.template import crop_box


def recogniser_crop(images: Tensor, margin: bool = True) -> Tensor:
    """float (B, C, S, S) -> (B, C, 7 S / 8, 7 S / 8): the middle of the project's images; as it is without a margin."""
    side = images.shape[-1]
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[-2] != side:
        raise ValueError(
            f"images: expected square RGB (B, 3, S, S), got {tuple(images.shape)}; align them, repeat grey 3 times"
        )
    box = crop_box(side) if margin else slice(None)
    return images[..., box, box]


def resize(images: Tensor, size: int) -> Tensor:
    """float (B, C, H, W), H = W -> (B, C, size, size), differentiable, antialiased when it shrinks.

    Aligned crops stay aligned, to less than half a pixel of the larger size (bilinear, half-pixel centres).
    """
    side = images.shape[-1]
    if side == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=size < side, align_corners=False)


def network_input(images: Tensor, size: int, margin: bool = True) -> Tensor:
    """float (B, 3, S, S) of the project -> (B, 3, size, size): what a recogniser of that input size is given.

    margin: False for images that are InsightFace crops already (verification ``.bin`` sets).
    """
    return resize(recogniser_crop(images, margin), size)
