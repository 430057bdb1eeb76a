"""ID3PM: a black box that gives no gradient, null before the projection, attributes apart, the closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import id3pm as experiment
from facetransport.companion.experiments.attributes import attributes_of, encoded_twice
from facetransport.companion.profiles import Profile
from facetransport.diffusion import denoisers
from facetransport.diffusion.conditions import Attributes, drop_apart
from facetransport.diffusion.guidance import classifier_free, separate_scales
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import Model
from facetransport.papers import id3pm
from facetransport.papers.id3pm import BlackBox
from facetransport.recognition.recogniser import is_white_box
from facetransport.training import TrainingConfig, train


@pytest.fixture(scope="module")
def model(smoke: Profile, smoke_store: Store) -> Model:
    """The smoke model, shaken: twenty steps of training hardly teach it to heed its conditions."""
    model = experiment.load(smoke, smoke_store)
    generator = torch.Generator().manual_seed(0)
    for weights in model.denoiser.parameters():
        weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    return model


class White(nn.Module):
    """A differentiable recogniser."""

    name, dim = "white", 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def embed(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.linear(images.flatten(1)), dim=1)


# ------------------------------------------------------------------------------------------------------ the black box


def test_a_black_box_says_embeddings_and_nothing_else() -> None:
    box, images = BlackBox(White()), torch.rand(2, 3, 2, 2)
    assert not is_white_box(box) and not hasattr(box, "linear") and not hasattr(box, "parameters")
    assert not box.embed(images).requires_grad
    with pytest.raises(ValueError, match=r"black box gives none; pass images\.detach"):
        box.embed(images.requires_grad_())
    with pytest.raises(AttributeError):
        box.weights = 1  # type: ignore[attr-defined]


def test_training_never_asks_the_black_box_for_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embeddings are data: no graph leads to the recogniser, and it is not even called."""
    white, images = White(), torch.rand(8, 3, 2, 2)
    conditions = BlackBox(white).embed(images)
    monkeypatch.setattr(white, "embed", lambda _: pytest.fail("called in training"))
    network = denoisers.build("mlp", (3, 2, 2), 16, 1, 4, 8, 0.0, Schedule(10), null_projected=True)
    loss = id3pm.loss(images, conditions, id3pm.conditioning(4), Schedule(10), "v")
    list(train(network, loss, 8, TrainingConfig(3, 4, 1e-3, 0)))
    assert all(p.grad is None for p in white.parameters())


# -------------------------------------------------------------------------------------------------- the null condition


def test_the_null_is_the_zero_vector_before_the_projection() -> None:
    network = denoisers.build("mlp", (3, 2, 2), 16, 1, 4, 8, 0.0, Schedule(10), null_projected=True).eval()
    x = torch.zeros(3, 3, 2, 2)
    projected = network.condition(None, x)
    assert torch.equal(projected, network.context_emb.bias.expand(3, -1))  # not zero
    assert torch.equal(projected, network.condition(torch.zeros(3, 4), x))
    published_elsewhere = denoisers.build("mlp", (3, 2, 2), 16, 1, 4, 8, 0.0, Schedule(10)).eval()
    assert not published_elsewhere.condition(None, x).any()  # IDiff-Face: after the projection


