from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from insightface.model_zoo import get_model

from facetransport.data.faceset import to_tensor
from facetransport.recognition.iresnet import IResNet, IResNetConfig, IResNetRecogniser
from facetransport.recognition.onnx import OnnxRecogniser, export_onnx
from facetransport.recognition.recogniser import Recogniser, is_white_box


@pytest.fixture(scope="module")
def network() -> IResNet:
    torch.manual_seed(0)
    model = IResNet(IResNetConfig(layers=(1, 1, 1, 1), widths=(8, 8, 16, 16), dim=32))
    model(torch.rand(16, 3, 112, 112) * 2 - 1)  # batch norms away from the identity
    return model.eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory) -> Path:
    return export_onnx(network, tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)


def test_insightface_agrees_with_torch(network, exported, pixels):
    ours = OnnxRecogniser(exported)
    assert isinstance(ours, Recogniser) and not is_white_box(ours)
    assert (ours.name, ours.dim, ours.size) == ("tiny", 32, 112)
    images = to_tensor(pixels)
    torch.testing.assert_close(ours.embed(images), IResNetRecogniser(network).embed(images), atol=1e-4, rtol=0)


def test_insightface_reads_the_file_itself(network, exported, pixels):
    """No code of ours between: insightface's own get_feat takes the BGR crop and normalises it."""
    crop = pixels[0, 8:120, 8:120]
    feature = get_model(str(exported)).get_feat(cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    expected = network(to_tensor(crop[None])).detach().numpy()
    np.testing.assert_allclose(feature, expected, atol=1e-4)


def test_colour_order_is_told_apart(exported, pixels):
    recogniser = OnnxRecogniser(exported)
    images = to_tensor(pixels)
    assert (recogniser.embed(images) - recogniser.embed(images.flip(1))).abs().max() > 1e-2


def test_black_box_detaches(exported, pixels):
    images = to_tensor(pixels).requires_grad_()
    assert not OnnxRecogniser(exported).embed(images).requires_grad


def test_missing_and_broken_files_are_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="buffalo_l"):
        OnnxRecogniser(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(ValueError, match="cannot load it"):
        OnnxRecogniser(broken)


def test_what_insightface_does_not_take_for_a_recogniser(tmp_path: Path):
    small = IResNet(IResNetConfig(layers=(1, 1, 1, 1), widths=(8, 8, 8, 8), input_size=56, dim=8)).eval()
    with pytest.raises(ValueError, match="expected a recogniser with a square input >= 112"):
        OnnxRecogniser(export_onnx(small, tmp_path / "small.onnx"))
