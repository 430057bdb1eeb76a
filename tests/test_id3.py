"""ID3: the loss in its parts, the adjusted score against closed forms, anchors, people around them, attributes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import id3 as experiment
from facetransport.companion.experiments.attributes import attributes_of
from facetransport.companion.profiles import Profile
from facetransport.diffusion import denoisers
from facetransport.diffusion.conditions import drop_apart
from facetransport.diffusion.denoising import Noised, denoising_loss, dropped
from facetransport.diffusion.guidance import classifier_free
from facetransport.diffusion.sampling import sample
from facetransport.diffusion.schedule import Schedule, add_noise
from facetransport.generation import Model, generate, generate_into
from facetransport.papers import id3
from facetransport.papers.id3 import Adjustment, Decoded, around, coefficient
from facetransport.recognition.plda import Plda, leading_axes
from facetransport.recognition.tammes import largest_cosine
from facetransport.training import TrainingConfig, train

SCHEDULE = Schedule(10)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Linear(nn.Module):
    """A sight that is a matrix: not of unit norm, so that closed forms are short."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, codes: Tensor) -> Tensor:
        return codes.flatten(1) @ self.matrix.T  # type: ignore[operator]


class Gaussian(nn.Module):
    """The exact denoiser of x_0 ~ N(0, S), S diagonal."""

    def __init__(self, variances: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.variances, self.schedule = variances, schedule
        self.eval()

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        a = self.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (a * self.variances + 1 - a)


def network() -> nn.Module:
    torch.manual_seed(0)
    return denoisers.build("mlp", (2, 2, 2), 16, 1, 3, 8, 0.0, SCHEDULE, attributes=2)


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Linear]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(16, 2, 2, 2, generator=generator)
    y = F.normalize(torch.randn(16, 3, generator=generator), dim=1)
    conditions = torch.cat([y, torch.randn(16, 2, generator=generator)], dim=1)
    return codes, conditions, Linear(torch.randn(3, 8, generator=generator))


def keep(conditions: Tensor, generator: torch.Generator) -> Tensor:
    return conditions


def parts_of(loss: id3.Loss, denoiser: nn.Module | None = None, rows: int = 16) -> dict[str, Tensor]:
    found = loss(denoiser or network(), torch.arange(rows), torch.Generator().manual_seed(3), 0)
    assert isinstance(found, dict)
    return found


# ------------------------------------------------------------------------------------------------------------ the loss


def test_the_coefficient_falls_from_a_quarter_and_the_switch_makes_it_rise() -> None:
    """papers.md 3.2: 0.25 at 0, 0.189 at T / 2, 0.134 at T; with the other sign up to 0.366."""
    t = torch.tensor([0, 500, 1000])
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(coefficient(t, 1000), torch.tensor([0.25, 0.1888, 0.1345]), **close)
    torch.testing.assert_close(coefficient(t, 1000, rising=True), torch.tensor([0.25, 0.3112, 0.3655]), **close)


def test_the_loss_is_the_sum_of_its_parts_which_are_those_of_the_equation(data: tuple[Tensor, Tensor, Linear]) -> None:
    codes, conditions, sight = data
    parts = parts_of(id3.loss(codes, conditions, keep, sight, 3, SCHEDULE, weight=2.0))
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(10, (16,), generator=generator)
    noise = torch.randn(codes.shape, generator=generator)
    a = SCHEDULE.alphas_cumprod[t]
    x_t = add_noise(codes, noise, a)
    eps = network()(x_t, t, conditions)
    a = a.view(-1, 1, 1, 1)
    estimate = (x_t - (1 - a).sqrt() * eps) / a.sqrt()
    later = (t > 0).float()
    torch.testing.assert_close(parts["denoising"], ((eps - noise).square().mean((1, 2, 3)) * later).mean(), **CLOSE)
    rebuilt = ((codes - estimate).square().mean((1, 2, 3)) * (1 - later)).mean()
    torch.testing.assert_close(parts["reconstruction"], rebuilt, **CLOSE)
    assert rebuilt > 0
    inner = (conditions[:, :3] * sight(estimate)).sum(1)
    torch.testing.assert_close(parts["identity"], -2 * (coefficient(t, 10) * inner).mean(), **CLOSE)
    torch.testing.assert_close(
        parts["loss"], sum(parts[n] for n in ("denoising", "reconstruction", "identity")), **CLOSE
    )
    assert not any(parts[n].requires_grad for n in parts if n != "loss") and parts["loss"].requires_grad


