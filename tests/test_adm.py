"""ADM: the published size, its conditions, the variational bound in closed form, learned variances in sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from facetransport.data.faceset import FaceSet
from facetransport.diffusion.adm import ADM, ADMConfig, hybrid_loss, variational_bound
from facetransport.diffusion.autoencoder import Autoencoder, PixelCode
from facetransport.diffusion.guidance import classifier_free
from facetransport.diffusion.sampling import sample
from facetransport.diffusion.schedule import Schedule, add_noise
from facetransport.generation import Model, generate
from facetransport.papers.id3pm import conditioning, published
from facetransport.training import TrainingConfig, train

COSINE = Schedule(50, "cosine")


def tiny(attributes: int = 0) -> ADM:
    config = ADMConfig(3, 16, 32, (1, 2), 1, 32, 0.0, 8, attributes)
    torch.manual_seed(0)
    return ADM(config, COSINE).eval()


def test_the_published_network_has_the_size_of_adm_at_64_pixels() -> None:
    with torch.device("meta"):
        network = published()
    backbone = sum(p.numel() for p in network.network.parameters())
    assert backbone + 1000 * 768 == 295_902_918  # ADM's ImageNet-64 model, whose 1,000 classes are embedded
    assert sum(p.numel() for p in network.parameters()) == backbone + 512 * 768 + 768
    x, t = torch.zeros(1, 3, 64, 64, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    assert network(x, t, torch.zeros(1, 512, device="meta")).shape == (1, 6, 64, 64)


def test_the_null_is_projected_and_attributes_are_added() -> None:
    network, x = tiny(attributes=4), torch.zeros(2, 3, 16, 16)
    assert torch.equal(network.condition(None, x), network.context_emb.bias.expand(2, -1))
    y, a = torch.randn(2, 8), torch.randn(2, 4)
    both = network.condition(torch.cat([y, a], 1), x)
    torch.testing.assert_close(both - network.condition(y, x), network.attribute_emb(a))
    t = torch.tensor([3, 30])
    assert not torch.allclose(network(x, t, y), network(x, t, None), atol=1e-4)
    with pytest.raises(ValueError, match=r"\(B, 8\) or \(B, 12\)"):
        network(x, t, torch.zeros(2, 9))


def test_the_bound_is_known_where_the_prediction_is_right() -> None:
    x0, noise = torch.rand(4, 1, 6, 6) * 1.6 - 0.8, torch.randn(4, 1, 6, 6)
    t = torch.tensor([1, 10, 30, 48])
    abar = COSINE.alphas_cumprod.double()
    x = add_noise(x0, noise, abar.float()[t])
    before = abar[t - 1]
    beta = 1 - abar[t] / before
    small = beta * (1 - before) / (1 - abar[t])
    low = variational_bound(x0, x, t, noise, -torch.ones_like(x), COSINE)
    torch.testing.assert_close(low, torch.zeros(4), atol=2e-3, rtol=0)
    high = variational_bound(x0, x, t, noise, torch.ones_like(x), COSINE)
    expected = 0.5 * (beta.log() - small.log() + small / beta - 1) / np.log(2)
    torch.testing.assert_close(high.double(), expected, atol=2e-3, rtol=1e-2)


def test_the_first_step_is_a_likelihood_of_grey_levels() -> None:
    """All 256 levels together have a mass of one."""
    x, levels = torch.full((256, 1, 1, 1), 0.1), (torch.arange(256.0) / 127.5 - 1).view(-1, 1, 1, 1)
    t, eps = torch.zeros(256, dtype=torch.int64), torch.zeros(256, 1, 1, 1)
    bits = variational_bound(levels, x, t, eps, eps, COSINE)
    assert float((2 ** -bits.double()).sum()) == pytest.approx(1, abs=0.02)


def test_the_hybrid_loss_trains_both_halves_and_names_them() -> None:
    images, conditions = torch.rand(8, 3, 16, 16) * 2 - 1, torch.nn.functional.normalize(torch.randn(8, 8))
    loss = hybrid_loss(images, conditions, COSINE, conditioning(8))
    states = [
        (float(s.named["simple"]), float(s.named["vlb"])) for s in train(tiny(), loss, 8, TrainingConfig(6, 4, 1e-3, 0))
    ]
    assert np.isfinite(states).all() and states[-1][0] < states[0][0]


class Known(nn.Module):
    """eps = x / 2 and a constant v, for any condition."""

    learned_variance, schedule = True, COSINE

    def __init__(self, v: float) -> None:
        super().__init__()
        self.v = v

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.cat([x / 2 if context is None else x / 3, torch.full_like(x, self.v)], dim=1)


@pytest.mark.parametrize(("v", "kind"), [(1.0, "fixed_large"), (-1.0, "fixed_small")])
def test_ddpm_takes_learned_variances(v: float, kind: str) -> None:
    """At the ends of their range they are DDPM's two fixed choices (diffusers' own steps)."""
    found = sample(Known(v).eval(), (1, 4, 4), None, "ddpm", 50, seeds=(3,))
    scheduler = DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", clip_sample=False, variance_type=kind)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 1, 4, 4, generator=generator)
    for i, t in enumerate(scheduler.timesteps):
        if i == 49:
            break
        x = scheduler.step(x / 2, t, x, generator=generator).prev_sample
    last = []
    sample(Known(v).eval(), (1, 4, 4), None, "ddpm", 50, seeds=(3,), callback=lambda i, z: last.append(z))
    torch.testing.assert_close(last[48], x, atol=1e-4, rtol=1e-4)
    assert found.isfinite().all()


def test_guidance_acts_on_the_noise_half_only() -> None:
    x, t, y = torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), torch.ones(1, 3)
    guided = classifier_free(Known(0.7).eval(), 3.0)
    out = guided(x, t, y)
    assert out.shape == (1, 2, 2, 2) and out[0, 0, 0, 0] == pytest.approx(0.5 + 3 * (1 / 3 - 0.5), abs=1e-6)
    assert (out[:, 1] == 0.7).all() and guided.learned_variance
    for solver in ("ddim", "dpm++"):
        assert sample(guided, (1, 4, 4), y, solver, 5, seeds=(0,)).shape == (1, 1, 4, 4)


def test_pixels_are_their_own_code() -> None:
    model = Model(tiny(), Autoencoder(PixelCode()), (3, 16, 16), 8, {})
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(model.autoencoder.encode(images), images) and torch.equal(model.decode(images), images)
    assert model.autoencoder.latent_shape(16) == (3, 16, 16)
    drawn = generate(model, torch.nn.functional.normalize(torch.randn(2, 8)), 1, 0, steps=3)
    assert isinstance(drawn, FaceSet) and drawn.images.shape == (2, 16, 16, 3)
    assert model.autoencoder.encode_faceset(drawn).shape == (2, 3, 16, 16)
