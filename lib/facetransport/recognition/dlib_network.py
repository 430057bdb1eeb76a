"""dlib's face recognition ResNet (King, 2017) on aligned images, its published weights run by torch.

dlib's own code takes seven times as long on a CPU and holds Python's lock meanwhile; embeddings are the same to 5e-6
(tests). Architecture: dlib's examples/dnn_face_recognition_ex.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.data.alignment import warp
from facetransport.data.detection import CHIP, chip_to_template, model_file

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
BATCH = 16  # images at a time: their maps stay in the cache, a tenth faster than 64
MEAN_COLOUR = (122.782, 117.001, 104.298)
LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # channels and blocks; all but the first halve the size
LAYER = re.compile(rb"\x01\x05con_4|\x01\x07affine_|\x01\x04fc_2")  # what holds numbers, each name after its length
TENSOR_VERSION = 2


class Block(nn.Module):
    """relu(x + f(x)), f two convolutions; halved: x is averaged, and whichever is smaller gets zeros, as in dlib."""

    def __init__(self, inside: int, outside: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        stride, padding = (2, 0) if halves else (1, 1)
        self.first = nn.Conv2d(inside, outside, 3, stride, padding)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        x = F.avg_pool2d(x, 2) if self.halves else x
        size = max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
        return F.relu(grown(x, *size) + grown(y, *size))


def grown(x: Tensor, channels: int, side: int) -> Tensor:
    """(B, C, S, S) -> (B, channels, side, side), zeros after what was there."""
    return F.pad(x, (0, side - x.shape[3], 0, side - x.shape[2], 0, channels - x.shape[1]))


class ResNet(nn.Module):
    """uint8 (B, 150, 150, 3) chips -> float32 (B, 128). dlib's scaling layers are part of the convolutions here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 32, 7, stride=2), nn.ModuleList()
        before = 32
        for level, (channels, count) in enumerate(LEVELS):
            for i in range(count):
                self.blocks.append(Block(before, channels, halves=level > 0 and i == 0))
                before = channels
        self.out = nn.Linear(before, 128, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        x = ((chips.float() - chips.new_tensor(MEAN_COLOUR, dtype=torch.float32)) / 256).permute(0, 3, 1, 2)
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((2, 3)))


def integer(data: bytes, place: int) -> tuple[int, int]:
    """An integer of dlib's serialisation at ``place``, none of ours negative: its value (0 past the end of a cut
    file), and the place after it."""
    after = place + 1 + (int.from_bytes(data[place : place + 1], "little") & 0xF)
    return int.from_bytes(data[place + 1 : after], "little"), after


def tensors(data: bytes) -> Iterator[np.ndarray]:
    """The numbers of each layer of a dlib network file, float32 (N,), in the order from the image to the embedding."""
    place = 0
    while found := LAYER.search(data, place):
        place = found.end()
        for _ in range(2 if found.group().endswith(b"fc_2") else 0):  # its width and number of inputs, before
            _, place = integer(data, place)
        version, place = integer(data, place)
        sizes = []
        for _ in range(4):
            size, place = integer(data, place)
            sizes.append(size)
        count = int(np.prod(sizes))
        if version != TENSOR_VERSION or place + 4 * count > len(data):
            return
        yield np.frombuffer(data, "<f4", count, place)
        place += 4 * count


def load(path: Path) -> ResNet:
    """The network with the weights of dlib's file."""
    network, found = ResNet(), [torch.from_numpy(numbers.copy()) for numbers in tensors(path.read_bytes())]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    sizes = [n for c in convolutions for n in (c.weight.numel() + len(c.weight), 2 * len(c.weight))]
    if [len(numbers) for numbers in found] != [*sizes, network.out.weight.numel()]:
        raise ValueError(
            f"{path}: expected dlib's face recognition network; `pip install --force-reinstall` its package"
        )
    for layer, numbers, scaling in zip(convolutions, found[0::2], found[1::2], strict=False):
        weight, bias = numbers.split([layer.weight.numel(), len(layer.weight)])
        scale, shift = scaling.chunk(2)
        scaled = weight.view_as(layer.weight) * scale[:, None, None, None]
        layer.load_state_dict({"weight": scaled, "bias": bias * scale + shift})
    network.out.load_state_dict({"weight": found[-1].view(network.out.in_features, -1).T})
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def network() -> ResNet:
    """The network of this process, on a GPU where there is one."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last  # as chips come: a tenth faster
    return load(model_file(WEIGHTS)).to(place, memory_format=layout)  # type: ignore[call-overload]


def chips(images: np.ndarray) -> np.ndarray:
    """uint8 (B, S, S, 3) in the template -> uint8 (B, 150, 150, 3), dlib's face chips (borders replicated).

    One fixed similarity, in which eye centres meet: no detector, which would fail on some generated faces.
    """
    matrix = cv2.invertAffineTransform(chip_to_template(images.shape[1]))
    return np.stack([warp(image, matrix, CHIP) for image in images])


@torch.inference_mode()
def describe(images: np.ndarray) -> np.ndarray:
    """float32 (B, 128): dlib's raw embeddings of images uint8 (B, S, S, 3) in the template."""
    place = network().out.weight.device
    parts = [torch.from_numpy(chips(images[i : i + BATCH])).to(place) for i in range(0, len(images), BATCH)]
    return torch.cat([network()(part) for part in parts]).cpu().numpy()
