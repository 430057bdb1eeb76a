"""Texts become statements: by a network that is trained to, by a rule, and as they are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface, diface_study, words
from facetransport.companion.profiles import Profile
from facetransport.diffusion import statements
from facetransport.diffusion.clausewise import ClauseNetwork, ClausewiseReader, any_of, clausewise_loss
from facetransport.diffusion.statements import (
    ClauseReader,
    DoubleReader,
    NetworkReader,
    StatementReader,
    ThesaurusReader,
    Versions,
    statement_loss,
    training_texts,
)
from facetransport.diffusion.text import TextEncoder, minilm_folder
from facetransport.evaluation.described import text_encoder, understanding
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig, train
from facetransport.world import grammar, thesaurus
from facetransport.world.captions import ABSENT, PRESENT, UNSAID
from test_text import write_bert

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
    """Both of a `DoubleReader`'s networks: reads a few words; how sure it is of them can be set."""

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

    def probable(self, texts: list[str]) -> torch.Tensor:
        self.seen += texts
        found = torch.tensor([1.0, 0, 0]).repeat(len(texts), 3, 1)
        for row, text in enumerate(texts):
            for word, (attribute, value) in self.means.items():
                if word in grammar.words_of(text):
                    found[row, attribute] = torch.tensor([1 - self.sure, 0, 0])
                    found[row, attribute, value + 1] = self.sure
        return found

    def states(self, texts: list[str]) -> torch.Tensor:
        self.told = list(texts)
        return self.words.sentence_states(texts)

    def of_clauses(self, states: torch.Tensor) -> np.ndarray:
        return self.probable(self.told)[..., 1:].numpy()


def looks_up(known: Known) -> ThesaurusReader:
    return ThesaurusReader(DoubleReader(known, known))  # type: ignore[arg-type]


def test_words_that_training_does_not_hold_are_looked_up(encoder: TextEncoder) -> None:
    assert not {"dude", "specs"} & grammar.vocabulary()
    known = Known(encoder)
    read = looks_up(known).read(["A Dude, with specs", "a man", "a qwxz"])
    assert read.said[1:].tolist() == [[PRESENT, UNSAID, UNSAID], [UNSAID] * 3]
    assert (read.stated[0, :, 1] > 0.1).tolist() == [True, True, False]  # though both are certain that it says nothing
    dude = read.taken[0]["dude"]
    assert dude in thesaurus.neighbours("dude") and read.taken[0]["specs"] in thesaurus.neighbours("specs")
    assert not read.taken[1] and f"A {dude}, with {read.taken[0]['specs']}" in known.seen
    np.testing.assert_allclose(read.confidence[1], [0.9, 1, 1], atol=2e-3)


def test_only_words_that_matter_are_looked_up(encoder: TextEncoder) -> None:
    """ "sporting" has neighbours, but the clause says the same without it."""
    assert thesaurus.neighbours("sporting") and thesaurus.neighbours("dude")
    read = looks_up(Known(encoder)).read(["sporting glasses", "sporting", "glasses, a dude"])
    assert [set(taken) for taken in read.taken] == [set(), {"sporting"}, {"dude"}]


def test_a_word_gives_way_in_a_rare_meaning_only_where_its_clause_stays_alike(encoder: TextEncoder) -> None:
    """A tile may be a man, on a board; a dude usually is one."""
    assert thesaurus.neighbours("tile") and not any(thesaurus.neighbours("tile").values())
    read = looks_up(Known(encoder)).read(["glasses, with a tile", "a tile", "a dude"])
    assert [set(taken) for taken in read.taken] == [set(), set(), {"dude"}]


def _thesauri(monkeypatch: pytest.MonkeyPatch, wordnet: list[str], moby: list[str]) -> None:
    """Which know one word, zib."""
    for name, others in (("neighbours", wordnet), ("associates", moby)):
        table = {"zib": dict.fromkeys(others, True)}
        monkeypatch.setattr(thesaurus, name, lambda word, table=table: table.get(word, {}))


