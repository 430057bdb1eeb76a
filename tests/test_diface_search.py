"""Search by words: who is found, what distractors are, what an index costs, the widget."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from facetransport.companion import artifacts
from facetransport.companion import search as searching
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface as experiment
from facetransport.companion.experiments import roles
from facetransport.companion.profiles import Profile
from facetransport.evaluation import search
from facetransport.evaluation.described import Faces
from facetransport.evaluation.search import DISTRACTOR, FRAME, Finder, distractors, enlarged, measure
from facetransport.recognition.gallery import Gallery

NAMES = ("Male", "Young", "No_Beard", "Red_Hair", "Eyeglasses")
DIM, PEOPLE, SIZE = 16, 5, 40


def unit(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# -------------------------------------------------------------------------------------------------------------- words


def test_a_reading_is_the_statements_and_says_what_is_new() -> None:
    assert search.reading("A young woman with red hair") == "young; a woman; red hair"
    read = search.reading("a young woman with red hair and glasses, scowling")
    assert read == "young; a woman; red hair; glasses; scowling (not in the words of training: glasses; scowling)"


@pytest.mark.parametrize(
    ("description", "said"), [("a person", "'a person' states nothing about a face"), ("  ", "expected words")]
)
def test_what_states_nothing_is_refused(description: str, said: str) -> None:
    for read in (search.reading, small_finder().find):
        with pytest.raises(ValueError, match=said):
            read(description)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ([1, 1, 1, 1, 0], "a man, young, no beard, red hair"),
        ([0, 0, 1, 0, 1], "a woman, not young, eyeglasses"),
        ([1, 0, 0, 0, 0], "a man, not young"),
    ],
)
def test_what_is_true_is_said_in_order(attributes: list[int], words: str) -> None:
    assert search.in_words(np.array(attributes, bool), NAMES) == words


# -------------------------------------------------------------------------------------------------------- distractors


def test_distractors_like_directions_without_preference_are_uniform_on_the_sphere() -> None:
    like = np.concatenate([np.eye(8), -np.eye(8)]).astype(np.float32)  # mean 0, covariance I / 8: exactly
    n = 200_000
    x = distractors(like, n, seed=0)
    assert x.shape == (n, 8) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    # standard errors of a mean, a square and a product of components of a uniform direction in 8 dimensions
    assert abs(x.mean(0)).max() < 5 * (1 / 8 / n) ** 0.5
    np.testing.assert_allclose(x.T @ x / n, np.eye(8) / 8, rtol=0, atol=5 * (3 / 80 / n) ** 0.5)


def test_distractors_have_the_mean_and_covariance_asked_for() -> None:
    like = unit(400, 0, dim=6) * [3, 2, 1, 1, 1, 0.5] + [1, 0, 0.5, 0, 0, 0]
    like /= np.linalg.norm(like, axis=1, keepdims=True)
    n = 100_000
    x = distractors(like, n, seed=1).astype(float)
    expected = np.random.default_rng(2).multivariate_normal(like.mean(0), np.cov(like.T, bias=True), n)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for a, b in ((x, expected), (products(x), products(expected))):
        error = ((a.var(0) + b.var(0)) / n) ** 0.5
        assert (abs(a.mean(0) - b.mean(0)) < 5 * error).all()


def products(x: np.ndarray) -> np.ndarray:
    """(N, d * d): of every two components of every row."""
    return np.einsum("ni,nj->nij", x, x).reshape(len(x), -1)


def test_distractors_stay_in_the_space_of_what_they_imitate() -> None:
    like = unit(3, 0)
    x = distractors(like, 50, seed=0)
    basis = np.linalg.qr(like.T)[0]
    np.testing.assert_allclose(x @ basis @ basis.T, x, atol=1e-5)


def test_first_distractors_do_not_depend_on_how_many_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    many = distractors(unit(30, 0), 1000, seed=3)
    monkeypatch.setattr(search, "CHUNK", 64)
    np.testing.assert_allclose(distractors(unit(30, 0), 150, seed=3), many[:150], atol=1e-6)
    assert abs(distractors(unit(30, 0), 150, seed=4) - many[:150]).max() > 0.1


def test_one_face_is_too_few_to_imitate() -> None:
    with pytest.raises(ValueError, match="expected at least 2 embeddings to imitate, got 1"):
        distractors(unit(1, 0), 10, seed=0)
    with pytest.raises(ValueError, match="expected unit norm"):
        distractors(2 * unit(5, 0), 10, seed=0)


def test_a_larger_gallery_begins_with_the_people() -> None:
    people, like = unit(5, 0), unit(60, 1)
    rows = enlarged(people, 100, seed=2, like=like)
    np.testing.assert_array_equal(rows[:5], people)
    np.testing.assert_array_equal(rows[5:], distractors(like, 95, seed=2))
    np.testing.assert_array_equal(enlarged(people, 5, seed=2), people)
    with pytest.raises(ValueError, match="size: expected at least 5, the people of the gallery, got 4"):
        enlarged(people, 4, seed=2)


def test_a_large_gallery_is_held_once() -> None:
    people = unit(100, 0)
    tracemalloc.start()
    rows = enlarged(people, 1_000_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.nbytes == 4 * DIM * 1_000_000 and peak < 1.3 * rows.nbytes


# ------------------------------------------------------------------------------------------------------------- finding


@dataclass
class Reader:
    """Reads 'bald' as the direction of person 3 whatever the seed, and everything else as one of the seed's."""

    embeddings: np.ndarray

    def read(self, descriptions: list[str], seed: int = 0) -> np.ndarray:
        return np.stack([self.embeddings[3] if d == "bald" else unit(1, seed)[0] for d in descriptions])


