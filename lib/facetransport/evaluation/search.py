"""Search by words: type a description, see who of a gallery fits it best.

    q = R(zhat_0(c))                       what to look for            a model's ``read``
    s_n = cos(q, E(I_n)), n = 1..size      the gallery, one photograph of each person     Finder.search

A search in a million needs a million features; there are as many renders as people were rendered. The rest are
distractors: vectors drawn like embeddings, which are NOT faces (`distractors`). They measure time, memory and recall
of an index; how often the right person comes first, they measure only as far as embeddings are Gaussian.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import faiss
import numpy as np
import pandas as pd

from facetransport.evaluation.described import Faces
from facetransport.recognition.gallery import CHUNK, KINDS, Gallery, recall
from facetransport.recognition.recogniser import check_embeddings
from facetransport.world import captions
from facetransport.world.captions import PHRASES

DISTRACTOR = -1  # the label of a vector that is nobody's
NOBODY = "a distractor: a vector, no face"
FRAME, BLANK = (0, 158, 115), 208  # green round who is meant (Okabe and Ito), grey in place of a face
TRAINED = {text for ways in PHRASES.values() for texts in ways for text in texts}


class Reader(Protocol):
    """What turns descriptions into what to look for."""

    def read(self, descriptions: Sequence[str], seed: int = 0) -> np.ndarray:
        """Free text -> float32 (B, d), unit norm."""
        ...


def statements(description: str) -> list[str]:
    """What a description states (`captions.clauses`); ValueError where that is nothing, as in 'a person'."""
    found = captions.clauses(description)
    if not found:
        raise ValueError(
            f"description: {description!r} states nothing about a face; say how it looks, such as "
            "'a young woman with red hair'"
        )
    return found


def reading(description: str) -> str:
    """How a description was read: its statements, and which of them are in no words that training used."""
    found = statements(description)
    new = [statement for statement in found if statement not in TRAINED]
    return "; ".join(found) + (f" (not in the words of training: {'; '.join(new)})" if new else "")


def in_words(attributes: np.ndarray, names: Sequence[str]) -> str:
    """What is true of a face, bool (A,), in the order of ``names``: 'a man, young, brown hair, ...'.

    Absence goes without saying, but for gender and youth; and of women, that they have no beard.
    """
    known = dict(zip(names, map(bool, attributes), strict=True))
    if not known.get("Male", True):
        known["No_Beard"] = False
    told = [name for name, present in known.items() if present or name in ("Male", "Young")]
    return ", ".join(PHRASES[name][0 if known[name] else 1][0] for name in told)


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


def enlarged(embeddings: np.ndarray, size: int, seed: int, like: np.ndarray | None = None) -> np.ndarray:
    """float32 (size, d): the people's embeddings (N, d), then `distractors` like all of ``like``, by default like them.

    One array of 4 size d bytes (512 MB for a million times 128) is all that is held. ValueError for size < N.
    """
    if size < len(embeddings):
        raise ValueError(
            f"size: expected at least {len(embeddings)}, the people of the gallery, got {size}; leave it out for "
            "these people alone"
        )
    rows = np.empty((size, embeddings.shape[1]), np.float32)
    rows[: len(embeddings)] = embeddings
    if size > len(embeddings):
        distractors(embeddings if like is None else like, size - len(embeddings), seed, rows[len(embeddings) :])
    return rows


# --------------------------------------------------------------------------------------------------------- the search

Photograph = Callable[[np.ndarray], np.ndarray]
"""photograph(people int (K,)) -> uint8 (K, H, W, 3): the enrolled photographs of these people of the gallery."""


@dataclass(frozen=True)
class Finder:
    """Looks for descriptions in a gallery; made by `finder`.

    gallery: the index; its labels are identities, or DISTRACTOR. faces: the people, one photograph each, which are the
    gallery's first rows. embeddings: float32 (size, d), all that is searched, as `measure` takes it.
    """

    model: Reader
    gallery: Gallery
    faces: Faces
    embeddings: np.ndarray
    photograph: Photograph

    def __len__(self) -> int:
        return len(self.gallery)

    def find(self, description: str, k: int = 10, seed: int = 0, nprobe: int = 256) -> pd.DataFrame:
        """The k faces that fit a description best, as `search`; seed: of the K samples of zhat_0.

        Raises ValueError for what states nothing and for a k that is not in 1..size.
        """
        statements(description)
        return self.search(self.model.read([description], seed)[0], k, nprobe)

    def search(self, query: np.ndarray, k: int = 10, nprobe: int = 256) -> pd.DataFrame:
        """The k faces nearest to a unit vector float32 (d,), best first.

        Columns: rank from 1; row of the gallery; person (identity, or DISTRACTOR); score, the cosine; known, what is
        true of the photograph in words. nprobe: cells read by the ivf kinds, which may find fewer than k.
        """
        scores, rows = self.gallery.search(query[None], k, nprobe)
        found = rows[0][rows[0] >= 0]
        return pd.DataFrame(
            {
                "rank": np.arange(len(found)) + 1,
                "row": found,
                "person": self.gallery.labels[found],
                "score": scores[0][: len(found)],
                "known": [self._known(row) for row in found],
            }
        )

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
