from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facetransport.recognition.plda import Plda, deviations, leading_axes, root, within_covariance
from facetransport.recognition.recogniser import enrol

DIM = 6
RNG = np.random.default_rng(0)
MEAN = torch.full((DIM,), 3.0, dtype=torch.float64)
MIX = torch.from_numpy(RNG.standard_normal((2, DIM, DIM)))
PLDA = Plda(MEAN, MIX[0] @ MIX[0].T, MIX[1] @ MIX[1].T)


def unit(n: int) -> np.ndarray:
    return F.normalize(torch.from_numpy(RNG.standard_normal((n, DIM))).float(), dim=1).numpy()


def test_enrolment_is_the_posterior_mean_of_the_joint_gaussian() -> None:
    vectors, identity = unit(5), np.array([4, 4, 9, 4, 9])
    for person, row in zip((4, 9), PLDA.enrol(vectors, identity), strict=True):
        seen = torch.from_numpy(vectors[identity == person]).double()
        n = len(seen)
        joint = torch.kron(torch.ones(n, n).double(), PLDA.between) + torch.kron(torch.eye(n).double(), PLDA.within)
        cross = torch.kron(torch.ones(1, n).double(), PLDA.between)
        mean = MEAN + cross @ torch.linalg.solve(joint, (seen - MEAN).flatten())
        np.testing.assert_allclose(row, F.normalize(mean, dim=0), atol=1e-5)


def test_with_no_variation_within_people_it_is_the_mean_direction() -> None:
    vectors, identity = unit(6), np.array([0, 0, 1, 1, 1, 2])
    exact = Plda(MEAN, PLDA.between, torch.zeros(DIM, DIM, dtype=torch.float64))
    np.testing.assert_allclose(exact.enrol(vectors, identity), enrol(vectors, identity), atol=1e-5)


def test_it_finds_people_better_than_the_mean_does() -> None:
    rng = np.random.default_rng(1)
    between, within = np.diag([1.0, 1, 1, 0.01, 0.01, 0.01]), np.diag([0.1, 0.1, 0.1, 2, 2, 2])
    people = rng.multivariate_normal(np.zeros(DIM), between, 500)
    shots = people[:, None] + rng.multivariate_normal(np.zeros(DIM), within, (500, 3))
    vectors = (shots / np.linalg.norm(shots, axis=2, keepdims=True)).reshape(-1, DIM).astype(np.float32)
    identity = np.arange(500).repeat(3)
    whose = people / np.linalg.norm(people, axis=1, keepdims=True)
    plda = Plda(torch.zeros(DIM).double(), torch.from_numpy(between), torch.from_numpy(within))
    kept = [(found * whose).sum(1).mean() for found in (plda.enrol(vectors, identity), enrol(vectors, identity))]
    assert kept[0] > kept[1] + 0.1


def test_directions_in_which_nothing_varies_are_left_out() -> None:
    few = torch.from_numpy(unit(3))  # a covariance of rank 2
    found = Plda.of(few, 0.5 * torch.cov(few.double().T)).enrol(few.numpy(), np.arange(3))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_covariances_are_those_of_what_they_are_made_of() -> None:
    population = torch.from_numpy(unit(50))
    total = torch.cov(population.double().T)
    plda = Plda.of(population, 0.25 * total)
    torch.testing.assert_close(plda.between, 0.75 * total)
    torch.testing.assert_close(root(plda.between) @ root(plda.between).T, plda.between)


def test_within_covariance_is_that_of_deviations_from_the_person() -> None:
    vectors = np.array([[0.0, 1], [0, 3], [5, 0], [7, 0]], np.float32)
    expected = torch.tensor([[1.0, 0], [0, 1]]).double()  # deviations (0, -+1), (-+1, 0), two degrees of freedom
    torch.testing.assert_close(within_covariance(vectors, np.array([1, 1, 9, 9])), expected)


def test_deviations_have_the_covariance_within_people() -> None:
    draw = np.random.default_rng(0)
    person = np.repeat(np.arange(40), draw.integers(2, 6, 40))
    vectors = (draw.standard_normal((40, 5))[person] + draw.standard_normal((len(person), 5))).astype(np.float32)
    shuffled = draw.permutation(len(person))
    w = deviations(vectors[shuffled], person[shuffled])
    others = [vectors[i] - vectors[(person == person[i]) & (np.arange(len(person)) != i)].mean(0) for i in shuffled]
    n = torch.from_numpy(np.bincount(person)[person[shuffled]]).double()  # away from the others, and less of that
    expected = torch.from_numpy(np.stack(others)).double() * ((n - 1) / n).sqrt()[:, None]
    torch.testing.assert_close(w, expected, atol=1e-5, rtol=0)  # means of float32
    one_size = np.repeat(np.arange(40), 4)
    rows = torch.from_numpy(draw.standard_normal((160, 5)))
    found = deviations(rows.numpy(), one_size)
    torch.testing.assert_close(found.T @ found / 160, within_covariance(rows.numpy(), one_size))
    with pytest.raises(ValueError, match="several images of everyone, got one of 2 people"):
        deviations(unit(4), np.array([0, 0, 1, 2]))


def test_the_root_is_the_symmetric_one_so_that_draws_do_not_hang_on_signs_of_eigenvectors() -> None:
    covariance = torch.cov(torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    found = root(covariance)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found @ found, covariance)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="several images of some"):
        within_covariance(unit(4), np.arange(4))
    with pytest.raises(ValueError, match=r"within: expected \(6, 6\)"):
        Plda.of(torch.from_numpy(unit(9)), torch.eye(2))
    with pytest.raises(ValueError, match=r"embeddings: expected \(N, 6\)"):
        PLDA.enrol(np.eye(4, dtype=np.float32), np.arange(4))
    with pytest.raises(ValueError, match="one label for each of 3"):
        PLDA.enrol(unit(3), np.arange(2))
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        PLDA.enrol(np.array([[1.0] + [0] * 5, [np.nan] * 6], np.float32), np.arange(2))


def test_leading_axes_are_those_in_effect_and_have_a_sign() -> None:
    basis, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    values = torch.tensor([1.0, 1.0, 1.0, 0.01, 0.01, 0.01], dtype=torch.float64)  # three in effect
    covariance = (basis * values) @ basis.T
    axes = leading_axes(covariance)
    assert axes.shape == (3, 6) and axes.dtype == torch.float32
    torch.testing.assert_close(axes @ axes.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close((axes @ basis.float()[:, 3:]).abs().max(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()
