"""Directions: planted ones are found, walks stay on the sphere, orthogonalised ones leave the others alone."""

from __future__ import annotations

import numpy as np
import pytest

from facetransport.recognition.directions import (
    difference_of_means,
    logistic,
    orthogonalised,
    principal,
    ridge,
    slerp,
    unit,
    walk,
)

RNG = np.random.default_rng(0)
AXES = np.linalg.qr(RNG.standard_normal((16, 16)))[0].astype(np.float32)


def planted(n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, who has an attribute along AXES[0], and an age along AXES[1] which goes along with it."""
    present = RNG.random(n) < 0.3
    age = 40 + 10 * RNG.standard_normal(n) + 10 * present
    x = RNG.standard_normal((n, 16)) + np.outer(2.0 * present, AXES[0]) + np.outer((age - 40) / 10, AXES[1])
    return unit(x), present, age


X, PRESENT, AGE = planted()


@pytest.mark.parametrize("find", [difference_of_means, logistic])
def test_an_attribute_is_found(find) -> None:
    assert find(X, PRESENT) @ AXES[0] > 0.75
    assert find(X, ~PRESENT) @ AXES[0] < -0.75


def test_a_classifier_separates_what_the_means_mix() -> None:
    """Age goes along with the attribute: the means point there too, the classifier's weights less so."""
    assert abs(logistic(X, PRESENT) @ AXES[1]) < 0.7 * abs(difference_of_means(X, PRESENT) @ AXES[1])


def test_a_number_is_found() -> None:
    assert ridge(X, AGE) @ AXES[1] > 0.9


def test_principal_axes_are_ordered_orthonormal_and_signed() -> None:
    found = principal(X, 5)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(5), atol=1e-5)
    assert (np.diff(found.deviation) <= 0).all() and 0 < found.explained.sum() < 1
    np.testing.assert_allclose((X @ found.axes.T).std(0, ddof=1), found.deviation, rtol=1e-3)
    assert (found.axes[np.arange(5), np.abs(found.axes).argmax(1)] > 0).all()
    assert principal(X, 16).explained.sum() == pytest.approx(1)


def test_orthogonalised_directions_move_nothing_else() -> None:
    three = unit(np.stack([AXES[0], AXES[0] + AXES[1], AXES[2] - 0.5 * AXES[1]]))
    alone = orthogonalised(three)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-5)
    moves = alone @ three.T
    assert np.abs(moves - np.diag(np.diag(moves))).max() < 1e-5 and (np.diag(moves) > 0.1).all()
    with pytest.raises(ValueError, match="row 0 lies in the span"):
        orthogonalised(np.stack([AXES[0], AXES[0]]))


def test_walks_and_arcs_stay_on_the_sphere() -> None:
    steps = np.array([-1.0, 0.0, 2.0])
    walked = walk(X[:3], AXES[0], steps)
    assert walked.shape == (3, 3, 16)
    np.testing.assert_allclose(np.linalg.norm(walked, axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(walked[:, 1], X[:3], atol=1e-6)
    assert (np.diff(walked @ AXES[0], axis=1) > 0).all()
    arc = slerp(X[0], X[1], np.linspace(0, 1, 5))
    np.testing.assert_allclose(arc[[0, -1]], X[:2], atol=1e-6)
    angles = np.arccos(np.einsum("kd,kd->k", arc[1:], arc[:-1]))
    np.testing.assert_allclose(angles, angles[0], rtol=1e-3)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="some without"):
        difference_of_means(X, np.ones(len(X), bool))
    with pytest.raises(ValueError, match="expected bool"):
        logistic(X, AGE)
    with pytest.raises(ValueError, match="finite numbers"):
        ridge(X, AGE[:5])
    with pytest.raises(ValueError, match="k: expected 1 to 16"):
        principal(X, 17)
    with pytest.raises(ValueError, match="zero vector"):
        unit(np.zeros(3))
    with pytest.raises(ValueError, match="no one arc"):
        slerp(X[0], X[0], np.array([0.5]))
    with pytest.raises(ValueError, match=r"direction: expected \(16,\)"):
        walk(X[:2], AXES[0][:5], np.array([1.0]))