def test_the_constant_is_the_divergence_at_the_last_step(data: tuple[Tensor, Tensor, Linear]) -> None:
    codes, conditions, sight = data
    found = parts_of(id3.loss(codes, conditions, keep, sight, 3, SCHEDULE))["constant"]
    a = SCHEDULE.alphas_cumprod[-1].double()
    q = torch.distributions.Normal(a.sqrt() * codes.double(), (1 - a).sqrt())
    torch.testing.assert_close(
        found.double(), torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(), **CLOSE
    )


def test_both_squares_at_every_step_are_the_loss_of_v(data: tuple[Tensor, Tensor, Linear]) -> None:
    """||eps - eps_theta||^2 + ||x_0 - x^_0||^2 = ||v - v_theta||^2: the laptop's other losses are ID3's without f."""
    codes, conditions, sight = data
    both = parts_of(id3.loss(codes, conditions, keep, sight, 3, SCHEDULE, 0.0, reconstruction="every", clip=None))
    v = denoising_loss(codes, conditions, SCHEDULE, "v", keep)(
        network(), torch.arange(16), torch.Generator().manual_seed(3), 0
    )
    torch.testing.assert_close(both["loss"], v, **CLOSE)
    clipped = parts_of(id3.loss(codes, conditions, keep, sight, 3, SCHEDULE, 0.0, reconstruction="every", clip=1e-3))
    assert clipped["reconstruction"] < both["reconstruction"] and clipped["denoising"] == both["denoising"]


def test_without_an_identity_there_is_no_inner_product(data: tuple[Tensor, Tensor, Linear]) -> None:
    codes, conditions, sight = data

    def null_half(conditions: Tensor, generator: torch.Generator) -> Tensor:
        return conditions * (torch.arange(len(conditions)) % 2)[:, None]

    some = parts_of(id3.loss(codes, conditions, null_half, sight, 3, SCHEDULE))
    assert some["identity"] != 0
    none = parts_of(id3.loss(codes, conditions, partial(dropped, probability=1.0), sight, 3, SCHEDULE))
    assert none["identity"] == 0 and torch.isfinite(none["loss"])
    few = parts_of(id3.loss(codes, conditions, keep, sight, 3, SCHEDULE, rows=4))
    assert few["denoising"] == parts_of(id3.loss(codes, conditions, keep, sight, 3, SCHEDULE))["denoising"]


def test_the_gradient_goes_through_f_and_moves_only_the_denoiser(data: tuple[Tensor, Tensor, Linear]) -> None:
    """Training with the term alone turns the estimates towards y."""
    codes, conditions, sight = data
    loss = id3.loss(codes, conditions, keep, sight, 3, SCHEDULE, weight=20.0, reconstruction="every", clip=None)
    denoiser, before = network(), parts_of(loss)["identity"]
    list(train(denoiser, loss, 16, TrainingConfig(60, 16, 1e-2, 0, ema=0)))
    assert parts_of(loss, denoiser)["identity"] < before - 0.5
    assert all(p.grad is None for p in sight.parameters())


def test_a_black_box_is_refused() -> None:
    class Box:
        name, dim = "box", 4

        def embed(self, images: Tensor) -> Tensor:
            return images

    with pytest.raises(TypeError, match="needs a white box, a torch module; got Box"):
        Decoded(nn.Identity(), Box())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 'first' or 'every', got 'last'"):
        id3.loss(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1), keep, nn.Identity(), 1, reconstruction="last")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- the adjusted score


VARIANCES = torch.linspace(0.2, 2.0, 8).view(2, 2, 2)


