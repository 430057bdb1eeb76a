"""A grammar of descriptions: thousands of ways to say that an attribute is present or absent, each mapped to just that.

    what is said, {-1, 0, 1} by attribute  ->  a text whose words say exactly that            `describe`

What a describer says (`facetransport.world.captions.Describer`) is drawn first and put into words afterwards, so the
Bayes bound of `facetransport.evaluation.descriptions` does not know of the words. They come from lexicon.toml, and
templates.toml puts them together: nouns ("girl"), adjectives before and after, parts with adjectives ("long black
hair", "her hair is black"), verbs; they are negated, graded, listed, told in sentences, by ages in numbers and decades.
Held out from every training, by word and by template: what a reader makes of a stranger's words.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facetransport.world.captions import ABSENT, PRESENT, UNSAID

LEXICON, TEMPLATES = (Path(__file__).with_name(name) for name in ("lexicon.toml", "templates.toml"))
SINGULAR = (
    "face",
    "nose",
    "chin",
    "jaw",
    "mouth",
)  # parts with an article; skin and hair have none, the rest are plural
UNCOUNTED = ("hair", "skin")
GRADED, MERGED, ASIDE, AGED, SLOPPY = 0.15, 0.6, 0.15, 0.4, 0.15  # how often, where it can be
TYPOS = 0.1  # of words of more than 3 letters, in "typos"
KINDS = ("training", "held_out_templates", "held_out_words", "typos")


class Phrase(NamedTuple):
    """One way to say one thing: the attribute's number, ABSENT or PRESENT, the words."""

    attribute: int
    value: int
    text: str


@dataclass(frozen=True)
class Form:
    """One way to say one thing, before it is put into a sentence. slot: as in lexicon.toml."""

    slot: str
    text: str
    negated: bool = False


# -------------------------------------------------------------------------------------------------------- the templates

Ways = Mapping[str, tuple[str, ...]]  # templates by what is said: "is", "not is", "part" ...
NEUTRAL = ("person", "person", "individual", "face")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty")
FUNCTION_WORDS = (
    "he him his she her the person person's they their neither nor or and also an a who someone somebody that",
    "isn't aren't",
)
DECADES = ("teens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties")


@dataclass(frozen=True)
class Templates:
    """templates.toml's, of training or held out. Plain ones stand first, as often as all further ones together."""

    fragments: Ways
    clauses: Ways
    frames: tuple[str, ...]
    degrees: tuple[str, ...]
    rather: tuple[str, ...]
    ages: tuple[str, ...]


@cache
def templates(held: bool = False) -> Templates:
    """Those of training, or those that no training uses."""
    told = _toml(TEMPLATES)["held_out" if held else "training"]
    fragments, clauses = (_ways(told[kind]) for kind in ("fragments", "clauses"))
    return Templates(fragments, clauses, *(tuple(told[kind]) for kind in ("frames", "degrees", "rather", "ages")))


@cache
def after_with() -> Ways:
    """What stands after "with", in training's frames alone."""
    return _ways(_toml(TEMPLATES)["training"]["after_with"])


@cache
def predicates() -> Ways:
    """What stands after "who", in training's frames alone: clauses without their subject."""
    return {
        kind: tuple(clause.removeprefix("{S} ") for clause in clauses if clause.startswith("{S} "))
        for kind, clauses in templates().clauses.items()
    }


@cache
def plain_fragments() -> Ways:
    """Training's fragments without the further ones."""
    return {kind: tuple(each["plain"]) for kind, each in _toml(TEMPLATES)["training"]["fragments"].items()}


def _ways(told: Mapping[str, Mapping[str, Sequence[str]]]) -> Ways:
    return {kind: _balanced(each["plain"], each.get("further", ())) for kind, each in told.items()}


def _balanced(plain: Sequence[str], further: Sequence[str]) -> tuple[str, ...]:
    return (*(tuple(plain) * max(1, round(len(further) / len(plain)))), *further)


