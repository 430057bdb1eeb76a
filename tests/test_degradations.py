"""Degradations: nothing at severity 0, monotone above, and what each says it does."""

from __future__ import annotations

import pytest
import torch

from facetransport.evaluation.degradations import KINDS, degrade

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("kind", KINDS)
def test_images_get_worse_with_severity(kind: str) -> None:
    assert torch.equal(degrade(IMAGES, kind, 0.0, seeded()), IMAGES)
    off = [(degrade(IMAGES, kind, s, seeded()) - IMAGES).square().mean() for s in (0.25, 0.5, 1.0)]
    assert 0 < off[0] < off[1] < off[2]
    worst = degrade(IMAGES, kind, 1.0, seeded())
    assert worst.shape == IMAGES.shape and worst.min() >= -1 and worst.max() <= 1
    assert torch.equal(worst, degrade(IMAGES, kind, 1.0, seeded()))


def test_amounts_are_as_stated() -> None:
    hidden = (degrade(IMAGES, "occlusion", 1.0, seeded()) == 0).all(1).float().mean((1, 2))
    torch.testing.assert_close(hidden, torch.full((4,), 23**2 / 32**2))
    dark = (degrade(IMAGES, "low_light", 1.0, seeded()) + 1) / 2
    assert dark.mean() == pytest.approx(float((IMAGES + 1).mean() / 32), abs=0.006)
    flat = torch.zeros(2, 3, 64, 64)
    assert degrade(flat, "noise", 0.4, seeded()).std() == pytest.approx(0.2, abs=0.01)
    assert degrade(flat + 0.3, "blur", 1.0, seeded()) == pytest.approx(0.3, abs=1e-5)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of blur"):
        degrade(IMAGES, "rain", 0.5, seeded())
    with pytest.raises(ValueError, match="severity: expected 0 to 1"):
        degrade(IMAGES, "blur", 1.5, seeded())
