"""Batches of fixed sizes: no sample depends on its neighbours; large batches on a GPU as long as they are full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from facetransport.diffusion import batching
from facetransport.diffusion.batching import in_fixed_batches
from facetransport.diffusion.guidance import Guided, gpu_batch_of
from facetransport.papers.id3 import Adjusted, Adjustment


class Watched:
    """A function that remembers how many samples it was given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x))
        return 2 * x


@pytest.mark.parametrize(
    ("n", "gpu", "sizes"),
    [
        (1, False, [4]),
        (9, False, [4, 4, 4]),
        (9, True, [4, 4, 4]),
        (10, True, [10]),
        (23, True, [10, 10, 4]),
        (20, True, [10, 10]),
    ],
)
def test_what_fills_large_batches_goes_in_these_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, n: int, gpu: bool, sizes: list[int]
) -> None:
    monkeypatch.setattr(batching, "_on_gpu", lambda x: gpu)
    watched, x = Watched(), torch.arange(float(n))[:, None]
    assert torch.equal(in_fixed_batches(watched, x, None, size=4, on_gpu=10), 2 * x)
    assert watched.sizes == sizes


def test_a_network_that_asks_for_more_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_on_gpu", lambda x: True)
    watched = Watched()
    in_fixed_batches(watched, torch.zeros(30, 1), size=16, on_gpu=10)
    assert watched.sizes == [16, 16]


def test_a_processor_is_no_gpu() -> None:
    assert not batching._on_gpu(torch.zeros(1))


def test_gradients_take_a_gpus_memory_and_stay_in_small_batches() -> None:
    plain = Guided(Watched())
    adjusted = Adjusted(Watched(), Adjustment(lambda codes: codes, 2), 1.0)
    assert gpu_batch_of(plain) == batching.GPU_BATCH and gpu_batch_of(adjusted) == adjusted.micro_batch


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one sample, got none"):
        in_fixed_batches(Watched(), torch.zeros(0, 1))
