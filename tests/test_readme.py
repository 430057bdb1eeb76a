"""The README promises only what is there: its numbers are the laptop results, its pictures and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from facetransport.companion import cli, results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_headline_numbers_are_those_of_the_laptop_results():
    """Within what another machine may make of them: the README's are those of the committed run."""
    table = cli.with_headlines(README)
    words = [re.sub(r"-?[0-9]+\.?[0-9]*", "#", text) for text in (table, README)]
    assert words[0] == words[1], "run `.venv/bin/facetransport readme` after `make figures`"
    records = results.read("laptop", ROOT / "figures").set_index("name")
    rows = re.findall(r"^\| ([a-z_0-9.]+\.[a-z_0-9.]+) \|.*?\| (-?[0-9.]+) \|", README, flags=re.M)
    assert len(rows) >= 7
    for name, printed in rows:
        digits = 0.5 * 10 ** -len(printed.partition(".")[2])
        assert float(printed) == pytest.approx(records.loc[name, "value"], rel=1e-3, abs=digits), name
        assert not name.startswith(results.SPEED)


def test_pictures_and_links_exist():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) > 5
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_every_laptop_result_has_a_value_inside_its_interval():
    records = results.read("laptop", ROOT / "figures")
    assert len(records) > 20
    bounded = records.dropna(subset=["low", "high"])
    assert ((bounded["low"] <= bounded["value"]) & (bounded["value"] <= bounded["high"])).all()
    assert pd.Series(records["profile"]).eq("laptop").all()
