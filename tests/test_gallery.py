"""The gallery finds what brute force finds; it survives the disk; it leaves faiss's threads alone."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from facetransport.recognition import gallery
from facetransport.recognition.gallery import KINDS, Gallery, recall

DIM, K = 24, 10


def unit(rows: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


FACES, QUERIES = unit(3000, 0), unit(50, 1)
LABELS = np.arange(3000) // 3


@pytest.fixture(scope="module")
def galleries() -> dict[str, Gallery]:
    return {kind: Gallery.build(FACES, LABELS, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def exact() -> tuple[np.ndarray, np.ndarray]:
    scores = QUERIES @ FACES.T
    rows = np.argsort(-scores, axis=1)[:, :K]
    return np.take_along_axis(scores, rows, 1), rows


def test_flat_is_brute_force(galleries, exact):
    scores, rows = galleries["flat"].search(QUERIES, K)
    np.testing.assert_array_equal(rows, exact[1])
    np.testing.assert_allclose(scores, exact[0], atol=1e-6)
    assert scores.dtype == np.float32 and rows.dtype == np.int64 and len(galleries["flat"]) == 3000


def test_all_cells_are_exhaustive_and_few_are_not(galleries, exact):
    found = {n: recall(galleries["ivf_flat"].search(QUERIES, K, nprobe=n)[1], exact[1]) for n in (1, 8, 10_000)}
    assert found[10_000] == 1 and found[1] < found[8] < 1


def test_eight_bits_lose_little(galleries, exact):
    for kind in ("sq8", "ivf"):
        scores, rows = galleries[kind].search(QUERIES, K, nprobe=10_000)
        assert recall(rows, exact[1]) > 0.95
        np.testing.assert_allclose(scores, exact[0], atol=0.01)


def test_memory_is_the_codes_and_little_else(galleries):
    size = {kind: galleries[kind].memory_bytes for kind in KINDS}
    cells = galleries["ivf"].index.nlist
    numbers_and_cells = 8 * 3000 + cells * 4 * DIM
    expected = {"flat": 4 * DIM * 3000, "sq8": DIM * 3000}
    expected |= {"ivf": DIM * 3000 + numbers_and_cells, "ivf_flat": 4 * DIM * 3000 + numbers_and_cells}
    for kind, least in expected.items():
        assert least <= size[kind] <= least + 10 * cells + 1000


def test_memory_is_what_is_saved(galleries, tmp_path):
    galleries["ivf"].save(tmp_path)
    assert (tmp_path / gallery.INDEX).stat().st_size == galleries["ivf"].memory_bytes


@pytest.mark.parametrize("labels", [LABELS, np.array([f"person {n}" for n in LABELS])])
def test_saved_and_loaded_finds_the_same(labels, tmp_path):
    before = Gallery.build(FACES, labels, "ivf")
    after = Gallery.load(before.save(tmp_path / "new" / "folder"))
    for a, b in zip(before.search(QUERIES, K), after.search(QUERIES, K), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(after.labels, labels)


def test_a_seed_makes_the_same_cells_and_another_others():
    one, two, other = (Gallery.build(FACES, LABELS, "ivf_flat", cells=20, seed=seed).index for seed in (1, 1, 2))
    cells = [index.quantizer.reconstruct_n(0, 20) for index in (one, two, other)]
    np.testing.assert_array_equal(cells[0], cells[1])
    assert not np.array_equal(cells[0], cells[2])


def test_the_training_sample_is_bounded(monkeypatch):
    sizes = []
    sample = gallery._sample
    monkeypatch.setattr(gallery, "_sample", lambda *a: sizes.append(sample(*a)) or sizes[-1])
    Gallery.build(FACES, LABELS, "ivf", cells=10)
    assert sizes[0].shape == (640, DIM) and len(np.unique(sizes[0], axis=0)) == 640


def test_chunks_make_the_same_gallery(monkeypatch, exact):
    monkeypatch.setattr(gallery, "CHUNK", 700)
    np.testing.assert_array_equal(Gallery.build(FACES, LABELS).search(QUERIES, K)[1], exact[1])


def test_a_memory_map_is_a_gallery_too(tmp_path, exact):
    np.save(tmp_path / "faces.npy", FACES)
    faces = np.load(tmp_path / "faces.npy", mmap_mode="r")
    np.testing.assert_array_equal(Gallery.build(faces, LABELS).search(QUERIES, K)[1], exact[1])


def test_cells_that_hold_too_few_are_filled_up_as_nobody():
    scores, rows = Gallery.build(FACES, LABELS, "ivf", cells=50).search(QUERIES, 1000, nprobe=1)
    assert (rows == -1).any() and (scores[rows == -1] == -np.inf).all() and np.isfinite(scores[rows >= 0]).all()


def test_a_handful_of_faces_works_with_every_kind():
    for kind in KINDS:
        assert Gallery.build(FACES[:3], LABELS[:3], kind).search(FACES[:3], 1)[1][:, 0].tolist() == [0, 1, 2]


def test_threads_are_left_as_they_were(galleries):
    before = faiss.omp_get_max_threads()
    Gallery.build(FACES, LABELS, "ivf", threads=before + 1)
    galleries["flat"].search(QUERIES, K, threads=before + 1)
    with pytest.raises(ValueError, match="rows from 0: .*unit norm"):
        Gallery.build(2 * FACES, LABELS, threads=before + 1)
    assert faiss.omp_get_max_threads() == before


def test_threads_are_what_was_asked_for_meanwhile():
    before = faiss.omp_get_max_threads()
    with gallery._threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1


def test_recall_is_the_share_found():
    assert recall(np.array([[1, 2, -1], [5, 6, 7]]), np.array([[2, 3], [7, 5]])) == 0.75
    with pytest.raises(ValueError, match="same queries"):
        recall(np.zeros((2, 1), int), np.zeros((3, 1), int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tree"}, "kind: expected one of"),
        ({"labels": LABELS[:5]}, "labels: expected"),
        ({"labels": np.array([None] * 3000)}, "labels: expected"),
        ({"embeddings": FACES[:0], "labels": LABELS[:0]}, "N >= 1"),
        ({"embeddings": FACES[0]}, "N >= 1"),
        ({"embeddings": np.full_like(FACES, np.nan)}, "NaN"),
        ({"kind": "ivf", "cells": 0}, "cells: expected at least 1"),
        ({"threads": 0}, "threads: expected at least 1"),
    ],
)
def test_a_bad_gallery_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Gallery.build(**({"embeddings": FACES, "labels": LABELS} | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QUERIES[:, :5] / np.linalg.norm(QUERIES[:, :5], axis=1, keepdims=True),), "as the gallery"),
        ((2 * QUERIES,), "unit norm"),
        ((QUERIES[0],), "expected"),
        ((QUERIES, 0), "k: expected 1..3000"),
        ((QUERIES, 3001), "k: expected 1..3000"),
        ((QUERIES, 1, 0), "nprobe: expected at least 1"),
    ],
)
def test_a_bad_search_is_refused(galleries, arguments, message):
    with pytest.raises(ValueError, match=message):
        galleries["ivf"].search(*arguments)


def test_a_damaged_gallery_is_refused(galleries, tmp_path):
    with pytest.raises(FileNotFoundError, match="Gallery.save"):
        Gallery.load(tmp_path)
    galleries["flat"].save(tmp_path)
    whole = (tmp_path / gallery.INDEX).read_bytes()
    (tmp_path / gallery.INDEX).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="save the gallery again"):
        Gallery.load(tmp_path)
    (tmp_path / gallery.INDEX).write_bytes(whole)
    np.savez(tmp_path / gallery.LABELS, labels=LABELS[:7])
    with pytest.raises(ValueError, match="expected one for each of 3000"):
        Gallery.load(tmp_path)
