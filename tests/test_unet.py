"""The U-Net against the official network: names, shapes, counts, outputs for weights made by rule."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from facetransport.diffusion.unet import UNet, UNetConfig, sinusoid

REFERENCE = Path(__file__).with_name("reference")
SMALL = {"multipliers": (1, 2), "attention": (False, True), "blocks": 1, "context_dim": 64, "projected_dim": 32}
MID = {"multipliers": (1, 2, 2), "attention": (False, True, True), "blocks": 2, "context_dim": 128, "projected_dim": 64}
CASES = [(size, kind) for size in ("small", "mid") for kind in ("ca", "adagn")]


def network(size: str, conditioning: str) -> UNet:
    return UNet(
        UNetConfig(initial_channels=32, conditioning=conditioning, **(SMALL if size == "small" else MID))
    ).eval()


def weight_by_rule(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    v = np.random.default_rng(zlib.crc32(("public" + name).encode())).standard_normal(shape).astype(np.float32)
    offset = 1 if name.endswith("weight") and v.ndim == 1 else 0
    scaled = v / np.sqrt(np.prod(shape[1:])) if v.ndim > 1 else offset + 0.1 * v
    return torch.from_numpy(scaled.astype(np.float32))


def official(size: str, conditioning: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The state dict by rule, and inputs and outputs of the official network."""
    with np.load(REFERENCE / f"{size}_{conditioning}_public.npz") as data:
        names, shapes = data["state_names"].tolist(), data["state_shapes"].tolist()
        vectors = {k: torch.from_numpy(data[k]) for k in ("x", "t", "context", "eps", "eps_null")}
    state = {n: weight_by_rule(n, tuple(map(int, s.split(",")))) for n, s in zip(names, shapes, strict=True)}
    return state, vectors


@pytest.mark.parametrize(("size", "conditioning"), CASES)
def test_outputs_equal_the_official_networks(size: str, conditioning: str) -> None:
    state, v = official(size, conditioning)
    unet = network(size, conditioning)
    unet.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(unet(v["x"], v["t"], v["context"]), v["eps"], atol=1e-4, rtol=0)
        torch.testing.assert_close(unet(v["x"], v["t"]), v["eps_null"], atol=1e-4, rtol=0)
        assert (v["eps"] - v["eps_null"]).abs().max() > 0.05  # the vectors do tell the context's presence


@pytest.mark.parametrize(("conditioning", "count"), [("ca", 216_341_187), ("adagn", 134_595_939)])
def test_paper_size_equals_the_official_state_dict(conditioning: str, count: int) -> None:
    expected = json.loads((REFERENCE / f"idiff_face_{conditioning}_state_dict.json").read_text())
    with torch.device("meta"):
        unet = UNet(UNetConfig(conditioning=conditioning))
    assert sum(p.numel() for p in unet.parameters()) == count == expected["n_parameters"]
    assert {n: list(p.shape) for n, p in unet.state_dict().items()} == expected["state_dict"]


def test_unconditional_network_has_the_count_of_the_digest() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig(conditioning="none"))
    assert sum(p.numel() for p in unet.parameters()) == 132_392_163  # papers.md 2.3


def test_cpd_drops_components_of_the_projected_context_in_training_only() -> None:
    torch.manual_seed(0)
    unet = network("small", "ca")
    context = torch.nn.functional.normalize(torch.randn(64, 64), dim=1)
    x = torch.zeros(64, 3, 16, 16)
    plain = unet.context_emb(context)
    assert torch.equal(unet.project(context, x), plain)
    dropped = unet.train().project(context, x)
    gone = dropped == 0
    assert 0.2 < gone.float().mean() < 0.3
    torch.testing.assert_close(dropped[~gone], (plain / 0.75)[~gone])


def test_a_row_of_zeros_is_the_null_context() -> None:
    state, v = official("small", "adagn")
    unet = network("small", "adagn")
    unet.load_state_dict(state)
    mixed = torch.stack([v["context"][0], torch.zeros(64)])
    with torch.no_grad():
        eps = unet(v["x"], v["t"], mixed)
    torch.testing.assert_close(eps, torch.stack([v["eps"][0], v["eps_null"][1]]), atol=1e-4, rtol=0)


def test_sinusoid_is_cosines_then_sines() -> None:
    angles = 7 * 10_000 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(sinusoid(torch.tensor([7]), 8)[0], torch.cat([angles.cos(), angles.sin()]))


def test_bad_inputs_are_refused() -> None:
    unet = network("small", "ca")
    with pytest.raises(ValueError, match=r"context: expected \(2, 64\), got \(2, 512\)"):
        unet(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 512))
    with pytest.raises(ValueError, match="conditioning"):
        UNetConfig(conditioning="film")
    with pytest.raises(ValueError, match="attention"):
        UNetConfig(attention=(True,))
    with pytest.raises(ValueError, match="context_dropout"):
        UNetConfig(context_dropout=1.0)
    with pytest.raises(ValueError, match="initial_channels"):
        UNetConfig(initial_channels=40)
