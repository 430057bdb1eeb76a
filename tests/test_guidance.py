"""Guidance: s = 1 is the conditional model, s = 0 the unconditional one, and the schedule is carried along."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from facetransport import devices
from facetransport.diffusion import denoisers
from facetransport.diffusion.guidance import InBfloat16, classifier_free, schedule_of
from facetransport.diffusion.sampling import sample
from facetransport.diffusion.schedule import Schedule


class Counting:
    """eps = sum of the context (0 for null), and how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls += 1
        return x * 0 + (0 if context is None else context.sum(1).view(-1, 1, 1, 1))


X, T, C = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), torch.tensor([[1.0], [2.0]])


def test_scale_one_is_the_conditional_model_with_one_call() -> None:
    denoiser = Counting()
    assert classifier_free(denoiser, 1.0) is denoiser


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.0])
def test_guided_prediction_extrapolates_from_null_to_condition(scale: float) -> None:
    eps = classifier_free(Counting(), scale)(X, T, C)
    assert eps[:, 0, 0, 0].tolist() == pytest.approx([scale, 2 * scale])


def test_without_a_context_the_guided_denoiser_is_unconditional() -> None:
    denoiser = Counting()
    assert classifier_free(denoiser, 3.0)(X, T, None).abs().sum() == 0
    assert denoiser.calls == 1


def test_guided_denoisers_keep_the_schedule() -> None:
    network = denoisers.build("mlp", (4, 4, 4), 16, 1, 8, 8, 0.25, Schedule(50, "cosine")).eval()
    assert schedule_of(classifier_free(network, 2.0)) == Schedule(50, "cosine")
    assert schedule_of(Counting()) == Schedule()


def test_bad_scales_and_training_mode_are_refused() -> None:
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale"):
            classifier_free(Counting(), scale)
    with pytest.raises(ValueError, match="training mode"):
        classifier_free(denoisers.build("mlp", (4, 4, 4), 16, 1, 8, 8, 0.25, Schedule()).train(), 2.0)


def test_a_network_chooses_its_batches_and_guidance_keeps_the_choice() -> None:
    class Fives:
        micro_batch = 5

        def __init__(self) -> None:
            self.seen: list[int] = []

        def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
            self.seen.append(len(x))
            return torch.zeros_like(x)

    denoiser = Fives()
    context = torch.zeros(7, 3)
    for wrapped in (denoiser, classifier_free(denoiser, 2.0)):
        denoiser.seen.clear()
        sample(wrapped, (1, 2, 2), context, "ddim", 1, range(7))
        assert set(denoiser.seen) == {5}
    denoiser.seen.clear()
    sample(denoiser, (1, 2, 2), context, "ddim", 1, range(7), micro_batch=4)
    assert denoiser.seen == [4, 4]


@pytest.mark.parametrize("there", [False, True])
def test_only_the_network_computes_in_bfloat16(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: there)
    layer, seen = nn.Linear(2, 2), []

    def network(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        out = layer(x.flatten(1) if context is None else context.expand(-1, 2))
        seen.append(out.dtype)
        return out.view(x.shape)

    x = torch.randn(2, 1, 1, 2)
    with torch.no_grad():
        guided, exact = (classifier_free(f, 3.0)(x, T, C) for f in (InBfloat16(network), network))
    assert guided.dtype == torch.float32 and seen[:2] == [torch.bfloat16 if there else torch.float32] * 2
    torch.testing.assert_close(guided, exact, atol=0.1 if there else 0, rtol=0)


def test_a_unet_in_bfloat16_predicts_nearly_the_same() -> None:
    torch.manual_seed(0)
    unet = denoisers.build("unet_ca", (2, 8, 8), 32, 1, 8, 32, 0.0, Schedule(50)).eval().requires_grad_(False)
    for parameter in unet.parameters():  # the last one starts at zero
        nn.init.normal_(parameter, std=0.05)
    x, t, context = torch.randn(3, 2, 8, 8), torch.tensor([0, 20, 49]), torch.randn(3, 8)
    exact, rounded = unet(x, t, context), InBfloat16(unet)(x, t, context)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05 * float(exact.std()), rtol=0.05)
