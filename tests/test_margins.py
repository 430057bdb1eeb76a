from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from facetransport.recognition.margins import HEADS, AdaFace, ArcFace, CosFace, adaface, arcface, cosface, make_head

COSINE = torch.tensor([[0.5, 0.2, -0.1], [0.3, -0.6, 0.9]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])


def test_cosface_by_hand():
    found = cosface(COSINE, LABELS, 64, 0.35)
    torch.testing.assert_close(found, 64 * torch.tensor([[0.15, 0.2, -0.1], [0.3, -0.6, 0.55]], dtype=torch.float64))


def test_arcface_by_hand():
    found = arcface(COSINE, LABELS, 64, 0.5)
    assert found[0, 0].item() == pytest.approx(64 * math.cos(math.acos(0.5) + 0.5))
    assert found[1, 2].item() == pytest.approx(64 * math.cos(math.acos(0.9) + 0.5))
    assert found[0, 1].item() == pytest.approx(64 * 0.2)


def test_arcface_goes_on_falling_past_pi():
    cosine = torch.tensor([[-0.999, 0.0], [-0.95, 0.0]], dtype=torch.float64)
    found = arcface(cosine, torch.tensor([0, 0]), 1.0, 0.5)[:, 0]
    assert found[0] < found[1]
    assert found[0].item() == pytest.approx(-0.999 - 0.5 * math.sin(0.5))


def test_adaface_by_hand():
    """Quality 1: theta - m and an additive 2 m; quality -1: ArcFace's theta + m; quality 0: CosFace's margin."""
    quality = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = adaface(COSINE, LABELS, 64, 0.4, quality)
    assert found[0, 0].item() == pytest.approx(64 * (math.cos(math.acos(0.5) - 0.4) - 0.8))
    assert found[1, 2].item() == pytest.approx(64 * math.cos(math.acos(0.9) + 0.4))
    plain = adaface(COSINE, LABELS, 64, 0.4, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(plain, cosface(COSINE, LABELS, 64, 0.4))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_gradients_are_true(name):
    head = make_head(name, 5, 4, 4.0, 0.3).double().eval()
    with torch.no_grad():
        head.weight.normal_()
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 5

    def loss(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(head, {"weight": weight}, (features, labels)), labels)

    if name == "adaface":  # the norm that sets its margin is detached by definition: compare on the angle alone
        quality = torch.rand(6, dtype=torch.float64)
        cosine = (torch.rand(6, 5, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
        assert torch.autograd.gradcheck(lambda c: adaface(c, labels, 4.0, 0.3, quality), cosine)
    else:
        assert torch.autograd.gradcheck(loss, (features, head.weight))


def test_arcface_differs_from_a_plain_scale():
    """arcface_torch's in-place margin gives every logit the derivative s; the paper's is s sin(t + m) / sin(t)."""
    cosine = COSINE.clone().requires_grad_()
    arcface(cosine, LABELS, 64, 0.5)[0, 0].backward()
    theta = math.acos(0.5)
    assert cosine.grad[0, 0].item() == pytest.approx(64 * math.sin(theta + 0.5) / math.sin(theta))
    assert abs(cosine.grad[0, 0].item() - 64) > 1


@pytest.mark.parametrize("value", [1.0, -1.0])
@pytest.mark.parametrize("head", [ArcFace, AdaFace])
def test_gradients_are_finite_at_the_poles(head, value):
    made = head(2, 3)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[value, 0, 0], [0, 1.0, 0]]))
    features = torch.tensor([[1.0, 0, 0]], requires_grad=True)
    made(features, torch.tensor([0])).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_adaface_follows_the_norms_while_it_trains():
    head = AdaFace(3, 4)
    features = F.normalize(torch.randn(8, 4)) * torch.linspace(1, 9, 8)[:, None]
    head(features, torch.zeros(8, dtype=torch.long))
    assert head.mean.item() == pytest.approx(0.99 * 20 + 0.01 * 5, abs=1e-4)
    before = head.mean.item()
    head.eval()(features, torch.zeros(8, dtype=torch.long))
    assert head.mean.item() == before


def test_margin_makes_the_task_harder():
    features, labels = torch.randn(8, 4), torch.arange(8) % 3
    head = CosFace(3, 4, scale=8, margin=0.0)
    easy = F.cross_entropy(head(features, labels), labels)
    head.margin = 0.35
    assert F.cross_entropy(head(features, labels), labels) > easy


def test_refusals():
    with pytest.raises(ValueError, match="adaface.*arcface.*cosface"):
        make_head("softmax", 3, 4, 8, 0.1)
    with pytest.raises(ValueError, match="at least 2 identities"):
        CosFace(1, 4)
    with pytest.raises(ValueError, match="margin"):
        CosFace(3, 4, margin=1.5)
