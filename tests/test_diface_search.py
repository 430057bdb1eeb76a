"""Search by words: who is found, what distractors are, what an index costs, the widget."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import replace
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
from facetransport.diffusion.statements import Reading
from facetransport.evaluation import search
from facetransport.evaluation.described import Faces, probable
from facetransport.evaluation.search import DISTRACTOR, FRAME, Finder, distractors, enlarged, measure
from facetransport.recognition.gallery import Gallery

NAMES = ("Male", "Young", "No_Beard", "Red_Hair", "Eyeglasses")
DIM, PEOPLE, SIZE = 16, 5, 40


def unit(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# -------------------------------------------------------------------------------------------------------------- words


def test_what_was_understood_is_said_and_what_was_not() -> None:
    understood = search.understand(Reader(), "A young woman with red hair and glasses, juggling")
    assert understood.statements == ["a woman", "young", "red hair", "glasses"]
    assert understood.missed == ("juggling",) and understood.asked.tolist() == [0, 1, 3, 4]
    assert understood.new == ("juggling",)
    read = "a woman (0.90); young (0.90); red hair (0.90); glasses (0.90)"
    assert str(understood) == f"{read} - not understood: juggling - words it was not trained on: juggling"
    assert str(search.understand(Reader(), "not a man")) == "a woman (0.90)"


@pytest.mark.parametrize(
    ("description", "said"), [("a person", "'a person' states nothing about a face"), ("  ", "expected words")]
)
def test_what_states_nothing_is_refused(description: str, said: str) -> None:
    for read in (partial(search.understand, Reader()), small_finder().find):
        with pytest.raises(ValueError, match=said):
            read(description)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ([1, 1, 1, 1, 0], "a man, young, clean-shaven, red hair"),
        ([0, 0, 1, 0, 1], "a woman, not young, glasses"),
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


class Reader:
    """Knows a few words, each of which says one thing."""

    names = NAMES
    KNOWN = {"woman": (0, 0), "man": (0, 1), "young": (1, 1), "beard": (2, 0), "red": (3, 1), "glasses": (4, 1)}

    def read(self, texts: list[str]) -> Reading:
        said = np.full((len(texts), len(NAMES)), -1, np.int8)
        for row, text in zip(said, texts, strict=True):
            for word, (attribute, value) in self.KNOWN.items():
                if word in re.findall(r"\w+", text.lower()):
                    row[attribute] = 1 - value if f"not a {word}" in text or f"no {word}" in text else value
        return Reading(said, np.full(said.shape, 0.9, np.float32), probable(said))


def photograph(people: np.ndarray) -> np.ndarray:
    """Person k is a picture of the grey value k."""
    return np.tile(people[:, None, None, None], (1, 32, 24, 3)).astype(np.uint8)


BELIEFS = np.random.default_rng(3).random((PEOPLE, len(NAMES)))


def small_finder(kind: str = "flat", size: int = SIZE) -> Finder:
    attributes = np.random.default_rng(0).random((PEOPLE, len(NAMES))) < 0.5
    vectors = search.crowd(BELIEFS, size, seed=1)
    faces = Faces(attributes, attributes, NAMES, unit(PEOPLE, 0), 700 + np.arange(PEOPLE))
    whose = np.where(np.arange(size) < PEOPLE, 700 + np.arange(size), DISTRACTOR)
    return Finder(Reader(), "pixels", BELIEFS, Gallery.build(vectors, whose, kind), faces, vectors, photograph)


SAID = np.array([1, -1, 0, -1, 1])  # a man with a beard and glasses


def fits(beliefs: np.ndarray, said: np.ndarray = SAID) -> np.ndarray:
    """The geometric mean of how probable the statements are, with some doubt."""
    sure = search.DOUBT + (1 - 2 * search.DOUBT) * beliefs[:, said >= 0]
    return np.where(said[said >= 0] == 1, sure, 1 - sure).prod(1) ** (1 / (said >= 0).sum())


def test_first_photographs_are_one_a_person() -> None:
    identity = np.array([9, 9, 4, 4, 4, 6])
    attributes = np.eye(6, 5, dtype=bool)
    people, rows = search.first_photographs(Faces(attributes, ~attributes, NAMES, unit(6, 0), identity))
    assert rows.tolist() == [2, 5, 0] and people.identity.tolist() == [4, 6, 9] and len(people) == 3
    np.testing.assert_array_equal(people.embeddings, unit(6, 0)[rows])
    np.testing.assert_array_equal(people.attributes, attributes[rows])
    np.testing.assert_array_equal(people.elsewhere, ~attributes[rows])


def test_evidence_is_of_one_length_and_products_are_cosines() -> None:
    beliefs = np.random.default_rng(0).random((50, len(NAMES)))
    vectors, query = search.evidence(beliefs), search.asking(SAID[None])[0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.linalg.norm(query) == pytest.approx(1) and query[-1] == 0
    order = np.argsort(-(vectors @ query))
    assert order.tolist() == np.argsort(-fits(beliefs)).tolist()
    extreme = search.evidence(np.array([[0.0] * 5, [1.0] * 5]))
    assert np.isfinite(extreme).all() and not search.asking(np.full((1, 5), -1)).any()


def test_a_doubtful_statement_weighs_less() -> None:
    finder, stated = small_finder(size=PEOPLE), probable(SAID[None])[0]
    pd.testing.assert_frame_equal(finder.search(SAID, PEOPLE, stated=stated), finder.search(SAID, PEOPLE))
    doubted = stated * np.where(np.arange(5) == 2, 0.3, 1)[:, None].astype(np.float32)
    sure = search.DOUBT + (1 - 2 * search.DOUBT) * BELIEFS
    expected = (sure[:, 0] * (1 - sure[:, 2]) ** 0.3 * sure[:, 4]) ** (1 / 2.3)
    found = finder.search(SAID, PEOPLE, stated=doubted)
    np.testing.assert_allclose(found["score"], expected[found["row"]], rtol=1e-5)
    assert found["row"].tolist() == np.argsort(-expected).tolist()


def test_strangers_are_believed_to_be_like_people_attribute_by_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    many, people = search.crowd(BELIEFS, 4000, seed=2), search.evidence(BELIEFS)
    np.testing.assert_array_equal(many[:PEOPLE], people)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    for column in range(2 * len(NAMES)):
        values, counts = np.unique(many[PEOPLE:, column], return_counts=True)
        np.testing.assert_array_equal(values, np.unique(people[:, column]))
        np.testing.assert_allclose(counts / (4000 - PEOPLE), 1 / PEOPLE, atol=0.04)
    monkeypatch.setattr(search, "CHUNK", 64)
    assert search.crowd(BELIEFS, 200, seed=2).shape == (200, 11)
    with pytest.raises(ValueError, match="size: expected at least 5"):
        search.crowd(BELIEFS, 4, seed=2)


def test_people_are_ranked_by_what_is_believed_of_them() -> None:
    finder = small_finder()
    found = finder.search(SAID, k=SIZE)
    assert list(found) == ["rank", "row", "person", "score", "holds", "known"] and len(finder) == SIZE
    assert found["rank"].tolist() == list(range(1, SIZE + 1)) and (found["score"].diff()[1:] <= 1e-6).all()
    nobody = found["row"] >= PEOPLE
    assert (found["person"][nobody] == DISTRACTOR).all() and (found["known"][nobody] == search.NOBODY).all()
    people = found[~nobody]
    assert (people["person"] == 700 + people["row"]).all()
    assert people["row"].tolist() == np.argsort(-fits(BELIEFS)).tolist()
    np.testing.assert_allclose(people["score"], np.sort(fits(BELIEFS))[::-1], atol=1e-5)
    row = people.iloc[0]
    assert row["known"] == search.in_words(finder.faces.attributes[row["row"]], NAMES)


def test_each_statement_is_shown_with_how_probable_it_is() -> None:
    found = small_finder(size=PEOPLE).search(SAID, k=1).iloc[0]
    man, beardless, glasses = BELIEFS[found["row"]][[0, 2, 4]]
    parts = [("a man", man), ("bearded", 1 - beardless), ("glasses", glasses)]
    assert found["holds"] == "; ".join(f"{'' if p >= 0.5 else 'NOT '}{text} {p:.2f}" for text, p in parts)


def test_a_description_is_read_and_searched() -> None:
    finder = small_finder()
    understood, found = finder.find("a man with glasses", k=4)
    said = np.array([1, -1, -1, -1, 1])
    assert understood.said.tolist() == said.tolist()
    pd.testing.assert_frame_equal(found, finder.search(said, 4))
    with pytest.raises(ValueError, match="k: expected 1..40"):
        finder.find("a man", k=SIZE + 1)


# ----------------------------------------------------------------------------------------------------- what it is worth


def test_precision_by_hand() -> None:
    attributes = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], bool)
    found = search.precision(np.array([1, 0]), attributes, np.array([1, 2]))
    # who holds what: (1, 0), (1, 1), (0, 0), (0, 1), (1, 0)
    assert found["precision"] == (2 + 0) / 4 and found["chance"] == 5 / 10 and found["bound"] == (1 + 0.5) / 2
    assert (found["all"], found["all_chance"], found["all_bound"]) == (1 / 2, 1 / 5, 1 / 2)
    one = search.precision(np.array([-1, 1]), attributes, np.array([0, 4]))
    assert one["precision"] == one["all"] == one["bound"] == 1 and one["chance"] == 3 / 5


def test_the_searches_ask_for_what_their_words_say() -> None:
    queries = search.load_queries(NAMES).set_index("query")
    assert queries.loc["a man with a beard", "asks"].tolist() == [1, -1, 0, -1, -1]
    assert queries.loc["granny wearing specs", "asks"].tolist() == [0, -1, -1, -1, 1]


def test_few_cells_may_find_fewer() -> None:
    finder = small_finder("ivf_flat", size=100)  # 39 rows a cell at least: two cells
    assert finder.gallery.index.nlist == 2
    assert len(finder.search(SAID, 100, nprobe=2)) == 100
    found = finder.search(SAID, 100, nprobe=1)
    assert 1 <= len(found) < 100 and found["rank"].max() == len(found)


def test_pictures_are_photographs_grey_and_framed() -> None:
    finder = small_finder()
    found = finder.search(SAID, k=SIZE)
    best = int(found[found["row"] < PEOPLE].iloc[0]["row"])
    place = found["row"].tolist().index(best)
    pictures = finder.pictures(found, described=700 + best)
    assert pictures.shape == (SIZE, 32, 24, 3) and pictures.dtype == np.uint8
    assert (pictures[place, 2:-2, 2:-2] == best).all() and (pictures[place, [0, 1, -1]] == FRAME).all()
    for k, (picture, row) in enumerate(zip(pictures, found["row"], strict=True)):
        assert k == place or (picture == (row if row < PEOPLE else search.BLANK)).all()
    assert (finder.pictures(found)[place] == best).all()
    nobody = found[found["row"] >= PEOPLE].head(1)
    assert (finder.pictures(nobody) == search.BLANK).all()
    assert search.labels(nobody) == [f"{nobody.iloc[0]['rank']}: {nobody.iloc[0]['score']:.3f}"]


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


@pytest.mark.parametrize("method", ["pixels", "maps", "classifier"])
def test_the_gallery_of_a_profile(smoke: Profile, smoke_store: Store, method: Any) -> None:
    chosen = replace(smoke, words=replace(smoke.words, search=method))
    everyone, role = experiment.load_faces(smoke, smoke_store, "gallery"), smoke.rendered.roles["gallery"]
    finder = searching.finder(chosen, smoke_store, size=50, seed=1)
    beliefs = experiment.load_beliefs(smoke, smoke_store, "gallery", method)[:: role.views]
    np.testing.assert_array_equal(finder.vectors, search.crowd(beliefs, 50, 1))
    assert finder.method == method
    whose = finder.gallery.labels
    assert whose.tolist() == [*everyone.identity[:: role.views], *[DISTRACTOR] * (50 - role.identities)]


def test_photographs_are_the_first_of_each_person_rendered_or_loaded(
    smoke_finder: Finder, smoke: Profile, smoke_store: Store, store: Store
) -> None:
    images, views = roles.load_rendered(smoke, "gallery", smoke_store).images, smoke.rendered.roles["gallery"].views
    np.testing.assert_array_equal(smoke_finder.photograph(np.array([4, 0])), images[[4 * views, 0]])
    with_the_head_alone = Store(store.root, shipped=(artifacts.WEIGHTS,))
    rows = np.arange(0, len(images), views)
    seen = searching._photographs(smoke, with_the_head_alone, rows, np.array([4, 0]))
    np.testing.assert_array_equal(seen, images[[4 * views, 0]])


def test_a_gallery_smaller_than_its_people_is_refused(smoke: Profile, smoke_store: Store) -> None:
    with pytest.raises(ValueError, match="size: expected at least 12, the people of the gallery, got 11"):
        searching.finder(smoke, smoke_store, size=11)


# -------------------------------------------------------------------------------------------------------------- widget


def shown(box: Any) -> tuple[str, list[str]]:
    """What the widget says, and rank and score of each face it shows."""
    said, faces = box.children[1].value, box.children[2].value
    assert faces.count("<img") == faces.count("data:image/png;base64,iVBOR")
    return said, re.findall(r"<br>(\d+: \d\.\d{3})<br>", faces)


def test_the_widget_searches_when_text_number_or_button_change() -> None:
    finder = small_finder(size=PEOPLE)
    box = searching.search_widget(finder, number=3)
    text, count, button = box.children[0].children
    assert shown(box) == ("", [])
    text.value = "a man"
    assert shown(box) == ("read as: a man (0.90)<br>looked at by: pixels", search.labels(finder.find("a man", 3)[1]))
    assert "a man 0." in box.children[2].value
    count.value = 5
    assert len(shown(box)[1]) == 5
    text.value = "a person"
    assert "states nothing about a face" in shown(box)[0] and shown(box)[1] == []
    text.value, finder.reader.names = "a man", NAMES  # type: ignore[misc]
    before, Reader.KNOWN = shown(box)[0], Reader.KNOWN | {"man": (0, 0)}
    assert shown(box)[0] == before  # nothing typed: only a press of the button shows it
    button.click()
    assert "a woman" in shown(box)[0]
    Reader.KNOWN |= {"man": (0, 1)}


def test_the_widget_starts_with_a_description_and_escapes_what_is_typed() -> None:
    box = searching.search_widget(small_finder(), "a man", number=2)
    assert shown(box)[0].startswith("read as: a man") and len(shown(box)[1]) == 2
    box.children[0].children[0].value = "<b>bold</b> man"
    assert "<b>" not in shown(box)[0] and "&lt;b&gt;" in shown(box)[0]