def photograph(people: np.ndarray) -> np.ndarray:
    """Person k is a picture of the grey value k."""
    return np.tile(people[:, None, None, None], (1, 32, 24, 3)).astype(np.uint8)


def small_finder(kind: str = "flat", size: int = SIZE) -> Finder:
    attributes = np.random.default_rng(0).random((PEOPLE, len(NAMES))) < 0.5
    embeddings = enlarged(unit(PEOPLE, 0), size, seed=1)
    faces = Faces(attributes, attributes, NAMES, embeddings[:PEOPLE], 700 + np.arange(PEOPLE))
    whose = np.where(np.arange(size) < PEOPLE, 700 + np.arange(size), DISTRACTOR)
    reader: Any = Reader(embeddings.copy())
    return Finder(reader, Gallery.build(embeddings, whose, kind), faces, embeddings, photograph)


def test_first_photographs_are_one_a_person() -> None:
    identity = np.array([9, 9, 4, 4, 4, 6])
    attributes = np.eye(6, 5, dtype=bool)
    people, rows = search.first_photographs(Faces(attributes, ~attributes, NAMES, unit(6, 0), identity))
    assert rows.tolist() == [2, 5, 0] and people.identity.tolist() == [4, 6, 9] and len(people) == 3
    np.testing.assert_array_equal(people.embeddings, unit(6, 0)[rows])
    np.testing.assert_array_equal(people.attributes, attributes[rows])
    np.testing.assert_array_equal(people.elsewhere, ~attributes[rows])


@pytest.mark.parametrize("person", range(PEOPLE))
def test_a_query_equal_to_a_face_finds_it_first(person: int) -> None:
    finder = small_finder()
    found = finder.search(finder.embeddings[person], k=SIZE)
    assert found.loc[0, "person"] == 700 + person and found.loc[0, "score"] == pytest.approx(1)
    assert found.loc[0, "known"] == search.in_words(finder.faces.attributes[person], NAMES)


