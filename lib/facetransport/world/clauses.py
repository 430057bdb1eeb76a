"""A text taken apart at its punctuation and its 'and', 'with', 'who has': the statements that it makes, one by one."""

from __future__ import annotations

import re

AGES = "young|youthful|old|older|elderly|aged|senior|bald|chubby|plump|bearded|bespectacled|freckled|smiling|grinning"
PEOPLE = "man|woman|gentleman|lady|guy|bloke|fellow|girl|gal|boy|person"
HAIR = "long|short|straight|wavy|curly|frizzy"
NEUTRAL = re.compile(r"((an?|the|this|that|some) )?(person|someone|somebody|individual|human|face)|an?|the|is|are")
PRONOUN = r"\b(?:who|he|she|they|it)(?:'s|'re|'ve)?\b(?: (?:is|are|has|have|wears?)\b)?"
BREAKS = re.compile(  # what stands between two statements
    rf"[,;:.!?()\[\]\"\n&/]+|\s[-\u2013\u2014]+\s|\u2014|{PRONOUN}"
    r"|(?<!-)\b(?:and|with|plus|but|also|as well as|has|have|having|wears?|wearing)\b(?!-)"
)
REWRITES = (  # before the text is broken
    (r"[\u2018\u2019]", "'"),
    (r"\bsalt and pepper\b", "salt-and-pepper"),
    (rf"(?<!not )\b({HAIR})(?:,? and|,) (?!(?:an?|the|no) )(?=(?:[\w-]+,? ){{0,2}}hair\b)", r"\1 "),  # long, curly hair
    (rf"\b({AGES})(?:,? and|,) (?=(?:(?:{AGES}),? )*(?:{PEOPLE})\b)", r"\1 "),  # a young, bald man
    (r"\bin (?:his|her|their|the) (?=(?:\w+ )?(?:teens|\w+ties)\b)", ", in the "),
    (r"\b(?:is|are|do|does|has|have)(?: not|n't)(?= (?:wear|wearing|have|having|got)\b)", "not"),
    (r"\b(?:without|not (?:wear|wearing|have|having|got))\b(?: any\b| an?\b)?", ", no"),
    (r"\bno (an?|any|no) ", "no "),
)


def plain(text: str) -> str:
    """The text in lower case with single spaces; ValueError if it is not a string or is blank."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"description: expected words, such as 'a young man with red hair'; got {text!r}")
    return " ".join(text.lower().split())


def clauses(text: str) -> list[str]:
    """The statements of a description, each once, in lower case, in the order of the text.

    It is broken at punctuation and at 'and', 'with', 'who has', 'wearing' and the like; 'without x' and 'is
    not wearing x' become 'no x'; ages and looks are taken from the subject ('an elderly man': 'elderly', 'a man') and
    kinds of hair from each other ('curly gray hair': 'curly hair', 'gray hair'). What states nothing ('a person') is
    left out, so the list may be empty. Raises ValueError for what is not a string or is blank.
    """
    text = plain(text)
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    found = [atom for part in BREAKS.split(text) for atom in _atoms(_trimmed(part))]
    return [clause for clause in dict.fromkeys(found) if clause and not NEUTRAL.fullmatch(clause)]


def _trimmed(clause: str) -> str:
    return re.sub(r"^(?:(?:his|her|their|is|are|there|also)\b *)+", "", " ".join(clause.split()).strip("'* "))


def _atoms(clause: str) -> list[str]:
    """A statement taken apart where it joins several: 'no x or y', 'a young bald man', 'long red hair'."""
    words = clause.split()
    if clause.startswith("no ") and " or " in clause:
        return ["no " + re.sub("^(an?|any|no) ", "", thing) for thing in clause[3:].split(" or ")]
    if re.fullmatch(rf"((an?|the) )?(({AGES}) )*({PEOPLE})", clause):
        return [*(word for word in words[:-1] if word not in ("a", "an", "the")), f"a {words[-1]}"]
    kinds = [word for word in words[:-1] if re.fullmatch(HAIR, word)]
    if kinds and words[-1] == "hair" and not {"no", "not"} & set(words):
        rest = " ".join(word for word in words if word not in kinds)
        return [f"{kind} hair" for kind in kinds] + [rest] * (rest != "hair")
    return [clause]
