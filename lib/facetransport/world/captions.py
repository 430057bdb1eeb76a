"""A describer of faces whose imprecision is explicit, so that the best possible reader of its captions can be computed.

Model, independently for every attribute: the describer perceives it (wrong with probability ``error``), mentions it
(with probability ``say_yes`` if perceived present, ``say_no`` if perceived absent). What was said is a vector in {-1
unsaid, 0 said absent, 1 said present}; its likelihood given a face's true attributes is a product, which is all a
Bayes-optimal verifier or identifier needs. How it is put into words is another matter (`facetransport.world.grammar`).
DiFace (2312.01367) leaves open how to measure verbal imprecision; this makes it a number.

A caption of ANOTHER image of the same person describes a smile or glasses that may not be in this one: `persistence`
measures how often, and the likelihood takes it into account.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNSAID, ABSENT, PRESENT = -1, 0, 1


@dataclass(frozen=True)
class Describer:
    """How imprecise a describer is; all probabilities."""

    error: float = 0.05
    say_yes: float = 0.6
    say_no: float = 0.08

    def __post_init__(self) -> None:
        for name in ("error", "say_yes", "say_no"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in 0..1, got {getattr(self, name)}")

    def say(self, attributes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int8 (N, A) in {-1, 0, 1}: what is said of faces with these attributes (bool (N, A))."""
        attributes = _as_attributes(attributes)
        perceived = attributes ^ (rng.random(attributes.shape) < self.error)
        mentioned = rng.random(attributes.shape) < np.where(perceived, self.say_yes, self.say_no)
        return np.where(mentioned, perceived.astype(np.int8), np.int8(UNSAID))

    def likelihood_table(self) -> np.ndarray:
        """(2, 3): P(symbol | attribute), rows absent/present, columns unsaid/said absent/said present."""
        perceived_present = np.array([self.error, 1 - self.error])
        yes, no = perceived_present * self.say_yes, (1 - perceived_present) * self.say_no
        return np.stack([1 - yes - no, no, yes], 1)

    def log_likelihood(
        self, said: np.ndarray, attributes: np.ndarray, persistence: np.ndarray | None = None
    ) -> np.ndarray:
        """float64 (Q, N): log P(caption q | attributes n); said int8 (Q, A), attributes bool (N, A).

        persistence: as `log_evidence`. It is ``one_hot(said) @ log_evidence(attributes).T``.
        """
        evidence = self.log_evidence(attributes, persistence)
        said = np.asarray(said)
        if said.ndim != 2 or 3 * said.shape[1] != evidence.shape[1]:
            raise ValueError(f"said: expected (Q, {evidence.shape[1] // 3}), got {said.shape}")
        return one_hot(said) @ evidence.T

    def log_evidence(self, attributes: np.ndarray, persistence: np.ndarray | None = None) -> np.ndarray:
        """float64 (N, 3 A): log P(symbol | attributes n), for every attribute the three columns of `likelihood_table`.

        persistence: float (A, 2) from `persistence`, where the caption is of ANOTHER image of the person: P(present in
        the described image | absent, present in image n), which mixes the rows of the table. None: of the same image.
        """
        attributes = _as_attributes(attributes)
        present = _as_persistence(persistence, attributes.shape[1])[:, :, None]
        absent_row, present_row = self.likelihood_table()
        with np.errstate(divide="ignore"):
            logs = _finite(np.log((1 - present) * absent_row + present * present_row))  # (A, 2, 3)
        return np.where(attributes[:, :, None], logs[:, 1], logs[:, 0]).reshape(len(attributes), -1)


def one_hot(said: np.ndarray) -> np.ndarray:
    """float64 (Q, 3 A) of said int8 (Q, A): for every attribute unsaid, said absent, said present."""
    said = np.asarray(said)
    return (said[:, :, None] == (UNSAID, ABSENT, PRESENT)).reshape(len(said), -1).astype(float)


def persistence(described: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float64 (A, 2): P(attribute present in the described image | absent, present in the gallery image).

    Counted over pairs of images of the same people, both bool (N, A); pass both orders of a pair to use it twice. An
    attribute that never differs belongs to the identity: exactly (0, 1). For others half a pair is added to each count.
    """
    described, gallery = _as_attributes(described), _as_attributes(gallery)
    if described.shape != gallery.shape or not len(gallery):
        raise ValueError(f"expected two (N, A) of the same pairs, N >= 1; got {described.shape} and {gallery.shape}")
    groups = np.stack([~gallery, gallery])  # (2, N, A)
    smoothed = ((groups & described).sum(1) + 0.5) / (groups.sum(1) + 1)
    varies = (described != gallery).any(0)
    return np.where(varies, smoothed, [[0.0], [1.0]]).T


def _as_persistence(persistence: np.ndarray | None, attributes: int) -> np.ndarray:
    if persistence is None:
        return np.tile([0.0, 1.0], (attributes, 1))
    table = np.asarray(persistence, float)
    if table.shape != (attributes, 2) or not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"persistence: expected probabilities ({attributes}, 2), got {table.shape} in {table}")
    return table


def _finite(logs: np.ndarray) -> np.ndarray:
    return np.maximum(logs, -1e6)  # impossible, but 0 * -inf must not become NaN


def _as_attributes(attributes: np.ndarray) -> np.ndarray:
    attributes = np.asarray(attributes)
    if attributes.dtype != bool or attributes.ndim != 2:
        raise ValueError(f"attributes: expected bool (N, A), got {attributes.dtype} {attributes.shape}")
    return attributes
