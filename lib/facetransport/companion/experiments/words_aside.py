"""Words set aside: how a reader of descriptions is judged on words that it never saw, without those that are held out.

    python -m facetransport.companion.experiments.words_aside WORDNET/dict MOBY/words.txt

A fifth of the lexicon's words that stand alone are set aside, with all that begin like one of them; both networks are
trained on the rest, the thesauri derived again, and texts in the words set aside read. Fits the weights of new words
(`facetransport.diffusion.statements.NEW_WORDS`, ``NEW_SAID``) and prints them, and what they bring to texts that they
were not fitted on. Those in use were fitted to another draw of texts. An hour of two cores; the networks are kept in
the cache.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facetransport.companion import artifacts, profiles
from facetransport.companion.experiments import diface, words
from facetransport.diffusion.statements import ThesaurusReader, pooled, pooled_anew
from facetransport.evaluation.described import understanding
from facetransport.evaluation.statistics import Estimate, bootstrap
from facetransport.world import grammar, thesaurus
from facetransport.world.captions import UNSAID, Describer

SHARE, ALIKE, COMMON = 0.2, 5, 40  # of the words; first letters of one stem; phrases that hold a usual word
ARTICLES = ("a", "an", "the")
USUAL = frozenset(grammar.words_of(" ".join(grammar.FUNCTION_WORDS) + " of in with no not hair eyes face skin"))
STEPS, TEXTS, FOLDS = 2000, 800, 5  # the first network's training; texts read; parts, each left out in turn
TELLS = Describer(error=0.0, say_yes=0.5, say_no=0.03)  # of whom they are
SEED = 11
Lexicon = dict[str, Any]


def set_aside(lexicon: Mapping[str, Any], seed: int) -> Lexicon:
    """The lexicon with a ``SHARE`` of its words under held, and none of those that were there."""
    aside = _chosen(list(_phrases(lexicon)), random.Random(seed))
    nouns = [{"says": entry["says"], **_noun(entry["words"], aside)} for entry in lexicon["nouns"]]
    attributes = {name: _attribute(sides, aside) for name, sides in lexicon["attributes"].items()}
    return {**lexicon, "nouns": nouns, "attributes": attributes}


def _phrases(lexicon: Mapping[str, Any]) -> Iterator[str]:
    for entry in lexicon["nouns"]:
        yield from entry["words"]
    for sides in lexicon["attributes"].values():
        for side in ("present", "absent"):
            for phrases in sides.get(side, {}).values():
                yield from phrases


def _chosen(phrases: Sequence[str], rng: random.Random) -> frozenset[str]:
    bare = ([word for word in grammar.words_of(phrase) if word not in ARTICLES] for phrase in phrases)
    alone = {phrase[0] for phrase in bare if len(phrase) == 1}
    times = Counter(word for phrase in set(phrases) for word in set(grammar.words_of(phrase)))
    unusual = sorted(word for word in alone - USUAL if times[word] < COMMON)
    drawn = rng.sample(unusual, round(SHARE * len(unusual)))
    stems = {word[:ALIKE] for word in drawn if len(word) >= ALIKE}
    return frozenset(drawn) | ({word for word in times if word[:ALIKE] in stems} - USUAL)


def _parted(phrases: Sequence[str], aside: frozenset[str]) -> tuple[list[str], list[str]]:
    """Without words set aside, and with; all without where nothing else would be left."""
    left = [phrase for phrase in phrases if not aside & set(grammar.words_of(phrase))]
    return (left, [phrase for phrase in phrases if phrase not in left]) if left else (list(phrases), [])


def _noun(phrases: Sequence[str], aside: frozenset[str]) -> dict[str, list[str]]:
    """Held is never empty, as texts of words set aside need a noun."""
    left, held = _parted(phrases, aside)
    return {"words": left, "held": held or left[:2]}


def _attribute(sides: Mapping[str, Any], aside: frozenset[str]) -> dict[str, Any]:
    parts = {
        side: {slot: _parted(phrases, aside) for slot, phrases in sides[side].items()}
        for side in ("present", "absent")
        if side in sides
    }
    left = {side: {slot: part for slot, (part, _) in slots.items()} for side, slots in parts.items()}
    held = {side: {slot: part for slot, (_, part) in slots.items() if part} for side, slots in parts.items()}
    return {**left, "held": {side: slots for side, slots in held.items() if slots}}


def as_toml(lexicon: Mapping[str, Any]) -> str:
    """A lexicon as TOML."""
    return "\n".join(f"{json.dumps(name)} = {_inline(value)}" for name, value in lexicon.items()) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_inline(each)}" for name, each in value.items()) + "}"
    return "[" + ", ".join(map(_inline, value)) + "]" if isinstance(value, list) else json.dumps(value)


# ------------------------------------------------------------------------------------------------------------- the fit


class Read(NamedTuple):
    """Texts that were read. said: int64 (B, A), 0 unsaid, 1 absent, 2 present; probable: float32 (2, V, B, A, 3), as
    `facetransport.diffusion.statements.DoubleReader` finds them in each version; new: bool (B, A)."""

    said: Tensor
    probable: Tensor
    new: Tensor

    def rows(self, rows: Tensor) -> Read:
        """Of some texts."""
        return Read(self.said[rows], self.probable[:, :, rows], self.new[rows])


def fitted(read: Read) -> tuple[Tensor, Tensor]:
    """The weights (2, V) and what is added to the logarithms (3,), that make new words' statements most probable."""
    weights = torch.full(read.probable.shape[:2], 0.5 / read.probable.shape[1], requires_grad=True)
    added = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, added], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        error = F.cross_entropy(pooled_anew(read.probable, weights, added)[read.new], read.said[read.new])
        error.backward()
        return error

    optimiser.step(loss)
    return weights.detach(), added.detach()


