"""Reproduction checked: equal, within tolerance, outside, missing; speeds apart."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from facetransport.companion import artifacts, cli, results
from facetransport.companion.compare import compare, numbers

Out = pytest.CaptureFixture[str]


def write(folder: Path, notebook: str = "01_a", **values: float | None) -> Path:
    """figures/<profile> with one notebook's numbers; in names, two underscores are a dot."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    records = [{"name": n.replace("__", "."), "value": v, "low": None, "high": None} for n, v in values.items()]
    (folder / "results" / f"{notebook}.json").write_text(json.dumps(records))
    return folder


def test_every_number_is_judged(tmp_path: Path) -> None:
    a = write(tmp_path / "a", x__equal=0.5, x__near=0.5, x__far=0.5, x__gone=1, x__none=None, speed__ms=3, x__tiny=1e-6)
    b = write(tmp_path / "b", x__equal=0.5, x__near=0.5004, x__far=0.51, x__none=None, speed__ms=9, x__tiny=2e-6)
    compared = compare(a, b)
    values = compared.table[compared.table["part"] == "value"].set_index("name")["kind"]
    expected = {"x.equal": "equal", "x.near": "within", "x.far": "outside", "x.gone": "missing", "x.none": "equal"}
    assert {name: values[name] for name in expected} == expected and values["x.tiny"] == "within"
    assert not compared.reproduced and "x.far value: 0.5 -> 0.51" in compared.report()
    assert "machine  01_a speed.ms: 3 -> 9\n" in compared.report() and "not counted: 1" in compared.report()


def test_speeds_that_lie_beside_are_listed(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", x=1), write(tmp_path / "b", x=1)
    (write(b / "speed", speed__ms=9) / "results" / "01_a.json").rename(b / "speed" / "01_a.json")
    compared = compare(a, b)
    assert compared.reproduced and "machine  01_a speed.ms: - -> 9\n" in compared.report()


def test_speeds_do_not_fail_it_and_intervals_do(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", x=1, speed__ms=1), write(tmp_path / "b", x=1, speed__ms=100)
    assert compare(a, b).reproduced and compare(a, b).report().endswith("\nreproduced")
    path = b / "results" / "01_a.json"
    path.write_text(json.dumps([{"name": "x", "value": 1, "low": 0.5, "high": 1.5}]))
    assert not compare(a, b).reproduced  # there was no interval before


def test_a_seventh_of_its_own_interval_is_within(tmp_path: Path) -> None:
    """A share of 1,000 moves by 0.001 where one of them changes sides."""
    a, b = write(tmp_path / "a"), write(tmp_path / "b")

    def reproduced(value: float, high: float = 0.11) -> bool:
        for folder, v, end in ((a, 0.1, 0.11), (b, value, high)):
            record = {"name": "x", "value": v, "low": 0.09, "high": end}
            (folder / "results" / "01_a.json").write_text(json.dumps([record]))
        return compare(a, b).reproduced

    assert reproduced(0.1029) and not reproduced(0.1032)
    assert reproduced(0.1, 0.1159) and not reproduced(0.1, 0.1161)  # an end, twice as far


def test_folders_files_and_tolerance(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", x=1), write(tmp_path / "b", x=1.05)
    file = a / "results" / "01_a.json"
    assert numbers(a) == numbers(a / "results") == numbers(file)
    assert compare(file, b, rtol=0.1).reproduced and not compare(file, b).reproduced
    with pytest.raises(ValueError, match="rtol: expected at least 0"):
        compare(a, b, -1)
    with pytest.raises(FileNotFoundError, match="no results"):
        compare(a, tmp_path)
    file.write_text('{"x": 1}')
    with pytest.raises(ValueError, match=r"01_a\.json: expected a JSON list of records"):
        compare(a, b)


def test_the_command_fails_on_a_difference(tmp_path: Path, capsys: Out) -> None:
    a, b = write(tmp_path / "a", x=1), write(tmp_path / "b", x=2)
    assert cli.main(["compare", str(a), str(a)]) == 0
    assert cli.main(["compare", str(a), str(b)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "NOT reproduced"


@pytest.mark.parametrize("git", [True, False])
def test_the_verdict_is_on_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out, git: bool
) -> None:
    """Also where the run wrote over it, twice; without a git, on what was there before the first run."""
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(results.VARIABLE, str(tmp_path / "figures"))
    figures = write(tmp_path / "figures" / "smoke", x=1)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    if git:
        for command in (["init", "-q"], ["add", "figures"], [*identity, "commit", "-qm", "numbers"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for value, verdict in ((1.0005, "reproduced"), (2, "NOT reproduced")):
        assert cli.main(["verdict", "--keep", "--profile", "smoke"]) == 0
        write(figures, x=value)
        assert cli.main(["verdict", "--profile", "smoke"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == verdict
    if git:  # committed, the new numbers are the ones to reproduce
        subprocess.run(["git", *identity, "commit", "-qam", "new numbers"], cwd=tmp_path, check=True)
        cli.main(["verdict", "--profile", "smoke"])
        assert capsys.readouterr().out.splitlines()[-1] == "reproduced"


def test_where_nothing_was_committed_the_verdict_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(results.VARIABLE, str(tmp_path / "figures"))
    cli.main(["verdict", "--keep", "--profile", "smoke"])
    cli.main(["verdict", "--profile", "smoke"])
    assert "no numbers came with this checkout" in capsys.readouterr().out
