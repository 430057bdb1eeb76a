"""The grammar of descriptions: it says what is said and nothing else, and what is held out stays out."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from facetransport.evaluation import search
from facetransport.world import grammar
from facetransport.world.captions import ABSENT, PRESENT, UNSAID
from facetransport.world.grammar import (
    STYLES,
    describe,
    forms,
    known_names,
    lexicon,
    phrase_bank,
    plainly,
    templates,
)

NAMES = known_names()
UNTELLING = {"a", "an", "the", "of"}


def words_of(text: str) -> set[str]:
    return set(grammar.words_of(text))


def told(**values: int) -> np.ndarray:
    said = np.full((1, len(NAMES)), UNSAID, np.int8)
    for name, value in values.items():
        said[0, NAMES.index(name)] = value
    return said


def many(said: np.ndarray, words: str = "training", n: int = 300, seed: int = 0) -> list[str]:
    return describe(said.repeat(n, 0), NAMES, np.random.default_rng(seed), words)


@pytest.fixture(scope="module")
def anything() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.choice([UNSAID] * 8 + [ABSENT, PRESENT], (400, len(NAMES))).astype(np.int8)


@pytest.fixture(scope="module")
def vocabulary() -> frozenset[str]:
    return grammar.vocabulary()


def test_the_vocabulary_is_what_texts_are_made_of(anything: np.ndarray, vocabulary: frozenset[str]) -> None:
    drawn = describe(anything.repeat(4, 0), NAMES, np.random.default_rng(1)) + many(told(Male=ABSENT, Young=PRESENT))
    used = set().union(*map(words_of, drawn))
    assert used <= vocabulary, used - vocabulary
    assert len(used) > 0.7 * len(vocabulary)


# ---------------------------------------------------------------------------------------------------------- held out


def held_entries() -> list[str]:
    lists = [word for entry in lexicon()["nouns"] for word in entry["held"]]
    return lists + [f.text for name in NAMES for value in (ABSENT, PRESENT) for f in forms(name, value, held=True)]


def test_held_words_are_in_no_text_of_training(vocabulary: frozenset[str]) -> None:
    assert len(held_entries()) > 250
    for entry in held_entries():
        assert words_of(entry) - UNTELLING - vocabulary, entry


KIN = """
bald bare bristly brown brownish brows carrot color colored dot faced flame flows freckle freckled freckles front girl
hair hairs hairy lanky laugh lumberjack moustache moustached neck past rings rough roughly short skin skinned sleek snow
some spectacles straight strand strands strawberry strip stubble tired unshorn
"""  # training's words that are kin to one held out; who adds to the lexicon adds none


def kin(one: str, other: str) -> bool:
    """Whether two words are forms of one, or one holds the other: by their first letters, which errs towards yes."""
    short, long = sorted((one, other), key=len)
    if len(short) < 4:
        return one.rstrip("s") == other.rstrip("s")
    shared = len(os.path.commonprefix([one, other]))
    return (len(short) >= 5 and short in long) or (shared >= max(4, len(short) - 1) and len(long) - len(short) <= 5)


def test_no_more_words_of_training_are_kin_to_held_out_ones(vocabulary: frozenset[str]) -> None:
    held = {word for entry in held_entries() for word in words_of(entry)} | {
        word for entry in lexicon()["beside"]["held"] for word in words_of(entry)
    }
    new = held - vocabulary - UNTELLING
    assert {word for word in vocabulary if any(kin(word, other) for other in new)} <= set(KIN.split())


def test_every_statement_has_words_held_out_but_where_a_denial_has_none_of_its_own() -> None:
    for name in NAMES:
        assert forms(name, PRESENT, held=True), name
        assert forms(name, ABSENT, held=True), name


PLAIN = """
and as be by far in is kind look no of one or shows so some than that the visible
"""  # what held-out templates share with training's: words of its lexicon and of its plain templates


def test_no_template_of_training_holds_a_word_of_those_held_out(vocabulary: frozenset[str]) -> None:
    held = templates(held=True)
    texts = [text for kind in (held.fragments, held.clauses) for ways in kind.values() for text in ways]
    texts += [*held.frames, *held.degrees, *held.rather, *held.ages]
    words = {word for text in texts for word in words_of(re.sub(r"\{\w+\}", " ", text))}
    assert len(words) > 50 and words & vocabulary == set(PLAIN.split())


def test_plain_templates_are_drawn_as_often_as_further_ones() -> None:
    for ways, plain in ((templates().fragments[kind], plain) for kind, plain in grammar.plain_fragments().items()):
        share = sum(way in plain for way in ways) / len(ways)
        assert 0.4 < share < 0.7, ways


def test_held_templates_are_drawn_where_they_are_asked_for_alone(anything: np.ndarray) -> None:
    marks = ("Wanted:", "As far as memory", "Imagine", "Do you know", "that would be", "* ")
    assert all(any(mark in frame for mark in marks) for frame in templates(held=True).frames)
    talkative = anything[(anything != UNSAID).sum(1) > 3]
    for words in STYLES:
        texts = describe(talkative, NAMES, np.random.default_rng(2), words)
        found = np.mean([any(mark.lower() in text.lower() for mark in marks) for text in texts])
        assert found > 0.75 if words == "held_out_templates" else found == 0


def test_held_out_texts_use_held_words(anything: np.ndarray, vocabulary: frozenset[str]) -> None:
    talkative = anything[(anything != UNSAID).sum(1) > 3]
    share = {
        words: np.mean(
            [bool(words_of(t) - vocabulary) for t in describe(talkative, NAMES, np.random.default_rng(3), words)]
        )
        for words in ("training", "held_out_templates", "held_out_words")
    }
    assert share["training"] < 0.05 and share["held_out_words"] > 0.95


def test_searches_inside_the_grammar_need_no_other_word_and_those_outside_do(vocabulary: frozenset[str]) -> None:
    queries = search.load_queries(NAMES)
    assert len(queries) == 40 and queries["words"].value_counts().to_dict() == {"inside": 20, "outside": 20}
    new = [bool(words_of(query) - vocabulary - {"someone", "about"}) for query in queries["query"]]
    assert new == (queries["words"] == "outside").tolist()
    assert all((asks != UNSAID).any() for asks in queries["asks"])


# ------------------------------------------------------------------------------------------------- what the texts say


@pytest.mark.parametrize(
    ("verb", "third", "ing"),
    [
        ("smile", "smiles", "smiling"),
        ("cry", "cries", "crying"),
        ("skip", "skips", "skipping"),
        ("open", "opens", "opening"),
        ("weep", "weeps", "weeping"),
        ("wear", "wears", "wearing"),
        ("yawn", "yawns", "yawning"),
        ("watch", "watches", "watching"),
        ("lie", "lies", "lying"),
        ("dye", "dyes", "dyeing"),
        ("go", "goes", "going"),
    ],
)
def test_verbs_are_conjugated(verb: str, third: str, ing: str) -> None:
    assert grammar._verb(f"{verb} a lot") == {"v": f"{verb} a lot", "s": f"{third} a lot", "g": f"{ing} a lot"}


def test_what_is_denied_is_denied_once() -> None:
    """What says present is negated to say absent: "no no beard" would say nothing."""
    denying = ("no", "not", "any", "never")
    told_ = [(name, form.text) for name in NAMES for form in forms(name, PRESENT) if form.text.split()[0] in denying]
    assert not told_


def test_texts_say_what_is_said_and_nothing_else() -> None:
    texts = many(told(Male=PRESENT, Eyeglasses=PRESENT, Full_Beard=ABSENT))
    seen = "glass|spectacle|lenses|frame|eyewear|monocle|pince|specs|bifocals|varifocals|goggle|optical|visual aid"
    assert all(re.search(seen, text) for text in map(str.lower, texts))
    assert all("beard" in text.lower() for text in texts)
    assert not any(re.search(r"\b(she|her|woman|lady)\b", text.lower()) for text in texts)
    denied = "no|not|without|neither|free of|devoid of|absent|absence|missing|zero|rid of|sans|stripped of|far from"
    denied += "|nowhere near|opposite of|reverse of|scarcely|avoids?|avoiding|refuses|refusing|has stopped"
    assert all(re.search(rf"\b({denied})\b|n't|-free|non-", text.lower()) for text in texts)
    nothing = many(told(), n=40)
    assert all(re.search("person|individual|face", text.lower()) for text in nothing)


def test_nouns_say_only_what_is_said() -> None:
    for text in many(told(Male=ABSENT)):
        assert not re.search(r"\b(girl|young|old|grandm\w*|teenager)\b", text.lower())
    assert any("girl" in text.lower() for text in many(told(Male=ABSENT, Young=PRESENT)))
    assert any("grandfather" in text.lower() for text in many(told(Male=PRESENT, Senior=PRESENT)))


def test_ages_are_those_of_what_is_said() -> None:
    def ages(**said: int) -> list[int]:
        return [int(n) for text in many(told(**said)) for n in re.findall(r"\d+", text)]

    assert ages(Young=PRESENT) and max(ages(Young=PRESENT)) < 40
    assert ages(Senior=PRESENT) and min(ages(Senior=PRESENT)) >= 60
    middle = ages(Young=ABSENT, Senior=ABSENT)
    assert middle and min(middle) > 40 and max(middle) < 60
    assert not ages(Young=ABSENT) and not ages(Male=PRESENT)


def test_there_are_thousands_of_ways_to_say_a_thing() -> None:
    ways = many(told(Blond_Hair=PRESENT, Male=ABSENT), n=6000)
    assert len({text.lower() for text in ways}) > 1500


def test_parts_are_merged_graded_and_set_against_each_other() -> None:
    texts = "\n".join(many(told(Black_Hair=PRESENT, Curly_Hair=PRESENT, Red_Hair=ABSENT), n=1500)).lower()
    assert re.search(r"curly[, ]+(and )?black hair|black[, ]+(and )?curly hair", texts)
    assert "rather than" in texts and re.search(r"(very|slightly|quite|a bit|somewhat) (black|curly)", texts)
    denied = "\n".join(many(told(Eyeglasses=ABSENT, Mustache=ABSENT), n=600)).lower()
    assert re.search(r"no \w+ or \w+", denied) and "neither" in denied


def test_texts_are_a_function_of_the_draw(anything: np.ndarray) -> None:
    first, again, other = (describe(anything[:20], NAMES, np.random.default_rng(s)) for s in (5, 5, 6))
    assert first == again != other


def test_a_subject_is_left_out_only_after_itself() -> None:
    """'their hair is black and has a beard' would give the hair a beard."""
    told_ = ["their hair is black", "the person has a beard"], ["the person is bald", "the person has a beard"]
    found = [{grammar._sentences(list(t), "the person", np.random.default_rng(s)) for s in range(20)} for t in told_]
    assert not any("and has" in text or ", has" in text for text in found[0])
    assert "the person is bald and has a beard." in found[1]


def test_sentences_are_whole(anything: np.ndarray) -> None:
    for words in STYLES:
        for text in describe(anything, NAMES, np.random.default_rng(7), words):
            assert text == text.strip() and "{" not in text and "  " not in text and " ." not in text


def test_typos_are_as_frequent_as_stated() -> None:
    rng, text = np.random.default_rng(8), "short brown curly " * 4000
    words = grammar._with_typos(text, 0.1, rng).split()
    wrong = np.mean([word not in ("short", "brown", "curly") for word in words])
    assert wrong == pytest.approx(0.1, abs=0.01)  # 'curly' with a letter doubled is a word of its own
    assert grammar._with_typos(text, 0.0, rng) == text


# ----------------------------------------------------------------------------------------------------------- the bank


def test_the_bank_says_everything_in_both_ways_and_each_phrase_once() -> None:
    for held in (False, True):
        bank = phrase_bank(NAMES, held)
        assert {(p.attribute, p.value) for p in bank} == {(a, v) for a in range(len(NAMES)) for v in (ABSENT, PRESENT)}
        for name in ("Male", "Bald"):
            said = [p.text for p in bank if p.attribute == NAMES.index(name)]
            assert len(said) == len(set(said))


def test_plain_words_are_plain() -> None:
    told = [
        ("Male", 1),
        ("Male", 0),
        ("Full_Beard", 1),
        ("Full_Beard", 0),
        ("Young", 0),
        ("No_Beard", 0),
        ("Big_Nose", 0),
    ]
    plain = ["a man", "a woman", "a full beard", "no full beard", "not young", "bearded", "a small nose"]
    assert [plainly(name, value) for name, value in told] == plain


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names: no words for \['Moustachioed'\]"):
        describe(np.zeros((1, 1), np.int8), ["Moustachioed"], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"names: no words for \['Hat'\]"):
        phrase_bank(["Hat"])
    with pytest.raises(ValueError, match="words: expected one of training, held_out_templates, .*got 'shouted'"):
        describe(told(), NAMES, np.random.default_rng(0), "shouted")
