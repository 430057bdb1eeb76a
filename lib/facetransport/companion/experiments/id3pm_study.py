"""What notebooks 06 and 09 measure of ID3PM: inversions in place of photographs, attributes asked for and obtained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import laplace
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import id3pm, recognisers, roles
from facetransport.companion.profiles import Profile, Sampling
from facetransport.data import detection, orl
from facetransport.data.alignment import similarity, transform_points, warp
from facetransport.data.faceset import FaceSet, to_uint8
from facetransport.diffusion.conditions import Attributes
from facetransport.diffusion.sampling import device_of
from facetransport.evaluation.leakage import nearest
from facetransport.evaluation.protocols import Verification, separability, verify_pairs
from facetransport.evaluation.statistics import Estimate, bootstrap, weighted_mean
from facetransport.evaluation.variation import Pairs, draw_pairs
from facetransport.generation import Model
from facetransport.papers.id3pm import invert
from facetransport.recognition.augmentation import Augment
from facetransport.recognition.recogniser import Recogniser, embed_faceset
from facetransport.tensors import read_model, save_model, seeded

NEAREST = "nearest.safetensors"
POSE = ("yaw", "pitch")


def how(sampling: Sampling) -> dict[str, Any]:
    """A profile's way of sampling as keyword arguments of `invert`."""
    names = ("solver", "steps", "guidance", "temperature")
    return {name: getattr(sampling, name) for name in names}


# ----------------------------------------------------------------------------------------------- LFW's protocol


