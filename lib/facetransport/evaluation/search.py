"""Search by words: type a description, see who of a gallery fits it best.

    w_a                                      how probable it is that a is stated          `understand`
    b_na = P(statement a holds of n)         what a network believes of a photograph      `Finder.beliefs`
    s_n = (prod_a b_na^w_a)^(1 / sum w)      how well it fits                             `Finder.search`

What is not said counts for nothing: somebody who searches says what matters, unlike the describer of
`facetransport.world.captions`, who mentions most of what there is. A product is an inner product of logarithms, which
an index of cosines finds once a component is added that makes all photographs equally long (Bachrach et al. 2014).

A search in a million needs a million photographs; there are as many renders as people were rendered. The rest are
distractors, vectors that are NOT faces: like embeddings (`distractors`), or like what is believed of photographs
(`crowd`). They measure time, memory and recall of an index; how often the right person comes first, they measure only
as far as real ones are drawn like that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from facetransport.diffusion.statements import Reader
from facetransport.evaluation.described import Faces, probable
from facetransport.recognition.gallery import CHUNK, KINDS, Gallery, recall
from facetransport.recognition.recogniser import check_embeddings
from facetransport.world import grammar
from facetransport.world.captions import PRESENT, UNSAID
from facetransport.world.clauses import clauses

DISTRACTOR = -1  # the label of a vector that is nobody's
NOBODY = "a distractor: a vector, no face"
FRAME, BLANK = (0, 158, 115), 208  # green round who is meant (Okabe and Ito), grey in place of a face
DOUBT = 0.02  # what a network believes is never certain: one wrong belief must not decide a search
QUERIES = Path(__file__).with_name("queries.csv")


# ----------------------------------------------------------------------------------------------------------- the words


@dataclass(frozen=True)
class Understood:
    """What was understood of a description. said: int8 (A,) in {-1, 0, 1}; confidence: float32 (A,), of the reader;
    stated: float32 (A, 2), how probable it is that absence, presence is said; names: of the A attributes; missed: the
    clauses that say nothing the reader knows; new: words that no text of its training held; taken: for which words it
    took some of these."""

    said: np.ndarray
    confidence: np.ndarray
    stated: np.ndarray
    names: tuple[str, ...]
    missed: tuple[str, ...]
    new: tuple[str, ...]
    taken: Mapping[str, str] = field(default_factory=dict)

    @property
    def statements(self) -> list[str]:
        """Each statement in plain words: 'a man', 'no freckles'."""
        return [grammar.plainly(self.names[a], int(self.said[a])) for a in self.asked]

    @property
    def asked(self) -> np.ndarray:
        """int64: the attributes that something is said of."""
        return np.flatnonzero(self.said != UNSAID)

    def __str__(self) -> str:
        """'a man (0.99); no beard (0.95)', and what was not understood."""
        sure = self.confidence[self.asked]
        told = "; ".join(f"{text} ({p:.2f})" for text, p in zip(self.statements, sure, strict=True))
        told += f" - not understood: {'; '.join(self.missed)}" if self.missed else ""
        new = [f"{word} (looked up: {self.taken[word]})" if word in self.taken else word for word in self.new]
        return told + (f" - words it was not trained on: {', '.join(new)}" if new else "")


def understand(reader: Reader, description: str) -> Understood:
    """What a reader makes of a description; ValueError where that is nothing, as in 'a person'."""
    parts = clauses(description)
    read = reader.read([description, *parts])
    said = read.said[0]
    if (said == UNSAID).all():
        raise ValueError(
            f"description: {description!r} states nothing about a face that is understood; say how it looks, such as "
            "'a young woman with red hair'"
        )
    missed = tuple(part for part, alone in zip(parts, read.said[1:], strict=True) if (alone == UNSAID).all())
    new = tuple(word for word in dict.fromkeys(grammar.words_of(description)) if word not in grammar.vocabulary())
    taken = read.taken[0] if read.taken else {}
    return Understood(said, read.confidence[0], read.stated[0], reader.names, missed, new, taken)


def in_words(attributes: np.ndarray, names: Sequence[str]) -> str:
    """What is true of a face, bool (A,), in the order of ``names``: 'a man, young, brown hair, ...'.

    Absence goes without saying, but for gender and youth; and of women, that they have no beard.
    """
    known = dict(zip(names, map(bool, attributes), strict=True))
    if not known.get("Male", True):
        known["No_Beard"] = False
    told = [name for name, present in known.items() if present or name in ("Male", "Young")]
    return ", ".join(grammar.plainly(name, int(known[name])) for name in told)


# -------------------------------------------------------------------------------------------------------- the gallery


def first_photographs(faces: Faces) -> tuple[Faces, np.ndarray]:
    """One photograph a person, the first, people in ascending order; and its rows in ``faces``, int64 (people,)."""
    _, rows = np.unique(faces.identity, return_index=True)
    fields = ("attributes", "elsewhere", "embeddings", "identity")
    return replace(faces, **{name: getattr(faces, name)[rows] for name in fields}), rows


def distractors(like: np.ndarray, number: int, seed: int, out: np.ndarray | None = None) -> np.ndarray:
    """float32 (number, d), unit norm: draws from the Gaussian with mean and covariance of ``like`` (N, d), normalised.

    These are not faces: no photograph, person or word belongs to them, and what in real embeddings is not Gaussian
    (clusters, tails) is missing. The first rows do not depend on ``number``. out: where to write, a C-contiguous
    float32 (number, d); beside it only chunks are held. Raises ValueError for fewer than two rows or not of unit norm.
    """
    mean, root = _moments(check_embeddings(like))
    rows = np.empty((number, like.shape[1]), np.float32) if out is None else out
    rng = np.random.default_rng(seed)
    for start in range(0, number, CHUNK):
        part = rows[start : start + CHUNK]
        np.matmul(rng.standard_normal((len(part), len(root)), np.float32), root, out=part)
        part += mean
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def _moments(like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a root (r, d) of the covariance: root.T @ root; there may be fewer rows than components."""
    if len(like) < 2:
        raise ValueError(f"like: expected at least 2 embeddings to imitate, got {len(like)}")
    mean = like.mean(0, dtype=np.float64)
    root = np.asarray(np.linalg.qr((like - mean) / len(like) ** 0.5, mode="r"), np.float32)
    return mean.astype(np.float32), root


