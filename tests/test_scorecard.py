"""The committed scorecard: every number in it is one that a notebook recorded."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from facetransport.version import checkout

ROOT = checkout()
CARD = ROOT / "figures" / "laptop" / "scorecard.csv" if ROOT else None


@pytest.fixture(scope="module")
def card() -> pd.DataFrame:
    if CARD is None or not CARD.is_file():
        pytest.skip("no checkout with committed results")
    return pd.read_csv(CARD, keep_default_na=False)


@pytest.fixture(scope="module")
def recorded(card: pd.DataFrame) -> dict[str, list[dict]]:
    assert CARD is not None
    found: dict[str, list[dict]] = {}
    for path in sorted((CARD.parent / "results").glob("*.json")):
        for record in json.loads(path.read_text(encoding="utf-8")):
            found.setdefault(record["name"], []).append(record)
    return found


def test_thirty_claims_of_four_papers_all_judged(card: pd.DataFrame) -> None:
    assert len(card) >= 30 and set(card["paper"]) == {"DiFace", "IDiff-Face", "ID3", "ID3PM"}
    assert set(card["verdict"]) <= {"reproduced", "direction only", "not", "untestable here"}
    assert (card["verdict"] == "not").any()  # none is left out because it failed
    assert not card.duplicated(["paper", "claim"]).any()


def test_every_number_is_recorded(card: pd.DataFrame, recorded: dict[str, list[dict]]) -> None:
    for row in card.itertuples():
        names = row.records.split()
        missing = [name for name in names if name not in recorded]
        assert not missing, f"{row.claim}: {missing}"
        for name in names:
            values = [f"{record['value']:.4g}" for record in recorded[name]]
            assert any(value in row.number for value in values), f"{row.claim}: {name} is {values}, not in {row.number}"


def test_the_counts_are_those_of_the_table(card: pd.DataFrame, recorded: dict[str, list[dict]]) -> None:
    assert recorded["scorecard.claims"][0]["value"] == len(card)
    for verdict in ("reproduced", "not"):
        assert recorded[f"scorecard.{verdict}"][0]["value"] == (card["verdict"] == verdict).sum()
