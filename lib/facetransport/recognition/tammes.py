"""Tammes' problem: n points on the unit sphere of d dimensions, the nearest two as far apart as can be.

ID3 puts its identities there (2409.17576, Algorithm 3); the paper names no solver. Ours minimises

    E_tau(W) = 1/tau log sum_{i<j} exp(tau w_i . w_j)  ->  max_{i<j} w_i . w_j   for tau -> infinity

by Adam on the sphere, with one step size for each point, tau rising from sweep to sweep, rows in blocks: memory grows
with n d, not with n^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24  # cosines held at a time: 64 MiB
FIRST, SECOND = 0.9, 0.99  # decay of Adam's moments


def tammes(
    n: int,
    dim: int,
    seed: int,
    steps: int = 1000,
    sharpness: tuple[float, float] = (10.0, 1000.0),
    lr: float = 0.03,
    device: torch.device | str = "cpu",
) -> Tensor:
    """float32 (n, dim), unit rows: of ``steps`` sweeps that start at uniform points, those whose nearest two are
    farthest apart.

    sharpness: tau of the first and of the last sweep, and lr: of the first, falling to 0; both in units of how far
    neighbours are (1 - largest cosine, and the distance). A sweep costs 4 n^2 dim operations; thousands of points in
    hundreds of dimensions are done in 50 to 200 sweeps at lr 0.1.
    """
    return min(sweeps(n, dim, seed, steps, sharpness, lr, device), key=lambda found: found[1])[0]


def sweeps(
    n: int,
    dim: int,
    seed: int,
    steps: int,
    sharpness: tuple[float, float] = (10.0, 1000.0),
    lr: float = 0.03,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, float]]:
    """(points, their largest cosine) from uniform points on, after 0, 1, ... ``steps`` sweeps. As for ``tammes``."""
    if min(n, dim) < 2 or steps < 1:
        raise ValueError(f"expected at least 2 points, 2 dimensions and 1 step, got n {n}, dim {dim}, steps {steps}")
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(n, dim, generator=generator), dim=1).to(device)
    moments = torch.zeros_like(points), points.new_zeros(n, 1)
    top = largest_cosine(points[:2000])  # enough to begin with
    for k in range(steps):
        gap = max(1 - top, 1e-3)
        tau = sharpness[0] * (sharpness[1] / sharpness[0]) ** (k / steps) / gap
        size = lr * math.sqrt(2 * gap) * 0.5 * (1 + math.cos(math.pi * k / steps))
        moved, top = _sweep(points, moments, tau, top, size, k)
        yield points, top
        points = moved
    yield points, largest_cosine(points)


def largest_cosine(points: Tensor) -> float:
    """max_{i<j} w_i . w_j of unit rows (n, d)."""
    return max(float(cosines.max()) for _, cosines in _blocks(points))


def _sweep(
    points: Tensor, moments: tuple[Tensor, Tensor], tau: float, shift: float, size: float, k: int
) -> tuple[Tensor, float]:
    """Every point moved once along -dE/dw, and the largest cosine before; shift: keeps the exponentials in range."""
    new, top, (mean, square) = torch.empty_like(points), -1.0, moments
    for rows, cosines in _blocks(points):
        top = max(top, float(cosines.max()))
        force = cosines.sub_(shift).mul_(tau).clamp_(max=60).exp_() @ points
        along = (force * points[rows]).sum(1, keepdim=True) * points[rows]
        mean[rows] = torch.lerp(force - along, mean[rows], FIRST)
        square[rows] = torch.lerp((force - along).square().sum(1, keepdim=True), square[rows], SECOND)
        m, v = mean[rows] / (1 - FIRST ** (k + 1)), square[rows] / (1 - SECOND ** (k + 1))
        new[rows] = F.normalize(points[rows] - size * m / (v.sqrt() + 1e-12), dim=1)
    return new, top


def _blocks(points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their cosines (b, n) with all points; with themselves: -1."""
    n = len(points)
    each = max(1, BLOCK // n)
    for start in range(0, n, each):
        cosines = points[start : start + each] @ points.T
        own = torch.arange(len(cosines), device=points.device)
        cosines[own, own + start] = -1
        yield slice(start, start + len(cosines)), cosines


# ------------------------------------------------------------------------------------------ what cannot be beaten


def rankin_bound(n: int, dim: int) -> float:
    """No n points have a smaller largest cosine (Rankin 1955): -1 / (n - 1) for n <= d + 1, the simplex; 0 for more,
    which 2 d points reach, the orthoplex."""
    return -1 / (n - 1) if n <= dim + 1 else 0.0


def welch_bound(n: int, dim: int) -> float:
    """No n > d points have a smaller largest |cosine| (Welch 1974): sqrt((n - d) / (d (n - 1)))."""
    return math.sqrt(max(0, n - dim) / (dim * (n - 1)))