def require_room(size: int, people: int) -> None:
    """ValueError where a gallery of this size has no room for its people."""
    if size < people:
        raise ValueError(
            f"size: expected at least {people}, the people of the gallery, got {size}; leave it out for them alone"
        )


def enlarged(embeddings: np.ndarray, size: int, seed: int, like: np.ndarray | None = None) -> np.ndarray:
    """float32 (size, d): the people's embeddings (N, d), then `distractors` like all of ``like``, by default like them.

    One array of 4 size d bytes (512 MB for a million times 128) is all that is held. ValueError for size < N.
    """
    require_room(size, len(embeddings))
    rows = np.empty((size, embeddings.shape[1]), np.float32)
    rows[: len(embeddings)] = embeddings
    if size > len(embeddings):
        distractors(embeddings if like is None else like, size - len(embeddings), seed, rows[len(embeddings) :])
    return rows


# --------------------------------------------------------------------------------------------------------- the search

Photograph = Callable[[np.ndarray], np.ndarray]
"""photograph(people int (K,)) -> uint8 (K, H, W, 3): the enrolled photographs of these people of the gallery."""


def evidence(beliefs: np.ndarray) -> np.ndarray:
    """float32 (N, 2 A + 1), unit norm, of beliefs float (N, A) in 0..1: logarithms of how probable it is that each
    attribute is absent, present; by one length for all, and what is missing to 1 in the last component."""
    sure = DOUBT + (1 - 2 * DOUBT) * np.asarray(beliefs, np.float64)
    logs = np.log(np.stack([1 - sure, sure], 2)).reshape(len(sure), -1)
    logs /= _longest(beliefs.shape[1])
    return np.concatenate([logs, np.sqrt(1 - (logs**2).sum(1, keepdims=True))], 1).astype(np.float32)


def _longest(attributes: int) -> float:
    """What no row of logarithms is longer than."""
    return float(np.hypot(np.log(DOUBT), np.log(1 - DOUBT)) * attributes**0.5)


def asking(said: np.ndarray) -> np.ndarray:
    """float32 (Q, 2 A + 1), unit norm: what is looked for in `evidence`, of said int (Q, A) or how probable statements
    are, float (Q, A, 2); zeros where nothing is."""
    weights = probable(said).reshape(len(said), -1)
    length = np.linalg.norm(weights, axis=1, keepdims=True)
    return np.pad(weights / np.where(length > 0, length, 1), ((0, 0), (0, 1)))


