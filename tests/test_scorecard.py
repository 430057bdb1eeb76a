"""The committed scorecard: every number in it is one that a notebook recorded."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from facetransport.companion import scorecard
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


def record(value: float, low: float = float("nan"), high: float = float("nan")) -> pd.Series:
    return pd.Series({"value": value, "low": low, "high": high})


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (scorecard.at_least(0.8, 0.1)(record(0.81)), "reproduced"),
        (scorecard.at_least(0.8, 0.1)(record(0.71)), "direction only"),
        (scorecard.at_least(0.8, 0.1)(record(0.69)), "not"),
        (scorecard.at_most(0.1)(record(0.2)), "not"),
        (scorecard.above(record(0.9, 0.88, 0.92), record(0.8, 0.78, 0.82)), "reproduced"),
        (scorecard.above(record(0.9, 0.80, 0.99), record(0.8, 0.78, 0.82)), "direction only"),
        (scorecard.above(record(0.7, 0.69, 0.71), record(0.8, 0.78, 0.82)), "not"),
        (scorecard.below(record(1.0), record(2.0), record(3.0)), "reproduced"),
        (scorecard.below(record(1.0), record(3.0), record(2.0)), "not"),
        (scorecard.positive(record(0.01, -0.01, 0.03)), "direction only"),
        (scorecard.positive(record(-0.01, -0.03, 0.01)), "not"),
        (scorecard.not_worse(record(0.79), record(0.8, 0.78, 0.82)), "reproduced"),
        (scorecard.rare(record(0.02, 0.015, 0.03)), "not"),
        (scorecard.in_part(0.5)(record(0.6), record(0.9)), "direction only"),
        (scorecard.exactly(3)(record(3.0)), "reproduced"),
    ],
)
def test_rules(verdict: str, expected: str) -> None:
    assert verdict == expected


def test_a_claim_without_its_record_says_so() -> None:
    claim = scorecard.Claim("X", "it works", "1, paper", ("a.b",), scorecard.at_least(1))
    none = claim.judge(pd.DataFrame(columns=["value", "low", "high"], index=pd.Index([], name="name")))
    assert none["verdict"] == "no number" and none["measured"] == "not recorded: a.b"
    found = claim.judge(pd.DataFrame({"value": [2.0], "low": [1.5], "high": [2.5]}, index=["a.b"]))
    assert found["verdict"] == "reproduced" and found["number"] == "2 [1.5, 2.5]" and found["records"] == "a.b"
