"""The laptop's denoisers: contract, CPD, null context, parametrisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facetransport.diffusion import denoisers
from facetransport.diffusion.denoisers import Denoiser, DenoiserConfig, Velocity
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.unet import UNet

KINDS = ["mlp", "mixer", "transformer"]


def network(kind: str, cpd: float = 0.25, random: bool = True) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(kind, (4, 4, 4), 32, 2, 16, 24, cpd))
    for p in denoiser.parameters() if random else ():
        nn.init.normal_(p, std=0.1)
    return denoiser.eval()


def inputs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    context = nn.functional.normalize(torch.randn(n, 16), dim=1)
    return torch.randn(n, 4, 4, 4), torch.linspace(0, 999, n).long(), context


@pytest.mark.parametrize("kind", KINDS)
def test_noise_prediction_depends_on_code_time_and_context(kind: str) -> None:
    denoiser, (x, t, y) = network(kind), inputs()
    eps = denoiser(x, t, y)
    assert eps.shape == x.shape
    assert not torch.allclose(eps, denoiser(x, t, y.roll(1, 0)))
    assert not torch.allclose(eps, denoiser(x, t.roll(1), y))
    assert not torch.allclose(eps, denoiser(x, t, None))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_none_are_the_same_null_context(kind: str) -> None:
    denoiser, (x, t, y) = network(kind), inputs()
    torch.testing.assert_close(denoiser(x, t, y * 0), denoiser(x, t, None))


@pytest.mark.parametrize("kind", KINDS)
def test_cpd_acts_in_training_only(kind: str) -> None:
    denoiser, (x, t, y) = network(kind), inputs()
    assert torch.equal(denoiser(x, t, y), denoiser(x, t, y))
    denoiser.train()
    assert not torch.equal(denoiser(x, t, y), denoiser(x, t, y))
    assert torch.equal(denoiser(x, t, None), denoiser(x, t, None))
    sure = network(kind, cpd=0.0).train()
    assert torch.equal(sure(x, t, y), sure(x, t, y))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_network_predicts_v_zero(kind: str) -> None:
    """v = 0 means eps = sqrt(1 - abar) x: the output layer starts at zero."""
    denoiser, (x, t, y) = network(kind, random=False), inputs()
    abar = Schedule().alphas_cumprod[t].view(-1, 1, 1, 1)
    for layer in (denoiser.body.out,):
        nn.init.zeros_(layer.bias)
    torch.testing.assert_close(denoiser(x, t, y), (1 - abar).sqrt() * x)


def test_build_makes_the_papers_unet_too() -> None:
    with torch.device("meta"):
        unet = denoisers.build("unet_ca", (3, 32, 32), 96, 2, 512, 256, 0.25, Schedule())
    assert isinstance(unet, UNet)
    assert sum(p.numel() for p in unet.parameters()) == 216_341_187
    assert unet.cpd.p == 0.25


@pytest.mark.parametrize("kind", ["unet_ca", "unet_adagn"])
def test_a_unet_that_predicts_v_is_the_published_one_in_other_terms(kind: str) -> None:
    torch.manual_seed(0)
    wrapped = denoisers.build(kind, (4, 8, 8), 32, 1, 16, 32, 0.25, Schedule(), "v").eval()
    for p in wrapped.parameters():
        nn.init.normal_(p, std=0.1)
    assert isinstance(wrapped, Velocity) and isinstance(wrapped.network, UNet)
    x, (_, t, y) = torch.randn(6, 4, 8, 8), inputs()
    abar = Schedule().alphas_cumprod[t].view(-1, 1, 1, 1)
    eps = wrapped(x, t, y)
    v = wrapped.network(x, t, 4 * y)  # 16 components of variance 1
    x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
    torch.testing.assert_close(abar.sqrt() * eps - (1 - abar).sqrt() * x0, v, atol=1e-3, rtol=0)
    torch.testing.assert_close(wrapped(x, t, 0 * y), wrapped(x, t, None))
    assert not torch.allclose(eps, wrapped(x, t, y.roll(1, 0)))


def test_bad_arguments_are_refused() -> None:
    denoiser, (x, t, _) = network("mlp"), inputs()
    with pytest.raises(ValueError, match=r"context: expected \(6, 16\), got \(6, 512\)"):
        denoiser(x, t, torch.zeros(6, 512))
    with pytest.raises(ValueError, match="kind: expected one of mlp, mixer, transformer"):
        DenoiserConfig("conv", (4, 4, 4), 32, 2, 16)
    with pytest.raises(ValueError, match="context_dropout"):
        DenoiserConfig("mlp", (4, 4, 4), 32, 2, 16, context_dropout=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_at_one_time_the_null_context_is_worked_out_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, (x, t, y) = network(kind), inputs()
    seen, project = [], denoisers.project_context
    monkeypatch.setattr(denoisers, "project_context", lambda *given: seen.append(len(given[3])) or project(*given))
    eps = denoiser(x, t[2].expand(len(x)), None)
    assert seen == [1]
    torch.testing.assert_close(eps, denoiser(x, t[2].expand(len(x)), 0 * y))
    torch.testing.assert_close(eps[2], denoiser(x, t, None)[2])
    denoiser.train()(x, t[2].expand(len(x)), None)
    assert seen == [1, 6, 6, 6]  # each row by itself with other times, and in training, where CPD acts on each