def crowd(beliefs: np.ndarray, size: int, seed: int) -> np.ndarray:
    """float32 (size, 2 A + 1): the `evidence` of people, beliefs float (N, A), and of strangers like them, who are not
    faces: each attribute is as probable as it is in somebody drawn for this attribute alone. ValueError for size < N.
    """
    require_room(size, len(beliefs))
    vectors = np.empty((size, 2 * beliefs.shape[1] + 1), np.float32)
    vectors[: len(beliefs)] = evidence(beliefs)
    rng = np.random.default_rng(seed)
    for start in range(len(beliefs), size, CHUNK):
        part = vectors[start : start + CHUNK]
        drawn = rng.integers(len(beliefs), size=(len(part), beliefs.shape[1]))
        part[:] = evidence(np.take_along_axis(beliefs, drawn, 0))
    return vectors


@dataclass(frozen=True)
class Finder:
    """Looks for descriptions in a gallery; made by `facetransport.companion.search.finder`.

    reader: of the words. method: the name of what looks at the photographs. beliefs: float (people, A), how probable
    each attribute is in each photograph. gallery: the index of their `evidence`; its labels are identities, or
    DISTRACTOR. faces: the people, one photograph each, the gallery's first rows. vectors: float32 (size, 2 A + 1), all
    that is searched, as `measure` takes it.
    """

    reader: Reader
    method: str
    beliefs: np.ndarray = field(repr=False)
    gallery: Gallery
    faces: Faces
    vectors: np.ndarray = field(repr=False)
    photograph: Photograph

    def __len__(self) -> int:
        return len(self.gallery)

    def find(self, description: str, k: int = 10, nprobe: int = 256) -> tuple[Understood, pd.DataFrame]:
        """What was understood, and the k faces that fit it best, as `search`.

        Raises ValueError for what states nothing and for a k that is not in 1..size.
        """
        understood = understand(self.reader, description)
        return understood, self.search(understood.said, k, nprobe, understood.stated)

    def search(
        self, said: np.ndarray, k: int = 10, nprobe: int = 256, stated: np.ndarray | None = None
    ) -> pd.DataFrame:
        """The k faces that statements, said int (A,), fit best, best first; stated: float (A, 2), how probable it is
        that absence, presence is stated, by default certain: what counts, and how much.

        Columns: rank from 1; row of the gallery; person (identity, or DISTRACTOR); score, the geometric mean of how
        probable it is that each statement holds, weighted by how probable it is that it was made; holds, each statement
        with how probable it is; known, what is true of the photograph in words. nprobe: cells read by the ivf kinds,
        which may find fewer than k.
        """
        weights = probable(said[None] if stated is None else stated[None])
        cosines, rows = self.gallery.search(asking(weights), k, nprobe)
        found, cosine = rows[0][rows[0] >= 0], cosines[0][rows[0] >= 0]
        length, whole = np.linalg.norm(weights), max(weights.sum(), 1e-6)
        return pd.DataFrame(
            {
                "rank": np.arange(len(found)) + 1,
                "row": found,
                "person": self.gallery.labels[found],
                "score": np.exp(cosine * _longest(len(said)) * length / whole),
                "holds": [self._holds(row, said) for row in found],
                "known": [self._known(row) for row in found],
            }
        )

    def _holds(self, row: int, said: np.ndarray) -> str:
        if row >= len(self.faces):
            return NOBODY
        asked = np.flatnonzero(said != UNSAID)
        belief = np.where(said == PRESENT, self.beliefs[row], 1 - self.beliefs[row])[asked]
        words = [grammar.plainly(self.faces.names[a], int(said[a])) for a in asked]
        return "; ".join(f"{'' if p >= 0.5 else 'NOT '}{text} {p:.2f}" for text, p in zip(words, belief, strict=True))

    def _known(self, row: int) -> str:
        return in_words(self.faces.attributes[row], self.faces.names) if row < len(self.faces) else NOBODY

    def pictures(self, found: pd.DataFrame, described: int | None = None) -> np.ndarray:
        """uint8 (K, H, W, 3): the photographs of what was found, grey for distractors; a green frame round the person
        with the identity ``described``. For `facetransport.companion.plots.identity_grid`, with `labels`."""
        rows = found["row"].to_numpy()
        people = rows < len(self.faces)
        # the first photograph is asked for beside them, because it says how large a picture is
        photographs = self.photograph(np.append(rows[people], 0))
        pictures = np.full((len(rows), *photographs.shape[1:]), BLANK, np.uint8)
        pictures[people] = photographs[:-1]
        for place in np.flatnonzero(found["person"] == described):
            pictures[place] = _framed(pictures[place])
        return pictures