def test_embedding_and_attributes_are_dropped_apart() -> None:
    conditions, generator = torch.ones(20_000, 4 + 6), torch.Generator().manual_seed(0)
    kept = drop_apart(conditions, generator, 4, 0.1, 0.5, 0.3)
    assert torch.equal(kept.unique(), torch.tensor([0.0, 1.0]))
    y, pairs = kept[:, :4], kept[:, 4:].unflatten(1, (3, 2))
    assert torch.equal(y.amin(1), y.amax(1)) and torch.equal(pairs.amin(2), pairs.amax(2))  # whole or not at all
    assert y[:, 0].mean() == pytest.approx(0.9, abs=0.01)
    told = pairs[..., 0]
    assert told.any(1).float().mean() == pytest.approx(0.5 * (1 - 0.3**3), abs=0.02)
    assert told[told.any(1)].mean() == pytest.approx(0.7 / (1 - 0.3**3), abs=0.02)
    both = torch.stack([y[:, 0], told.any(1).float()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.03


def test_a_view_is_chosen_for_each_image() -> None:
    conditions = torch.cat([torch.zeros(10_000, 2), torch.ones(10_000, 2), torch.full((10_000, 1), 7.0)], 1)
    chosen = id3pm.choose_view(conditions, torch.Generator().manual_seed(0), 2, 0.25)
    assert chosen.shape == (10_000, 3) and (chosen[:, 2] == 7).all() and torch.equal(chosen[:, 0], chosen[:, 1])
    assert chosen[:, 0].mean() == pytest.approx(0.25, abs=0.02)


# --------------------------------------------------------------------------------------------------------- attributes


TABLE = pd.DataFrame({"identity": [0, 1, 2], "age": [20.0, 40.0, 60.0], "Smiling": [True, False, True], "x": [1, 1, 1]})


def test_what_is_not_told_differs_from_what_is_average() -> None:
    attributes = Attributes.fitted(TABLE, ["age", "Smiling"])
    told = attributes.encode({"age": 40.0}, n=2)
    assert told.tolist() == [[1, 0, 0, 0]] * 2 and attributes.size == 4
    ages = attributes.encode({"age": [20.0, 60.0]}, n=2)[:, 1]
    assert ages.tolist() == pytest.approx([-np.sqrt(1.5), np.sqrt(1.5)])
    assert Attributes.fitted(TABLE, ["x"]).encode({"x": 1.0}).tolist() == [[1, 0]]  # a constant column


def test_bad_attributes_are_refused() -> None:
    with pytest.raises(ValueError, match="no column 'yaw'"):
        Attributes.fitted(TABLE, ["yaw"])
    attributes = Attributes.fitted(TABLE, ["age"])
    with pytest.raises(ValueError, match="names among age, got 'weight'"):
        attributes.encode({"weight": 1.0})
    with pytest.raises(ValueError, match="finite numbers"):
        attributes.encode({"age": float("nan")})


def test_scales_of_two_conditions_are_separate() -> None:
    def denoiser(x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """1 for nothing, + 10 for the person, + 100 for attributes."""
        told = torch.zeros(len(x), 2) if context is None else context.view(len(x), 2, 2).any(2).float()
        return x * 0 + 1 + (told @ torch.tensor([10.0, 100.0]))[:, None]

    x, t = torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
    both, person = torch.ones(1, 4), torch.tensor([[1.0, 1, 0, 0]])
    for s, a in ((1, 1), (2, 1), (2, 3), (0, 0), (1.5, 0)):
        assert separate_scales(denoiser, 2, s, a)(x, t, both)[0, 0] == pytest.approx(1 + 10 * s + 100 * a)
        assert separate_scales(denoiser, 2, s, a)(x, t, person)[0, 0] == pytest.approx(1 + 10 * s)
    assert torch.equal(separate_scales(denoiser, 2, 2, 1)(x, t, person), classifier_free(denoiser, 2.0)(x, t, person))
    with pytest.raises(ValueError, match="attribute_scale"):
        separate_scales(denoiser, 2, 1, -1)


# ---------------------------------------------------------------------------------------- the loss finds p(x | FR(x))


def test_the_plain_loss_learns_the_exact_conditional_score() -> None:
    """Gaussian x in two dimensions, a linear recogniser y = x_1: E[eps | x_t, y] is known, and is what is learnt."""
    a, b = 0.8, 0.6  # x_2 = a x_1 + b noise
    rng = torch.Generator().manual_seed(0)
    x1 = torch.randn(20_000, generator=rng)
    x = torch.stack([x1, a * x1 + b * torch.randn(20_000, generator=rng)], 1)
    schedule = Schedule(20, "cosine")
    network = denoisers.build("mlp", (2, 1, 1), 64, 2, 1, 32, 0.0, schedule, null_projected=True)
    loss = id3pm.loss(x.view(-1, 2, 1, 1), x[:, :1], id3pm.conditioning(1), schedule, "v")
    config = TrainingConfig(800, 512, 3e-3, 0, ema=0.99, decay="cosine")
    learnt = list(train(network, loss, len(x), config))[-1].ema.cpu()
    t = torch.full((2000,), 8)
    abar = schedule.alphas_cumprod[8]
    y, noise = x[:2000, :1], torch.randn(2000, 2, generator=rng)
    noisy = abar.sqrt() * x[:2000] + (1 - abar).sqrt() * noise
    mean = torch.cat([y, a * y], 1)  # E[x | y]; var[x | y] = (0, b^2)
    sigma = torch.tensor([0.0, b**2])
    exact = (1 - abar).sqrt() * (noisy - abar.sqrt() * mean) / (abar * sigma + 1 - abar)
    found = learnt(noisy.view(-1, 2, 1, 1), t, y).flatten(1)
    assert (found - exact).square().mean() < 0.02 * exact.square().mean()
    blind = learnt(noisy.view(-1, 2, 1, 1), t, None).flatten(1)
    assert (blind - exact).square().mean() > 0.2 * exact.square().mean()  # without y one cannot know


# ---------------------------------------------------------------------------------------------------- the smoke model


def test_inversions_depend_on_embedding_seed_and_attributes(model: Model, smoke: Profile, smoke_store: Store) -> None:
    y = torch.nn.functional.normalize(torch.randn(2, model.context_dim, generator=torch.Generator().manual_seed(0)))
    how = {"samples": 2, "seed": 0, "steps": 4}
    plain = id3pm.invert(model, y, **how)
    assert plain.images.shape[0] == 4 and plain.identity.tolist() == [0, 0, 1, 1]
    assert np.array_equal(plain.images[:2], id3pm.invert(model, y[:1], **how).images)
    attributes = attributes_of(model)
    assert attributes.names == smoke.id3pm.attributes
    none = id3pm.invert(model, y, **how, attributes=attributes.encode({}, 2))
    assert np.abs(none.images.astype(int) - plain.images).max() <= 1
    one, each = attributes.encode({"yaw": 30.0}, 2), attributes.encode({"yaw": 30.0}, 4).view(2, 2, -1)
    turned = id3pm.invert(model, y, **how, attributes=one, attribute_guidance=3.0)
    assert np.array_equal(turned.images, id3pm.invert(model, y, **how, attributes=each, attribute_guidance=3.0).images)
    assert not np.array_equal(turned.images, plain.images)
    with pytest.raises(ValueError, match="attributes: expected"):
        id3pm.invert(model, y, **how, attributes=one[:1])


def test_mirror_images_turn_the_other_way(smoke: Profile, smoke_store: Store) -> None:
    from facetransport.companion.experiments import roles

    faces = roles.load(smoke, "generator", smoke_store)
    attributes, encoded = encoded_twice(faces, smoke.id3pm.attributes)
    yaw = 2 * attributes.names.index("yaw") + 1
    there, back = encoded[: len(faces), yaw], encoded[len(faces) :, yaw]
    turn = faces.table["yaw"].to_numpy()
    np.testing.assert_allclose(there * attributes.deviation[0] + attributes.mean[0], turn, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(back * attributes.deviation[0] + attributes.mean[0], -turn, rtol=1e-4, atol=1e-4)


def test_the_regression_decoder_learns_the_mean(smoke: Profile, smoke_store: Store) -> None:
    y = torch.eye(4).repeat(50, 1)
    codes = torch.arange(4.0).repeat(50)[:, None, None, None] + torch.randn(200, 1, 2, 2)
    network = id3pm.RegressionDecoder(4, (1, 2, 2), 32)
    state = list(train(network, id3pm.regression_loss(codes, y), 200, TrainingConfig(300, 64, 1e-2, 0)))[-1]
    expected = codes.view(50, 4, 1, 2, 2).mean(0)
    torch.testing.assert_close(state.ema(torch.eye(4)).detach(), expected, atol=0.3, rtol=0)
    shipped = experiment.load_regression(smoke, smoke_store)
    assert shipped(torch.zeros(3, shipped.dim)).shape == (3, *shipped.shape)


def test_unknown_variants_are_refused(smoke: Profile) -> None:
    with pytest.raises(ValueError, match=r"id3pm_variants \(robust\), got 'bold'"):
        experiment.recipe(smoke, "bold")
