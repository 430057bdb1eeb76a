"""A describer of faces whose imprecision is explicit, so that the best possible reader of its captions can be computed.

Model, independently for every attribute: the describer perceives it (wrong with probability ``error``), mentions it
(with probability ``say_yes`` if perceived present, ``say_no`` if perceived absent), and picks one of several phrases.
What was said is a vector in {-1 unsaid, 0 said absent, 1 said present}; its likelihood given a face's true attributes
is a product, which is all a Bayes-optimal verifier or identifier needs. DiFace (2312.01367) leaves open how to
measure verbal imprecision; this makes it a number.

A caption of ANOTHER image of the same person describes a smile or glasses that may not be in this one: `persistence`
measures how often, and the likelihood takes it into account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

UNSAID, ABSENT, PRESENT = -1, 0, 1

Ways = tuple[tuple[str, ...], tuple[str, ...]]

PHRASES: Mapping[str, Ways] = {  # attribute: (ways to say yes, ways to say no)
    "Male": (("a man", "a male person", "a gentleman"), ("a woman", "a female person", "a lady")),
    "Young": (("young", "looks youthful", "under forty"), ("not young", "past forty")),
    "Senior": (("elderly", "an older person", "in the sixties or above"), ("not elderly",)),
    "Pale_Skin": (("pale skin", "very fair skin"), ("skin that is not pale",)),
    "Dark_Skin": (("dark skin", "a dark complexion"), ("skin that is not dark",)),
    "Black_Hair": (("black hair", "dark black hair"), ("hair that is not black",)),
    "Brown_Hair": (("brown hair", "brunette hair"), ("hair that is not brown",)),
    "Blond_Hair": (("blond hair", "fair hair"), ("hair that is not blond",)),
    "Red_Hair": (("red hair", "ginger hair"), ("hair that is not red",)),
    "Gray_Hair": (("gray hair", "silver hair"), ("no gray hair",)),
    "Bald": (("bald", "no hair on the head"), ("not bald",)),
    "Receding_Hairline": (("a receding hairline", "thinning hair above the forehead"), ("a full hairline",)),
    "Straight_Hair": (("straight hair",), ("hair that is not straight",)),
    "Wavy_Hair": (("wavy hair",), ("hair that is not wavy",)),
    "Curly_Hair": (("curly hair", "curls"), ("no curls",)),
    "Long_Hair": (("long hair", "hair below the shoulders"), ("hair that is not long",)),
    "Short_Hair": (("short hair", "a short haircut"), ("hair that is not short",)),
    "Bangs": (("bangs", "a fringe"), ("no bangs", "a bare forehead")),
    "Hair_Bun": (("a hair bun", "hair tied up"), ("no bun",)),
    "No_Beard": (("no beard", "clean-shaven cheeks"), ("some beard",)),
    "Full_Beard": (("a full beard", "a thick beard"), ("no full beard",)),
    "Goatee": (("a goatee", "a chin beard"), ("no goatee",)),
    "Mustache": (("a mustache", "hair on the upper lip"), ("no mustache",)),
    "5_o_Clock_Shadow": (("stubble", "a five o'clock shadow"), ("no stubble",)),
    "Heavy_Makeup": (("heavy makeup", "a lot of makeup"), ("no heavy makeup",)),
    "Wearing_Lipstick": (("lipstick", "painted lips"), ("no lipstick",)),
    "Rosy_Cheeks": (("rosy cheeks", "blushed cheeks"), ("no rosy cheeks",)),
    "Bags_Under_Eyes": (("bags under the eyes", "dark rings under the eyes"), ("no bags under the eyes",)),
    "Freckles": (("freckles", "a freckled face"), ("no freckles",)),
    "Mole": (("a mole", "a dark spot on the face"), ("no moles",)),
    "Wrinkles": (("wrinkles", "a lined face"), ("smooth skin", "no wrinkles")),
    "Bushy_Eyebrows": (("bushy eyebrows", "thick eyebrows"), ("thin eyebrows",)),
    "Arched_Eyebrows": (("arched eyebrows",), ("flat eyebrows",)),
    "Blue_Eyes": (("blue eyes",), ("eyes that are not blue",)),
    "Green_Eyes": (("green eyes",), ("eyes that are not green",)),
    "Brown_Eyes": (("brown eyes", "dark eyes"), ("eyes that are not brown",)),
    "Chubby": (("a chubby face", "a full face"), ("a face that is not chubby",)),
    "Slim_Face": (("a slim face", "a narrow face"), ("a face that is not slim",)),
    "Big_Nose": (("a big nose", "a prominent nose"), ("a small nose",)),
    "Big_Lips": (("big lips", "full lips"), ("thin lips",)),
    "High_Cheekbones": (("high cheekbones",), ("low cheekbones",)),
    "Prominent_Chin": (("a prominent chin", "a strong chin"), ("a weak chin",)),
    "Double_Chin": (("a double chin",), ("no double chin",)),
    "Eyeglasses": (("eyeglasses", "spectacles"), ("no glasses",)),
    "Smiling": (("a smile", "a smiling mouth"), ("no smile",)),
    "Mouth_Open": (("an open mouth",), ("a closed mouth",)),
    "Eyes_Closed": (("closed eyes",), ("open eyes",)),
    "Frowning": (("a frown",), ("no frown",)),
}


UNSEEN: Mapping[str, Ways] = {  # further ways to say the same, never trained on: what a paraphrase costs
    "Male": (("a guy", "a bloke", "a fellow"), ("a girl", "a gal")),
    "Young": (("in the twenties", "of a youthful age"), ("no longer young",)),
    "Senior": (("aged", "a pensioner", "old"), ("far from retirement",)),
    "Pale_Skin": (("a light complexion", "a pallid face"), ("skin of some colour",)),
    "Dark_Skin": (("deep brown skin", "dark-skinned"), ("not dark-skinned",)),
    "Black_Hair": (("raven hair", "jet-black hair"), ("hair of a colour other than black",)),
    "Brown_Hair": (("chestnut hair", "a brunette"), ("hair of a colour other than brown",)),
    "Blond_Hair": (("golden hair", "yellow hair"), ("not a blond",)),
    "Red_Hair": (("a redhead", "copper hair"), ("not a redhead",)),
    "Gray_Hair": (("hair gone gray", "salt-and-pepper hair"), ("hair not yet gray",)),
    "Bald": (("hairless", "a shaved head"), ("a head covered in hair",)),
    "Receding_Hairline": (("hair going back at the temples", "a high hairline"), ("no receding hairline",)),
    "Straight_Hair": (("sleek hair", "hair free of waves"), ("no sleek hair",)),
    "Wavy_Hair": (("waves in the hair", "rippling hair"), ("no waves in the hair",)),
    "Curly_Hair": (("ringlets", "frizzy hair"), ("hair free of curls",)),
    "Long_Hair": (("flowing locks", "shoulder-length hair"), ("no long hair",)),
    "Short_Hair": (("cropped hair", "close-cut hair"), ("no short hair",)),
    "Bangs": (("hair over the forehead", "a fringe of hair on the brow"), ("hair kept off the forehead",)),
    "Hair_Bun": (("hair in a bun", "a topknot"), ("hair worn loose",)),
    "No_Beard": (("beardless", "a shaven chin"), ("bearded",)),
    "Full_Beard": (("a bushy beard", "whiskers all over the jaw"), ("no thick beard",)),
    "Goatee": (("a tuft on the chin", "a small pointed beard"), ("no chin beard",)),
    "Mustache": (("a moustache", "whiskers under the nose"), ("a bare upper lip",)),
    "5_o_Clock_Shadow": (("an unshaven jaw", "a day's growth of beard"), ("freshly shaven",)),
    "Heavy_Makeup": (("heavily made-up", "thick cosmetics"), ("a face free of makeup",)),
    "Wearing_Lipstick": (("lips coloured red", "rouge on the lips"), ("unpainted lips",)),
    "Rosy_Cheeks": (("ruddy cheeks", "flushed cheeks"), ("no blush on the cheeks",)),
    "Bags_Under_Eyes": (("puffy eyes", "tired shadows below the eyes"), ("no shadows below the eyes",)),
    "Freckles": (("freckled", "small brown spots across the nose"), ("skin free of freckles",)),
    "Mole": (("a beauty spot", "a birthmark"), ("no birthmark",)),
    "Wrinkles": (("wrinkled", "creased skin"), ("unlined skin",)),
    "Bushy_Eyebrows": (("heavy brows", "dense eyebrows"), ("sparse eyebrows",)),
    "Arched_Eyebrows": (("curved eyebrows", "high-arching brows"), ("eyebrows in a straight line",)),
    "Blue_Eyes": (("blue-eyed", "eyes the colour of the sky"), ("not blue-eyed",)),
    "Green_Eyes": (("green-eyed", "emerald eyes"), ("not green-eyed",)),
    "Brown_Eyes": (("brown-eyed", "chocolate-coloured eyes"), ("not brown-eyed",)),
    "Chubby": (("plump", "round-faced"), ("not plump",)),
    "Slim_Face": (("a thin face", "a lean face"), ("a wide face",)),
    "Big_Nose": (("a large nose", "a nose that stands out"), ("a little nose",)),
    "Big_Lips": (("thick lips", "a plump mouth"), ("narrow lips",)),
    "High_Cheekbones": (("raised cheekbones", "cheekbones set high"), ("cheekbones set low",)),
    "Prominent_Chin": (("a jutting chin", "a pronounced jaw"), ("a receding chin",)),
    "Double_Chin": (("a second chin", "flesh under the chin"), ("a single chin",)),
    "Eyeglasses": (("glasses", "bespectacled", "specs"), ("no spectacles",)),
    "Smiling": (("grinning", "smiling", "a cheerful grin"), ("not smiling",)),
    "Mouth_Open": (("lips parted", "mouth wide open"), ("lips pressed together",)),
    "Eyes_Closed": (("eyes shut", "shut eyelids"), ("eyes wide open",)),
    "Frowning": (("frowning", "a furrowed brow"), ("not frowning",)),
}


@dataclass(frozen=True)
class Describer:
    """How imprecise a describer is; all probabilities."""

    error: float = 0.05
    say_yes: float = 0.6
    say_no: float = 0.08

    def __post_init__(self) -> None:
        for name in ("error", "say_yes", "say_no"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in 0..1, got {getattr(self, name)}")

    def say(self, attributes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int8 (N, A) in {-1, 0, 1}: what is said of faces with these attributes (bool (N, A))."""
        attributes = _as_attributes(attributes)
        perceived = attributes ^ (rng.random(attributes.shape) < self.error)
        mentioned = rng.random(attributes.shape) < np.where(perceived, self.say_yes, self.say_no)
        return np.where(mentioned, perceived.astype(np.int8), np.int8(UNSAID))

    def likelihood_table(self) -> np.ndarray:
        """(2, 3): P(symbol | attribute), rows absent/present, columns unsaid/said absent/said present."""
        perceived_present = np.array([self.error, 1 - self.error])
        yes, no = perceived_present * self.say_yes, (1 - perceived_present) * self.say_no
        return np.stack([1 - yes - no, no, yes], 1)

    def log_likelihood(
        self, said: np.ndarray, attributes: np.ndarray, persistence: np.ndarray | None = None
    ) -> np.ndarray:
        """float64 (Q, N): log P(caption q | attributes n); said int8 (Q, A), attributes bool (N, A).

        persistence: as `log_evidence`. It is ``one_hot(said) @ log_evidence(attributes).T``.
        """
        evidence = self.log_evidence(attributes, persistence)
        said = np.asarray(said)
        if said.ndim != 2 or 3 * said.shape[1] != evidence.shape[1]:
            raise ValueError(f"said: expected (Q, {evidence.shape[1] // 3}), got {said.shape}")
        return one_hot(said) @ evidence.T

    def log_evidence(self, attributes: np.ndarray, persistence: np.ndarray | None = None) -> np.ndarray:
        """float64 (N, 3 A): log P(symbol | attributes n), for every attribute the three columns of `likelihood_table`.

        persistence: float (A, 2) from `persistence`, where the caption is of ANOTHER image of the person: P(present in
        the described image | absent, present in image n), which mixes the rows of the table. None: of the same image.
        """
        attributes = _as_attributes(attributes)
        present = _as_persistence(persistence, attributes.shape[1])[:, :, None]
        absent_row, present_row = self.likelihood_table()
        with np.errstate(divide="ignore"):
            logs = _finite(np.log((1 - present) * absent_row + present * present_row))  # (A, 2, 3)
        return np.where(attributes[:, :, None], logs[:, 1], logs[:, 0]).reshape(len(attributes), -1)