@pytest.mark.parametrize(("wordnet", "moby"), [(["man"], ["man"]), (["man"], ["tree"]), ([], ["man"]), ([], [])])
def test_the_text_and_both_thesauri_count_as_they_are_weighted(
    wordnet: list[str], moby: list[str], encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands the text says nothing of a zib: by hand, from the odds of 0.9 and of next to nothing. What the new
    word cannot say is pooled as ever."""
    _thesauri(monkeypatch, wordnet, moby)
    read = looks_up(Known(encoder)).read(["a zib with glasses", "a man"])
    weights = np.sum(statements.NEW_WORDS, 0)
    hinted = "man" in wordnet + moby
    says = np.array([False, "man" in wordnet, "man" in moby])
    logs = np.where(says, np.log([[0.1], [1e-3], [0.9]]), np.log([[1], [1e-3], [1e-3]])) @ weights
    odds = np.exp(logs + statements.NEW_SAID) if hinted else np.array([1, 1e-3, 1e-3])
    stated = odds[1:] / odds.sum()
    np.testing.assert_allclose(read.stated[0, 0], stated, atol=1e-4)
    np.testing.assert_allclose(read.stated[1, :, 1], [0.9, 0, 0], atol=2e-3)
    assert (read.stated[:, 1, 1] > 0.85).tolist() == [True, False]
    assert read.said[0].tolist() == [PRESENT if stated[1] > 0.5 else UNSAID, PRESENT, UNSAID]
    assert read.taken == ({"zib": "man"} if wordnet else {}, {})


def test_only_what_a_new_word_may_say_is_weighted_anew(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clause with the word hints at what it says; the other clauses' statements are read as without it."""
    _thesauri(monkeypatch, ["spectacles"], ["spectacles"])
    reader = looks_up(Known(encoder))
    known = reader.read(["a man, a tree", "a man"]).stated
    read = reader.read(["a man, a zib", "a man"]).stated
    np.testing.assert_array_equal(read[:, 0], known[:, 0])
    assert read[0, 1, 1] > 0.1 > known[0, 1, 1]


def test_the_neighbour_that_says_most_takes_the_place(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where saying nothing costs nothing, the one that changes the clause least does."""
    _thesauri(monkeypatch, ["zibs", "spectacles"], [])
    for telling, other in ((0.0, "zibs"), (5.0, "spectacles")):
        monkeypatch.setattr(statements, "TELLING", telling)
        assert looks_up(Known(encoder)).read(["a zib"]).taken == ({"zib": other},)


def test_words_looked_up_in_parts_are_looked_up_alike(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a dude with specs", "a granny, sporting", "a chap with a tile"]
    whole = looks_up(Known(encoder)).read(texts)
    monkeypatch.setattr(statements, "PAIRS", 1)
    parts = looks_up(Known(encoder)).read(texts)
    assert parts.taken == whole.taken and any(whole.taken) and np.array_equal(parts.stated, whole.stated)


class Sure(NamedTuple):
    """Says one thing of one attribute, this probable."""

    stated: list[float]

    def probable(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[[1 - sum(self.stated), *self.stated]]] * len(texts))


@pytest.mark.parametrize(
    ("whole", "clausewise", "found"),
    [([0.0, 0.5], [0.0, 0.5], 0.5), ([0.1, 0.6], [0.1, 0.6], 0.6), ([0.0, 1.0], [0.0, 0.2], 0.9713)],
)
def test_two_readers_are_pooled_and_the_surer_counts(whole: list[float], clausewise: list[float], found: float) -> None:
    """By hand: 0.2^0.4 against 0.001^0.6 0.8^0.4, of nothing said, and 0.001, of the contrary."""
    reader = DoubleReader(Sure(whole), Sure(clausewise))  # type: ignore[arg-type]
    assert reader.read(["a"]).stated[0, 0, 1] == pytest.approx(found, abs=2e-3)


class First(NamedTuple):
    """Is certain that "a" says something, and that nothing else does."""

    names = NAMES

    def probable(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[[0.0, 0, 1.0]] if text == "a" else [[1.0, 0, 0]] for text in texts])


def test_versions_of_a_text_count_alike_where_no_word_is_new() -> None:
    told = Versions([["a", "b"], ["c", "a"], ["a", "b"]], [], torch.zeros(2, 1, dtype=torch.bool))
    read = DoubleReader(First(), First()).read_together(told)  # type: ignore[arg-type]
    np.testing.assert_allclose(read.stated[:, 0, 1], [2 / 3, 1 / 3], atol=2e-3)


def test_versions_of_a_text_have_their_weights_where_a_word_is_new() -> None:
    """By hand, from the odds of what the first network is certain of and the second denies."""
    told = Versions([["a", "b"], ["b", "a"], ["a", "b"]], [], torch.tensor([[True], [False]]))
    read = DoubleReader(First(), Sure([0.0, 0.0]))  # type: ignore[arg-type]
    (text, wordnet, moby), clausewise = statements.NEW_WORDS
    denied = np.array([text + moby, text + wordnet + moby + sum(clausewise), wordnet + sum(clausewise)])
    logs = np.log(1e-3) * denied + statements.NEW_SAID
    stated = read.read_together(told).stated[:, 0]
    np.testing.assert_allclose(stated[0], (np.exp(logs) / np.exp(logs).sum())[1:], atol=1e-4)
    assert stated[1, 1] == pytest.approx(_alone(1 / 3), abs=1e-4)


def _alone(said: float) -> float:
    """How probable it is by a network that gives it this, and another that denies it."""
    odds = np.array([(1 - said) ** 0.6, 0.001, said**0.6 * 0.001**0.4])
    return float(odds[2] / odds.sum())


def test_a_text_says_what_any_of_its_clauses_says() -> None:
    """By hand: 1 - 0.5 * 0.8; where they contradict each other, shared by how sure they are; no clause, nothing."""
    stated = torch.tensor([[[0.0, 0.5]], [[0.0, 0.2]], [[0.3, 0.0]], [[0.0, 0.1]]])
    found = any_of(stated, torch.tensor([0, 0, 2, 2]), 3)[:, 0]
    silent = 0.7 * 0.9
    expected = [[0.4, 0, 0.6], [1, 0, 0], [silent, 0.75 * (1 - silent), 0.25 * (1 - silent)]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_reader_of_clauses_learns_words_that_mean_the_same(encoder: TextEncoder) -> None:
    """Trained on a few texts it reads others, in words of which it has seen none; clauses in another order are the
    same."""
    texts = ["a man, with glasses", "a man", "glasses", "a bald head", "bald, in glasses", "a bald man", "somebody"]
    said = np.array([[1, 1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [-1, 1, 1], [1, -1, 1], [-1, -1, -1]], np.int8)
    with seeded(0):
        network = ClauseNetwork(3, 64)
    config = TrainingConfig(steps=200, batch=16, lr=1e-2, seed=0, ema=0.0)
    *_, state = train(network, clausewise_loss(texts, said, encoder), len(texts), config)
    reader = ClausewiseReader(state.ema.eval(), encoder)  # type: ignore[arg-type]
    new = reader.probable(["spectacles", "a hairless scalp, spectacles", "spectacles, a hairless scalp"])
    assert new[0, 1].argmax() == 2 and new[1, 1:].argmax(1).tolist() == [2, 2]
    np.testing.assert_allclose(new[1], new[2], atol=1e-5)
    np.testing.assert_allclose(new.sum(2), 1, atol=1e-5)


def test_texts_to_train_on_say_what_they_say() -> None:
    people = np.zeros((5, len(grammar.known_names())), bool)
    texts, said = training_texts(people, grammar.known_names(), 40, np.random.default_rng(0))
    again, _ = training_texts(people, grammar.known_names(), 40, np.random.default_rng(0))
    assert texts == again and len(texts) == len(said) == 40 and set(np.unique(said)) <= {UNSAID, ABSENT, PRESENT}
    beard = grammar.known_names().index("Freckles")
    mentions = ["freckle" in text.lower() for text in texts]
    assert all(said[i, beard] != UNSAID for i, does in enumerate(mentions) if does)


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
def test_readings_are_what_the_reader_makes_of_the_texts(
    smoke: Profile, smoke_store: Store, how: Any, tmp_path: Path
) -> None:
    kept = words.load_readings(smoke, smoke_store, "held_out_words", how)
    reader, faces = words.load_reader(smoke, smoke_store, how), diface.load_faces(smoke, smoke_store, "gallery")
    said = diface_study.told(faces, diface.describer_of(smoke.diface), 1)[0]
    assert reader.names == faces.names
    read = reader.read(words.texts_of(said, faces.names, "held_out_words", 0))
    fresh = read.said
    np.testing.assert_array_equal(kept["gallery"][0].said, fresh)
    stated = kept["gallery"][0].stated
    counted_as_certain = np.isin(stated, (0, 1))
    apart = np.abs(stated - read.stated)
    assert (apart <= np.where(counted_as_certain, words.DOUBT, words.STEP / 2) + 0.1 * words.STEP).all()
    file = smoke_store.get(words.readings_recipe(smoke, "held_out_words", how)) / words.READINGS
    with np.load(file) as arrays:
        words._write(tmp_path / "again.npz", dict(arrays))
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()
    sets = smoke.evaluation.pair_sets if how == words.READERS[0] else 1
    assert len(kept["gallery"]) == sets and ("val" in kept) == (how != "clauses")
    assert how != "clauses" or {UNSAID, ABSENT, PRESENT} == set(np.unique(fresh))


def with_text_model(profile: Profile, folder: Path) -> Profile:
    section = replace(profile.words.clausewise, text=str(folder))
    return replace(profile, words=replace(profile.words, clausewise=section))


def test_the_second_network_reads_states_of_the_users_text_model(
    smoke: Profile, smoke_store: Store, tmp_path: Path
) -> None:
    """MiniLM from a folder makes the network that is made of the package's; a model of another width makes another."""
    few = replace(smoke, words=replace(smoke.words, clausewise=replace(smoke.words.clausewise, texts=40, steps=5)))
    made, bert = list[dict[str, torch.Tensor]](), tmp_path / "bert"
    for i, recipe in enumerate(words.clausewise_recipe(p) for p in (few, with_text_model(few, minilm_folder()))):
        (tmp_path / str(i)).mkdir()
        recipe.make(tmp_path / str(i), tuple(map(smoke_store.get, recipe.upstream)))
        made.append(read_model(tmp_path / str(i) / words.MODEL)[0])
    assert made[0].keys() == made[1].keys()
    for name in made[0]:
        torch.testing.assert_close(made[0][name], made[1][name], atol=1e-4, rtol=1e-3)
    bert.mkdir()
    profile = with_text_model(few, write_bert(bert))
    store = Store(tmp_path / "cache", (smoke_store.root, *smoke_store.shipped))
    read = words.load_reader(profile, store).read(["a bald man", "a lassie in spectacles"])
    assert read.stated.shape == (2, len(grammar.known_names()), 2) and np.isfinite(read.stated).all()


def test_a_text_model_is_known_by_what_its_folder_holds(smoke: Profile, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"words.clausewise.text: .*model.safetensors is not there"):
        words.clausewise_recipe(with_text_model(smoke, tmp_path))
    keys = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"the same")
        keys.add(words.clausewise_recipe(with_text_model(smoke, tmp_path / name)).key)
    assert len(keys) == 1 and words.clausewise_recipe(smoke).key not in keys


def test_a_reader_is_what_its_section_and_the_grammar_make_it(smoke: Profile) -> None:
    key = words.reader_recipe(smoke).key
    for name, value in {"width": 16, "depth": 2, "steps": 5, "batch": 4, "lr": 2e-3, "seed": 1}.items():
        assert words.reader_recipe(replace(smoke, words=replace(smoke.words, **{name: value}))).key != key
    assert words.reader_recipe(replace(smoke, words=replace(smoke.words, search="maps"))).key == key
    other = replace(smoke, words=replace(smoke.words, clausewise=replace(smoke.words.clausewise, texts=9)))
    assert words.reader_recipe(other).key == key
    assert words.clausewise_recipe(other).key != words.clausewise_recipe(smoke).key
    for how in words.READERS:
        changed = words.readings_recipe(other, "typos", how).key != words.readings_recipe(smoke, "typos", how).key
        assert changed == (how == "thesaurus")
    keys = {words.readings_recipe(smoke, kind, how).key for kind in grammar.KINDS for how in words.READERS}
    assert len(keys) == 12