def test_all_are_ranked_by_cosine() -> None:
    finder, query = small_finder(), unit(1, 5)[0]
    found = finder.search(query, k=SIZE)
    order = np.argsort(-(finder.embeddings @ query))
    assert list(found) == ["rank", "row", "person", "score", "known"] and len(finder) == SIZE
    assert found["rank"].tolist() == list(range(1, SIZE + 1)) and found["row"].tolist() == order.tolist()
    np.testing.assert_allclose(found["score"], (finder.embeddings @ query)[order], atol=1e-6)
    nobody = found["row"] >= PEOPLE
    assert (found["person"][nobody] == DISTRACTOR).all() and (found["known"][nobody] == search.NOBODY).all()
    assert (found["person"][~nobody] == 700 + found["row"][~nobody]).all()


def test_a_description_is_read_and_searched() -> None:
    finder = small_finder()
    assert finder.find("bald", k=1)["person"].tolist() == [703]
    pd.testing.assert_frame_equal(finder.find("red hair", 4, seed=6), finder.search(unit(1, 6)[0], 4))
    with pytest.raises(ValueError, match="k: expected 1..40"):
        finder.find("bald", k=SIZE + 1)


def test_few_cells_may_find_fewer() -> None:
    finder = small_finder("ivf_flat", size=100)  # 39 rows a cell at least: two cells
    assert finder.gallery.index.nlist == 2
    assert len(finder.search(finder.embeddings[0], 100, nprobe=2)) == 100
    found = finder.search(finder.embeddings[0], 100, nprobe=1)
    assert 1 <= len(found) < 100 and found["row"].min() == 0 and found["rank"].max() == len(found)


def test_pictures_are_photographs_grey_and_framed() -> None:
    finder = small_finder()
    found = finder.search(finder.embeddings[2], k=SIZE)
    pictures = finder.pictures(found, described=702)
    assert pictures.shape == (SIZE, 32, 24, 3) and pictures.dtype == np.uint8
    assert (pictures[0, 2:-2, 2:-2] == 2).all() and (pictures[0, [0, 1, -1]] == FRAME).all()
    for picture, row in zip(pictures[1:], found["row"][1:], strict=True):
        assert (picture == (row if row < PEOPLE else search.BLANK)).all()
    assert (finder.pictures(found)[0] == 2).all()
    nobody = finder.search(finder.embeddings[-1], k=1)
    assert (finder.pictures(nobody) == search.BLANK).all()
    assert search.labels(nobody) == ["1: 1.000"]


# --------------------------------------------------------------------------------------------------------------- price


def test_measured_recall_bytes_and_rows() -> None:
    faces, queries = unit(3000, 0), unit(20, 1)
    table = measure(faces, queries, nprobes=(1, 10_000), threads=1)
    kinds = ["flat", "sq8", "ivf", "ivf", "ivf_flat", "ivf_flat"]
    assert table["kind"].tolist() == kinds and table["nprobe"].fillna(0).tolist() == [0, 0, 1, 10_000, 1, 10_000]
    recall = dict(zip(zip(table["kind"], table["nprobe"].fillna(0), strict=True), table["recall"], strict=True))
    assert recall["flat", 0] == recall["ivf_flat", 10_000] == 1
    assert recall["ivf_flat", 1] < 0.9 < recall["sq8", 0] <= 1
    size = table.groupby("kind")["bytes_per_face"].first()
    assert size["flat"] == pytest.approx(4 * DIM, rel=0.01) and size["sq8"] == pytest.approx(DIM, rel=0.01)
    assert (table["query_ms"] > 0).all() and (table["build_seconds"] > 0).all()


def test_measure_times_the_median_of_single_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0, 7, 0, 0.001, 0, 0.005, 0, 0.002]))  # building takes 7 s, the queries 1, 5 and 2 ms
    monkeypatch.setattr(search, "time", SimpleNamespace(perf_counter=partial(next, clock)))
    (row,) = measure(unit(50, 0), unit(3, 1), kinds=["flat"], k=2).to_dict("records")
    assert row["build_seconds"] == 7 and row["query_ms"] == pytest.approx(2)


# --------------------------------------------------------------------------------------------------- the smoke profile


@pytest.fixture(scope="module")
def smoke_finder(smoke: Profile, smoke_store: Store) -> Finder:
    return searching.finder(smoke, smoke_store, size=50, seed=1)


