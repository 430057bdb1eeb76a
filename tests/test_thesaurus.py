"""Words that training does not hold: derived from WordNet and Moby, looked up by their stems, never of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from facetransport.world import grammar, thesaurus


@pytest.mark.parametrize("entries", [thesaurus._entries(), thesaurus._associates()], ids=["wordnet", "moby"])
def test_neighbours_are_words_of_training_for_words_that_are_not(entries: dict[str, dict[str, bool]]) -> None:
    assert len(entries) > 5000 and list(entries) == sorted(entries)
    assert not set(entries) & grammar.vocabulary()
    assert all(set(grammar.words_of(other)) <= grammar.vocabulary() for others in entries.values() for other in others)


@pytest.mark.parametrize(
    ("word", "stem"), [("blokes", "bloke"), ("grannies", "granny"), ("specs", "specs"), ("dudes", "dude")]
)
def test_endings_are_looked_up_by_their_stems(word: str, stem: str) -> None:
    assert thesaurus.neighbours(word) == thesaurus._entries()[stem]


@pytest.mark.parametrize(
    ("word", "stem"),
    [("beards", "beard"), ("tallish", "tall"), ("redder", "red"), ("chattered", "chatter"), ("qwxzer", None)],
)
def test_a_new_form_of_a_word_of_training_is_looked_up_as_that_word(word: str, stem: str | None) -> None:
    assert word not in grammar.vocabulary()
    for table in (thesaurus.neighbours, thesaurus.associates):
        assert table(word) == ({stem: True} if stem else {})


def test_what_a_user_types_is_found() -> None:
    assert next(iter(thesaurus.neighbours("granny"))) in ("grandma", "grandmother")
    assert {"man", "adult male"} & set(thesaurus.neighbours("dude"))
    assert set(thesaurus.neighbours("specs")) == {"eyeglasses", "glasses", "spectacles"}


def test_what_training_holds_or_nobody_knows_has_none() -> None:
    for table in (thesaurus.neighbours, thesaurus.associates):
        assert table("beard") == table("qwxz") == {}


def test_what_a_word_usually_means_comes_first() -> None:
    assert thesaurus.neighbours("chap")["lad"] and not any(thesaurus.neighbours("dog").values())
    for others in thesaurus._entries().values():
        assert others and list(others.values()) == sorted(others.values(), reverse=True)


def test_moby_has_few_and_the_nearest() -> None:
    assert {"man", "guy"} <= set(thesaurus.associates("dudes")) and next(
        iter(thesaurus.associates("specs"))
    ) == "glasses"
    for others in thesaurus._associates().values():
        assert 0 < len(others) <= thesaurus.MOST and all(others.values())


WORDNET = {
    "data.noun": (
        "  1 a licence, which is no synset\n"
        "00000001 18 n 02 granny 0 grandma 0 002 @ 00000002 n 0000 ~ 00000003 n 0000 | the mother of a parent\n"
        "00000002 18 n 01 old_woman 0 000 | a woman who is old\n"
        "00000003 18 n 01 beard 0 000 | on no account\n"
    ),
    "data.adj": (
        "00000001 00 a 01 pale 0 001 & 00000002 s 0000 | little color\n"
        "00000002 00 s 02 pallid(p) 0 wan 0 002 & 00000001 a 0000 ! 00000009 a 0101 | deficient in color\n"
        "00000004 00 s 01 quite_unknown 0 000 | two words\n"
    ),
    "index.sense": (
        "beard%1:18:00:: 00000003 1 0\n"
        "granny%1:18:00:: 00000001 1 2\n"
        "pallid%5:00:00:colorless:00 00000002 1 0\n"
        "wan%3:00:00:: 00000009 1 3\n"
        "wan%5:00:00:colorless:00 00000002 2 1\n"
    ),
}


def test_wordnets_files_are_read(tmp_path: Path) -> None:
    for name, text in WORDNET.items():
        (tmp_path / name).write_text(text)
    assert thesaurus.derive(tmp_path) == {
        "granny": {"grandma": True, "old woman": True},  # its synonym first, then its kind; not what is a kind of it
        "pallid": {"pale": True},  # wan, whose second meaning this is, is no word of training either
    }
    with pytest.raises(FileNotFoundError, match=r"no data\.noun.*expected WordNet's dict folder"):
        thesaurus.derive(tmp_path / "nowhere")


MOBY = """dude,man,fop,old man
fop,dude,man
man,fop,dude,lad
beard,whiskers,fop
"""


def test_mobys_lists_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.txt").write_text(MOBY)
    found = {"dude": ["man"], "fop": ["man", "beard"], "whiskers": ["beard"]}  # single words that training holds
    assert thesaurus.associated(tmp_path / "words.txt") == found
    monkeypatch.setattr(thesaurus, "MOST", 1)
    assert thesaurus.associated(tmp_path / "words.txt")["fop"] == ["man"]  # two of whose neighbours are the fop's, too
    with pytest.raises(FileNotFoundError, match=r"words\.csv"):
        thesaurus.associated(tmp_path / "words.csv")
