"""Weights written for others: each file read back by the code that it was written for, which computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file
from torch import nn

from facetransport.companion import cli
from facetransport.companion.export_weights import export
from facetransport.diffusion import autoencoder, denoisers
from facetransport.diffusion.autoencoder import CodeConfig
from facetransport.diffusion.official import import_unet, import_vq
from facetransport.diffusion.schedule import Schedule
from facetransport.recognition.iresnet import IResNet, IResNetConfig, from_state_dict
from facetransport.recognition.training import load_network, save_network
from facetransport.tensors import read_model, save_model, seeded


def randomised(network: Any) -> Any:
    with seeded(0):
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.1 * torch.randn(tensor.shape) + (tensor > 0.5))
    return network.eval()


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ours") / "reference.safetensors"
    save_network(file, randomised(IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), dim=16, input_size=112))))
    return file


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, file = CodeConfig("vq", 3, 4, 32), tmp_path_factory.mktemp("ours") / "vq.safetensors"
    described = {"kind": "vq", "channels": 3, "downsample": 4, "width": 32}
    save_model(file, randomised(autoencoder.build(config)).state_dict(), config=described)
    return file


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ours") / "unet.safetensors"
    told: dict[str, Any] = {"kind": "unet_ca", "shape": [3, 16, 16], "width": 32, "depth": 1, "context_dim": 512}
    told |= {"projected_dim": 64, "cpd": 0.25}
    network: nn.Module = randomised(denoisers.build(**told | {"shape": (3, 16, 16)}, schedule=Schedule(1000, "linear")))
    save_model(file, network.state_dict(), config=told | {"schedule": {"timesteps": 1000, "kind": "linear"}})
    return file


def test_onnx_computes_what_the_recogniser_computes(recogniser: Path, tmp_path: Path) -> None:
    written = export(recogniser, tmp_path / "r.onnx", "onnx")
    images = torch.rand(3, 3, 112, 112) * 2 - 1
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, load_network(recogniser)(images), atol=1e-3, rtol=1e-3)


def test_a_recogniser_has_insightfaces_names(recogniser: Path, tmp_path: Path) -> None:
    state = load_file(export(recogniser, tmp_path / "r", "official"))
    again = from_state_dict(state, input_size=112).state_dict()
    ours = load_network(recogniser).state_dict()
    assert again.keys() == ours.keys() and all(torch.equal(again[name], value) for name, value in ours.items())
    assert {"conv1.weight", "layer1.0.bn1.weight", "fc.weight", "features.weight"} <= state.keys()


def test_a_vq_code_is_ldms_first_stage_again(vq: Path, tmp_path: Path) -> None:
    written = export(vq, tmp_path / "ldm.safetensors", "official")
    names = load_file(written)
    assert names["encoder.mid.attn_1.q.weight"].ndim == 4 and "decoder.up.0.block.2.conv1.weight" in names
    ours, again = (read_model(f)[0] for f in (vq, import_vq([written], tmp_path / "back.safetensors").path))
    assert ours.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in ours.items())


def test_diffusers_reads_its_own_folder(vq: Path, tmp_path: Path) -> None:
    theirs = VQModel.from_pretrained(export(vq, tmp_path / "vq", "diffusers"))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    ours = autoencoder.load(vq)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.encode(images).latents, ours.encode(images), atol=1e-4, rtol=1e-4)


def test_a_unet_comes_back_as_it_went(unet: Path, tmp_path: Path) -> None:
    written = export(unet, tmp_path / "official.safetensors", "official")
    done = import_unet(written, tmp_path / "back.safetensors")
    ours, again = read_model(unet)[0], read_model(done.path)[0]
    assert ours.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in ours.items())


@pytest.mark.parametrize(("which", "to"), [("unet", "onnx"), ("recogniser", "diffusers"), ("unet", "diffusers")])
def test_what_a_format_is_not_for_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, to: str
) -> None:
    file = request.getfixturevalue(which)
    with pytest.raises(ValueError, match=f"{file.name}: holds a network of kind .*; --format {to} is for"):
        export(file, tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(recogniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, named = tmp_path / "r.safetensors", tmp_path / "r"
    assert cli.main(["export-weights", str(recogniser), str(named), "--format", "official"]) == 0
    before = out.read_bytes()
    assert "written" in capsys.readouterr().out
    for again in (out, named):
        assert cli.main(["export-weights", str(recogniser), str(again), "--format", "official"]) == 1
        assert out.read_bytes() == before and "exists; name a new file" in capsys.readouterr().err
