"""tau, first half: which statements a text makes, found by a network that reads all of it.

    text -> word states of a frozen MiniLM (B, L, 3 x 384) -> logits (B, A, 3): unsaid, said absent, said present

DiFace (2312.01367) hands a text encoder's tokens to the denoiser; which encoder could not be read (papers.md 1.3).
Here the statements stand between: a text is read once, whatever is asked of the faces afterwards, and what was
understood can be shown and corrected. Three layers of MiniLM are read side by side: the last knows the sentence, the
first the word. Trained on texts of `facetransport.world.grammar`, drawn afresh at every step, of which it is known what
they say. It knows the grammar's words by heart and makes little of others; `facetransport.diffusion.clausewise` does,
and both are asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.clausewise import ClausewiseReader
from facetransport.diffusion.text import LAYERS, TextEncoder
from facetransport.training import Loss
from facetransport.world import grammar, thesaurus
from facetransport.world.captions import ABSENT, PRESENT, UNSAID
from facetransport.world.clauses import clauses, plain

TOGETHER, PAIRS = 16, 1000  # texts read, words looked up at a time
MOST = 0.8  # of what is there that a training text mentions; the usual one mentions little, as searches do
ENOUGH = 0.6  # a cosine, of the rule: best F1 on texts of val people in training's words, of 0.5, 0.55 ... 0.9
CLAUSEWISE = 0.4  # of 1, for the reader of clauses; of 0.25 ... 0.6, on words set aside and the held-out templates
LEAST = 1e-3  # probability that is told from 0 where readings are pooled
HINTED = 0.1  # rise of a statement's probability that makes it hang on a new word; of 0.1 and 0.3, on words set aside
# Weights of such statements: of the text as it stands, by WordNet and by Moby, as either network reads it; and what is
# added to the logarithms for nothing, absence and presence. By maximum likelihood, on words set aside:
# python -m facetransport.companion.experiments.words_aside
NEW_WORDS = ((0.05, 0.12, 0.08), (0.47, 0.20, 0.09))
NEW_SAID = (-0.33, -0.16, 0.49)
ALIKE = 0.5  # a cosine, MiniLM's: what a noun rarely means takes its place only if the clause stays as alike as this
TELLING = 0.6  # how much what a neighbour says counts beside the cosine; chosen likewise, of 0, 0.3, 0.6 and 1.2
INVENTED = 0.5  # share of training texts that describe nobody: what is usual must not stand in for what is said
SOMEBODY = "somebody"  # says nothing
SLIPS = 0.2  # share of training batches with typos


class StatementReader(nn.Module):
    """Word states -> logits of what is said of each attribute. depth, heads: of a Transformer over the words; each
    attribute then looks for its own words by attention (one query each)."""

    def __init__(self, attributes: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        states = TextEncoder.dim * len(LAYERS)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.inp = nn.Sequential(nn.LayerNorm(states), nn.Dropout(0.1), nn.Linear(states, width))
        self.words = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(attributes, width) / width**0.5)
        self.verdict = nn.Parameter(torch.randn(attributes, 3, width) / width**0.5)
        self.prior = nn.Parameter(torch.zeros(attributes, 3))

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """states float (B, L, S), present bool (B, L): words, not padding -> float32 (B, A, 3)."""
        h = self.norm(self.words(self.inp(states), src_key_padding_mask=~present))
        looks = (h @ self.query.T).masked_fill(~present[..., None], -torch.inf).softmax(1)  # (B, L, A)
        return torch.einsum("bla,blw,akw->bak", looks, h, self.verdict).float() + self.prior


@dataclass(frozen=True)
class Reading:
    """What was understood of texts. said: int8 (B, A) in {-1 unsaid, 0 said absent, 1 said present}; confidence:
    float32 (B, A), how sure the reader is of it, 0..1. stated: float32 (B, A, 2), how probable it is that absence,
    presence is said. taken: for each text which of its words were looked up, and what they were taken for; nothing of a
    reader that looks nothing up."""

    said: np.ndarray
    confidence: np.ndarray
    stated: np.ndarray
    taken: tuple[Mapping[str, str], ...] = ()


class Reader(Protocol):
    """What reads descriptions. names: of the A attributes that it knows."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def read(self, texts: Sequence[str]) -> Reading:
        """What each text says. ValueError for what is not a list of texts, or for a blank one."""
        ...


