"""Super-resolution: what is added is what bicubic misses; seeds, sizes, bad input; the smoke network end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import roles, superresolution
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.diffusion import superresolution as sr
from facetransport.diffusion.superresolution import SuperResolution, SuperResolutionConfig, bicubic, enlarge, residuals
from facetransport.training import TrainingConfig, train

CONFIG = SuperResolutionConfig(16, 32, 32, 0.1)


def images(n: int, side: int) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(side)) * 2 - 1


def test_the_residual_is_what_bicubic_misses() -> None:
    small, large = images(2, 16), images(2, 32)
    missed = residuals(small, large)
    assert missed.shape == (2, *CONFIG.shape)
    torch.testing.assert_close(bicubic(small, 32) + torch.nn.functional.pixel_shuffle(missed, sr.FOLD), large)


def test_a_trained_network_adds_what_it_was_shown() -> None:
    """All residuals are one pattern: it is drawn, and enlarging comes nearer to the truth than bicubic."""
    small, pattern = images(32, 16), 0.2 * torch.sign(images(1, 32))
    large = (0.5 * bicubic(small, 32) + pattern).clamp(-1, 1)
    faces = FaceSet(((small.permute(0, 2, 3, 1) + 1) * 127.5).byte().numpy(), pd.DataFrame({"identity": range(32)}))
    missed = residuals(to_tensor(faces.images), large)
    config = SuperResolutionConfig(16, 32, 32, float(missed.std()))
    torch.manual_seed(0)
    network = SuperResolution(config)
    told = to_tensor(faces.images).flatten(1)
    loss = sr.superresolution_loss(missed / config.scale, told, config.schedule)
    state = list(train(network, loss, 32, TrainingConfig(80, 8, 3e-3, 0, ema=0.9)))[-1]
    drawn = enlarge(state.ema, faces, 0, steps=5, temperature=0.5)
    off = [(x - large).square().mean() for x in (to_tensor(drawn.images), bicubic(to_tensor(faces.images), 32))]
    assert off[0] < 0.7 * off[1]


def test_each_image_depends_on_itself_and_its_seed() -> None:
    torch.manual_seed(0)
    network = SuperResolution(CONFIG).eval()
    faces = FaceSet(
        np.arange(3 * 16 * 16 * 3, dtype=np.uint8).reshape(3, 16, 16, 3), pd.DataFrame({"identity": [5, 6, 7]})
    )
    three = enlarge(network, faces, 1, steps=2)
    assert three.images.shape == (3, 32, 32, 3) and three.identity.tolist() == [5, 6, 7]
    assert np.array_equal(three.images[:2], enlarge(network, faces.select(slice(2)), 1, steps=2).images)
    with pytest.raises(ValueError, match="expected images of 16 x 16"):
        enlarge(network, three, 1)
    with pytest.raises(ValueError, match="small images"):
        network(torch.zeros(1, *CONFIG.shape), torch.zeros(1, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="multiple of 16 above small"):
        SuperResolutionConfig(32, 32, 32, 0.1)


def test_the_smoke_network_enlarges_renders(smoke: Profile, smoke_store: Store) -> None:
    network, faces = superresolution.load(smoke, smoke_store), roles.load(smoke, "test", smoke_store).select(slice(2))
    large = enlarge(network, faces, 0, steps=2)
    assert large.images.shape == (2, smoke.superresolution.size, smoke.superresolution.size, 3)
    assert not any(column.endswith("_x") for column in large.table)  # landmarks were in other pixels
    whole = smoke_store.get(superresolution.large_recipe(smoke))
    again = FaceSet.load(whole)
    assert again.images.shape[1] == smoke.superresolution.size
    twin = roles.load(smoke, "generator", smoke_store)
    assert np.array_equal(again.table["yaw"], twin.table["yaw"][: len(again)])  # the same views


def test_how_it_is_sampled_does_not_train_it_again(smoke: Profile) -> None:
    section = smoke.superresolution
    other = replace(smoke, superresolution=replace(section, sampling_steps=7, temperature=0.5))
    assert superresolution.recipe(other).key == superresolution.recipe(smoke).key
    assert superresolution.how(other) == {"steps": 7, "temperature": 0.5}
    longer = replace(smoke, superresolution=replace(section, steps=section.steps + 1))
    assert superresolution.recipe(longer).key != superresolution.recipe(smoke).key