@pytest.mark.parametrize("slope", ["exact", "stopped", "unit"])
def test_the_adjusted_score_of_a_gaussian_and_a_linear_f_is_known(slope: str) -> None:
    generator = torch.Generator().manual_seed(1)
    sight, denoiser = Linear(torch.randn(3, 8, generator=generator)), Gaussian(VARIANCES, SCHEDULE)
    x, t = torch.randn(5, 2, 2, 2, generator=generator), torch.tensor([0, 2, 4, 7, 9])
    y = torch.randn(5, 3, generator=generator)
    found = Adjustment(sight, 3, slope)(denoiser, 0.7)(x, t, torch.cat([y, torch.ones(5, 2)], dim=1))
    a = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    slopes = {"exact": a.sqrt() * VARIANCES / (a * VARIANCES + 1 - a), "stopped": 1 / a.sqrt(), "unit": a.sqrt()}
    pull = slopes[slope] * (y @ sight.matrix).view(5, 2, 2, 2)
    wanted = denoiser(x, t) - 0.7 * (1 - a).sqrt() * coefficient(t, 10).view(-1, 1, 1, 1) * pull
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_sampling_by_it_shifts_the_gaussian_towards_the_identity() -> None:
    """Samples keep the Gaussian's spread and move along A' y, more where it varies more."""
    schedule = Schedule(1000)
    denoiser, sight = Gaussian(VARIANCES, schedule), Linear(torch.ones(1, 8))
    y, seeds = torch.ones(400, 1), range(400)
    plain = sample(denoiser, (2, 2, 2), y, "ddim", 50, seeds)
    moved = sample(Adjustment(sight, 1)(denoiser, 5.0), (2, 2, 2), y, "ddim", 50, seeds)
    shift = (moved - plain).mean(0)
    assert (shift > 0.1).all() and shift.flatten().argsort().tolist() == list(range(8))
    torch.testing.assert_close(moved.std(0), plain.std(0), atol=0.02, rtol=0.05)


def test_no_adjustment_is_the_denoiser_itself_and_null_conditions_are_left_alone() -> None:
    denoiser, adjustment = Gaussian(VARIANCES, SCHEDULE), Adjustment(Linear(torch.ones(1, 8)), 1)
    assert adjustment(denoiser, 0.0) is denoiser
    x, t = torch.ones(2, 2, 2, 2), torch.tensor([3, 3])
    adjusted = adjustment(denoiser, 2.0)
    assert torch.equal(adjusted(x, t, None), denoiser(x, t))
    assert torch.equal(adjusted(x, t, torch.zeros(2, 1)), denoiser(x, t))


def test_it_composes_with_classifier_free_guidance() -> None:
    """The gradient goes through both of its calls; parameters get none."""
    denoiser = network().eval()
    sight, x, t = Linear(torch.randn(3, 8)), torch.randn(2, 2, 2, 2), torch.tensor([5, 5])
    context = torch.randn(2, 5)
    guided = classifier_free(denoiser, 2.0)
    found = Adjustment(sight, 3)(guided, 3.0)(x, t, context)
    leaf = x.clone().requires_grad_()
    a = SCHEDULE.alphas_cumprod[5]
    estimate = (leaf - (1 - a).sqrt() * guided(leaf, t, context)) / a.sqrt()
    (slope,) = torch.autograd.grad((context[:, :3] * sight(estimate)).sum(), leaf)
    wanted = guided(x, t, context) - 3 * coefficient(t, 10)[0] * (1 - a).sqrt() * slope
    torch.testing.assert_close(found, wanted.detach(), **CLOSE)
    assert not found.requires_grad and all(p.grad is None for p in denoiser.parameters())


def test_it_works_where_gradients_are_off() -> None:
    adjusted = Adjustment(Linear(torch.ones(1, 8)), 1)(Gaussian(VARIANCES, SCHEDULE), 1.0)
    with torch.inference_mode():
        drawn = sample(adjusted, (2, 2, 2), torch.ones(2, 1), "ddim", 5, (0, 1))
    assert torch.equal(drawn, sample(adjusted, (2, 2, 2), torch.ones(2, 1), "ddim", 5, (0, 1)))


# ------------------------------------------------------------------------------------------------------ sets of people


def test_people_stand_at_their_cosines_around_the_anchors() -> None:
    w = id3.anchors(6, 16, 0, steps=50)
    y = around(w, 50, (0.5, 0.7), 3)
    cosines = (y * w[:, None]).sum(2)
    assert y.shape == (6, 50, 16) and cosines.min() >= 0.5 - 1e-5 and cosines.max() <= 0.7 + 1e-5
    assert cosines.std() > 0.04  # uniform there: 0.058
    exactly = around(w, 3, (0.8, 0.8), 3)
    torch.testing.assert_close((exactly * w[:, None]).sum(2), torch.full((6, 3), 0.8), **CLOSE)
    within = torch.einsum("nid,njd->nij", y.double(), y.double())[:, *np.triu_indices(50, 1)]
    assert within.mean() == pytest.approx(0.36, abs=0.03)  # E[v]^2 (papers.md 3.5)
    torch.testing.assert_close(around(w[:2], 50, (0.5, 0.7), 3), y[:2])