@dataclass(frozen=True)
class NetworkReader:
    """A trained `StatementReader`: reads a text whole."""

    network: StatementReader
    words: TextEncoder
    names: tuple[str, ...]

    def read(self, texts: Sequence[str]) -> Reading:
        """As `Reader`; confidence is the network's probability."""
        return _as_read(self.probable(_checked(texts)))

    def probable(self, texts: Sequence[str]) -> Tensor:
        """float32 (B, A, 3): how probable it is that nothing, absence, presence is said."""
        parts = _of_one_length(texts, TOGETHER)
        found = torch.cat([self._logits([texts[i] for i in part]) for part in parts])
        return found.softmax(2)[np.argsort(np.concatenate(parts))]

    @torch.inference_mode()
    def _logits(self, texts: Sequence[str]) -> Tensor:
        where = self.network.prior.device
        return self.network(*(part.to(where) for part in self.words.layered_states(texts))).cpu()


@dataclass(frozen=True)
class DoubleReader:
    """Two networks, each of which knows what the other does not: one reads texts whole, one clause by clause. What they
    find is pooled log-linearly (``CLAUSEWISE``): where one is sure, the other hardly counts. Of a word that no text of
    training held the first is often sure that it says nothing, so where there is one, other weights hold
    (``NEW_WORDS``)."""

    whole: NetworkReader
    clausewise: ClausewiseReader

    @property
    def names(self) -> tuple[str, ...]:
        return self.whole.names

    def read(self, texts: Sequence[str]) -> Reading:
        """As `Reader`."""
        return _as_read(pooled(self.probable([_checked(texts)])))

    def read_together(self, told: Versions) -> Reading:
        """What texts say that stand in several versions."""
        probable = self.probable(told.texts)
        anew = pooled_anew(probable, torch.tensor(NEW_WORDS), torch.tensor(NEW_SAID)).softmax(2)
        return _as_read(torch.where(told.new[..., None], anew, pooled(probable)))

    def probable(self, versions: Sequence[Sequence[str]]) -> Tensor:
        """float32 (2, V, B, A, 3): by either network, of each version of each text."""
        once = {text: i for i, text in enumerate(dict.fromkeys(text for texts in versions for text in texts))}
        rows = torch.tensor([[once[text] for text in texts] for texts in versions])
        return torch.stack([reader.probable(list(once))[rows] for reader in (self.whole, self.clausewise)])


class Versions(NamedTuple):
    """Texts as they stand, as WordNet has them and as Moby has them. taken: by WordNet and by Moby, of each text, what
    its words were taken for. new: bool (B, A), of which attributes a word says something that training does not
    hold."""

    texts: list[Sequence[str]]
    taken: list[list[dict[str, str]]]
    new: Tensor


def pooled(networks: Tensor) -> Tensor:
    """Log-linear pooling of the mean of versions: (2, V, B, A, 3) -> probabilities (B, A, 3)."""
    whole, clausewise = _logs(networks.mean(1))
    return ((1 - CLAUSEWISE) * whole + CLAUSEWISE * clausewise).softmax(2)


def pooled_anew(networks: Tensor, weights: Tensor, said: Tensor) -> Tensor:
    """Log-linear pooling of each version by itself: (2, V, B, A, 3) -> logits (B, A, 3). weights: (2, V); said: (3,),
    what is added for nothing, absence and presence."""
    return torch.tensordot(weights, _logs(networks), 2) + said


def _logs(probable: Tensor) -> Tensor:
    return probable.clamp_min(LEAST).log()


def _as_read(probable: Tensor) -> Reading:
    """probable: float32 (B, A, 3), of nothing, absence and presence."""
    confidence, symbol = probable.max(2)
    return Reading((symbol.numpy() + UNSAID).astype(np.int8), confidence.numpy(), probable[..., 1:].numpy())


Table = Callable[[str], Mapping[str, bool]]  # a thesaurus: word -> neighbour -> whether in its usual meaning
Pair = tuple[str, str]  # a word, and the clause in which it stands
Tried = Mapping[tuple[Pair, str], str]  # a neighbour in a word's place -> the clause that this makes
Judged = Mapping[tuple[Pair, str], float]


