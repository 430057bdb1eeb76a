"""A describer of faces whose imprecision is explicit, so that the best possible reader of its captions can be computed.

Model, independently for every attribute: the describer perceives it (wrong with probability ``error``), mentions it
(with probability ``say_yes`` if perceived present, ``say_no`` if perceived absent), and picks one of several phrases.
What was said is a vector in {-1 unsaid, 0 said absent, 1 said present}; its likelihood given a face's true attributes
is a product, which is all a Bayes-optimal verifier or identifier needs. DiFace (2312.01367) leaves open how to
measure verbal imprecision; this makes it a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNSAID, ABSENT, PRESENT = -1, 0, 1

PHRASES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # attribute: (ways to say yes, ways to say no)
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

    def log_likelihood(self, said: np.ndarray, attributes: np.ndarray) -> np.ndarray:
        """float64 (Q, N): log P(caption q | attributes n); said int8 (Q, A), attributes bool (N, A)."""
        attributes = _as_attributes(attributes)
        said = np.asarray(said)
        if said.ndim != 2 or said.shape[1] != attributes.shape[1]:
            raise ValueError(f"said: expected (Q, {attributes.shape[1]}), got {said.shape}")
        with np.errstate(divide="ignore"):
            table = np.log(self.likelihood_table())
        per_symbol = np.where(attributes[None], table[1][:, None, None], table[0][:, None, None])  # (3, N, A)
        chosen = [(said == symbol) @ _finite(per_symbol[k]).T for k, symbol in enumerate((UNSAID, ABSENT, PRESENT))]
        return np.sum(chosen, axis=0)


def _finite(logs: np.ndarray) -> np.ndarray:
    return np.maximum(logs, -1e6)  # impossible, but 0 * -inf must not become NaN


def _as_attributes(attributes: np.ndarray) -> np.ndarray:
    attributes = np.asarray(attributes)
    if attributes.dtype != bool or attributes.ndim != 2:
        raise ValueError(f"attributes: expected bool (N, A), got {attributes.dtype} {attributes.shape}")
    return attributes


def to_text(said: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """One sentence per row of ``said`` (N, A); attributes in random order, one of several phrases each."""
    unknown = sorted(set(names) - set(PHRASES))
    if unknown:
        raise ValueError(f"names: no phrases for {unknown}; known are {sorted(PHRASES)}")
    return [_sentence(row, names, rng) for row in said]


def _sentence(row: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> str:
    gender = "Male" in names and row[list(names).index("Male")] != UNSAID
    subject = _phrase("Male", row[list(names).index("Male")], rng) if gender else "a person"
    said = [k for k in rng.permutation(len(names)) if row[k] != UNSAID and names[k] != "Male"]
    details = [_phrase(names[k], row[k], rng) for k in said]
    if not details:
        return f"{subject.capitalize()}."
    listed = details[0] if len(details) == 1 else ", ".join(details[:-1]) + " and " + details[-1]
    return f"{subject.capitalize()}: {listed}."


def _phrase(name: str, value: int, rng: np.random.Generator) -> str:
    ways = PHRASES[name][0 if value == PRESENT else 1]
    return ways[rng.integers(len(ways))]