def test_anchors_are_apart_and_may_live_where_people_are() -> None:
    known = F.normalize(torch.randn(500, 16) * torch.linspace(0.05, 1, 16) + 0.2, dim=1).double()
    total = torch.cov(known.T)
    like = Plda(known.mean(0), total, total.flip(0, 1))  # within people as between others
    sphere, there = id3.anchors(17, 16, 0), id3.anchors(300, 16, 0, like=like, steps=30)
    assert largest_cosine(sphere) == pytest.approx(-1 / 16, abs=0.02)
    torch.testing.assert_close(there.norm(dim=1), torch.ones(300))
    axes = leading_axes(like.between)
    assert 4 < len(axes) < 16 and largest_cosine(there) < 0.9 * largest_cosine(id3.random_anchors(300, 16, 0, like))
    torch.testing.assert_close(there @ axes.T @ axes, there, atol=1e-5, rtol=0)  # nowhere else
    torch.testing.assert_close(
        axes @ total.float() @ axes.T, torch.linalg.eigvalsh(total)[-len(axes) :].diag().float(), atol=1e-4, rtol=0
    )
    y = around(there, 40, (0.7, 0.9), 0, like)
    away = F.normalize(y - (y * there[:, None]).sum(2, keepdim=True) * there[:, None], dim=2).flatten(0, 1)
    assert away.var(0)[0] > 5 * away.var(0)[-1]  # as images of one vary
    cosines = (y * there[:, None]).sum(2)
    assert cosines.min() >= 0.7 - 1e-5 and cosines.max() <= 0.9 + 1e-5


def test_contexts_may_vary_as_photographs_show() -> None:
    w, shown = id3.anchors(6, 16, 0, steps=20), torch.randn(6, 20, 16, generator=torch.Generator().manual_seed(1))
    y = around(w, 20, (0.6, 0.9), 3, shown=shown)
    cosines = (y * w[:, None]).sum(2)
    torch.testing.assert_close(cosines, (around(w, 20, (0.6, 0.9), 3) * w[:, None]).sum(2), **CLOSE)  # the same v_ij
    away = F.normalize(y - cosines[..., None] * w[:, None], dim=2)
    expected = F.normalize(shown - (shown * w[:, None]).sum(2, keepdim=True) * w[:, None], dim=2)
    torch.testing.assert_close(away, expected, **CLOSE)


@pytest.mark.parametrize("bounds", [(0.9, 0.7), (-2.0, 0.5), (0.5, 1.5)])
def test_cosines_that_are_none_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="bounds: expected cosines -1 <= lb <= ub <= 1"):
        around(torch.eye(3), 2, bounds, 0)


def test_attributes_follow_their_law() -> None:
    table = pd.DataFrame({"age": [20.0, 60.0], "yaw": [-10.0, 30.0], "roll": [0.0, 1.0]})
    drawn = id3.empirical(table, ("age", "yaw"), 500, 0)
    assert set(drawn) == {"age", "yaw"} and np.array_equal(drawn["age"] == 20, drawn["yaw"] == -10)
    assert 0.4 < (drawn["age"] == 20).mean() < 0.6
    poses = id3.pose_only({"yaw": 17.0, "pitch": 8.0}, 4000, 0, 0.5)
    assert set(poses) == {"yaw", "pitch"} and poses["yaw"].std() == pytest.approx(8.5, rel=0.05)


# ---------------------------------------------------------------------------------------------------- as a profile asks


@pytest.fixture(scope="module")
def model(smoke: Profile, smoke_store: Store) -> Model:
    return experiment.load(smoke, smoke_store)


def test_it_begins_where_idiff_face_ended(smoke: Profile, smoke_store: Store) -> None:
    from facetransport.companion.experiments import idiff_face

    begun = idiff_face.load(smoke, smoke_store, cpd=0.0)
    still = experiment.load(smoke, smoke_store, lr=1e-12, identity_weight=0.0)
    x, t, y = torch.randn(2, *begun.shape), torch.tensor([5, 9]), F.normalize(torch.randn(2, begun.context_dim), dim=1)
    context = torch.cat([y, torch.randn(2, 8)], dim=1)
    torch.testing.assert_close(still.denoiser(x, t, context), begun.denoiser(x, t, y), atol=1e-3, rtol=1e-3)


