"""Texts become statements: by a network that is trained to, by a rule, and as they are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface, diface_study, words
from facetransport.companion.profiles import Profile
from facetransport.diffusion import statements
from facetransport.diffusion.statements import (
    ClauseReader,
    NetworkReader,
    Reading,
    StatementReader,
    ThesaurusReader,
    statement_loss,
)
from facetransport.diffusion.text import TextEncoder
from facetransport.evaluation.described import text_encoder, understanding
from facetransport.tensors import seeded
from facetransport.training import TrainingConfig, train
from facetransport.world import grammar, thesaurus
from facetransport.world.captions import ABSENT, PRESENT, UNSAID

NAMES = ("Male", "Eyeglasses", "Bald")


class Letters:
    """Words whose states are the letters of the alphabet that are in them; texts as `TextEncoder` gives them."""

    def layered_states(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        pieces = [text.lower().split() for text in texts]
        longest = max(map(len, pieces))
        states = torch.zeros(len(texts), longest, TextEncoder.dim * 3)
        for i, text in enumerate(pieces):
            for j, word in enumerate(text):
                for k, letter in enumerate(word):
                    states[i, j, (ord(letter) * 7 + k * 31) % states.shape[2]] += 4
        return states, torch.tensor([[j < len(text) for j in range(longest)] for text in pieces])


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return text_encoder()


def test_padding_and_company_change_nothing() -> None:
    network, texts = StatementReader(3, 16, 1), ["a bald man", "a man with glasses and no hair on his head", "glasses"]
    reader = NetworkReader(network.eval(), Letters(), NAMES)  # type: ignore[arg-type]
    together = reader.read(texts)
    for i, text in enumerate(texts):
        alone = reader.read([text])
        np.testing.assert_allclose(alone.confidence[0], together.confidence[i], atol=1e-5)
        assert np.array_equal(alone.said[0], together.said[i])
    assert together.said.dtype == np.int8 and together.said.shape == together.confidence.shape == (3, 3)
    assert (together.confidence >= 1 / 3).all() and (together.confidence <= 1).all()


def test_texts_come_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = NetworkReader(StatementReader(3, 16, 1).eval(), Letters(), NAMES)  # type: ignore[arg-type]
    texts = [" ".join(["man", "bald", "eyes"][: n % 3 + 1] * (n + 1)) for n in (5, 0, 9, 2, 7)]
    whole = reader.read(texts)
    monkeypatch.setattr(statements, "TOGETHER", 2)
    np.testing.assert_allclose(reader.read(texts).confidence, whole.confidence, atol=1e-5)


def test_the_network_learns_what_texts_say() -> None:
    """On letters instead of MiniLM's states: a few seconds, and most of what is said of three things is understood."""
    attributes = np.random.default_rng(0).random((500, 3)) < 0.5
    with seeded(0):
        network = StatementReader(3, 32, 1)
    config = TrainingConfig(400, 32, 3e-3, seed=0, ema=0.9, warmup=10, decay="cosine")
    *_, state = train(network, statement_loss(attributes, NAMES, Letters()), 500, config)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    said = rng.choice([UNSAID, ABSENT, PRESENT], (200, 3)).astype(np.int8)
    texts = grammar.describe(said, NAMES, rng)
    read = NetworkReader(state.ema, Letters(), NAMES).read(texts)  # type: ignore[arg-type]
    assert (read.said == said).mean() > 0.7 > (said == UNSAID).mean() + 0.3


def test_every_step_reads_new_texts_much_and_little(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        statements.grammar, "describe", lambda said, *rest: told.append((said, rest[-1])) or ["bald"] * 64
    )
    loss = statement_loss(np.ones((64, 3), bool), NAMES, Letters())  # type: ignore[arg-type]
    for seed in range(60):
        loss(StatementReader(3, 16, 1), torch.arange(64), torch.Generator().manual_seed(seed), 0)
    said = np.concatenate([s for s, _ in told])
    assert not np.array_equal(told[0][0], told[1][0])
    assert {"typos", "training"} == {words for _, words in told}
    mentioned = (said != UNSAID).mean(1)
    assert mentioned.min() == 0 and mentioned.max() == 1
    assert (said == ABSENT).any() and (said == PRESENT).sum() > 2 * (said == ABSENT).sum()


class Known:
    """Reads a few words; how sure it is of them can be set."""

    names = NAMES
    means = {
        "man": (0, PRESENT),
        "male": (0, PRESENT),
        "glasses": (1, PRESENT),
        "spectacles": (1, PRESENT),
        "eyeglasses": (1, PRESENT),
    }

    def __init__(self, words: TextEncoder, sure: float = 0.9) -> None:
        self.words, self.sure, self.seen = words, sure, list[str]()

    def read(self, texts: list[str]) -> Reading:
        self.seen += texts
        said = np.full((len(texts), 3), UNSAID, np.int8)
        for row, text in enumerate(texts):
            for word, (attribute, value) in self.means.items():
                if word in grammar.words_of(text):
                    said[row, attribute] = value
        stated = self.sure * (said[..., None] == (ABSENT, PRESENT)).astype(np.float32)
        return Reading(said, np.where(said == UNSAID, 1, self.sure).astype(np.float32), stated)


