from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from facetransport.data.faceset import FaceSet
from facetransport.recognition.iresnet import IResNet, IResNetConfig, IResNetRecogniser
from facetransport.recognition.recogniser import Recogniser, check_embeddings, embed_faceset, enrol, is_white_box


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    return FaceSet(images, pd.DataFrame({"identity": np.arange(7)}))


@pytest.fixture(scope="module")
def recogniser() -> IResNetRecogniser:
    torch.manual_seed(0)
    return IResNetRecogniser(IResNet(IResNetConfig(layers=(1, 1, 1, 1), widths=(8, 8, 8, 8), input_size=28, dim=16)))


def test_iresnet_follows_the_protocol(recogniser):
    assert isinstance(recogniser, Recogniser) and is_white_box(recogniser)


def test_batches_equal_the_whole(recogniser, faces):
    whole, parts = embed_faceset(recogniser, faces), embed_faceset(recogniser, faces, batch_size=3)
    assert whole.shape == (7, 16) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    np.testing.assert_allclose(whole, recogniser.embed(faces.tensor()).detach(), atol=1e-6)


def test_progress_sees_every_batch(recogniser, faces):
    seen: list[range] = []
    embed_faceset(recogniser, faces, batch_size=3, progress=lambda batches: (seen.append(b) or b for b in batches))
    assert [len(b) for b in seen] == [3, 3, 1]


def test_refusals(recogniser, faces):
    with pytest.raises(ValueError, match="at least one image"):
        embed_faceset(recogniser, faces.select(slice(0, 0)))
    with pytest.raises(ValueError, match="batch_size"):
        embed_faceset(recogniser, faces, batch_size=0)
    with pytest.raises(ValueError, match=r"expected \(N, d\)"):
        check_embeddings(np.zeros(3))
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        check_embeddings(np.array([[1.0, 0], [np.inf, 0]]))
    with pytest.raises(ValueError, match="row 1 has 0.5"):
        check_embeddings(np.array([[1.0, 0], [0.5, 0]]))


def test_a_network_that_diverged_is_noticed(faces):
    class Broken:
        name, dim = "broken", 4

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 4), torch.nan)

    with pytest.raises(ValueError, match="NaN or inf"):
        embed_faceset(Broken(), faces)


def test_enrolment_is_the_mean_direction_of_each_person():
    vectors = np.array([[1, 0], [0, 1], [0, 1], [0.6, 0.8]], np.float32)
    enrolled = enrol(vectors, np.array([7, 7, 3, 3]))
    half = np.sqrt(0.5)
    mean = np.array([0.3, 0.9]) / np.hypot(0.3, 0.9)
    np.testing.assert_allclose(enrolled, [mean, [half, half]], atol=1e-6)


def test_enrolment_refuses_what_has_no_direction_or_no_label():
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    with pytest.raises(ValueError, match="row 0 has 0"):
        enrol(opposite, np.zeros(2, int))
    with pytest.raises(ValueError, match="one label for each of 2"):
        enrol(opposite, np.zeros(3, int))