def test_networks_to_compare_with_have_keys_of_their_own(smoke: Profile) -> None:
    recipes = [
        experiment.recipe(smoke),
        experiment.recipe(smoke, identity_weight=0.0),
        experiment.recipe(smoke, sight="distilled"),
        experiment.recipe(smoke, begins="new"),
    ]
    assert len({r.key for r in recipes}) == 4
    assert experiment.recipe(smoke).key == experiment.recipe(smoke, identity_weight=smoke.id3.identity_weight).key


def test_both_sights_see_unit_vectors(smoke: Profile, smoke_store: Store, model: Model) -> None:
    codes = torch.randn(3, *model.shape, requires_grad=True)
    for sight in (experiment.load_sight(smoke, smoke_store), experiment.load_distilled(smoke, smoke_store)):
        seen = sight(codes)
        torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
        (slope,) = torch.autograd.grad(seen[:, 0].sum(), codes)
        assert slope.abs().sum() > 0


def test_an_adjusted_code_is_nearer_to_its_identity(smoke: Profile, smoke_store: Store, model: Model) -> None:
    """As the sight that adjusts sees it; the more, the larger the scale."""
    sight, y = experiment.load_sight(smoke, smoke_store), id3.anchors(6, model.context_dim, 0, steps=20)
    cosines = []
    for scale in (0.0, 1.0, 10.0):
        assert model.adjustment is not None
        adjusted = model.adjustment(model.denoiser, scale)
        codes = sample(adjusted, model.shape, y, "ddim", 10, range(6))
        cosines.append(float((sight(codes) * y).sum(1).mean()))
    assert cosines[0] < cosines[1] < cosines[2]