def test_words_that_training_does_not_hold_are_looked_up(encoder: TextEncoder) -> None:
    assert not {"dude", "specs"} & grammar.vocabulary()
    known = Known(encoder)
    read = ThesaurusReader(known).read(["A Dude, with specs", "a man", "a qwxz"])  # type: ignore[arg-type]
    assert read.said.tolist() == [[PRESENT, PRESENT, UNSAID], [PRESENT, UNSAID, UNSAID], [UNSAID] * 3]
    dude = read.taken[0]["dude"]
    assert dude in thesaurus.neighbours("dude") and read.taken[0]["specs"] in thesaurus.neighbours("specs")
    assert not read.taken[1] and known.seen[-1] == f"A {dude}, with {read.taken[0]['specs']}"
    np.testing.assert_allclose(read.confidence[0], [0.9, 0.9, 1])


def test_only_words_that_matter_are_looked_up(encoder: TextEncoder) -> None:
    """ "sporting" has neighbours, but the clause says the same without it."""
    assert thesaurus.neighbours("sporting") and thesaurus.neighbours("dude")
    read = ThesaurusReader(Known(encoder)).read(["sporting glasses", "sporting", "glasses, a dude"])  # type: ignore[arg-type]
    assert [set(taken) for taken in read.taken] == [set(), {"sporting"}, {"dude"}]


def test_a_word_gives_way_in_a_rare_meaning_only_where_its_clause_stays_alike(encoder: TextEncoder) -> None:
    """A tile may be a man, on a board; a dude usually is one."""
    assert thesaurus.neighbours("tile") and not any(thesaurus.neighbours("tile").values())
    read = ThesaurusReader(Known(encoder)).read(["glasses, with a tile", "a tile", "a dude"])  # type: ignore[arg-type]
    assert [set(taken) for taken in read.taken] == [set(), set(), {"dude"}]


def test_what_a_looked_up_word_says_must_be_sure(encoder: TextEncoder) -> None:
    doubtful = ThesaurusReader(Known(encoder, sure=0.6)).read(["a dude with glasses"])  # type: ignore[arg-type]
    assert doubtful.said.tolist() == [[UNSAID, PRESENT, UNSAID]]  # the glasses stand there


def test_what_stands_there_counts_before_what_is_looked_up(encoder: TextEncoder) -> None:
    class Contrary(Known):
        def read(self, texts: list[str]) -> Reading:
            found = super().read(texts)
            found.said[["dude" in text for text in texts], 0] = ABSENT
            return found

    assert ThesaurusReader(Contrary(encoder)).read(["a dude"]).said[0, 0] == ABSENT  # type: ignore[arg-type]


def _thesauri(monkeypatch: pytest.MonkeyPatch, wordnet: list[str], moby: list[str]) -> None:
    """Which know one word, zib."""
    for name, others in (("neighbours", wordnet), ("associates", moby)):
        table = {"zib": dict.fromkeys(others, True)}
        monkeypatch.setattr(thesaurus, name, lambda word, table=table: table.get(word, {}))


