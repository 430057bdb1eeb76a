"""`facetransport invert` and `walk`: one face in, a sheet out; every bad photograph is refused by name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from facetransport.companion import cli, inversion
from facetransport.companion.artifacts import Store
from facetransport.companion.profiles import Profile
from facetransport.data import detection, orl


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real face on disk."""
    path = tmp_path_factory.mktemp("photographs") / "person.png"
    _, _, source = next(iter(orl.photographs()))
    cv2.imwrite(str(path), cv2.imread(str(source)))
    return path


def test_a_photograph_is_inverted_and_drawn(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACETRANSPORT_PROFILE", "smoke")
    for command, *more in (("invert", "--samples", "2", "--guidance", "1"), ("walk", "--direction", "age")):
        sheet = tmp_path / f"{command}.png"
        assert cli.main([command, str(photograph), *more, "--sheet", str(sheet)]) == 0
        assert cv2.imread(str(sheet)) is not None
        assert "attack on stored biometric templates" in capsys.readouterr().out


def test_samples_depend_on_the_seed(photograph: Path, smoke: Profile, smoke_store: Store) -> None:
    face, drawn = inversion.inverted(smoke, smoke_store, photograph, 3)
    assert face.shape == drawn.shape[1:] == (smoke.rendered.size, smoke.rendered.size, 3) and len(drawn) == 3
    assert np.array_equal(drawn, inversion.inverted(smoke, smoke_store, photograph, 3)[1])
    assert not np.array_equal(drawn, inversion.inverted(smoke, smoke_store, photograph, 3, seed=1)[1])


def test_bad_photographs_are_refused(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face = cv2.imread(str(photograph))
    cv2.imwrite(str(tmp_path / "two.png"), np.concatenate([face, face], axis=1))
    cv2.imwrite(str(tmp_path / "none.png"), np.full((80, 80, 3), 128, np.uint8))
    (tmp_path / "text.jpg").write_text("not an image")
    cases = {
        "two": "2 faces found, expected one",
        "none": "no face found",
        "missing": "no such file",
        "text": "text.jpg",
    }
    for name, message in cases.items():
        path = tmp_path / (f"{name}.jpg" if name == "text" else f"{name}.png")
        assert cli.main(["invert", str(path), "--profile", "smoke"]) == 1
        said = capsys.readouterr().err
        assert message in said and path.name in said and "Traceback" not in said
    assert not list(tmp_path.glob("sheet*"))


def test_bad_arguments_are_refused(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["walk", str(photograph), "--direction", "wealth", "--profile", "smoke"]) == 1
    assert "direction: expected one of age, Male" in capsys.readouterr().err
    assert cli.main(["invert", str(photograph), "--samples", "0", "--profile", "smoke"]) == 1
    assert "samples: expected at least 1" in capsys.readouterr().err
    for command in ("invert", "walk"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert "attack on stored biometric" in " ".join(capsys.readouterr().out.split())


def test_all_faces_are_found_the_largest_first(photograph: Path) -> None:
    face = cv2.imread(str(photograph))
    small = cv2.copyMakeBorder(
        cv2.resize(face, None, fx=0.7, fy=0.7), 0, len(face) - int(0.7 * len(face) + 0.5), 0, 0, 1
    )
    both = detection.detect_all(np.concatenate([small, face], axis=1), 3.0, 16)
    assert len(both) == 2 and np.ptp(both[0][:, 0]) > np.ptp(both[1][:, 0])
    np.testing.assert_array_equal(both[0], detection.detect(np.concatenate([small, face], axis=1), 3.0, 16))
