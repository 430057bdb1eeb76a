"""Words that training does not hold: derived from WordNet's files, looked up by their stems, never of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from facetransport.world import grammar, thesaurus


def test_neighbours_are_words_of_training_for_words_that_are_not() -> None:
    entries = thesaurus._entries()
    assert len(entries) > 5000 and list(entries) == sorted(entries)
    assert not set(entries) & grammar.vocabulary()
    assert all(set(grammar.words_of(other)) <= grammar.vocabulary() for others in entries.values() for other in others)


@pytest.mark.parametrize(
    ("word", "stem"), [("blokes", "bloke"), ("grannies", "granny"), ("specs", "specs"), ("dudes", "dude")]
)
def test_endings_are_looked_up_by_their_stems(word: str, stem: str) -> None:
    assert thesaurus.neighbours(word) == thesaurus._entries()[stem]


def test_what_a_user_types_is_found() -> None:
    assert thesaurus.neighbours("granny")[0] in ("grandma", "grandmother")
    assert {"man", "adult male"} & set(thesaurus.neighbours("dude"))
    assert set(thesaurus.neighbours("specs")) == {"eyeglasses", "glasses", "spectacles"}


def test_what_training_holds_or_nobody_knows_has_none() -> None:
    assert thesaurus.neighbours("beard") == thesaurus.neighbours("qwxz") == ()


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
}


def test_wordnets_files_are_read(tmp_path: Path) -> None:
    for name, text in WORDNET.items():
        (tmp_path / name).write_text(text)
    assert thesaurus.derive(tmp_path) == {
        "granny": ["grandma", "old woman"],  # its synonym first, then its kind; not what it is the kind of
        "pallid": ["pale"],  # wan is no word of training either
        "wan": ["pale"],
    }
    with pytest.raises(FileNotFoundError, match=r"no data\.noun.*expected WordNet's dict folder"):
        thesaurus.derive(tmp_path / "nowhere")
