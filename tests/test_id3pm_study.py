"""What notebooks 06 and 09 measure: the protocol by hand, agreement and areas against numpy and sklearn, walks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from facetransport.companion import profiles
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import directions, id3pm, id3pm_study, readers, roles
from facetransport.companion.experiments.id3pm_study import Protocol, agreement, area, groups, sharpness
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet
from facetransport.evaluation.variation import draw_pairs
from facetransport.recognition.directions import unit
from facetransport.recognition.recogniser import embed_faceset

RNG = np.random.default_rng(0)
IDENTITY = np.arange(40).repeat(5)
PEOPLE = RNG.standard_normal((40, 16))


def embeddings(noise: float) -> np.ndarray:
    return unit(PEOPLE[IDENTITY] + noise * RNG.standard_normal((200, 16)))


def protocol() -> Protocol:
    left, right, same = draw_pairs(IDENTITY, 20, 4)
    return Protocol(left, right, same, 4, IDENTITY[left])


def test_the_left_image_of_genuine_pairs_is_replaced() -> None:
    pairs, real = protocol(), embeddings(0.3)
    assert pairs.verify(real, real).accuracy.value > 0.95
    someone = np.roll(real, 5, axis=0)  # the next person's images
    assert pairs.verify(real, someone).accuracy.value < 0.7
    usual, all_left = pairs.replaced(), pairs.replaced(strict=True)
    assert set(usual) < set(all_left) and len(all_left) < len(real)
    exchanged = pairs.exchanged(real, someone[all_left], strict=True)
    assert pairs.verify(real, exchanged, strict=True).accuracy == pairs.verify(real, someone, strict=True).accuracy
    only_genuine = pairs.exchanged(real, someone[usual])
    assert pairs.verify(real, only_genuine).accuracy == pairs.verify(real, someone).accuracy
    strict = pairs.verify(real, someone, strict=True).accuracy
    assert strict != pairs.verify(real, someone).accuracy


def test_photographs_are_looked_at_once() -> None:
    class Grey:
        """Sees two numbers of an image, its first and its last pixel, and counts what it sees."""

        name, dim, seen = "grey", 2, 0

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            self.seen += len(images)
            return torch.nn.functional.normalize(images[:, 0, [0, -1], [0, -1]] + 0.2)

    rng, identity = np.random.default_rng(1), np.arange(6).repeat(4)
    person = np.repeat(rng.integers(0, 200, (6, 2)), 4, 0)
    images = np.zeros((24, 8, 8, 3), np.uint8)
    images[:, [0, -1], [0, -1]] = (person + rng.integers(0, 40, (24, 2)))[..., None]
    faces, judge = FaceSet(images, pd.DataFrame({"identity": identity})), Grey()
    likeness = id3pm_study.Likeness(judge, faces, 20)
    found = [likeness(faces), likeness(faces)]
    assert judge.seen == 24 + 2 * 24 and found[0] == found[1]
    vectors = embed_faceset(judge, faces)
    same, score = identity[:, None] == identity, np.floor(2000 * (vectors @ vectors.T + 1)).clip(0, 3999)
    assert found[0].value == pytest.approx(roc_auc_score(same.ravel(), score.ravel()), abs=1e-6)


def test_shares_of_a_group_are_of_its_genuine_pairs() -> None:
    pairs, real = protocol(), embeddings(0.6)
    everyone = np.ones(len(pairs.same), bool)
    found = pairs.over_people(real, real, everyone, 50)
    tested = pairs.verify(real, real)
    fold = np.arange(len(pairs.same)) * 4 // len(pairs.same)
    scores = np.einsum("nd,nd->n", real[pairs.left], real[pairs.right])
    assert found.value == pytest.approx((scores >= tested.thresholds[fold])[pairs.same].mean())
    assert found.low <= found.value <= found.high and found.n == pairs.same.sum()


def test_five_points_tell_the_pose_of_people_they_were_not_fitted_to(smoke_store: Store) -> None:
    laptop, views = profiles.load("laptop"), range(60)
    fitted, read = (roles.glimpse(laptop, role, list(views), smoke_store) for role in ("val", "test"))
    landmarks = id3pm_study.Landmarks.fitted(fitted)
    pose = landmarks.read(read)
    seen = pose["yaw"].notna().to_numpy()
    assert seen.mean() > 0.9
    assert np.corrcoef(pose["yaw"][seen], read.table["yaw"][seen])[0, 1] > 0.85
    assert np.corrcoef(pose["pitch"][seen], read.table["pitch"][seen])[0, 1] > 0.2
    blank = FaceSet(np.zeros((2, 64, 64, 3), np.uint8), read.table[:2])
    assert landmarks.read(blank).isna().all(axis=None)
    with pytest.raises(ValueError, match="faces: expected at least 2 that dlib detects, got 0 of 2"):
        id3pm_study.Landmarks.fitted(blank)


def test_mean_errors_are_of_all_images_and_vary_over_people() -> None:
    asked, obtained, people = np.array([0.0, 0, 0, 0]), np.array([1.0, -1, 3, 3]), np.array([0, 0, 1, 1])
    found = id3pm_study.mean_error(asked, obtained, people, 200)
    assert (found.value, found.low, found.high, found.n) == (2, 1, 3, 4)


def test_agreement_and_area_are_the_textbook_ones() -> None:
    x, people = RNG.standard_normal(90), np.arange(30).repeat(3)
    y = 0.5 * x + RNG.standard_normal(90)
    found = agreement(x, y, people, 200)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and found.low < found.value < found.high
    found = area(y, x > 0, people, 50)
    assert found.value == pytest.approx(roc_auc_score(x > 0, y)) and found.low < found.value < found.high


def test_groups_cover_everybody_and_sharpness_falls_with_blur(smoke: Profile, smoke_store: Store) -> None:
    faces = roles.load(smoke, "test", smoke_store)
    who = groups(faces.table)
    assert (who["men"] ^ who["women"]).all()
    assert (who["under 40"].astype(int) + who["40 to 59"] + who["60 and more"] == 1).all()
    flat = np.full_like(faces.images, 90)
    assert (sharpness(faces.images) > sharpness(flat)).all() and not sharpness(flat).any()


def test_worlds_keep_who_is_who(smoke: Profile, smoke_store: Store) -> None:
    faces = roles.load(smoke, "test", smoke_store).select(slice(4))
    for name, world in id3pm_study.worlds(faces, 0).items():
        assert world.images.shape == faces.images.shape and np.array_equal(world.identity, faces.identity), name
    assert np.ptp(id3pm_study.grey(faces).images, axis=3).max() == 0


def test_a_walk_draws_each_step_from_one_noise(smoke: Profile, smoke_store: Store) -> None:
    model, box = id3pm.load(smoke, smoke_store), id3pm.black_box(smoke, smoke_store)
    torch.manual_seed(0)
    for weights in model.denoiser.parameters():  # twenty steps of training hardly teach it to heed an embedding
        weights.add_(0.1 * torch.randn_like(weights))
    ways = directions.load(smoke, smoke_store, box)
    y = embed_faceset(box, roles.load(smoke, "test", smoke_store).select(slice(2)))
    path = ways.walk(y, ways.names[0], [0.0, 0.0, 3.0])
    sampling = id3pm_study.how(smoke.inversion)
    faces, read = directions.walked(model, path, readers.load(smoke, smoke_store), sampling, 0)
    assert len(faces) == len(read) == 6 and faces.identity.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(faces.images[0], faces.images[1]) and not np.array_equal(faces.images[0], faces.images[2])
    changed = directions.changes(read, 3, ["age", "yaw"], pd.Series({"age": 2.0, "yaw": 4.0}))
    by_hand = {n: read[n].iloc[[2, 5]].to_numpy() - read[n].iloc[[0, 3]].to_numpy() for n in ("age", "yaw")}
    assert directions.effect(changed, "age", 10).value == pytest.approx(by_hand["age"].mean() / 2)
    leaked = directions.leak(changed, "age", 10)
    assert leaked.value == pytest.approx(abs(by_hand["yaw"].mean()) / 4) and leaked.low <= leaked.value <= leaked.high
    with pytest.raises(ValueError, match="direction: expected one of"):
        ways.walk(y, "wealth", [1.0])