def test_generation_takes_attributes_and_the_adjustment_into_shards(model: Model, tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path)) / "set"
    y = around(id3.anchors(3, model.context_dim, 0, steps=20), 2, (0.7, 0.9), 0)
    told = attributes_of(model).encode({"age": [30, 40, 50, 60, 20, 25]}, 6).unflatten(0, (3, 2))
    how = {"solver": "ddim", "steps": 2, "attributes": told, "adjustment": 5.0}
    made = generate_into(folder, model, y, 2, 0, workers=1, **how)  # type: ignore[arg-type]
    direct = generate(model, y, 2, 0, **how)  # type: ignore[arg-type]
    assert made is not None and np.abs(made.images.astype(int) - direct.images).max() <= 1
    with pytest.raises(ValueError, match=r"begun with adjustment 5\.0, now 6\.0"):
        generate_into(folder, model, y, 2, 0, workers=1, **{**how, "adjustment": 6.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adjustment: this model has none"):
        generate(replace(model, adjustment=None), y, 2, 0, adjustment=1.0)


def test_the_published_network_has_two_tokens() -> None:
    from facetransport.diffusion.ldm import LDM, LDMConfig

    small = LDM(LDMConfig(2, 8, 32, (1, 1), 1, 3, 4, (6, 5), 7), SCHEDULE).eval()
    x, context = torch.randn(2, 2, 8, 8), torch.randn(2, 7)
    assert small.tokens(context, x).shape == (2, 2, 7)
    assert torch.equal(small(x, torch.tensor([1, 2]), None), small(x, torch.tensor([1, 2]), torch.zeros(2, 7)))
    assert torch.equal(
        small(x, torch.tensor([1, 2]), context[:, :3]),
        small(x, torch.tensor([1, 2]), torch.cat([context[:, :3], torch.zeros(2, 4)], 1)),
    )
    with pytest.raises(ValueError, match="expected \\(B, 3\\) or \\(B, 7\\)"):
        small.tokens(torch.zeros(2, 5), x)
    with torch.device("meta"):
        whole = id3.published()
    shapes = [tuple(layer.weight.shape) for layer in whole.projections[0] if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 512), (256, 512), (768, 256)]


def test_noised_batches_know_their_error() -> None:
    z = torch.zeros(2, 1, 1, 2)
    drawn = Noised(z, z + 1, z, torch.tensor([0, 1]), torch.tensor([0.9, 0.5]), None)
    torch.testing.assert_close(drawn.error(z), torch.ones(2))


def test_conditions_are_dropped_apart(data: tuple[Tensor, Tensor, Linear]) -> None:
    dropping = partial(drop_apart, dim=3, embedding=0.0, together=1.0, each=0.0)
    kept = dropping(data[1], torch.Generator().manual_seed(0))
    assert torch.equal(kept[:, :3], data[1][:, :3]) and not kept[:, 3:].any()


# ------------------------------------------------------------------------------------------------ sets, as profiles ask


def test_sets_differ_by_what_is_asked(smoke: Profile) -> None:
    changes = [{}, {"anchors": "random"}, {"attributes": False}, {"adjustment": 0.0}, {"bounds": (0.5, 0.7)}]
    keys = {experiment.set_recipe(smoke, **change).key for change in changes}  # type: ignore[arg-type]
    assert len(keys) == len(changes)
    assert experiment.set_recipe(smoke, 3).key != experiment.set_recipe(smoke, 4).key


def test_a_set_is_people_around_their_anchors(smoke: Profile, smoke_store: Store) -> None:
    from facetransport.data.faceset import FaceSet

    faces = FaceSet.load(smoke_store.get(experiment.set_recipe(smoke, 3, 2)))
    assert len(faces) == 6 and faces.identity.tolist() == [0, 0, 1, 1, 2, 2]


def test_authentic_people_are_drawn_again_image_by_image(smoke: Profile, smoke_store: Store) -> None:
    from facetransport.companion.experiments import autoencoder, redrawn, roles
    from facetransport.data.faceset import FaceSet, to_tensor

    authentic = roles.load(smoke, "authentic", smoke_store)
    sets = [FaceSet.load(smoke_store.get(make(smoke))) for make in (redrawn.decoded_recipe, redrawn.redrawn_recipe)]
    for faces in sets:
        assert faces.identity.tolist() == authentic.identity.tolist()
        assert faces.images.shape == authentic.images.shape and not np.array_equal(faces.images, authentic.images)
    code = autoencoder.load_autoencoder(smoke, smoke_store)
    once = code.decode(code.encode(authentic.tensor(slice(0, 2))))
    torch.testing.assert_close(to_tensor(sets[0].images[:2]), once.clamp(-1, 1), atol=0.02, rtol=0)
    other = replace(smoke, id3_set=replace(smoke.id3_set, steps=3))
    assert redrawn.redrawn_recipe(other).key != redrawn.redrawn_recipe(smoke).key


@pytest.mark.parametrize("where", ["sphere", "people", "plda"])
def test_contexts_stand_where_they_are_asked(smoke: Profile, smoke_store: Store, model: Model, where: str) -> None:
    from facetransport.companion.experiments import idiff_face

    like, table = idiff_face.load_plda(smoke, smoke_store), pd.DataFrame({n: [0.0, 1.0] for n in id3.ATTRIBUTES})
    section = replace(smoke.id3_set, where=where)
    y, told = experiment.conditions(section, like, table, attributes_of(model), 4, 3, 0)
    assert y.shape == (4, 3, model.context_dim) and told is not None and told.shape == (4, 3, 8)
    anchor = id3.anchors(4, model.context_dim, 0, experiment.spread_of(where, like))
    cosines = (y * anchor[:, None]).sum(2)
    assert cosines.min() >= section.bounds[0] - 1e-4 and cosines.max() <= section.bounds[1] + 1e-4
    shown = torch.randn(2, model.context_dim, generator=torch.Generator().manual_seed(0))
    varied, same = experiment.conditions(section, like, table, attributes_of(model), 4, 3, 0, shown)
    assert same is not None and torch.equal(same, told)  # one photograph gives an image both
    rows = id3.drawn_rows(2, 12, 0)
    torch.testing.assert_close(
        attributes_of(model).encode({n: rows * 1.0 for n in id3.ATTRIBUTES}, 12), told.flatten(0, 1)
    )
    away = F.normalize(varied - (varied * anchor[:, None]).sum(2, keepdim=True) * anchor[:, None], dim=2)
    examples = shown[rows].unflatten(0, (4, 3))
    examples = F.normalize(examples - (examples * anchor[:, None]).sum(2, keepdim=True) * anchor[:, None], dim=2)
    torch.testing.assert_close(away, examples, **CLOSE)
    untold = experiment.conditions(replace(section, attributes=False), like, table, attributes_of(model), 4, 3, 0)
    assert untold[1] is None and torch.equal(untold[0], y)


def test_how_far_apart_points_can_be_is_kept_with_what_it_took(smoke: Profile, smoke_store: Store) -> None:
    found = experiment.load_tammes(smoke, smoke_store)
    assert [f["n"] for f in found] == list(smoke.tammes.sizes)
    assert all(f["max_cosine"] < f["random"] and f["peak_memory"] > 10 and f["seconds"] > 0 for f in found)
