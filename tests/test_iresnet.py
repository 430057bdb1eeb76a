from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facetransport.recognition.iresnet import (
    IResNet,
    IResNetConfig,
    IResNetRecogniser,
    PReLU,
    from_state_dict,
    load_insightface_pth,
)

TINY = IResNetConfig(layers=(1, 2, 1, 1), widths=(8, 8, 16, 16), input_size=112, dim=32)


def warm(model: IResNet) -> IResNet:
    """Batch norms that are not the identity, so that a misplaced one shows."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def tiny() -> IResNet:
    torch.manual_seed(0)
    return warm(IResNet(TINY))


# SHA-256 of "name shape" lines, sorted, of the networks of insightface's
# recognition/arcface_torch/backbones/iresnet.py at 04a433f1, on which outputs were compared too (equal to the bit).
OFFICIAL = {
    "iresnet18": "68eaf02af455cf330fd87f24afa1c20a1fb841246c6f4f9ab93ec433687e2eb9",
    "iresnet34": "f184bfe8178b94e88cba48dbc4e0ed1b03194ccc33f1c68dedf1db6f240e61d0",
    "iresnet50": "87577a0a9c1c1505b4d3ab32b2cfb4f1f72b5ebf6baa0f687b2210caf13e37de",
    "iresnet100": "30c5c94b2426b4144146680ae1a2f6682d0819c72f61c4794a5550e62344bb6b",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_and_shapes_are_insightfaces(name):
    with torch.device("meta"):
        state = IResNet(IResNetConfig.named(name)).state_dict()
    lines = "\n".join(f"{k} {list(v.shape)}" for k, v in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == OFFICIAL[name]


def test_stages_end_in_the_features(tiny):
    images = torch.rand(2, 3, 112, 112)
    *maps, features = tiny.stages(images)
    assert [tuple(m.shape) for m in maps] == [(2, w, s, s) for w, s in zip(TINY.widths, (56, 28, 14, 7), strict=True)]
    assert torch.equal(features, tiny(images))
    torch.testing.assert_close(maps[1], tiny.layer2(maps[0]))


def test_last_norm_has_a_fixed_weight(tiny):
    assert not tiny.features.weight.requires_grad and (tiny.features.weight == 1).all()


def test_pth_round_trip(tiny, tmp_path: Path):
    path = tmp_path / "backbone.pth"
    torch.save({f"module.{k}": v for k, v in tiny.state_dict().items()}, path)  # as saved from DataParallel
    loaded = load_insightface_pth(path)
    assert loaded.config == TINY and not loaded.training
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(loaded(images), tiny(images))


def test_unreadable_weights_are_refused(tiny, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file; give the path of published weights"):
        load_insightface_pth(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no 'conv1.weight'"):
        from_state_dict({"backbone.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="input_size"):
        from_state_dict(tiny.state_dict(), input_size=64)


def test_prelu_is_torchs_with_its_gradients():
    ours, theirs = PReLU(4).double(), nn.PReLU(4).double()
    with torch.no_grad():
        ours.weight.uniform_(-0.5, 0.5)
        theirs.weight.copy_(ours.weight)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    (ours(x) * weight).sum().backward()
    (theirs(y) * weight).sum().backward()
    torch.testing.assert_close(ours(x), theirs(y))
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert torch.autograd.gradcheck(ours, (x,))


def test_recogniser_is_a_white_box(tiny):
    recogniser = IResNetRecogniser(tiny)
    images = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    embeddings = recogniser.embed(images)
    assert embeddings.shape == (2, recogniser.dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    (embeddings[0] @ embeddings[1]).backward()
    assert torch.isfinite(images.grad).all()
    inner = images.grad[..., 4:60, 4:60].abs().sum()
    assert inner > 0 and images.grad.abs().sum() == pytest.approx(float(inner))  # the margin is not looked at


def test_recogniser_stays_in_inference_mode(tiny):
    recogniser = IResNetRecogniser(tiny).train()
    assert not recogniser.model.training
    images = torch.rand(3, 3, 128, 128) * 2 - 1
    torch.testing.assert_close(recogniser.embed(images)[:1], recogniser.embed(images[:1]), atol=1e-5, rtol=0)


def test_flip_makes_mirror_images_equal(tiny):
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    plain, flip = IResNetRecogniser(tiny), IResNetRecogniser(tiny, flip=True)
    assert (plain.embed(images) - plain.embed(images.flip(-1))).abs().max() > 1e-3
    torch.testing.assert_close(flip.embed(images), flip.embed(images.flip(-1)), atol=1e-5, rtol=0)


def test_colour_order_matters(tiny):
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    recogniser = IResNetRecogniser(tiny)
    assert (recogniser.embed(images) - recogniser.embed(images.flip(1))).abs().max() > 1e-3


def test_margin_off_takes_insightface_crops(tiny):
    crop = torch.rand(2, 3, 112, 112) * 2 - 1
    expected = F.normalize(tiny(crop))
    torch.testing.assert_close(IResNetRecogniser(tiny, margin=False).embed(crop), expected)
    torch.testing.assert_close(IResNetRecogniser(tiny).embed(F.pad(crop, (8, 8, 8, 8))), expected)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 3, 64, 48), (3, 64, 64)])
def test_wrong_images_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"expected square RGB \(B, 3, S, S\)"):
        IResNetRecogniser(tiny).embed(torch.zeros(shape))


def test_wrong_configurations_are_refused():
    with pytest.raises(ValueError, match="iresnet100"):
        IResNetConfig.named("resnet50")
    with pytest.raises(ValueError, match="4 layers, 4 widths, 5 strides"):
        IResNetConfig(layers=(1, 2, 3))
    with pytest.raises(ValueError, match=r"\(B, 3, 112, 112\)"):
        IResNet(TINY)(torch.zeros(1, 3, 64, 64))
