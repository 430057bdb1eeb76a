"""Verification sets of given pairs: LFW, AgeDB-30, CFP-FP, CALFW, CPLFW as InsightFace packs them (``.bin``).

Who people are is not in such a file, so intervals are over its folds, and not over people as elsewhere here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from facetransport.data.alignment import from_112, warp
from facetransport.data.faceset import FaceSet
from facetransport.data.photographs import decode
from facetransport.data.verification_bin import read
from facetransport.evaluation.protocols import Verification, verify_pairs
from facetransport.evaluation.statistics import Estimate
from facetransport.recognition.recogniser import Recogniser, embed_faceset

SIDE = 128  # pixels of the project's images whose middle is a 112-pixel crop, unchanged
FOLDS = 10


@dataclass(frozen=True)
class PairSet:
    """Encoded 112-pixel crops, two a pair, decoded when they are embedded; same: bool (P,)."""

    name: str
    encoded: list[bytes]
    same: np.ndarray

    @classmethod
    def open(cls, path: Path) -> PairSet:
        """A ``.bin`` file; its name without the suffix is the set's. Grey crops are taken for colour of three equal
        channels."""
        pairs = read(path)
        if len(pairs.same) < 4 or pairs.same.all() or not pairs.same.any():
            raise ValueError(f"{path}: expected genuine and impostor pairs, 4 at least, got {len(pairs.same)} pairs")
        return cls(path.stem, pairs.images, pairs.same)

    def faces(self, rows: range) -> FaceSet:
        """Crops of 128 pixels, as all images of this package are: with a margin around them. identity: the pair."""
        crops = [decode(self.encoded[i], f"{self.name}, image {i}", "repeat") for i in rows]
        wrong = next((crop.shape for crop in crops if crop.shape != (112, 112, 3)), None)
        if wrong:
            raise ValueError(f"{self.name}: expected crops of 112 x 112 pixels, got {wrong[1]} x {wrong[0]}")
        images = np.stack([warp(crop, from_112(SIDE), SIDE) for crop in crops])
        return FaceSet(images, pd.DataFrame({"identity": np.asarray(rows) // 2}))


def embed_pairs(recogniser: Recogniser, pairs: PairSet, batch: int = 256) -> np.ndarray:
    """float32 (2 P, d), unit norm."""
    rows = range(len(pairs.encoded))
    return np.concatenate([embed_faceset(recogniser, pairs.faces(rows[i : i + batch])) for i in rows[::batch]])


def verify_set(embeddings: np.ndarray, same: np.ndarray, centre: bool = False) -> Verification:
    """LFW's protocol on embeddings (2 P, d), pair by pair: 10 consecutive folds, fewer where there are few pairs.

    centre: subtract the mean of all crops first; it knows no label.
    """
    if centre:
        embeddings = embeddings - embeddings.mean(0)
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    return verify_pairs(embeddings[0::2], embeddings[1::2], same, folds=min(FOLDS, len(same) // 2))


def auc(embeddings: np.ndarray, same: np.ndarray) -> Estimate:
    """Area under the ROC of the pairs' cosines; without an interval."""
    scores = np.einsum("nd,nd->n", embeddings[0::2], embeddings[1::2])
    return Estimate(float(roc_auc_score(same, scores)), np.nan, np.nan, len(same))
