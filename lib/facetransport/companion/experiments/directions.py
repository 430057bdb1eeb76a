"""Named directions in a recogniser's space, and what walking along them does (notebook 09, `facetransport walk`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import roles
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet, concatenate
from facetransport.evaluation.readers import AttributeReader
from facetransport.evaluation.statistics import Estimate, bootstrap, weighted_mean
from facetransport.generation import Model
from facetransport.papers.id3pm import invert
from facetransport.recognition.directions import logistic, orthogonalised, ridge, walk
from facetransport.recognition.recogniser import Recogniser, embed_faceset

LABELLED = ("gallery", "val")  # people whose attributes point the way; nobody among them is tested or trained on
NAMES = (
    "age", "Male", "Dark_Skin", "Black_Hair", "Blond_Hair", "Gray_Hair", "Long_Hair", "Full_Beard", "Heavy_Makeup",
    "Eyeglasses", "Smiling", "yaw",
)  # fmt: skip


@dataclass(frozen=True)
class Directions:
    """names: K; naive, alone: float32 (K, d), as found and orthogonalised against the others; deviation (K, 2): of
    embeddings along each, the unit of a walk."""

    names: tuple[str, ...]
    naive: np.ndarray
    alone: np.ndarray
    deviation: np.ndarray

    def walk(self, embeddings: np.ndarray, name: str, steps: Sequence[float], alone: bool = True) -> np.ndarray:
        """(N, d) -> (N, k, d), unit norm; steps: in deviations."""
        if name not in self.names:
            raise ValueError(f"direction: expected one of {', '.join(self.names)}, got {name!r}")
        i = self.names.index(name)
        direction = (self.alone if alone else self.naive)[i]
        return walk(embeddings, direction, np.asarray(steps) * self.deviation[i, int(alone)])


def labelled(profile: Profile, store: Store) -> FaceSet:
    """The photographs that directions are fitted to."""
    return concatenate([roles.load(profile, role, store) for role in LABELLED])


def fitted(embeddings: np.ndarray, table: pd.DataFrame, names: Sequence[str] = NAMES) -> Directions:
    """Directions of columns of a table: ridge regression of numbers, logistic regression of booleans.

    Columns that do not vary are left out.
    """
    found = {name: _direction(embeddings, table[name]) for name in names if table[name].nunique() > 1}
    naive = np.stack(list(found.values()))
    alone = orthogonalised(naive)
    deviation = np.stack([(embeddings @ way.T).std(0) for way in (naive, alone)], axis=1)
    return Directions(tuple(found), naive, alone, deviation)


def _direction(embeddings: np.ndarray, values: pd.Series) -> np.ndarray:
    array = values.to_numpy()
    return logistic(embeddings, array) if array.dtype == bool else ridge(embeddings, array.astype(np.float64))


def load(profile: Profile, store: Store, recogniser: Recogniser) -> Directions:
    """The directions of a recogniser's space, fitted now (half a minute)."""
    faces = labelled(profile, store)
    return fitted(embed_faceset(recogniser, faces), faces.table)


# ----------------------------------------------------------------------------------------------------- what a walk does


def walked(
    model: Model, walks: np.ndarray, reader: AttributeReader, sampling: Mapping[str, float | int | str], seed: int
) -> tuple[FaceSet, pd.DataFrame]:
    """One image at each step of walks (N, k, d), all with a person's own seed, and what the reader reads off it.

    Both have N k rows, person by person; identity is the person's number, ``step`` the place on the walk.
    """
    people, steps, dim = walks.shape
    whose, how = np.arange(people).repeat(steps), dict(sampling)
    embeddings = torch.from_numpy(np.ascontiguousarray(walks.reshape(-1, dim)))
    images = invert(model, embeddings, 1, seed, identities=whose.tolist(), **how).images  # type: ignore[arg-type]
    faces = FaceSet(images, pd.DataFrame({"identity": whose, "step": np.tile(np.arange(steps), people)}))
    return faces, reader.read(faces)


def changes(read: pd.DataFrame, steps: int, names: Sequence[str], deviation: pd.Series) -> pd.DataFrame:
    """How each attribute changes from the first step to the last, in its deviations over people: one row a person."""
    first, last = read[list(names)].to_numpy()[::steps], read[list(names)].to_numpy()[steps - 1 :: steps]
    return pd.DataFrame((last - first) / deviation[list(names)].to_numpy(), columns=list(names))


def effect(changed: pd.DataFrame, name: str, resamples: int) -> Estimate:
    """Mean change of the attribute that a direction is named after, with an interval over people."""
    own = changed[name].to_numpy()
    return bootstrap(weighted_mean(own, np.arange(len(own))), len(own), resamples, count=len(own))


def leak(changed: pd.DataFrame, name: str, resamples: int) -> Estimate:
    """Mean size, over all other attributes, of their mean change, with an interval over people."""
    others = changed.drop(columns=name).to_numpy()

    def size(weights: np.ndarray) -> np.ndarray:
        return np.abs(weights @ others / weights.sum(1, keepdims=True)).mean(1)

    return bootstrap(size, len(others), resamples, count=len(others))