@dataclass(frozen=True)
class Protocol:
    """Pairs of rows of a FaceSet, fold by fold; in each genuine pair the left image is to be replaced."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: int
    person: np.ndarray  # int (P,): of the left image

    @classmethod
    def of(cls, faces: FaceSet, profile: Profile) -> Protocol:
        """As many pairs as ``evaluation.pairs`` says, half of them genuine; no person in two folds."""
        asked = profile.evaluation
        left, right, same = draw_pairs(faces.identity, asked.pairs // 2 // asked.folds, asked.folds, profile.seed)
        return cls(left, right, same, asked.folds, faces.identity[left])

    def replaced(self, strict: bool = False) -> np.ndarray:
        """int (L,): the images on the left of a genuine pair, strict: of any; no other one need be drawn."""
        return np.unique(self.left if strict else self.left[self.same])

    def exchanged(self, real: np.ndarray, drawn: np.ndarray, strict: bool = False) -> np.ndarray:
        """(N, d): embeddings of all photographs, of those that are ``replaced`` what was drawn for them, (L, d)."""
        whole = np.array(real)
        whole[self.replaced(strict)] = drawn
        return whole

    def verify(self, real: np.ndarray, other: np.ndarray, strict: bool = False) -> Verification:
        """real, other: (N, d), embeddings of the photographs and of what replaces them.

        Impostor pairs stay as they are, as papers.md 4.6 infers of the paper; strict: there too the left is replaced.
        """
        return verify_pairs(*self._pairs(real, other, strict), folds=self.folds)

    def over_people(self, real: np.ndarray, other: np.ndarray, group: np.ndarray, resamples: int) -> Estimate:
        """Share of genuine pairs accepted, at the folds' thresholds, of the people in ``group``, bool (P,): an interval
        over people."""
        pairs, tested = self._pairs(real, other, False), self.verify(real, other)
        fold = np.arange(len(self.same)) * self.folds // len(self.same)
        accepted = (pairs.scores >= tested.thresholds[fold])[group & self.same].astype(float)
        unit = np.unique(self.person[group & self.same], return_inverse=True)[1]
        total, count = np.bincount(unit, accepted), np.bincount(unit)
        return bootstrap(lambda w: (w @ total) / (w @ count), len(count), resamples, count=len(accepted))

    def _pairs(self, real: np.ndarray, other: np.ndarray, strict: bool) -> Pairs:
        replaced = self.same | strict
        return Pairs(np.where(replaced[:, None], other[self.left], real[self.left]), real[self.right], self.same)


# ------------------------------------------------------------------------------------------------- what is compared


def rivals(
    profile: Profile, store: Store, model: Model, rows: np.ndarray, embeddings: np.ndarray, seed: int
) -> dict[str, FaceSet]:
    """In place of some images of the role ``test``, rows int (L,), with what the black box says of them, (L, d): their
    codes decoded, the nearest training person, the regression decoder's image, one that the unconditional model
    draws."""
    code, y, where = model.autoencoder, torch.from_numpy(embeddings), device_of(model.denoiser)
    faces, regression = roles.load(profile, "test", store).select(rows), id3pm.load_regression(profile, store)
    alike = read_model(store.get(nearest_recipe(profile)) / NEAREST)[0]["rows"].numpy()
    unique, place = np.unique(alike[rows], return_inverse=True)
    found = roles.glimpse(profile, "generator", unique.tolist(), store).images[place]
    nobody, who = how(profile.inversion) | {"guidance": 0.0}, rows.tolist()
    made = {
        "autoencoder": to_uint8(code.decode(code.encode_faceset(faces).to(where))),
        "nearest": found,
        "regression": to_uint8(code.decode(regression(y).to(where))),
        "unconditional": invert(model, y, 1, seed, identities=who, **nobody).images,
    }
    return {name: FaceSet(images, faces.table) for name, images in made.items()}


def nearest_recipe(profile: Profile) -> Recipe:
    """For each image of ``test`` the row of the ``generator`` person whom the black box takes for most alike."""
    upstream = (roles.recipe(profile, "test"), id3pm.embeddings_recipe(profile), recognisers.dlib_recipe(profile))
    return Recipe("id3pm.nearest", {}, _make_nearest, upstream=upstream)


def _make_nearest(folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, known = FaceSet.load(upstream[0]), id3pm.read_embeddings(upstream[1]).numpy()
    y = embed_faceset(id3pm.read_black_box(upstream[2]), faces)
    rows = nearest(y, known[: len(known) // 2])[0]
    save_model(folder / NEAREST, {"rows": torch.from_numpy(np.asarray(rows, np.int32))})


@dataclass(frozen=True)
class Likeness:
    """AUC of drawn images against photographs of their identity and of all others, as the recogniser sees them."""

    recogniser: Recogniser
    photographs: FaceSet
    resamples: int

    @cached_property
    def known(self) -> np.ndarray:
        """float32 (N, d): what the recogniser says of the photographs, asked for once."""
        return embed_faceset(self.recogniser, self.photographs)

    def __call__(self, drawn: FaceSet) -> Estimate:
        seen, whose = embed_faceset(self.recogniser, drawn), self.photographs.identity
        return separability(seen, drawn.identity, self.known, whose, bootstrap=self.resamples).auc


# --------------------------------------------------------------------------------------------------- attributes


def asked_and_obtained(
    model: Model,
    embeddings: Tensor,
    attributes: Attributes,
    asked: Mapping[str, np.ndarray],
    draw: Callable[..., FaceSet],
) -> FaceSet:
    """One image of each embedding with its attributes, (n,) by name; the table has them as ``asked_<name>``."""
    told = attributes.encode(asked, len(embeddings))
    drawn = draw(model, embeddings, 1, attributes=told)
    return FaceSet(drawn.images, drawn.table.assign(**{f"asked_{name}": value for name, value in asked.items()}))


@dataclass(frozen=True)
class Landmarks:
    """Yaw and pitch by dlib's five points, which know photographs and no render: ridge regression on where they lie.

    Yaw shows in them; pitch hardly, because a face's proportions differ from person to person as much.
    """

    fit: Pipeline

    @classmethod
    def fitted(cls, faces: FaceSet) -> Landmarks:
        """By people whose pose (degrees; columns ``POSE``) is known; images without a detected face are left out."""
        places = _places(faces)
        seen = np.isfinite(places[:, 0])
        if seen.sum() < 2:
            raise ValueError(f"faces: expected at least 2 that dlib detects, got {seen.sum()} of {len(faces)}")
        fit = make_pipeline(StandardScaler(), Ridge(1.0))
        return cls(fit.fit(places[seen], faces.table.loc[seen, list(POSE)]))

    def read(self, faces: FaceSet) -> pd.DataFrame:
        """Columns ``POSE``, degrees, a row an image; NaN where no face is detected."""
        places = _places(faces)
        seen, pose = np.isfinite(places[:, 0]), np.full((len(faces), len(POSE)), np.nan)
        if seen.any():
            pose[seen] = self.fit.predict(places[seen])
        return pd.DataFrame(pose, columns=list(POSE))


def _places(faces: FaceSet) -> np.ndarray:
    """float64 (N, 10): dlib's points, the eyes' centres at -0.5 and 0.5; NaN where there is no face."""
    upscale = max(1.0, detection.SIDE / faces.images.shape[1])
    found = [detection.detect(image, upscale, orl.BORDER) for image in faces.images]
    return np.array([np.full(10, np.nan) if points is None else _between_eyes(points) for points in found])


def _between_eyes(points: np.ndarray) -> np.ndarray:
    return transform_points(points, similarity(detection.eye_centres(points), np.array([[-0.5, 0], [0.5, 0]]))).ravel()


def mean_error(asked: np.ndarray, obtained: np.ndarray, unit: np.ndarray, resamples: int) -> Estimate:
    """Mean absolute difference, with an interval over people (unit: int (N,))."""
    statistic = weighted_mean(np.abs(asked - obtained), unit)
    return bootstrap(statistic, int(unit.max()) + 1, resamples, count=len(asked))


def agreement(asked: np.ndarray, obtained: np.ndarray, unit: np.ndarray, resamples: int) -> Estimate:
    """Pearson's r of what was asked for and obtained, with an interval over people (unit: int (N,))."""
    sums = [
        np.bincount(unit, v) for v in (np.ones_like(asked), asked, obtained, asked**2, obtained**2, asked * obtained)
    ]

    def r(weights: np.ndarray) -> np.ndarray:
        n, a, o, aa, oo, ao = (weights @ s for s in sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (ao / n - a * o / n**2) / np.sqrt((aa / n - (a / n) ** 2) * (oo / n - (o / n) ** 2))

    return bootstrap(r, len(sums[0]), resamples, count=len(asked))


def area(scores: np.ndarray, yes: np.ndarray, unit: np.ndarray, resamples: int) -> Estimate:
    """AUC of scores (N,) for yes, bool (N,), with an interval over people (unit: int (N,))."""
    whose = np.eye(int(unit.max()) + 1)[unit]  # (N, people)
    ahead = (np.sign(scores[yes][:, None] - scores[~yes]) + 1) / 2  # of each pair; a tie counts half
    wins = whose[yes].T @ ahead @ whose[~yes]  # (people, people)
    there, absent = whose[yes].sum(0), whose[~yes].sum(0)

    def auc(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((weights @ wins) * weights).sum(1) / ((weights @ there) * (weights @ absent))

    return bootstrap(auc, len(wins), resamples, count=len(scores))


def groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """bool (N,) by name: gender, age band, skin tone of rendered people."""
    male, young, senior, dark, pale = (
        table[name].to_numpy(bool) for name in ("Male", "Young", "Senior", "Dark_Skin", "Pale_Skin")
    )
    ages = {"under 40": young, "40 to 59": ~young & ~senior, "60 and more": senior}
    return {"men": male, "women": ~male, **ages, "dark skin": dark, "skin between": ~dark & ~pale, "pale skin": pale}


def sharpness(images: np.ndarray) -> np.ndarray:
    """(N,): mean magnitude of the Laplacian of the grey image, in grey levels; images uint8 (N, H, W, 3)."""
    return np.abs(laplace(images.astype(np.float64).mean(3), axes=(1, 2))).mean((1, 2))


# ------------------------------------------------------------------------------- what parts renders from photographs


def worlds(faces: FaceSet, seed: int) -> dict[str, FaceSet]:
    """Renders as they are, and one step each nearer to photographs: grey, found and aligned by the detector as ORL's
    are, seen by a worse camera."""
    return {"as they are": faces, "grey": grey(faces), "realigned": realigned(faces), "degraded": degraded(faces, seed)}


def grey(faces: FaceSet) -> FaceSet:
    levels = faces.images.mean(3, keepdims=True).round().astype(np.uint8)
    return FaceSet(np.repeat(levels, 3, axis=3), faces.table)


def realigned(faces: FaceSet) -> FaceSet:
    """Images without a detected face stay as they are."""
    size, images = faces.images.shape[1], np.array(faces.images)
    for image in images:
        points = detection.detect(image, orl.UPSCALE, orl.BORDER)
        if points is not None:
            image[:] = warp(image, detection.to_template(points, size), size)
    return FaceSet(images, faces.table)


def degraded(faces: FaceSet, seed: int) -> FaceSet:
    with seeded(seed):
        return FaceSet(to_uint8(Augment(operations=0)(faces.tensor())), faces.table)
