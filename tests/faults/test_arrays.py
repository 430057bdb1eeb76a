"""NaN, infinite and absurd numbers at each border of the library that takes arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from facetransport.data.faceset import FaceSet, to_uint8
from facetransport.diffusion import autoencoder
from facetransport.diffusion.autoencoder import Autoencoder, CodeConfig
from facetransport.evaluation.leakage import leakage, nearest
from facetransport.evaluation.protocols import identify, separability, verify, verify_pairs
from facetransport.evaluation.separability import best_threshold
from facetransport.evaluation.statistics import bootstrap, weighted_mean
from facetransport.evaluation.variation import diversity
from facetransport.papers.idiff_face import matched_contexts
from facetransport.recognition.gallery import Gallery
from facetransport.recognition.iresnet import IResNet, IResNetConfig, IResNetRecogniser
from facetransport.recognition.onnx import OnnxRecogniser
from facetransport.recognition.plda import Plda, within_covariance
from facetransport.recognition.recogniser import check_embeddings, enrol

NAN = float("nan")


def unit(rows: int = 12, dim: int = 4) -> np.ndarray:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)), dim=1).numpy()


def spoilt(value: float = NAN) -> np.ndarray:
    rows = unit()
    rows[7, 1] = value
    return rows


LABELS, SCORES = np.repeat(np.arange(4), 3), np.linspace(-1, 1, 12)
BORDERS: dict[str, tuple[Callable[[], object], str]] = {
    "verify": (lambda: verify(spoilt(), LABELS, folds=2), "embeddings: row 7 holds NaN or inf"),
    "verify_pairs": (lambda: verify_pairs(unit(), spoilt(), LABELS > 1, folds=2), "embeddings: row 7 holds NaN"),
    "separability": (lambda: separability(spoilt(), LABELS), "embeddings: row 7 holds NaN or inf"),
    "identify": (lambda: identify(spoilt(), LABELS, unit(), LABELS), "embeddings: row 7 holds NaN or inf"),
    "diversity": (lambda: diversity(spoilt(), LABELS), "embeddings: expected unit norm"),
    "nearest": (lambda: nearest(unit(), spoilt()), "known: row 7 holds NaN or inf"),
    "leakage, unseen": (lambda: leakage(SCORES, spoilt()[:, 1]), "unseen: row 7 holds NaN or inf"),
    "leakage, generated": (lambda: leakage(spoilt()[:, 1], SCORES), "generated: row 7 holds NaN or inf"),
    "best_threshold": (lambda: best_threshold(spoilt()[:, 1], SCORES), "row 7 holds NaN or inf"),
    "bootstrap": (lambda: bootstrap(lambda w: w[:, 0] * NAN, 3), "statistic: row 0 holds NaN or inf"),
    "weighted_mean": (lambda: weighted_mean(spoilt()[:, 1], LABELS), "values: row 7 holds NaN or inf"),
    "enrol": (lambda: enrol(spoilt(), LABELS), "embeddings: row 7 holds NaN or inf"),
    "gallery": (lambda: Gallery.build(spoilt(), LABELS, "ivf"), "rows from 0: embeddings: row 7 holds NaN or inf"),
    "zero embeddings": (lambda: check_embeddings(0 * unit()), "expected unit norm, row 0 has 0"),
    "matched contexts": (lambda: matched_contexts(2, 0, torch.from_numpy(spoilt())), "like: row 7 holds NaN or inf"),
    "PLDA": (lambda: Plda.of(torch.from_numpy(spoilt()), torch.eye(4)), "population: row 7 holds NaN or inf"),
    "PLDA, within": (lambda: Plda.of(torch.from_numpy(unit()), NAN * torch.eye(4)), "within: row 0 holds NaN or inf"),
    "covariance": (lambda: within_covariance(spoilt(), LABELS), "embeddings: row 7 holds NaN or inf"),
    "pictures": (lambda: to_uint8(torch.full((1, 3, 2, 2), NAN)), "images: expected finite values"),
    "pictures, wild": (lambda: to_uint8(torch.full((1, 3, 2, 2), 1e30)), r"images: expected \[-1, 1\], .* 1e\+30"),
}


@pytest.mark.parametrize("name", BORDERS)
def test_they_are_refused_by_row(name: str) -> None:
    call, said = BORDERS[name]
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("value", [NAN, 1e30])
def test_recognisers_and_codes_return_no_nan(value: float) -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[1, 0, 3, 3] = value
    network = IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), (2, 2, 2, 2, 2), 32, 16))
    network.conv1.weight.data *= 1e10  # 1e30 is beyond float32 after it
    with torch.inference_mode(), pytest.raises(ValueError, match="iresnet: features: row 1 holds NaN or inf"):
        IResNetRecogniser(network, margin=False).embed(images)
    if value != value:
        with pytest.raises(ValueError, match="images: row 1 holds NaN or inf"):
            Autoencoder(autoencoder.build(CodeConfig("kl", 4, 8, 8))).encode(images)


def test_a_network_that_returns_zeros_is_no_recogniser() -> None:
    model = OnnxRecogniser.__new__(OnnxRecogniser)
    model.name, model.size, model.margin, model.flip = "zeros.onnx", 112, False, False
    model.model = type("Zeros", (), {"get_feat": staticmethod(lambda images: np.zeros((len(images), 8)))})
    with pytest.raises(ValueError, match=r"zeros\.onnx: the ONNX model returned NaN, inf or zeros"):
        model.embed(torch.zeros(2, 3, 112, 112))


@pytest.mark.parametrize("identity", [[0, NAN], [0.5, 1], ["a", "b"], [0, np.inf]])
def test_people_are_whole_numbers(identity: list[object]) -> None:
    with pytest.raises(ValueError, match="table: identity: expected whole numbers"):
        FaceSet(np.zeros((2, 4, 4, 3), np.uint8), pd.DataFrame({"identity": identity}))
