"""Words set aside: which, what is left, and the weights that are fitted."""

from __future__ import annotations

import random
import tomllib
from typing import Any

import numpy as np
import pytest
import torch

from facetransport.companion.experiments import words_aside
from facetransport.companion.experiments.words_aside import Read
from facetransport.diffusion.statements import pooled, pooled_anew
from facetransport.world import grammar


@pytest.fixture(scope="module")
def parted() -> dict[str, Any]:
    return words_aside.set_aside(grammar.lexicon(), 11)


def _texts(told: Any) -> list[str]:
    if isinstance(told, str):
        return [told]
    return [text for each in (told.values() if isinstance(told, dict) else told) for text in _texts(each)]


def test_words_set_aside_are_in_no_phrase_that_is_left(parted: dict[str, Any]) -> None:
    """But where nothing else would be; nothing is lost, and what was held out before is nowhere."""
    lexicon = grammar.lexicon()
    aside = words_aside._chosen(list(words_aside._phrases(lexicon)), random.Random(11))
    assert 200 < len(aside) < 1000 and not aside & words_aside.USUAL
    for name, sides in parted["attributes"].items():
        before = set(_texts(lexicon["attributes"][name].get("held", {})))
        for side in ("present", "absent"):
            for slot, phrases in lexicon["attributes"][name].get(side, {}).items():
                left, held = sides[side][slot], sides["held"].get(side, {}).get(slot, [])
                assert bool(left) == bool(phrases) and {*left, *held} == set(phrases) and not {*left, *held} & before
                assert all(
                    bool(aside & set(grammar.words_of(phrase))) == (phrase in held) for phrase in phrases if held
                )


def test_another_seed_sets_other_words_aside(parted: dict[str, Any]) -> None:
    assert words_aside.set_aside(grammar.lexicon(), 11) == parted
    assert words_aside.set_aside(grammar.lexicon(), 12) != parted


def test_a_lexicon_is_written_as_it_is(parted: dict[str, Any]) -> None:
    assert tomllib.loads(words_aside.as_toml(parted)) == parted


@pytest.fixture(scope="module")
def read() -> Read:
    """Texts that are said with known weights: the first network knows nothing, the second's first version all."""
    rng = np.random.default_rng(0)
    probable = torch.from_numpy(rng.dirichlet([0.5] * 3, (2, 3, 600, 8))).float()
    weights, added = torch.tensor([[0.0, 0.1, 0.2], [0.7, 0.3, 0.0]]), torch.tensor([-0.3, -0.2, 0.5])
    said = torch.distributions.Categorical(logits=pooled_anew(probable, weights, added))
    torch.manual_seed(0)
    return Read(said.sample(), probable, torch.ones(600, 8, dtype=torch.bool))


def test_weights_are_found(read: Read) -> None:
    weights, added = words_aside.fitted(read)
    np.testing.assert_allclose(weights, [[0.0, 0.1, 0.2], [0.7, 0.3, 0.0]], atol=0.07)
    np.testing.assert_allclose(added - added.mean(), [-0.3, -0.2, 0.5], atol=0.15)


def test_only_what_new_words_say_is_fitted_and_read_by_other_weights(read: Read) -> None:
    new = torch.arange(8) < 4
    part = read._replace(new=new.expand(600, 8), said=torch.where(new, read.said, 0))
    found = words_aside.left_out(part, 0)
    torch.testing.assert_close(found[:, ~new], pooled(read.probable)[:, ~new])
    before = pooled(read.probable)
    now, then = (words_aside.log_loss(probable[:, new], read.said[:, new]) for probable in (found, before))
    assert now.high < then.low
    np.testing.assert_allclose(words_aside.fitted(part)[0], words_aside.fitted(read)[0], atol=0.1)


def test_log_loss_by_hand() -> None:
    found = torch.tensor([[[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]], [[0.2, 0.6, 0.2], [0.0, 1.0, 0.0]]])
    nats = words_aside.log_loss(found, torch.tensor([[0, 2], [0, 2]]))
    assert nats.value == pytest.approx(-np.log(0.8 * 0.7 * 0.2 * 0.01) / 2, abs=1e-5)
    assert (nats.low, nats.high) == pytest.approx((-np.log(0.8 * 0.7), -np.log(0.2 * 0.01)), abs=1e-5)