def one_hot(said: np.ndarray) -> np.ndarray:
    """float64 (Q, 3 A) of said int8 (Q, A): for every attribute unsaid, said absent, said present."""
    said = np.asarray(said)
    return (said[:, :, None] == (UNSAID, ABSENT, PRESENT)).reshape(len(said), -1).astype(float)


def persistence(described: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float64 (A, 2): P(attribute present in the described image | absent, present in the gallery image).

    Counted over pairs of images of the same people, both bool (N, A); pass both orders of a pair to use it twice. An
    attribute that never differs belongs to the identity: exactly (0, 1). For others half a pair is added to each count.
    """
    described, gallery = _as_attributes(described), _as_attributes(gallery)
    if described.shape != gallery.shape or not len(gallery):
        raise ValueError(f"expected two (N, A) of the same pairs, N >= 1; got {described.shape} and {gallery.shape}")
    groups = np.stack([~gallery, gallery])  # (2, N, A)
    smoothed = ((groups & described).sum(1) + 0.5) / (groups.sum(1) + 1)
    varies = (described != gallery).any(0)
    return np.where(varies, smoothed, [[0.0], [1.0]]).T


def _as_persistence(persistence: np.ndarray | None, attributes: int) -> np.ndarray:
    if persistence is None:
        return np.tile([0.0, 1.0], (attributes, 1))
    table = np.asarray(persistence, float)
    if table.shape != (attributes, 2) or not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"persistence: expected probabilities ({attributes}, 2), got {table.shape} in {table}")
    return table


def _finite(logs: np.ndarray) -> np.ndarray:
    return np.maximum(logs, -1e6)  # impossible, but 0 * -inf must not become NaN


def _as_attributes(attributes: np.ndarray) -> np.ndarray:
    attributes = np.asarray(attributes)
    if attributes.dtype != bool or attributes.ndim != 2:
        raise ValueError(f"attributes: expected bool (N, A), got {attributes.dtype} {attributes.shape}")
    return attributes


# ------------------------------------------------------------------------------------------------------------ sentences


class Phrase(NamedTuple):
    """One way to say one thing: the attribute's number, ABSENT or PRESENT, the words."""

    attribute: int
    value: int
    text: str


def phrase_bank(names: Sequence[str], unseen: bool = False) -> list[Phrase]:
    """Every way to say every attribute, in the order of ``names``: what `clauses` can find in a text of `to_text`."""
    ways = _ways(names, unseen)
    return [
        Phrase(attribute, value, text)
        for attribute, name in enumerate(names)
        for value in (ABSENT, PRESENT)
        for text in _texts(ways, name, value)
    ]


def to_text(said: np.ndarray, names: Sequence[str], rng: np.random.Generator, unseen: bool = False) -> list[str]:
    """One sentence per row of ``said`` (N, A); attributes in random order, one of several phrases each.

    unseen: take the phrases from `UNSEEN`, which no training uses.
    """
    ways = _ways(names, unseen)
    return [_sentence(row, names, ways, rng) for row in said]


def _ways(names: Sequence[str], unseen: bool) -> Mapping[str, Ways]:
    ways = UNSEEN if unseen else PHRASES
    unknown = sorted(set(names) - set(ways))
    if unknown:
        raise ValueError(f"names: no phrases for {unknown}; known are {sorted(ways)}")
    return ways


def _sentence(row: np.ndarray, names: Sequence[str], ways: Mapping[str, Ways], rng: np.random.Generator) -> str:
    gender = "Male" in names and row[list(names).index("Male")] != UNSAID
    subject = _phrase(ways, "Male", row[list(names).index("Male")], rng) if gender else "a person"
    said = [k for k in rng.permutation(len(names)) if row[k] != UNSAID and names[k] != "Male"]
    details = [_phrase(ways, names[k], row[k], rng) for k in said]
    if not details:
        return f"{subject.capitalize()}."
    listed = details[0] if len(details) == 1 else ", ".join(details[:-1]) + " and " + details[-1]
    return f"{subject.capitalize()}: {listed}."


def _phrase(ways: Mapping[str, Ways], name: str, value: int, rng: np.random.Generator) -> str:
    texts = _texts(ways, name, value)
    return texts[rng.integers(len(texts))]


def _texts(ways: Mapping[str, Ways], name: str, value: int) -> tuple[str, ...]:
    return ways[name][0 if value == PRESENT else 1]


# ----------------------------------------------------------------------------------------------------------- statements

AGES = "young|youthful|old|older|elderly|aged|senior|bald|chubby|plump|bearded|bespectacled|freckled|smiling|grinning"
PEOPLE = "man|woman|gentleman|lady|guy|bloke|fellow|girl|gal|boy|person"
HAIR = "long|short|straight|wavy|curly|frizzy"
SAYINGS = {text for ways in (*PHRASES.values(), *UNSEEN.values()) for texts in ways for text in texts}  # stay whole
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
    """The statements of a description, each once, in lower case: of `to_text` exactly its phrases, the subject first.

    A free text is broken at punctuation and at 'and', 'with', 'who has', 'wearing' and the like; 'without x' and 'is
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
    if clause in SAYINGS:
        return [clause]
    if clause.startswith("no ") and " or " in clause:
        return ["no " + re.sub("^(an?|any|no) ", "", thing) for thing in clause[3:].split(" or ")]
    if re.fullmatch(rf"((an?|the) )?(({AGES}) )*({PEOPLE})", clause):
        return [*(word for word in words[:-1] if word not in ("a", "an", "the")), f"a {words[-1]}"]
    kinds = [word for word in words[:-1] if re.fullmatch(HAIR, word)]
    if kinds and words[-1] == "hair" and not {"no", "not"} & set(words):
        rest = " ".join(word for word in words if word not in kinds)
        return [f"{kind} hair" for kind in kinds] + [rest] * (rest != "hair")
    return [clause]