@dataclass(frozen=True)
class Style:
    """Where words and templates come from. held_words, held_templates: those that no training uses; typos: a rate."""

    held_words: bool = False
    held_templates: bool = False
    typos: float = 0.0

    @property
    def templates(self) -> Templates:
        return templates(self.held_templates)


STYLES: Mapping[str, Style] = {
    "training": Style(),
    "held_out_templates": Style(held_templates=True),
    "held_out_words": Style(held_words=True),
    "typos": Style(typos=TYPOS),
}


# ---------------------------------------------------------------------------------------------------------- the lexicon


def lexicon() -> Mapping[str, Any]:
    """lexicon.toml."""
    return _toml(LEXICON)


@cache
def _toml(file: Path) -> Mapping[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def known_names() -> tuple[str, ...]:
    """The attributes that can be put into words, in the lexicon's order."""
    return tuple(lexicon()["attributes"])


@cache
def digest(held: bool = False) -> str:
    """Of what texts are made of: the lexicon and training's templates; held: and those that no training uses."""
    made_of = (templates(), after_with(), NEUTRAL, TENS, DECADES, *([templates(held=True)] if held else []))
    return sha256(LEXICON.read_bytes() + repr(made_of).encode()).hexdigest()[:16]


@cache
def phrases_digest() -> str:
    """Of the phrases that training may use: all that tokens of clauses depend on."""
    return sha256(repr(phrase_bank(known_names())).encode()).hexdigest()[:16]


@cache
def forms(name: str, value: int, held: bool = False) -> tuple[Form, ...]:
    """Every form of an attribute's presence or absence; held: in words that no training draws, where there are any."""
    entry = lexicon()["attributes"][name]
    entry = entry.get("held", {}) if held else entry
    present, absent = (tuple(_slots(entry.get(side, {}))) for side in ("present", "absent"))
    return present if value == PRESENT else absent + tuple(replace(f, negated=not f.negated) for f in present)


def _slots(side: Mapping[str, Sequence[str]]) -> Iterator[Form]:
    for slot, texts in side.items():
        yield from (Form("has" if slot == "not" else slot, text, slot == "not") for text in texts)


def phrase_bank(names: Sequence[str], held: bool = False, ways: int | None = None) -> list[Phrase]:
    """Every fragment that says one thing of one attribute of ``names``, in their order. held: of words held out. ways:
    at most so many templates of each form, the plainest first."""
    check_names(names)
    return [
        Phrase(attribute, value, text)
        for attribute, name in enumerate(names)
        for value in (ABSENT, PRESENT)
        for text in dict.fromkeys(_fragments_of(name, value, held, ways))
    ]


def _fragments_of(name: str, value: int, held: bool, ways: int | None) -> Iterator[str]:
    for form in forms(name, value, held):
        yield from (_filled(template, form) for template in plain_fragments()[_key(form)][:ways])


@cache
def vocabulary() -> frozenset[str]:
    """Every word, in lower case, that a text of training may hold."""
    told = lexicon()
    texts = [word for entry in told["nouns"] for word in entry["words"]] + told["beside"]["words"]
    texts += [phrase.text for phrase in phrase_bank(known_names())]
    used = templates()
    kinds = (used.fragments, used.clauses, predicates(), after_with())
    texts += [template for kind in kinds for ways in kind.values() for template in ways]
    texts += [*used.frames, *used.degrees, *used.rather, *used.ages, *NEUTRAL, *DECADES, *TENS, *FUNCTION_WORDS]
    return frozenset(word for text in texts for word in words_of(re.sub(r"\{\w+\}", " ", text)))


def words_of(text: str) -> list[str]:
    """The words of a text in their order, in lower case."""
    return re.findall(r"[a-z']+", text.lower())


def plainly(name: str, value: int) -> str:
    """An attribute's presence or absence in the plainest words: 'a man', 'a full beard', 'no freckles'."""
    direct = [form for form in forms(name, value) if value == PRESENT or not (form.negated or " " in form.text)]
    form = [*direct, replace(forms(name, PRESENT)[0], negated=True)][0]
    return _filled(plain_fragments()[_key(form)][0], form)


def check_names(names: Sequence[str]) -> None:
    """ValueError for attributes that the lexicon has no words for."""
    unknown = sorted(set(names) - set(known_names()))
    if unknown:
        raise ValueError(f"names: no words for {unknown}; known are {', '.join(known_names())}")


# ----------------------------------------------------------------------------------------------------------- describing


def describe(said: np.ndarray, names: Sequence[str], rng: np.random.Generator, words: str = "training") -> list[str]:
    """One text per row of ``said`` int (N, A) in {-1 unsaid, 0, 1}; attributes in random order.

    words: "training", or "held_out_templates", "held_out_words", which no training uses, or "typos": training's words
    with a slip in one of ten. ValueError for anything else and for attributes without words.
    """
    check_names(names)
    if words not in STYLES:
        raise ValueError(f"words: expected one of {', '.join(STYLES)}, got {words!r}")
    return [_described(dict(zip(names, row, strict=True)), STYLES[words], rng) for row in np.asarray(said).tolist()]


def _described(row: dict[str, int], style: Style, rng: np.random.Generator) -> str:
    told = {name: value for name, value in row.items() if value != UNSAID}
    voice = _voice(told.get("Male", UNSAID), rng)
    noun, left = _noun(told, style, rng)
    forms_ = [*_aged(left, style, voice, rng), *_merged(left, style, rng)]
    forms_ += [Form("aside", _aside(style, rng))] * (rng.random() < ASIDE)
    text = _framed(noun, [forms_[i] for i in rng.permutation(len(forms_))], style, voice, rng)
    text = _with_typos(text, style.typos, rng)
    return _sloppy(text, rng) if rng.random() < SLOPPY else text


def _sloppy(text: str, rng: np.random.Generator) -> str:
    """As it is typed into a search: no capitals, no full stop, no article, at times no comma."""
    text = re.sub("^an? ", "", text.lower().rstrip("."))
    return text.replace(",", "") if rng.random() < 0.3 else text


def _voice(male: int, rng: np.random.Generator) -> dict[str, str]:
    if male == UNSAID:
        return {"S": "the person", "O": "the person", "P": "the person's" if rng.random() < 0.5 else "their"}
    return {"S": "he", "O": "him", "P": "his"} if male == PRESENT else {"S": "she", "O": "her", "P": "her"}


def _noun(told: dict[str, int], style: Style, rng: np.random.Generator) -> tuple[str, dict[str, int]]:
    """A noun for the person, and what is left to be said."""
    fit = [e for e in lexicon()["nouns"] if e["says"].items() <= told.items()]
    if not fit or rng.random() < 0.15:
        return _one(NEUTRAL, rng), told
    entry = fit[rng.integers(len(fit))]
    noun = _one(entry["held" if style.held_words else "words"], rng)
    return noun, {name: value for name, value in told.items() if name not in entry["says"]}


def _aged(told: dict[str, int], style: Style, voice: dict[str, str], rng: np.random.Generator) -> list[Form]:
    """The age in numbers where that says what is said of it; taken out of ``told``."""
    of_age = {name: told[name] for name in ("Young", "Senior") if name in told}
    years = [entry["years"] for entry in lexicon()["ages"] if entry["says"] == of_age]
    if not years or style.held_words or rng.random() > AGED:
        return []
    for name in of_age:
        del told[name]
    age = int(rng.integers(years[0][0], years[0][1] + 1))
    template = _one(style.templates.ages, rng)
    return [Form("is", template.format(n=_number(age, rng), d=DECADES[age // 10 - 1], **voice))]


def _number(n: int, rng: np.random.Generator) -> str:
    if n % 10 or rng.random() < 0.7:
        return str(n)
    return TENS[n // 10 - 2]


def _merged(told: dict[str, int], style: Style, rng: np.random.Generator) -> list[Form]:
    """A form for each thing said; adjectives of one part may share it: 'long curly black hair', 'black, not red'."""
    drawn = [_form(name, value, style, rng) for name, value in told.items()]
    found = [form for form in drawn if not _of_part(form)]
    for part in dict.fromkeys(form.slot for form in drawn if _of_part(form)):
        found += _shared([form for form in drawn if form.slot == part], style, rng)
    return _denied_together(found, rng)


def _denied_together(told: list[Form], rng: np.random.Generator) -> list[Form]:
    """Two of the things that are not there in one: 'no beard or glasses', 'neither a beard nor glasses'."""
    denied = [form for form in told if form.slot == "has" and form.negated]
    if len(denied) < 2 or rng.random() > MERGED:
        return told
    one, other = (form.text for form in denied[:2])
    bare = [re.sub("^(an?|the) ", "", text) for text in (one, other)]
    both = _one((f"no {bare[0]} or {bare[1]}", f"neither {one} nor {other}", f"no {bare[0]} and no {bare[1]}"), rng)
    return [Form("has", both), *(form for form in told if form not in denied[:2])]


def _shared(same: list[Form], style: Style, rng: np.random.Generator) -> list[Form]:
    """Forms of one part: apart, or those that are present in one, or one present and one denied in one."""
    yes, no = [f for f in same if not f.negated], [f for f in same if f.negated]
    if yes and no and rng.random() < MERGED / 2:
        rather = _one(style.templates.rather, rng).format(x=yes[0].text, y=no[0].text, part=same[0].slot)
        return [Form("has", rather), *yes[1:], *no[1:]]
    if len(yes) > 1 and rng.random() < MERGED:
        joint = (" ", ", ", " and ")[rng.integers(3)]
        return [Form(same[0].slot, joint.join(form.text for form in yes)), *no]
    return same


def _form(name: str, value: int, style: Style, rng: np.random.Generator) -> Form:
    """One form at random; one in three denials uses a word of its own where there is one ('thin' for 'not bushy')."""
    found = (forms(name, value, True) if style.held_words else ()) or forms(name, value)
    kinds = [[f for f in found if f.negated == negated] for negated in (False, True)]
    chosen = _one([kind for kind in (kinds[0], *[kinds[1]] * 2) if kind], rng)
    form = _one(chosen, rng)
    gradable = (_of_part(form) or form.slot == "is") and not re.search(r"\s|\w(ed|er)\b", form.text)
    if gradable and not form.negated and rng.random() < GRADED:
        fit = [degree for degree in style.templates.degrees if form.slot not in SINGULAR or not degree.startswith("a ")]
        return replace(form, text=f"{_one(fit, rng)} {form.text}")  # not "an a bit weak chin"
    return form


def _aside(style: Style, rng: np.random.Generator) -> str:
    return _one(lexicon()["beside"]["held" if style.held_words else "words"], rng)


# ------------------------------------------------------------------------------------------------------------ sentences


def _framed(noun: str, told: list[Form], style: Style, voice: dict[str, str], rng: np.random.Generator) -> str:
    before = [f for f in told if f.slot == "is" and not f.negated and re.fullmatch(r"[\w-]+", f.text)]
    before = before[: rng.integers(3)]
    rest = [form for form in told if form not in before]
    phrase = _article(" ".join([*(form.text for form in before), noun]))
    if not rest:
        return f"{phrase[0].upper()}{phrase[1:]}."
    frame = _one(style.templates.frames, rng)
    had = [f for f in rest if f.slot == "has" or _of_part(f)] if "{W}" in frame else []
    if "{W}" in frame and not had:
        frame = "{N}, {L}"
    later = [form for form in rest if form not in had]
    fragments = [_said(style.templates.fragments, form, voice, rng) for form in rest]
    text = frame.format(
        N=phrase,
        S=voice["S"],
        L=_listed(fragments, rng),
        B="\n* ".join(fragments),
        W=_listed([_said(after_with(), form, voice, rng) for form in had], rng),
        V=_listed([_said(predicates(), form, voice, rng) for form in rest], rng),
        C=_sentences([_said(style.templates.clauses, form, voice, rng) for form in later], voice["S"], rng),
    )
    return _capitals(text.strip())


def _listed(parts: list[str], rng: np.random.Generator) -> str:
    if len(parts) < 2 or rng.random() < 0.4:
        return ", ".join(parts)
    return ", ".join(parts[:-1]) + _one((" and ", ", and ", " and also "), rng) + parts[-1]


def _sentences(clauses: list[str], subject: str, rng: np.random.Generator) -> str:
    """Clauses as sentences, some of them joined in pairs: 'he is bald and has a beard'."""
    text, i = [], 0
    while i < len(clauses):
        pair = clauses[i : i + 1 + (rng.random() < 0.5)]
        if rng.random() < 0.5 and pair[0].startswith(f"{subject} "):
            pair[1:] = [clause.removeprefix(f"{subject} ") for clause in pair[1:]]
        text.append(_one((" and ", ", "), rng).join(pair) + ".")
        i += len(pair)
    return " ".join(text)


def _capitals(text: str) -> str:
    return re.sub(r"(^|[.?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def _said(ways: Ways, form: Form, voice: dict[str, str], rng: np.random.Generator) -> str:
    if form.slot == "aside":
        return (
            f"{voice['S']} is {form.text}" if ways in (templates().clauses, templates(held=True).clauses) else form.text
        )
    return _filled(_one(ways[_key(form)], rng), form, voice)


def _key(form: Form) -> str:
    return f"{'not ' * form.negated}{'part' if _of_part(form) else form.slot}"


def _of_part(form: Form) -> bool:
    return form.slot not in ("is", "has", "does", "a", "aside")


def _filled(template: str, form: Form, voice: Mapping[str, str] | None = None) -> str:
    """The template with the form's words; {S}, {O}, {P} as ``voice`` has them."""
    words = {"t": form.text, "b": re.sub("^(an?|the) ", "", form.text), **(voice or {})}
    words["a"] = _article(form.text)
    if form.slot == "does":
        words |= _verb(form.text)
    if _of_part(form):
        one = form.slot in (*SINGULAR, *UNCOUNTED)
        whole = f"{form.text} {form.slot}"
        words |= {
            "adj": form.text,
            "part": form.slot,
            "is": "is" if one else "are",
            "isnt": "isn't" if one else "aren't",
        }
        words["np"] = _article(whole) if form.slot in SINGULAR else whole
    return template.format(**words)


def _verb(text: str) -> dict[str, str]:
    verb, _, rest = text.partition(" ")
    told = {"v": verb, "s": _with_s(verb), "g": _with_ing(verb)}
    return {key: f"{value} {rest}".strip() for key, value in told.items()}


def _with_s(verb: str) -> str:
    """Third person: cries, watches, nods."""
    stem = re.sub("(?<![aeiou])y$", "ie", verb)
    return f"{stem}es" if re.search("(s|x|z|ch|sh|o)$", stem) else f"{stem}s"


def _with_ing(verb: str) -> str:
    """As -ing: lying, smiling, seeing, nodding. Of two syllables no letter is doubled: opening."""
    doubled = re.sub("^([^aeiou]*[aeiou])([^aeiouwxy])$", r"\1\2\2", verb)
    return re.sub("(?<![eoy])e$", "", re.sub("ie$", "y", doubled)) + "ing"


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _one(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


# ---------------------------------------------------------------------------------------------------------------- typos


def _with_typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """A slip in this share of the words of more than 3 letters: two letters swapped, one left out or doubled."""
    if not rate:
        return text
    return re.sub(r"[a-z]{4,}", lambda m: _slip(m[0], rng) if rng.random() < rate else m[0], text)


def _slip(word: str, rng: np.random.Generator) -> str:
    i = int(rng.integers(1, len(word) - 1))
    swapped, left_out = word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :]
    return _one((swapped, left_out, word[: i + 1] + word[i:]), rng)
