"""A gallery of faces searched by cosine: faiss (1702.08734) indices of unit embeddings, up to millions on two cores.

Which kind for 1,000,000 x 128: ``flat`` is exact and takes 512 MB; ``sq8`` keeps 8 bits a component, 128 MB, and still
reads every face; ``ivf`` reads only the ``nprobe`` cells nearest to the query, 137 MB; ``ivf_flat`` the same on whole
floats, 521 MB. HNSW graphs are left out: as large as the floats, slow to build and different on every build.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import faiss
import numpy as np

from facetransport.files import replacing
from facetransport.recognition.recogniser import check_embeddings

KINDS = {"flat": "Flat", "sq8": "SQ8", "ivf": "IVF{cells},SQ8", "ivf_flat": "IVF{cells},Flat"}  # faiss factory strings
PER_CELL = 39, 64  # training rows a cell: faiss asks for the first, reads at most the second here
CHUNK = 65_536  # rows checked and added at a time: no second copy of the gallery is made
INDEX, LABELS = "gallery.faiss", "labels.npz"


class Gallery:
    """Enrolled faces and whose they are; made by `build` or `load`. labels: (N,), row by row."""

    def __init__(self, index: Any, labels: np.ndarray) -> None:
        if index.ntotal != len(labels):
            raise ValueError(f"labels: expected one for each of {index.ntotal} embeddings, got {len(labels)}")
        self.index, self.labels = index, labels

    @classmethod
    def build(
        cls,
        embeddings: np.ndarray,
        labels: np.ndarray,
        kind: str = "flat",
        cells: int | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> Gallery:
        """A gallery of float32 (N, d) unit rows (an array or a memory map) with labels (N,), numbers or strings.

        kind: a key of `KINDS`. cells: of the ivf kinds, default 2 sqrt(N), at most N / 39; they are trained (spherical
        k-means) on a random sample of at most 64 rows a cell, drawn with ``seed``. Raises ValueError as
        `facetransport.recognition.recogniser.check_embeddings`, and for an empty gallery or labels that do not fit.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {sorted(KINDS)}, got {kind!r}")
        if embeddings.ndim != 2 or not len(embeddings):
            raise ValueError(f"embeddings: expected (N, d) with N >= 1, got {embeddings.shape}")
        labels = _check_labels(labels, len(embeddings))
        most = max(1, len(embeddings) // PER_CELL[0])
        cells = min(most, _at_least_one("cells", cells)) if cells is not None else _default_cells(len(embeddings))
        index = _untrained(kind, embeddings.shape[1], cells, seed)
        with _threads(threads):
            for start in range(0, len(embeddings), CHUNK):
                _require_rows(embeddings, start)
            index.train(_sample(embeddings, PER_CELL[1] * cells, seed))
            for start in range(0, len(embeddings), CHUNK):
                index.add(np.ascontiguousarray(embeddings[start : start + CHUNK], np.float32))
        return cls(index, labels)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def memory_bytes(self) -> int:
        """Size of the index (codes, row numbers, cells) in bytes, as it is saved; labels not counted."""
        written = 0

        def count(block: bytes) -> int:
            nonlocal written
            written += len(block)
            return len(block)

        to_nowhere = faiss.PyCallbackIOWriter(count)  # type: ignore[attr-defined] # made by SWIG, not in the stubs
        faiss.write_index(self.index, faiss.BufferedIOWriter(to_nowhere))
        return written

    def search(
        self, queries: np.ndarray, k: int = 10, nprobe: int = 16, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best faces for each unit query float32 (Q, d): cosines float32 (Q, k), descending; rows int64 (Q, k).

        ``labels[rows]`` is whose they are. nprobe: cells read by the ivf kinds (all of them: as good as exhaustive;
        others ignore it); where those hold fewer than k faces, the rest is row -1 with score -inf. The sq8 codes give
        cosines to about 0.01. threads: during this search, default faiss's setting.
        """
        queries = np.ascontiguousarray(check_embeddings(queries), np.float32)
        if queries.shape[1] != self.index.d:
            raise ValueError(f"queries: expected (Q, {self.index.d}) as the gallery, got {queries.shape}")
        if not 1 <= k <= len(self):
            raise ValueError(f"k: expected 1..{len(self)}, the size of the gallery; got {k}")
        with _threads(threads):
            scores, rows = self.index.search(queries, k, params=self._parameters(nprobe))
        return np.where(rows < 0, -np.inf, scores).astype(np.float32), rows

    def _parameters(self, nprobe: int) -> Any:
        if not isinstance(self.index, faiss.IndexIVF):
            return None
        cells = min(self.index.nlist, _at_least_one("nprobe", nprobe))
        return faiss.SearchParametersIVF(nprobe=cells)  # type: ignore[call-arg] # faiss's constructors take fields

    def save(self, folder: Path | str) -> Path:
        """Write ``gallery.faiss`` and ``labels.npz`` into the folder, each whole or not at all."""
        folder = Path(folder)
        with replacing(folder / INDEX) as temporary:
            faiss.write_index(self.index, str(temporary))
        with replacing(folder / LABELS) as temporary:
            np.savez(temporary, labels=self.labels)
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Gallery:
        """What `save` wrote; FileNotFoundError or ValueError where it is missing or damaged."""
        folder = Path(folder)
        for name in (INDEX, LABELS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file; write the gallery with Gallery.save")
        try:
            with np.load(folder / LABELS, allow_pickle=False) as saved:
                labels = saved["labels"]
        except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
            raise ValueError(f"{folder / LABELS}: cannot be read ({error}); save the gallery again") from error
        try:
            index = faiss.read_index(str(folder / INDEX))
        except RuntimeError as error:
            raise ValueError(f"{folder / INDEX}: faiss cannot read it ({error}); save the gallery again") from error
        return cls(index, labels)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Fraction of the rows of an exhaustive search, int (Q, k), that are among those found, int (Q, k')."""
    if found.ndim != 2 or exact.ndim != 2 or len(found) != len(exact) or not exact.size:
        raise ValueError(f"expected (Q, k') and (Q, k) rows of the same queries, got {found.shape} and {exact.shape}")
    return float((exact[:, :, None] == found[:, None, :]).any(2).mean())


def _default_cells(rows: int) -> int:
    return max(1, min(round(2 * rows**0.5), rows // PER_CELL[0]))


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def _check_labels(labels: np.ndarray, rows: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (rows,) or labels.dtype == object:
        raise ValueError(
            f"labels: expected numbers or strings of shape ({rows},), one for each embedding; "
            f"got {labels.dtype} {labels.shape}"
        )
    return labels


def _untrained(kind: str, dim: int, cells: int, seed: int) -> Any:
    index = faiss.index_factory(dim, KINDS[kind].format(cells=cells), faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexIVF):
        index.cp.seed, index.cp.spherical = seed, True
    return index


def _sample(embeddings: np.ndarray, most: int, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).choice(len(embeddings), min(most, len(embeddings)), replace=False)
    return np.ascontiguousarray(embeddings[np.sort(chosen)], np.float32)


def _require_rows(embeddings: np.ndarray, start: int) -> None:
    try:
        check_embeddings(embeddings[start : start + CHUNK])
    except ValueError as error:
        raise ValueError(f"rows from {start}: {error}") from error


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before if number is None else _at_least_one("threads", number))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
