"""Networks for described vectors: statements are a set, padding and None say nothing, parametrisation, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.sampling import predicted_x0, sample
from facetransport.diffusion.schedule import SOLVERS, Schedule, add_noise
from facetransport.diffusion.vectors import (
    Described,
    MultiLayer,
    ResidualBlock,
    TokenSum,
    VectorConfig,
    VectorDenoiser,
)

KINDS = ["mlp", "unet"]
CONFIG = {"dim": 32, "token_dim": 6, "width": 32, "depth": 1, "schedule": Schedule(50)}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def randomised(network: nn.Module, std: float = 0.1) -> nn.Module:
    """With weights of no structure: layers that start at zero would hide the rest."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network.eval()


@pytest.fixture(params=KINDS)
def denoiser(request: pytest.FixtureRequest) -> VectorDenoiser:
    return randomised(VectorDenoiser(VectorConfig(request.param, **CONFIG)))


def inputs(n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, timesteps and descriptions of 4, 1 and (of row 2) no statements."""
    tokens = torch.randn(n, 4, 6)
    tokens[1, 1:] = 0
    tokens[2] = 0
    return torch.randn(n, 32), torch.linspace(0, 49, n).long(), tokens


# -------------------------------------------------------------------------------------------------------- denoisers


def test_noise_prediction_depends_on_vector_time_and_description(denoiser: VectorDenoiser) -> None:
    z, t, tokens = inputs()
    eps = denoiser(z, t, tokens)
    assert eps.shape == z.shape and eps.dtype == torch.float32
    for changed in (denoiser(z.roll(1, 0), t, tokens), denoiser(z, t.roll(1), tokens), denoiser(z, t, tokens.roll(1))):
        assert not torch.allclose(eps, changed, atol=1e-3)


def test_a_description_is_a_set_and_padding_says_nothing(denoiser: VectorDenoiser) -> None:
    z, t, tokens = inputs()
    shuffled = F.pad(tokens[:, [2, 0, 3, 1]], (0, 0, 2, 3))
    torch.testing.assert_close(denoiser(z, t, shuffled), denoiser(z, t, tokens), **CLOSE)


@pytest.mark.parametrize("length", [1, 5])
def test_rows_of_zeros_and_none_are_the_same_null_description(denoiser: VectorDenoiser, length: int) -> None:
    z, t, tokens = inputs()
    null = denoiser(z, t, None)
    torch.testing.assert_close(denoiser(z, t, torch.zeros(8, length, 6)), null, **CLOSE)
    torch.testing.assert_close(denoiser(z, t, tokens)[2], null[2], **CLOSE)
    assert not torch.allclose(denoiser(z, t, tokens)[1], null[1], atol=1e-3)


def test_a_prompt_stands_for_its_tokens(denoiser: VectorDenoiser) -> None:
    z, t, tokens = inputs()
    torch.testing.assert_close(denoiser(z, t, denoiser.prompt(tokens)), denoiser(z, t, tokens), **CLOSE)


def test_a_new_mlp_predicts_v_zero() -> None:
    """v = 0 means eps = sqrt(1 - abar) z: the output layer starts at zero."""
    network, (z, t, tokens) = VectorDenoiser(VectorConfig("mlp", **CONFIG)), inputs()
    nn.init.zeros_(network.body.out.bias)
    expected = (1 - Schedule(50).alphas_cumprod[t]).sqrt()[:, None] * z
    torch.testing.assert_close(network(z, t, tokens), expected)


def test_vectors_that_share_a_description_are_taken_together(denoiser: VectorDenoiser) -> None:
    z, t, tokens = inputs()
    several = torch.stack([z, -z, 2 * z], 1)
    for told in (tokens, None):
        each = [denoiser(several[:, k], t, told) for k in range(3)]
        torch.testing.assert_close(denoiser(several, t, told), torch.stack(each, 1), **CLOSE)


def test_it_computes_v(denoiser: VectorDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that knows v = sqrt(abar) eps - sqrt(1 - abar) z_0 makes a denoiser that knows eps, and so z_0."""
    z0, noise, abar = torch.randn(8, 32), torch.randn(8, 32), Schedule(50).alphas_cumprod[30]
    known = abar.sqrt() * noise - (1 - abar).sqrt() * z0
    monkeypatch.setattr(denoiser.body, "forward", lambda z, t, tokens: known)
    zt, t = add_noise(z0, noise, abar.expand(8)), torch.full((8,), 30)
    torch.testing.assert_close(denoiser(zt, t), noise, **CLOSE)
    monkeypatch.setattr(denoiser, "micro_batch", 8)
    torch.testing.assert_close(predicted_x0(denoiser, zt, 30, None), z0, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    """After the first steps, which leave what starts at zero, no parameter is without a gradient."""
    torch.manual_seed(0)
    network, (z, t, tokens) = VectorDenoiser(VectorConfig(kind, **CONFIG)), inputs()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        (network(z, t, tokens) - z.flip(0)).square().mean().backward()
        optimizer.step()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_equals_singles_bit_for_bit(denoiser: VectorDenoiser, solver: str) -> None:
    tokens = inputs()[2]
    batch = sample(denoiser, (32,), tokens, solver, 3, range(8), micro_batch=16)
    singles = [sample(denoiser, (32,), tokens[i : i + 1], solver, 3, [i], micro_batch=16) for i in range(8)]
    assert batch.shape == (8, 32) and torch.equal(batch, torch.cat(singles))
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("unet", {"dim": 36}, r"unet: expected dim and width multiples of 32, got 36, 32"),
        ("unet", {"width": 48}, r"unet: expected dim and width multiples of 32, got 32, 48"),
        ("transformer", {}, "kind: expected one of mlp, unet, got 'transformer'"),
    ],
)
def test_impossible_networks_are_refused(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorConfig(kind, **CONFIG | changes)
    assert VectorConfig("mlp", **CONFIG | {"dim": 18, "width": 48}).dim == 18  # the MLP takes any


# ------------------------------------------------------------------------------------------------------------ parts


def test_statements_add_their_evidence() -> None:
    """f(A and B) - f() = (f(A) - f()) + (f(B) - f()), as log-likelihood ratios of independent statements do."""
    words, tokens = randomised(TokenSum(6, 10), 0.5), torch.randn(5, 7, 6)
    nothing = words(None, tokens)
    assert torch.equal(nothing, words.total.bias.expand(5, -1))
    first, rest, both = (words(part, part) - nothing for part in (tokens[:, :3], tokens[:, 3:], tokens))
    torch.testing.assert_close(both, first + rest, **CLOSE)
    assert first.std() > 0.1


def test_what_may_have_been_said_counts_as_much_as_it_is_probable() -> None:
    """The mean over eight readings, each with its probability, of three statements that are made or not."""
    words, each = randomised(TokenSum(6, 10), 0.5), torch.randn(3, 1, 6)
    probable, made = torch.tensor([0.2, 0.5, 1.0]), torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    weight = torch.where(made > 0, probable, 1 - probable).prod(1)
    sums = words(tokens := made[:, :, None] * each[:, 0], tokens)
    torch.testing.assert_close(words.expected(each, probable[None])[0], weight @ sums, **CLOSE)
    network = randomised(Described(6, 3, 12, 2))
    torch.testing.assert_close(network(network.words(tokens, tokens)), network(tokens), **CLOSE)


def test_vectors_from_descriptions_do_not_depend_on_order_and_padding() -> None:
    network, (_, _, tokens) = randomised(Described(6, 3, 12, 2)), inputs()
    out = network(tokens)
    assert out.shape == (8, 3) and out[:2].diff(dim=0).abs().min() > 1e-3
    torch.testing.assert_close(network(F.pad(tokens.flip(1), (0, 0, 1, 2))), out, **CLOSE)


def test_a_new_residual_block_moves_everything_alike() -> None:
    h, new = torch.randn(5, 8), ResidualBlock(8)
    torch.testing.assert_close(new(h), h + new.lin2.bias)
    assert randomised(ResidualBlock(8))(h).sub(h).std(0).min() > 1e-5


def test_dropout_of_the_layers_acts_in_training_only() -> None:
    network, x = MultiLayer(4, 32, 3, dropout=0.5).eval(), torch.randn(6, 4)
    assert network(x).shape == (6, 3) and torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))
    sure = MultiLayer(4, 32, 3).train()
    assert torch.equal(sure(x), sure(x))
