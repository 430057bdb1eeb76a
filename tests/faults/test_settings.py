"""Profiles that are meant to hang, to fill the memory or to write elsewhere."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import yaml

from facetransport.companion import profiles

SMOKE = (profiles.FOLDER / "smoke.yaml").read_text()
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 20_000, "more than 20 levels of sections within sections"),
        ("a: " + "[" * 60 + "]" * 60, "more than 20 levels of sections within sections"),
        ("\n".join(f"k{i}: 1" for i in range(60_000)), "bytes, expected at most 262,144"),
        ("\n".join(f"k{i}: 1" for i in range(15_000)), "more than 500 keys"),
        (BOMB, "more than 20,000 values, aliases counted as what they stand for"),
        (MERGES, "more than 500 keys, merged"),
        ("\0", "not YAML that can be read"),
        (b"\xff\xfe\xfa", "not YAML that can be read"),
    ],
)
def test_what_is_hostile_is_refused_at_once_in_a_sentence(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"a\.yaml: .*{said}") as refused:
        profiles.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**27 and len(str(refused.value)) < 1000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "", ".hidden", "laptop", "smoke", "a\nb"])
def test_a_name_cannot_lead_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": name}) + SMOKE)
    with pytest.raises(ValueError, match=r"mine\.yaml: name: expected letters, digits, dots, spaces, - and _"):
        profiles.load(tmp_path / "mine.yaml")


def test_a_copy_under_the_name_of_a_profile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "laptop.yaml").write_text(SMOKE)
    with pytest.raises(ValueError, match=r"laptop is one: choose another"):
        profiles.load(tmp_path / "laptop.yaml")
    (tmp_path / "my laptop-2.yaml").write_text(SMOKE)
    assert profiles.load(tmp_path / "my laptop-2.yaml").name == "my laptop-2"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("weight_decay: 5e-4", "weight_decay: -1", r"reference\.weight_decay: expected at least 0, got -1"),
        ("bounds: [0.7, 0.9]", "bounds: [0.7]", r"id3_set\.bounds\[1\]: missing; expected another number in"),
        ("seed: 0", f"seed: {list(range(5000))}", r"seed: expected a whole number, got \[0, 1, 2.*\.\.\."),
    ],
)
def test_values_that_cannot_be_are_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in SMOKE
    (tmp_path / "mine.yaml").write_text(SMOKE.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        profiles.load(tmp_path / "mine.yaml")
