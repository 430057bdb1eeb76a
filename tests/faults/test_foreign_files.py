"""No file from elsewhere, of up to 4 KiB, may crash, hang, take a gigabyte or raise anything but a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from borders import BORDERS, LARGEST, MOST, OPERATIONS, SLOWEST, Edit, attempt, broken, peak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EDITS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.floats(0, 1), st.binary(max_size=16)), max_size=8)
thoroughly = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)


@pytest.mark.parametrize("kind", BORDERS)
def test_a_sound_file_is_read(kind: str, tmp_path: Path) -> None:
    border = BORDERS[kind]
    (tmp_path / border.name).write_bytes(border.sound)
    if kind not in ("checkpoint", "instructions"):  # no whole network fits into so few bytes
        border.read(tmp_path / border.name)


@pytest.mark.parametrize("kind", BORDERS)
@thoroughly
@given(edits=EDITS)
def test_a_broken_file_is_refused_in_a_sentence(kind: str, edits: list[Edit], tmp_path: Path) -> None:
    before = peak()
    assert attempt(BORDERS[kind], broken(BORDERS[kind].sound, edits), tmp_path) < SLOWEST
    assert peak() - before < LARGEST


@pytest.mark.parametrize("kind", BORDERS)
@thoroughly
@given(data=st.binary(max_size=MOST))
def test_any_bytes_are_refused_in_a_sentence(kind: str, data: bytes, tmp_path: Path) -> None:
    assert attempt(BORDERS[kind], data, tmp_path) < SLOWEST