@dataclass(frozen=True)
class ThesaurusReader:
    """A reader that looks up what it cannot place: words that training does not hold give way to their neighbours in
    two thesauri (`facetransport.world.thesaurus`): to the one that changes its clause least (the cosine of sentence
    states) and lets it say most (``TELLING``), in WordNet in their usual meaning or, where that leaves the clause
    ``ALIKE``, in another: a chap is a lad, a dog is not. What is said is pooled of the text as it stands, as WordNet
    has it, and as Moby has it. Words that matter are looked up: of "sporting a beard" the reader understands the same
    without the first.
    """

    reader: DoubleReader

    @property
    def names(self) -> tuple[str, ...]:
        return self.reader.names

    def read(self, texts: Sequence[str]) -> Reading:
        """As `Reader`; taken: WordNet's."""
        told = self.versions(_checked(texts))
        return replace(self.reader.read_together(told), taken=tuple(told.taken[0]))

    def versions(self, texts: Sequence[str]) -> Versions:
        """What is read in the place of texts."""
        unplaced = self._that_matter(texts)
        taken = [self._look_up(unplaced, table) for table in (thesaurus.neighbours, thesaurus.associates)]
        others = ([_exchanged(*each) for each in zip(texts, other, strict=True)] for other in taken)
        return Versions([texts, *others], taken, self._new(unplaced, taken))

    def _new(self, unplaced: Sequence[Mapping[str, str]], taken: Sequence[Sequence[Mapping[str, str]]]) -> Tensor:
        """bool (B, A): of which attributes a clause says more with its words that matter than without, by ``HINTED`` of
        a probability, in any version of the text: in "a spectacled woman" not of her gender."""
        asked = [
            (row, _exchanged(clause, others[row]), bare)
            for row, words in enumerate(unplaced)
            for clause, bare in _bared(words).items()
            for others in ([{}] * len(unplaced), *taken)
        ]
        new = torch.zeros(len(unplaced), len(self.names), dtype=torch.bool)
        if asked:
            rows, *told = zip(*asked, strict=True)
            with_them, without = (self._stated(texts) for texts in told)
            more = (with_them - without).amax(2) >= HINTED
            new.index_put_((torch.tensor(rows),), more, accumulate=True)
        return new

    def _stated(self, texts: Sequence[str]) -> Tensor:
        """float32 (C, A, 2): what clauses say, to the second network."""
        network = self.reader.clausewise
        return torch.from_numpy(network.of_clauses(network.states(texts)))

    def _that_matter(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """Of each text the words that training does not hold, and the clause of each, if it says nothing, or something
        else without the word."""
        unplaced = [_unplaced(text) for text in texts]
        pairs = sorted({pair for words in unplaced for pair in words.items()})
        if not pairs:
            return unplaced
        there = self.reader.read([clause for _, clause in pairs]).said
        without = self.reader.read([_without(pair) for pair in pairs]).said
        matter = dict(zip(pairs, (there == UNSAID).all(1) | (there != without).any(1), strict=True))
        return [{word: clause for word, clause in words.items() if matter[word, clause]} for words in unplaced]

    def _look_up(self, unplaced: Sequence[Mapping[str, str]], table: Table) -> list[dict[str, str]]:
        """For each text which neighbours take the place of its words."""
        pairs = sorted({pair for words in unplaced for pair in words.items() if table(pair[0])})
        best = dict[Pair, str]()
        for i in range(0, len(pairs), PAIRS):
            best |= self._best(pairs[i : i + PAIRS], table)
        return [{pair[0]: best[pair] for pair in words.items() if pair in best} for words in unplaced]

    def _best(self, pairs: Sequence[Pair], table: Table) -> dict[Pair, str]:
        """Of words in their clauses: the best neighbour, if one may stand there."""
        tried = {(pair, other): _exchanged(pair[1], {pair[0]: other}) for pair in pairs for other in table(pair[0])}
        likeness, worth = self._judged(tried) if tried else ({}, {})
        fit = {
            pair: [other for other, usual in table(pair[0]).items() if usual or likeness[pair, other] >= ALIKE]
            for pair in pairs
        }
        return {p: max(others, key=lambda other: worth[p, other]) for p, others in fit.items() if others}

    def _judged(self, tried: Tried) -> tuple[Judged, Judged]:
        """Of each neighbour: how like itself its clause stays, by the cosine of sentence states; and that with what it
        says beside, which is how much more probable the clause makes a statement, that of which it is most, than
        without the word."""
        pairs = dict.fromkeys(pair for pair, _ in tried)  # in their order: the last digits depend on the batch
        texts = list(dict.fromkeys([*tried.values(), *(clause for _, clause in pairs), *map(_without, pairs)]))
        states = self.reader.clausewise.states(texts)
        stated = self.reader.clausewise.of_clauses(states)
        at = {text: i for i, text in enumerate(texts)}
        likeness = {key: float(states[at[text]] @ states[at[key[0][1]]]) for key, text in tried.items()}
        news = {key: float((stated[at[text]] - stated[at[_without(key[0])]]).max()) for key, text in tried.items()}
        return likeness, {key: likeness[key] + TELLING * news[key] for key in tried}


def _unplaced(text: str) -> dict[str, str]:
    """Words of a text that training does not hold, and the clause of each."""
    words = [word for word in dict.fromkeys(grammar.words_of(text)) if word not in grammar.vocabulary()]
    parts = clauses(text) if words else []
    return {word: next((part for part in parts if _has(part, word)), plain(text)) for word in words}


def _without(pair: Pair) -> str:
    """The clause without the word, or the word where nothing else is there."""
    return _exchanged(pair[1], {pair[0]: ""}).strip() or pair[0]


def _bared(words: Mapping[str, str]) -> dict[str, str]:
    """Of each clause what is left without words; somebody where nothing is."""
    none = dict.fromkeys(words, "")
    return {clause: _exchanged(clause, none).strip() or SOMEBODY for clause in words.values()}


def _has(text: str, word: str) -> bool:
    return word in grammar.words_of(text)


def _exchanged(text: str, others: Mapping[str, str]) -> str:
    """The text with other words in the place of some."""
    if not others:
        return text
    words = "|".join(map(re.escape, others))
    return re.sub(rf"\b(?:{words})\b", lambda found: others[found[0].lower()], text, flags=re.IGNORECASE)


@dataclass(frozen=True)
class ClauseReader:
    """A rule to compare with: a text is cut at its punctuation and its 'and' (`facetransport.world.clauses`), and each
    clause says what the nearest phrase of the grammar says, if MiniLM finds them similar enough.

    phrases: what each says; states: float32 (P, 384), of unit norm. enough: a cosine, by default ``ENOUGH``.
    """

    names: tuple[str, ...]
    words: TextEncoder
    phrases: Sequence[grammar.Phrase]
    states: Tensor
    enough: float = ENOUGH

    @classmethod
    def of(cls, names: tuple[str, ...], words: TextEncoder) -> ClauseReader:
        """With the phrases of the grammar's training part that a text can be cut into, each in its plainest form: with
        'not really' and 'without' beside 'not' and 'no' there are 1.6 times as many, and F1 on val people is the same.
        """
        phrases = [phrase for phrase in grammar.phrase_bank(names, ways=1) if clauses(phrase.text) == [phrase.text]]
        return cls(names, words, phrases, F.normalize(words.clause_states([phrase.text for phrase in phrases]), dim=1))

    def read(self, texts: Sequence[str]) -> Reading:
        """As `Reader`; confidence is the cosine, and 1 for what is unsaid."""
        read = [self._read(text) for text in _checked(texts)]
        said = np.stack([said for said, _ in read])
        certain = (said[..., None] == (ABSENT, PRESENT)).astype(np.float32)  # a rule has no doubts
        return Reading(said, np.stack([sure for _, sure in read]), certain)

    def _read(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        said, sure = np.full(len(self.names), UNSAID, np.int8), np.ones(len(self.names), np.float32)
        parts = clauses(text)
        likeness = F.normalize(self.words.clause_states(parts), dim=1) @ self.states.T
        for cosine, nearest in zip(*likeness.max(1), strict=True) if parts else ():
            if cosine >= self.enough:
                phrase = self.phrases[int(nearest)]
                said[phrase.attribute], sure[phrase.attribute] = phrase.value, float(cosine)
        return said, sure


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"descriptions: expected a list of at least one text, got {texts!r}")
    return texts


def statement_loss(attributes: np.ndarray, names: Sequence[str], words: TextEncoder) -> Loss:
    """Cross-entropy of what fresh texts say of each attribute. attributes: bool (N, A), of people to describe."""

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        rng = np.random.default_rng(generator.initial_seed())
        said = _to_say(attributes[rows.numpy()], rng)
        texts = grammar.describe(said, names, rng, "typos" if rng.random() < SLIPS else "training")
        target = torch.from_numpy(said.astype(np.int64) - UNSAID).to(generator.device)
        parts = _of_one_length(texts, TOGETHER)
        errors = [_error(network, words, [texts[i] for i in part], target[part]) for part in parts]
        return torch.stack(errors).sum() / target.numel()

    return loss


def training_texts(
    attributes: np.ndarray, names: Sequence[str], number: int, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """So many texts as `statement_loss` draws them, and what they say, int8 (number, A). attributes: bool (N, A)."""
    said = _to_say(attributes[rng.integers(0, len(attributes), number)], rng)
    slipped = round(SLIPS * number)
    kinds = ((said[:slipped], "typos"), (said[slipped:], "training"))
    return [text for part, words in kinds for text in grammar.describe(part, names, rng, words)], said


def _error(network: nn.Module, words: TextEncoder, texts: Sequence[str], target: Tensor) -> Tensor:
    states, present = (part.to(target.device) for part in words.layered_states(texts))
    return F.cross_entropy(network(states, present).flatten(0, 1), target.flatten(), reduction="sum")


def _of_one_length(texts: Sequence[str], size: int) -> list[np.ndarray]:
    """Places of texts in groups of about one length: little of a batch is padding."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    return [order[i : i + size] for i in range(0, len(order), size)]


def _to_say(attributes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int8 (B, A): what is said, much or little, of these people (absences less) or of somebody invented."""
    invented = rng.random((len(attributes), 1)) < INVENTED
    present = np.where(invented, rng.random(attributes.shape) < 0.5, attributes)
    share = MOST * rng.random((len(attributes), 1)) ** 2 * np.where(invented, 0.4, np.where(present, 1, 0.1))
    return np.where(rng.random(attributes.shape) < share, present.astype(np.int8), np.int8(UNSAID))
