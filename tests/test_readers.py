"""The reader of attributes: standardised targets, mirror images, units, and what a trained one can do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import readers, roles
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet
from facetransport.evaluation.readers import AttributeReader, mirror_signs, reader_loss, standardised

TABLE = pd.DataFrame({"identity": [0, 1, 2, 3], "yaw": [-10.0, 0.0, 10.0, 20.0], "age": [20, 30, 40, 50], "x": [1] * 4})


def test_targets_are_standardised_and_turns_keep_their_zero() -> None:
    targets, mean, deviation = standardised(TABLE, ["yaw", "age", "x"])
    assert mean == [0.0, 35.0, 1.0] and deviation[2] == 1.0
    assert targets[1, 0] == 0 and targets[:, 1].mean() == pytest.approx(0, abs=1e-6) and not targets[:, 2].any()
    with pytest.raises(ValueError, match="no column 'roll'"):
        standardised(TABLE, ["roll"])


class Asymmetry(nn.Module):
    """Reads how much brighter the right half is: it changes sign in a mirror."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        return (images[..., half:].mean((1, 2, 3)) - images[..., :half].mean((1, 2, 3)))[:, None]


def test_what_turns_in_a_mirror_turns_in_the_targets() -> None:
    images = np.zeros((16, 8, 8, 3), np.uint8)
    images[:, :, 4:] = 255
    loss = reader_loss(images, torch.full((16, 1), 2.0), ["yaw"])
    assert mirror_signs(["yaw", "age"]).tolist() == [-1, 1]
    for seed in range(5):
        found = loss(Asymmetry(), torch.arange(16), torch.Generator().manual_seed(seed), 0)
        assert float(found) == pytest.approx(0, abs=1e-8)
    assert (
        float(
            reader_loss(images, torch.full((16, 1), 2.0), ["age"])(Asymmetry(), torch.arange(16), torch.Generator(), 0)
        )
        > 1
    )


def test_attributes_are_read_in_their_own_units() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[1, :, 4:] = 255
    read = AttributeReader(Asymmetry(), ("yaw",), (5.0,), (10.0,)).read(FaceSet(images, TABLE.iloc[:3]))
    assert read["yaw"].tolist() == pytest.approx([5.0, 25.0, 5.0])


def test_the_smoke_reader_reads_every_attribute(smoke: Profile, smoke_store: Store) -> None:
    faces = roles.load(smoke, "test", smoke_store)
    read = readers.load(smoke, smoke_store).read(faces)
    assert len(read) == len(faces) and {"yaw", "pitch", "age", "Male", "Smiling"} <= set(read)
    assert np.isfinite(read.to_numpy()).all()


def test_the_shipped_reader_reads_people_whom_it_never_saw() -> None:
    from facetransport.companion import artifacts, profiles

    laptop, store = profiles.load("laptop"), artifacts.default_store()
    reader = readers.load(laptop, store)
    faces = roles.glimpse(laptop, "test", range(0, 480, 4), store)
    read = reader.read(faces)
    for name, least in (("yaw", 0.95), ("age", 0.7), ("Male", 0.8), ("Eyeglasses", 0.8)):
        assert np.corrcoef(read[name], faces.table[name].astype(float))[0, 1] > least, name