def labels(found: pd.DataFrame) -> list[str]:
    """Rank and score of what was found, for beside or above its `Finder.pictures`: '1: 0.873'."""
    return [f"{rank}: {score:.3f}" for rank, score in zip(found["rank"], found["score"], strict=True)]


def _framed(image: np.ndarray) -> np.ndarray:
    width = max(1, len(image) // 16)
    framed = np.full_like(image, FRAME)
    framed[width:-width, width:-width] = image[width:-width, width:-width]
    return framed


# ---------------------------------------------------------------------------------------------------- what it is worth


def load_queries(names: Sequence[str]) -> pd.DataFrame:
    """The 40 searches of queries.csv: query; words, "inside" or "outside" the grammar; asks, int8 (A,)."""
    queries = pd.read_csv(QUERIES, comment="#")
    asked = [dict(part.split("=") for part in text.split()) for text in queries["asks"]]
    said = [np.array([int(told.get(name, UNSAID)) for name in names], np.int8) for told in asked]
    return queries.assign(asks=pd.Series(said, dtype=object))


def fulfilled(asks: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """bool (N, statements): which of what is asked, int (A,), holds of faces, bool (N, A)."""
    asked = np.flatnonzero(asks != UNSAID)
    wanted: np.ndarray = attributes[:, asked] == (asks[asked] == PRESENT)
    return wanted


def precision(asks: np.ndarray, attributes: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Of the faces that a search found (``rows`` of ``attributes`` bool (N, A)): the share of what was asked that
    holds, the share of faces of whom all holds, and each by chance and at best, where everything is known."""
    holds, k = fulfilled(asks, attributes), len(rows)
    best = np.sort(holds.mean(1))[::-1][:k].mean() if k else 0.0
    whole: np.ndarray = np.all(holds, axis=1)
    return {
        "precision": float(holds[rows].mean()) if k else 0.0,
        "chance": float(holds.mean()),
        "bound": float(best),
        "all": float(whole[rows].mean()) if k else 0.0,
        "all_chance": float(whole.mean()),
        "all_bound": float(min(1.0, whole.sum() / k)) if k else 0.0,
    }


# ------------------------------------------------------------------------------------------------------------ its price


def measure(
    embeddings: np.ndarray,
    queries: np.ndarray,
    kinds: Sequence[str] = tuple(KINDS),
    nprobes: Sequence[int] = (16, 64, 256),
    k: int = 10,
    seed: int = 0,
    threads: int | None = None,
) -> pd.DataFrame:
    """What each kind of index costs and finds: embeddings float32 (N, d), queries float32 (Q, d), all of unit norm.

    Columns: kind; nprobe (of the ivf kinds, else NA); bytes_per_face of the index; build_seconds; query_ms, the median
    over the queries, one at a time after one that does not count, text already encoded; recall of the k best rows of an
    exhaustive search. threads: of building and searching. One index is held at a time.
    """
    queries = np.ascontiguousarray(check_embeddings(queries), np.float32)
    _, exact = faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)
    rows = [row for kind in kinds for row in _measured(embeddings, queries, exact, kind, nprobes, seed, threads)]
    columns = ["kind", "nprobe", "bytes_per_face", "build_seconds", "query_ms", "recall"]
    return pd.DataFrame(rows, columns=columns).astype({"nprobe": "Int64"})


def _measured(
    embeddings: np.ndarray,
    queries: np.ndarray,
    exact: np.ndarray,
    kind: str,
    nprobes: Sequence[int],
    seed: int,
    threads: int | None,
) -> list[dict[str, Any]]:
    start = time.perf_counter()
    index = Gallery.build(embeddings, np.zeros(len(embeddings), np.int8), kind, seed=seed, threads=threads)
    built = time.perf_counter() - start
    cost = {"kind": kind, "bytes_per_face": index.memory_bytes / len(index), "build_seconds": built}
    rows = []
    for nprobe in nprobes if kind.startswith("ivf") else (None,):
        found, ms = _timed(index, queries, exact.shape[1], nprobe or 1, threads)
        rows.append(cost | {"nprobe": nprobe, "query_ms": ms, "recall": recall(found, exact)})
    return rows


def _timed(index: Gallery, queries: np.ndarray, k: int, nprobe: int, threads: int | None) -> tuple[np.ndarray, float]:
    """The rows found, int64 (Q, k), and the median milliseconds of a query."""
    index.search(queries[:1], k, nprobe, threads)  # the first touches the memory
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(index.search(query[None], k, nprobe, threads)[1][0])
        seconds.append(time.perf_counter() - start)
    return np.stack(found), 1000 * float(np.median(seconds))