def test_the_gallery_of_a_profile(smoke_finder: Finder, smoke: Profile, smoke_store: Store) -> None:
    everyone = experiment.load_faces(smoke, smoke_store, "gallery")
    role = smoke.rendered.roles["gallery"]
    compared = experiment.load(smoke, smoke_store, experiment.ours(smoke.diface)).gallery(everyone.embeddings)
    people = compared[:: role.views]
    np.testing.assert_array_equal(smoke_finder.embeddings, enlarged(people, 50, 1, like=compared))
    whose = smoke_finder.gallery.labels
    assert whose.tolist() == [*everyone.identity[:: role.views], *[DISTRACTOR] * (50 - role.identities)]
    query = smoke_finder.model.read(["a bald man"], seed=2)[0]
    pd.testing.assert_frame_equal(smoke_finder.find("A bald man.", 5, seed=2), smoke_finder.search(query, 5))


def test_photographs_are_the_first_of_each_person_rendered_or_loaded(
    smoke_finder: Finder, smoke: Profile, smoke_store: Store, store: Store
) -> None:
    images, views = roles.load_rendered(smoke, "gallery", smoke_store).images, smoke.rendered.roles["gallery"].views
    np.testing.assert_array_equal(smoke_finder.photograph(np.array([4, 0])), images[[4 * views, 0]])
    with_the_head_alone = Store(store.root, shipped=(artifacts.WEIGHTS,))
    rows = np.arange(0, len(images), views)
    seen = searching._photographs(smoke, with_the_head_alone, rows, np.array([4, 0]))
    np.testing.assert_array_equal(seen, images[[4 * views, 0]])


def test_descriptions_are_compared_with_what_the_model_makes_of_faces(
    smoke: Profile, smoke_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refining = SimpleNamespace(gallery=lambda embeddings: -embeddings)
    monkeypatch.setattr(searching.diface, "load", lambda profile, store, section: refining)
    finder = searching.finder(smoke, smoke_store)
    np.testing.assert_array_equal(finder.embeddings, -finder.faces.embeddings)


def test_a_gallery_smaller_than_its_people_is_refused(smoke: Profile, smoke_store: Store) -> None:
    with pytest.raises(ValueError, match="size: expected at least 12, the people of the gallery, got 11"):
        searching.finder(smoke, smoke_store, size=11)


# -------------------------------------------------------------------------------------------------------------- widget


def shown(box: Any) -> tuple[str, list[str]]:
    """What the widget says, and rank and score of each face it shows."""
    said, faces = box.children[1].value, box.children[2].value
    assert faces.count("<img") == faces.count("data:image/png;base64,iVBOR")
    return said, re.findall(r"<br>(\d+: -?\d\.\d{3})<br>", faces)


def test_the_widget_searches_when_text_number_or_button_change() -> None:
    finder = small_finder()
    box = searching.search_widget(finder, number=3)
    text, count, button = box.children[0].children
    assert shown(box) == ("", [])
    text.value = "bald"
    assert shown(box) == ("read as: bald", search.labels(finder.find("bald", 3)))
    count.value = 6
    assert len(shown(box)[1]) == 6
    text.value = "a person"
    assert "states nothing about a face" in shown(box)[0] and shown(box)[1] == []
    text.value = "bald"
    finder.model.embeddings[3] = finder.embeddings[1]  # nothing typed: only a press of the button shows it
    assert "person 703<" in box.children[2].value.split("1.000")[1][:20]
    button.click()
    assert "person 701<" in box.children[2].value.split("1.000")[1][:20]


def test_the_widget_starts_with_a_description_and_escapes_what_is_typed() -> None:
    box = searching.search_widget(small_finder(), "bald", number=2)
    assert shown(box)[0] == "read as: bald" and len(shown(box)[1]) == 2
    assert "person 703" in box.children[2].value
    box.children[0].children[0].value = "<b>bold</b> hair"
    assert "<b>" not in shown(box)[0] and "&lt;b&gt;bold" in shown(box)[0]