@pytest.mark.parametrize(
    ("wordnet", "moby", "probable"), [(["man"], ["man"], 0.6), (["man"], ["tree"], 0.3), ([], ["man"], 0.3)]
)
def test_the_text_and_both_thesauri_count_alike(
    wordnet: list[str], moby: list[str], probable: float, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands the text says nothing of a zib. What Moby alone suggests is not said for certain."""
    _thesauri(monkeypatch, wordnet, moby)
    read = ThesaurusReader(Known(encoder)).read(["a zib with glasses", "a man"])  # type: ignore[arg-type]
    np.testing.assert_allclose(read.stated[:, :, 1], [[probable, 0.9, 0], [0.9, 0, 0]], rtol=1e-6)
    assert not read.stated[:, :, 0].any()
    assert read.said[0].tolist() == [PRESENT if wordnet else UNSAID, PRESENT, UNSAID]
    assert read.taken == ({"zib": "man"} if wordnet else {}, {})


def test_the_neighbour_that_says_most_takes_the_place(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where saying nothing costs nothing, the one that changes the clause least does."""
    _thesauri(monkeypatch, ["zibs", "spectacles"], [])
    for telling, other in ((0.0, "zibs"), (5.0, "spectacles")):
        monkeypatch.setattr(statements, "TELLING", telling)
        assert ThesaurusReader(Known(encoder)).read(["a zib"]).taken == ({"zib": other},)  # type: ignore[arg-type]


def test_words_looked_up_in_parts_are_looked_up_alike(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a dude with specs", "a granny, sporting", "a chap with a tile"]
    whole = ThesaurusReader(Known(encoder)).read(texts)  # type: ignore[arg-type]
    monkeypatch.setattr(statements, "PAIRS", 1)
    parts = ThesaurusReader(Known(encoder)).read(texts)  # type: ignore[arg-type]
    assert parts.taken == whole.taken and any(whole.taken) and np.array_equal(parts.stated, whole.stated)


def test_the_network_says_how_probable_each_statement_is() -> None:
    torch.manual_seed(0)
    reader = NetworkReader(StatementReader(3, 16, 1).eval(), Letters(), NAMES)  # type: ignore[arg-type]
    read = reader.read(["ab", "a", "cab"])
    unsaid = 1 - read.stated.sum(2, keepdims=True)
    every = np.concatenate([unsaid, read.stated], 2)
    assert read.stated.dtype == np.float32 and np.array_equal(every.argmax(2) - 1, read.said)
    np.testing.assert_allclose(every.max(2), read.confidence, atol=1e-6)


def test_the_rule_takes_the_nearest_phrase(encoder: TextEncoder) -> None:
    reader = replace(ClauseReader.of(NAMES, encoder), enough=0.7)
    read = reader.read(["A man: no glasses, bald.", "somebody with spectacles", "a purple hat and a horse"])
    assert read.said.tolist() == [[PRESENT, ABSENT, PRESENT], [UNSAID, PRESENT, UNSAID], [UNSAID] * 3]
    assert (read.confidence[0] > 0.7).all() and (read.confidence[2] == 1).all()
    assert read.stated[0].tolist() == [[0, 1], [1, 0], [0, 1]] and not read.stated[2].any()
    assert (replace(reader, enough=1.01).read(["A man: bald"]).said == UNSAID).all()


@pytest.mark.parametrize("texts", ["a man", [], [" "]])
def test_what_is_no_list_of_texts_is_refused(encoder: TextEncoder, texts: Any) -> None:
    for reader in (ClauseReader.of(NAMES, encoder), NetworkReader(StatementReader(3, 16, 1).eval(), encoder, NAMES)):
        with pytest.raises(ValueError, match="description"):
            reader.read(texts)


def test_understanding_by_hand() -> None:
    said = np.array([[1, 0, -1], [1, -1, -1], [-1, -1, 0], [0, 0, 0]])
    read = np.array([[1, 1, -1], [-1, -1, 1], [-1, -1, 0], [0, 0, 0]])
    found = understanding(said, read, np.array([3, 3, 5, 9]), resamples=50)
    assert found["recall"].value == pytest.approx(5 / 7) and found["precision"].value == pytest.approx(5 / 7)
    assert found["f1"].value == pytest.approx(5 / 7) and found["f1"].low < 5 / 7 < found["f1"].high
    more = understanding(said, np.where(read < 0, 1, read), np.array([3, 3, 5, 9]), resamples=50)
    assert more["recall"].value == pytest.approx(6 / 7) and more["precision"].value == pytest.approx(6 / 12)
    assert more["f1"].value == pytest.approx(2 * 6 / 19)


# --------------------------------------------------------------------------------------------------- the smoke profile


@pytest.mark.parametrize("how", words.READERS)
def test_readings_are_what_the_reader_makes_of_the_texts(smoke: Profile, smoke_store: Store, how: Any) -> None:
    kept = words.load_readings(smoke, smoke_store, "held_out_words", how)
    reader, faces = words.load_reader(smoke, smoke_store, how), diface.load_faces(smoke, smoke_store, "gallery")
    said = diface_study.told(faces, diface.describer_of(smoke.diface), 1)[0]
    assert reader.names == faces.names
    read = reader.read(words.texts_of(said, faces.names, "held_out_words", 0))
    fresh = read.said
    np.testing.assert_array_equal(kept["gallery"][0].said, fresh)
    np.testing.assert_allclose(kept["gallery"][0].stated, read.stated, atol=words.DOUBT)
    assert np.abs(kept["gallery"][0].stated - read.stated).mean() < 0.004
    sets = smoke.evaluation.pair_sets if how == words.READERS[0] else 1
    assert len(kept["gallery"]) == sets and ("val" in kept) == (how != "clauses")
    assert how != "clauses" or {UNSAID, ABSENT, PRESENT} == set(np.unique(fresh))


def test_a_reader_is_what_its_section_and_the_grammar_make_it(smoke: Profile) -> None:
    key = words.reader_recipe(smoke).key
    for name, value in {"width": 16, "depth": 2, "steps": 5, "batch": 4, "lr": 2e-3, "seed": 1}.items():
        assert words.reader_recipe(replace(smoke, words=replace(smoke.words, **{name: value}))).key != key
    assert words.reader_recipe(replace(smoke, words=replace(smoke.words, search="maps"))).key == key
    keys = {words.readings_recipe(smoke, kind, how).key for kind in grammar.KINDS for how in words.READERS}
    assert len(keys) == 12
