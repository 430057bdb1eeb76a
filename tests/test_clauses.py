"""Texts taken apart into their statements."""

from __future__ import annotations

import pytest

from facetransport.world.clauses import clauses, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man: black hair, no beard and a smile.", ["a man", "black hair", "no beard", "a smile"]),
        (
            "an elderly woman with curly gray hair and glasses, smiling",
            ["elderly", "a woman", "curly hair", "gray hair", "glasses", "smiling"],
        ),
        ("A young, bald man who's  smiling \u2013 wearing a hat", ["young", "bald", "a man", "smiling", "a hat"]),
        ("the tall guy who has short, dark brown hair", ["the tall guy", "short hair", "dark brown hair"]),
        ("a woman in her thirties & salt and pepper hair", ["a woman", "in the thirties", "salt-and-pepper hair"]),
        ("She doesn\u2019t wear any glasses; her eyes are blue", ["no glasses", "eyes are blue"]),
        ("a lady without a hat or glasses", ["a lady", "no hat", "no glasses"]),
        ("Someone with a short haircut, not wearing glasses", ["a short haircut", "no glasses"]),
        ("a smile, a smile", ["a smile"]),
        ("A person.", []),
        ("with, and", []),
    ],
)
def test_statements_of_a_readers_own_words(text, expected):
    assert clauses(text) == expected


@pytest.mark.parametrize("text", ["", " \n", None])
def test_what_is_no_text_is_refused(text):
    for read in (clauses, plain):
        with pytest.raises(ValueError, match="description: expected words"):
            read(text)


def test_case_and_spaces_do_not_matter():
    assert plain("  A  Man\twith\nGlasses ") == "a man with glasses"