def left_out(read: Read, seed: int) -> Tensor:
    """Probabilities (B, A, 3) by weights that were fitted on other texts; of what no new word says, as ever."""
    found = pooled(read.probable)
    part = torch.from_numpy(np.random.default_rng(seed).integers(0, FOLDS, len(read.said)))
    for fold in range(FOLDS):
        here = read.rows((part == fold).nonzero()[:, 0])
        anew = pooled_anew(here.probable, *fitted(read.rows((part != fold).nonzero()[:, 0]))).softmax(2)
        found[part == fold] = torch.where(here.new[..., None], anew, found[part == fold])
    return found


# --------------------------------------------------------------------------------------------------------- the command


def main(wordnet: str, moby: str) -> None:
    """Print the weights, and what they bring to texts that were left out."""
    profile, store = profiles.resolve("laptop"), artifacts.default_store()
    with TemporaryDirectory() as folder:
        _take(Path(folder), wordnet, moby)
        people = diface.load_population(profile, store)
        reader = words.load_reader(replace(profile, words=replace(profile.words, steps=STEPS)), store)
        assert isinstance(reader, ThesaurusReader)
        read = _read(reader, people.attributes, np.random.default_rng(SEED))
    for name, found in (("known", pooled(read.probable)), ("new", left_out(read, SEED))):
        made = understanding((read.said - 1).numpy(), (found.argmax(2) - 1).numpy(), np.arange(TEXTS))
        print(f"with the weights of {name} words, {TEXTS} texts: F1 {made['f1']}, nats {log_loss(found, read.said)}")
    weights, added = fitted(read)
    print(f"NEW_WORDS = {weights.double().numpy().round(2).tolist()}")
    print(f"NEW_SAID = {added.double().numpy().round(2).tolist()}")


def _take(folder: Path, wordnet: str, moby: str) -> None:
    """For this process: a lexicon with words set aside, and the thesauri that belong to it."""
    lexicon = set_aside(grammar.lexicon(), SEED)
    for module, name in ((grammar, "LEXICON"), (thesaurus, "FILE"), (thesaurus, "MOBY")):
        setattr(module, name, Path(shutil.copy(getattr(module, name), folder)))
    grammar.LEXICON.write_text(as_toml(lexicon), encoding="utf-8")
    thesaurus.main(wordnet, moby)


def _read(reader: ThesaurusReader, attributes: np.ndarray, rng: np.random.Generator) -> Read:
    said = TELLS.say(attributes[rng.integers(0, len(attributes), TEXTS)], rng)
    told = reader.versions(grammar.describe(said, reader.names, rng, "held_out_words"))
    return Read(torch.from_numpy(said.astype(np.int64) - UNSAID), reader.reader.probable(told.texts), told.new)


def log_loss(found: Tensor, said: Tensor) -> Estimate:
    """Nats of a text, with its interval over texts: found (B, A, 3), said (B, A); nothing is told from one in a
    hundred."""
    nats = -found.gather(2, said[..., None]).clamp_min(0.01).log().sum((1, 2)).double().numpy()
    return bootstrap(lambda weights: weights @ nats / len(nats), len(nats))


if __name__ == "__main__":
    main(*sys.argv[1:])
