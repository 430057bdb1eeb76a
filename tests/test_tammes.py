"""Points that keep their distance: against configurations that are known to be best, and bounds that nobody beats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from facetransport.recognition import tammes as module
from facetransport.recognition.tammes import largest_cosine, rankin_bound, tammes, welch_bound


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (4, 3), (17, 16), (33, 64), (65, 64)])
def test_up_to_one_more_point_than_dimensions_make_the_simplex(n: int, dim: int) -> None:
    assert largest_cosine(tammes(n, dim, 0)) == pytest.approx(-1 / (n - 1), abs=1e-3)


@pytest.mark.parametrize(("n", "dim"), [(6, 3), (32, 16), (128, 64)])
def test_twice_as_many_points_as_dimensions_make_the_orthoplex(n: int, dim: int) -> None:
    assert largest_cosine(tammes(n, dim, 0)) == pytest.approx(0, abs=1e-3)


BEST = {7: 77.8695, 8: 74.8585, 9: 70.5288, 10: 66.1468, 12: 63.4349, 24: 43.6908}  # degrees; Sloane's tables


@pytest.mark.parametrize(("n", "degrees"), BEST.items())
def test_best_known_codes_in_three_dimensions(n: int, degrees: float) -> None:
    points = [tammes(n, 3, seed) for seed in range(3)]
    closest = max(math.degrees(math.acos(largest_cosine(p))) for p in points)
    assert degrees - 0.05 < closest < degrees + 0.001  # better than the best known would be a fault of ours


@pytest.mark.parametrize(("n", "dim"), [(40, 8), (300, 20)])
def test_between_the_bounds_and_chance(n: int, dim: int) -> None:
    points = tammes(n, dim, 1, steps=100, lr=0.1)
    chance = tammes(n, dim, 1, steps=1, lr=1e-9)
    assert rankin_bound(n, dim) <= largest_cosine(points) < 0.7 * largest_cosine(chance)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(n))
    coherence = (points @ points.T - torch.eye(n)).abs().max()
    assert coherence >= welch_bound(n, dim)


def test_memory_is_bounded_by_blocks_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tammes(30, 5, 2, steps=20)
    monkeypatch.setattr(module, "BLOCK", 100)  # three rows at a time
    torch.testing.assert_close(tammes(30, 5, 2, steps=20), whole, atol=1e-4, rtol=0)
    held = [cosines.numel() for _, cosines in module._blocks(whole)]
    assert max(held) <= 100 and len(held) == 10


def test_the_largest_cosine_is_of_two_points() -> None:
    points = torch.eye(3)
    assert largest_cosine(points) == 0
    assert largest_cosine(torch.cat([points, points[:1]])) == 1


def test_seeds() -> None:
    def draw(seed: int) -> Tensor:
        return tammes(20, 4, seed, steps=10)

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("arguments", [(1, 3, 0), (3, 1, 0), (3, 3, 0, 0)])
def test_what_has_no_distance_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 points, 2 dimensions and 1 step"):
        tammes(*arguments)  # type: ignore[arg-type]
