"""People who are described, and what reads the words: what DiFace, its rivals and the Bayes bound are all given.

Words come from a describer (`facetransport.world.captions.Describer`), or are captions that came with photographs; in
training they are of ANOTHER photograph of the person, so that a smile or glasses in them weigh what they say about the
person (papers.md 1.11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.devices import device
from facetransport.diffusion.text import TextEncoder, WordEncoder, minilm_folder
from facetransport.diffusion.vectors import TokenSum
from facetransport.evaluation.descriptions import Matched
from facetransport.evaluation.statistics import Estimate, bootstrap
from facetransport.world import captions, grammar
from facetransport.world.captions import Describer

CAPTIONED = (
    "expected photographs with a column caption, such as CelebA's when they were imported with CelebA-Dialog's "
    "captions.json in their folder; import them anew, or take tokens text"
)
HARD = ("Male", "Young", "Senior")  # what hard negatives share: gender and age band


@dataclass(frozen=True)
class People:
    """Who could be meant: attributes bool (N, A) of a photograph of each; elsewhere: the same of another photograph of
    the person, which was never rendered; names: of the A attributes."""

    attributes: np.ndarray
    elsewhere: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def groups(self) -> np.ndarray:
        """int64 (N,): gender and age band, as far as they are known: the same for hard negatives."""
        columns = self.attributes[:, [self.names.index(name) for name in HARD if name in self.names]]
        return columns @ (1 << np.arange(columns.shape[1]))

    @property
    def persistence(self) -> np.ndarray:
        """float64 (A, 2): how attributes carry over from one photograph of a person to another."""
        return captions.persistence(self.elsewhere, self.attributes)


@dataclass(frozen=True)
class Faces(People):
    """Photographs as DiFace sees them: embeddings E(I), float32 (N, d), unit norm; identity int64 (N,). captions: a
    text about each, where they came with some (CelebA-Dialog's)."""

    embeddings: np.ndarray
    identity: np.ndarray
    captions: tuple[str, ...] = ()


def another(identity: np.ndarray) -> np.ndarray:
    """int64 (N,): for each photograph the row of the person's next one, or its own where there is no other."""
    rows = pd.Series(np.arange(len(identity)))
    return rows.groupby(np.asarray(identity)).transform(lambda own: np.roll(own, -1)).to_numpy()


def scaled(embeddings: np.ndarray) -> np.ndarray:
    """float32 (N, d): unit vectors times sqrt(d), whose components have unit variance (papers.md 1.3)."""
    return embeddings * np.float32(embeddings.shape[1] ** 0.5)


def features_of(faces: Faces) -> Tensor:
    """z_0 = sqrt(d) E(I) of each photograph, float32 (N, d)."""
    return torch.from_numpy(scaled(faces.embeddings))


# ------------------------------------------------------------------------------------------------------ words to tokens


Said = np.ndarray | Sequence[str]
"""Descriptions: statements, int8 (B, A) (`captions.UNSAID`, ``ABSENT``, ``PRESENT``); or, where the reader has doubts,
how probable they are, float (B, A, 2): that an attribute is said to be absent, to be present; or, for tau "captions",
texts."""


class Tokeniser(Protocol):
    """tau, second half: said (B, ...) -> tokens float32 (B, L, e), of unit root mean square. dim: e."""

    dim: int

    def __call__(self, said: Said, rng: np.random.Generator) -> Tensor:
        """What ``rng`` decides is how statements are put into words. ValueError for texts where statements are read,
        and the other way round."""
        ...


@dataclass(frozen=True)
class Tau:
    """Which tokeniser. kind: "statements" or "clauses" (`Statements`), "text" (`Spoken`), as papers.md 1.3 takes the
    paper to do, or "captions" (`Captions`). encoder: folder of the text model of the last two, such as CLIP's; None:
    MiniLM's, of the wheel."""

    kind: str = "statements"
    encoder: Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"tokens: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.encoder is not None and self.kind not in READ:
            raise ValueError(f"encoder: {self.encoder} reads tokens {' or '.join(READ)}, not {self.kind!r}")

    def of(self, names: tuple[str, ...]) -> Tokeniser:
        """The tokeniser for these attributes; encoding phrases takes seconds, so a process makes each once."""
        return _tokeniser(self, names)


READ = ("text", "captions")  # by a text model
KINDS = ("statements", "clauses", *READ)


@cache
def _tokeniser(tau: Tau, names: tuple[str, ...]) -> Tokeniser:
    if tau.kind not in READ:
        return Statements(names, tau.kind)
    encoder = _word_encoder(tau.encoder)
    return Captions(encoder) if tau.kind == "captions" else Spoken(names, encoder)


@cache
def _word_encoder(folder: Path | None) -> WordEncoder:
    return WordEncoder(folder or minilm_folder(), device())


class Spoken:
    """tau by whole texts: what is said is put into one of the ways of the grammar (`facetransport.world.grammar`), and
    every word piece of the text is a token, as a text encoder sees it in its sentence."""

    def __init__(self, names: tuple[str, ...], encoder: WordEncoder) -> None:
        grammar.check_names(names)
        self.names, self.encoder, self.dim = names, encoder, encoder.dim

    def __call__(self, said: Said, rng: np.random.Generator) -> Tensor:
        return self.encoder(grammar.describe(statements(said, len(self.names)), self.names, rng))


class Captions:
    """tau of texts as they are: every word piece is a token."""

    def __init__(self, encoder: WordEncoder) -> None:
        self.encoder, self.dim = encoder, encoder.dim

    def __call__(self, said: Said, rng: np.random.Generator) -> Tensor:
        if isinstance(said, np.ndarray):
            raise ValueError(f"said: expected texts, as tokens 'captions' read, got an array {said.shape}")
        return self.encoder(said)


class Statements:
    """tau statement by statement.

    kind: "statements" (one-hot of attribute and value, of unit root mean square as the others; a network's first layer
    is then a learned embedding) or "clauses" (MiniLM's mean state of a phrase that says it, one of
    `facetransport.world.grammar`).
    """

    def __init__(self, names: Sequence[str], kind: str) -> None:
        phrases = grammar.phrase_bank(names)
        states = _states(kind, phrases, len(names))
        self.kind, self.dim = kind, states.shape[2]
        self.first = np.full((len(names), 2), -1)  # row of a statement's first phrase ...
        self.ways = np.zeros((len(names), 2), int)  # ... and how many phrases it has, one after the other
        for i, phrase in reversed(list(enumerate(phrases))):
            self.first[phrase.attribute, phrase.value] = i
            self.ways[phrase.attribute, phrase.value] += 1
        self.states = states

    def __call__(self, said: Said, rng: np.random.Generator) -> Tensor:
        """One of its phrases for each statement, drawn with ``rng``; zero rows where a description says less."""
        said = statements(said, len(self.ways))
        row, attribute = np.nonzero(said >= 0)
        value = said[row, attribute]
        phrase = self.first[attribute, value] + (rng.random(len(row)) * self.ways[attribute, value]).astype(int)
        place = np.arange(len(row)) - np.searchsorted(row, row)  # of a statement in its description
        tokens = torch.zeros(len(said), max(1, *np.bincount(row, minlength=1)), *self.states.shape[1:])
        tokens[row, place] = self.states[phrase]
        return tokens.flatten(1, 2)


def _states(kind: str, phrases: Sequence[grammar.Phrase], attributes: int) -> Tensor:
    """float32 (P, n, e): the tokens of every phrase, zero rows after the last."""
    if kind == "statements":
        stated = F.one_hot(torch.tensor([2 * p.attribute + p.value for p in phrases]), 2 * attributes)
        return stated[:, None] * (2 * attributes) ** 0.5
    return text_encoder().clause_states([phrase.text for phrase in phrases])[:, None]


def statements(said: Said, attributes: int) -> np.ndarray:
    """What is said, as (B, A); ValueError where it is not."""
    said = np.asarray(said)
    if said.ndim != 2 or said.shape[1] != attributes:
        raise ValueError(f"said: expected statements (B, {attributes}), got {said.shape}")
    return said


def heard(network: nn.Module, tau: Tau, said: Said, names: tuple[str, ...], seed: int) -> Tensor:
    """What a network takes in of descriptions: tokens (B, L, e). Of statements that are only probable, the mean, over
    what may have been said, of the sum that its ``words`` make of them, (B, width); one without, such as the U-Net, is
    told the likeliest."""
    words: TokenSum | None = getattr(network, "words", None)
    read, rng = tau.of(names), np.random.default_rng(seed)
    if not in_doubt(said):
        return read(said, rng)
    weights = torch.from_numpy(probable(np.asarray(said))).flatten(1)
    if words is None:
        return read(likeliest(np.asarray(said)), rng)
    where = words.total.weight.device
    with torch.inference_mode():
        return words.expected(read(_each_alone(len(names)), rng).to(where), weights.to(where))


def _each_alone(attributes: int) -> np.ndarray:
    """int8 (2 A, A): every statement that can be made, absent before present, and nothing else."""
    values = np.tile([[captions.ABSENT], [captions.PRESENT]], (attributes, 1))
    return np.where(np.repeat(np.eye(attributes, dtype=bool), 2, 0), values, captions.UNSAID).astype(np.int8)


def in_doubt(said: Said) -> bool:
    """Whether statements are only probable, (B, A, 2)."""
    return isinstance(said, np.ndarray) and said.ndim == 3


def probable(said: np.ndarray) -> np.ndarray:
    """float32 (B, A, 2): how probable each statement is, absent before present; of said int (B, A), 0 or 1."""
    return np.asarray(said if in_doubt(said) else said[..., None] == (captions.ABSENT, captions.PRESENT), np.float32)


def likeliest(stated: np.ndarray) -> np.ndarray:
    """int8 (B, A): of statements that are only probable, float (B, A, 2), what is most probable of each attribute."""
    unsaid = 1 - stated.sum(2, keepdims=True)
    return (np.concatenate([unsaid, stated], 2).argmax(2) + captions.UNSAID).astype(np.int8)


@cache
def text_encoder() -> TextEncoder:
    """The frozen MiniLM of this process."""
    return TextEncoder()


Say = Callable[[Tensor, torch.Generator], Tensor]
"""say(rows, generator) -> tokens (B, L, e): descriptions of the faces in these rows, fresh for each generator."""


def describing(faces: Faces, tau: Tau, describer: Describer) -> Say:
    """Descriptions for training: of another photograph of the person, drawn and phrased anew each time, or, for tau
    "captions", its caption. ValueError where it reads captions and the faces have none."""
    read = tau.of(faces.names)
    if tau.kind == "captions":
        return _captioned(faces, read)

    def say(rows: Tensor, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(generator.initial_seed())  # known to the host: nothing waits for a device
        return read(describer.say(faces.elsewhere[rows.numpy()], rng), rng).to(generator.device)

    return say


def _captioned(faces: Faces, read: Tokeniser) -> Say:
    texts, other = captions_from(faces), another(faces.identity)

    def say(rows: Tensor, generator: torch.Generator) -> Tensor:
        told = [texts[row] for row in other[rows.numpy()]]
        return read(told, np.random.default_rng(0)).to(generator.device)

    return say


def captions_from(faces: Faces) -> tuple[str, ...]:
    """The captions that came with the photographs; ValueError where none did."""
    if not faces.captions:
        raise ValueError(f"tokens captions: {CAPTIONED}")
    return faces.captions


def captions_of(faces: Faces, describer: Describer, seed: int) -> np.ndarray:
    """said int8 (N, A): one description of each photograph."""
    return describer.say(faces.attributes, np.random.default_rng((seed, 1)))


def understanding(
    said: np.ndarray, read: np.ndarray, identity: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """How well texts were understood: said, read int8 (N, A) in {-1, 0, 1}, of people identity int (N,).

    recall: the share of statements that were understood as they were meant; precision: of those that were read, the
    share that was made; f1: their harmonic mean. Intervals over people.
    """
    person = np.unique(identity, return_inverse=True)[1]
    right, made, heard = (
        np.bincount(person, count.sum(1)) for count in ((read == said) & (said >= 0), said >= 0, read >= 0)
    )
    whole = {"recall": made, "precision": heard, "f1": (made + heard) / 2}
    return {
        name: bootstrap(partial(_share, right, of), len(right), resamples, seed, int(made.sum()))
        for name, of in whole.items()
    }


def _share(part: np.ndarray, whole: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights @ part) / np.maximum(weights @ whole, 1)


class Matcher(Protocol):
    """Whatever scores descriptions against faces: DiFace, the baselines, the Bayes bound."""

    def match(self, said: Said, faces: Faces, seed: int) -> Matched:
        """Scores of Q descriptions, as they were understood, against all faces."""
        ...
