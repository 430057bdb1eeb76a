"""What became of the papers' claims: each with the records that decide and the rule that judges (notebook 11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

VERDICTS = ("reproduced", "direction only", "not", "untestable here")
Rule = Callable[..., str]
"""rule(*records) -> one of VERDICTS; a record has value, low and high."""


@dataclass(frozen=True)
class Claim:
    """where: section of papers.md, and tag. names: of the records that decide. how: what was measured, or why not."""

    paper: str
    says: str
    where: str
    names: tuple[str, ...]
    rule: Rule
    how: str = ""

    def judge(self, records: pd.DataFrame) -> dict[str, str]:
        """A row of the card. records: indexed by name. "no number" where a record is missing."""
        missing = [name for name in self.names if name not in records.index]
        found = [] if missing else [records.T[name] for name in self.names]
        return {
            "paper": self.paper,
            "claim": self.says,
            "stated": self.where,
            "verdict": "no number" if missing else self.rule(*found),
            "number": ", ".join(_shown(record) for record in found),
            "measured": f"not recorded: {missing[0]}" if missing else self.how,
            "records": " ".join(self.names),
        }


def _shown(record: pd.Series) -> str:
    span = "" if pd.isna(record["low"]) else f" [{record['low']:.4g}, {record['high']:.4g}]"
    return f"{record['value']:.4g}{span}"


TIE = 0.15  # of the joint interval


def _half(record: pd.Series, end: str = "low") -> float:
    """From the value to an end of its interval; 0 where there is none."""
    return 0.0 if pd.isna(record[end]) else abs(float(record["value"] - record[end]))


# --------------------------------------------------------------------------------------------------------------- rules


def at_least(target: float, close: float = 0.0) -> Rule:
    """The target is met; or, for the direction, missed by no more than ``close``."""

    def rule(a: pd.Series) -> str:
        return "reproduced" if a["value"] >= target else "direction only" if a["value"] >= target - close else "not"

    return rule


def at_most(target: float) -> Rule:
    return lambda a: "reproduced" if a["value"] <= target else "not"


def above(a: pd.Series, *others: pd.Series) -> str:
    """Falling from the first to the last, each step by more than both intervals together: reproduced.

    Steps of less than ``TIE`` of that have no direction: another processor turns them round.
    """
    pairs = zip((a, *others), others, strict=False)
    steps = [(x["value"] - y["value"], np.hypot(_half(x), _half(y, "high"))) for x, y in pairs]
    if all(step > joint for step, joint in steps):
        return "reproduced"
    return "direction only" if all(step > TIE * joint for step, joint in steps) else "not"


def below(a: pd.Series, *others: pd.Series) -> str:
    """Rising from the first to the last."""
    return above(*reversed((a, *others)))


def positive(a: pd.Series) -> str:
    """A difference, with an interval."""
    return "reproduced" if a["low"] > 0 else "direction only" if a["value"] > 0 else "not"


def not_worse(a: pd.Series, b: pd.Series) -> str:
    """The first is at least the second less its interval."""
    return "reproduced" if a["value"] >= b["value"] - _half(b) else "not"


def above_chance(a: pd.Series) -> str:
    return "reproduced" if a["low"] > 0.5 else "not"


def rare(a: pd.Series) -> str:
    """A share of at most 1 %, within its interval."""
    return "reproduced" if a["low"] <= 0.01 else "not"


def in_part(least: float) -> Rule:
    """Short of what is claimed, but at least so much."""
    return lambda a, *_: "direction only" if a["value"] >= least else "not"


def exactly(number: float) -> Rule:
    return lambda a: "reproduced" if a["value"] == number else "not"


def untestable() -> str:
    return "untestable here"


# -------------------------------------------------------------------------------------------------------------- claims

D = "diface.verification"
CLAIMS: list[Claim] = [
    Claim(
        "DiFace",
        "described faces are verified with close to 80 % accuracy",
        "1.7, seed",
        (f"{D}.accuracy",),
        at_least(0.78),
        "rendered people for CelebA",
    ),
    Claim(
        "DiFace",
        "accuracy of the same magnitude in identification",
        "1.7, seed",
        ("diface.identification.rank10.gallery100",),
        at_least(0.75, 0.15),
        "gallery and k are not known; among 100, first 10",
    ),
    Claim(
        "DiFace",
        "the first method with significant accuracy: above chance",
        "1.1, paper",
        (f"{D}.accuracy",),
        above_chance,
    ),
    Claim(
        "DiFace",
        "the diffusion model gains over plain regression from words",
        "1.11, inferred",
        (f"{D}.accuracy", f"{D}.regression"),
        above,
    ),
    Claim(
        "DiFace", "and over a contrastive dual encoder", "1.11, inferred", (f"{D}.accuracy", f"{D}.contrastive"), above
    ),
    Claim(
        "DiFace",
        "the refinement network makes rough estimates usable",
        "1.2, seed",
        (f"{D}.accuracy", f"{D}.unrefined"),
        above,
    ),
    Claim(
        "DiFace",
        "few inference steps suffice",
        "1.5, seed",
        ("diface.ablation.steps.1", "diface.ablation.steps.10"),
        not_worse,
        "one step against ten",
    ),
    Claim(
        "DiFace",
        "the accuracy depends on how precise descriptions are",
        "1.1, paper",
        (
            "diface.imprecision.errors.0.diface",
            "diface.imprecision.errors.0.1.diface",
            "diface.imprecision.errors.0.3.diface",
        ),
        above,
        "errors of the describer 0, 10, 30 %",
    ),
    Claim(
        "DiFace",
        "text-conditioned transport ends in the described cluster",
        "1.2, inferred",
        ("theory.posterior.mean_error",),
        at_most(0.1),
        "closed form: mean of samples against the posterior",
    ),
    Claim(
        "DiFace",
        "one step from noise is the regression on the words",
        "1.2, inferred",
        ("theory.one_step.regression_error",),
        at_most(0.05),
    ),
    Claim(
        "DiFace", "the probability-flow ODE preserves mass", "1.2, inferred", ("theory.ode.mass_error",), at_most(1e-6)
    ),
    Claim(
        "DiFace", "80 % on CelebA itself", "1.7, seed", (), untestable, "CelebA may not be shipped; the reader exists"
    ),
]
F, S = "idiff_face", "synthetic_recognition"
CLAIMS += [
    Claim(
        "IDiff-Face",
        "the network has 216,341,187 parameters",
        "2.3, code",
        ("scorecard.parameters.ca",),
        exactly(216_341_187),
    ),
    Claim(
        "IDiff-Face",
        "and 134,595,939 conditioned by AdaGN",
        "2.3, code",
        ("scorecard.parameters.adagn",),
        exactly(134_595_939),
    ),
    Claim(
        "IDiff-Face",
        "more CPD: less separable people",
        "2.8",
        tuple(f"{F}.cpd{p}.matched.fdr" for p in (0, 25, 50)),
        above,
        "FDR within the set, dlib",
    ),
    Claim(
        "IDiff-Face",
        "more CPD: more variation",
        "2.8",
        tuple(f"{F}.cpd{p}.variation.distance" for p in (0, 25, 50)),
        below,
    ),
    Claim(
        "IDiff-Face",
        "uniform contexts make separable people",
        "2.2, paper",
        (f"{F}.cpd25.uniform.auc",),
        at_least(0.95, 0.2),
        "AUC within the set",
    ),
    Claim(
        "IDiff-Face",
        "uniform contexts do better than two-stage ones",
        "2.7, code",
        (f"{F}.cpd25.uniform.fdr", f"{F}.cpd25.two_stage.fdr"),
        above,
        "published for recognition accuracy; here for FDR",
    ),
    Claim(
        "IDiff-Face",
        "a variation keeps the person of its photograph",
        "2.6, code",
        (f"{F}.cpd25.variation.rendered.real_own_variation", f"{F}.cpd25.variation.rendered.real_real"),
        in_part(0.75),
        "accuracy beside that of photographs",
    ),
    Claim("IDiff-Face", "new people are not training people", "2.6, code", (f"{F}.leakage.rate",), rare),
    Claim(
        "IDiff-Face",
        "recognisers trained on it come within 6.6 points of authentic data",
        "2.7, code",
        (f"{S}.{F}.best.gap_rendered",),
        at_most(0.066),
        "94.82 against 88.20 there; here with PLDA contexts, ours",
    ),
    Claim(
        "IDiff-Face",
        "the same as published: uniform contexts, CPD 25",
        "2.7, code",
        (f"{S}.{F}.published.gap_rendered",),
        at_most(0.066),
    ),
    Claim(
        "IDiff-Face",
        "RandAugment helps recognisers trained on synthetic people",
        "2.7, code",
        (f"{S}.{F}.plda.rendered", f"{S}.{F}.plda_flip.rendered"),
        above,
    ),
    Claim(
        "IDiff-Face",
        "twice the people help",
        "2.8, code",
        (f"{S}.{F}.plda_double.rendered", f"{S}.{F}.plda.rendered"),
        above,
        "at equal steps, not until converged",
    ),
    Claim(
        "IDiff-Face",
        "88.20 % on LFW, AgeDB, CALFW, CFP-FP and CPLFW",
        "2.7, code",
        (),
        untestable,
        "real benchmarks and training faces are not shipped; the chain for them is",
    ),
]
K = "id3.identity"
CLAIMS += [
    Claim(
        "ID3",
        "a recogniser trained on it beats one trained on IDiff-Face as published",
        "3.7, third",
        (f"{S}.id3_minus_published.rendered",),
        positive,
        "89.80 against 88.20 there",
    ),
    Claim(
        "ID3", "and one on IDiff-Face with our PLDA contexts", "ours", (f"{S}.id3_minus_idiff_face.rendered",), positive
    ),
    Claim(
        "ID3",
        "the adjusted score keeps the person better than the original",
        "3.9, paper",
        (f"{K}.adjusted.dlib", f"{K}.original.dlib"),
        above,
        "AUC by dlib",
    ),
    Claim(
        "ID3",
        "the identity term in the loss keeps the person better",
        "3.2, paper",
        ("id3.term.loss_with.sampler_without.dlib", "id3.term.loss_without.sampler_without.dlib"),
        above,
        "a minute of training each",
    ),
    Claim(
        "ID3",
        "more of the person than IDiff-Face",
        "3.9, paper",
        (f"{K}.adjusted.dlib", f"{K}.idiff_face.dlib"),
        above,
        "AUC by dlib",
    ),
    Claim(
        "ID3",
        "without loss of variety",
        "3.1, paper",
        (f"{K}.adjusted.vendi", f"{K}.idiff_face.vendi"),
        not_worse,
        "Vendi score",
    ),
    Claim(
        "ID3",
        "anchors solve Tammes' problem",
        "3.5, paper",
        ("tammes.simplex.error",),
        at_most(1e-3),
        "where the best arrangement is known",
    ),
    Claim("ID3", "poses can be asked for", "3.9, paper", ("id3.attribute.yaw.val_people.r",), at_least(0.9, 0.4)),
    Claim("ID3", "ages too", "3.9, paper", ("id3.attribute.age.val_people.r",), at_least(0.9, 0.6)),
    Claim(
        "ID3",
        "tighter bounds around the anchors: more separable people",
        "3.8, paper",
        ("id3.set.plda.0.7_0.9.fdr", "id3.set.plda.0.5_0.7.fdr"),
        above,
        "FDR within the set, dlib",
    ),
    Claim("ID3", "generated people are new", "3.10, inferred", ("id3.leakage.rate",), rare),
]
CLAIMS += [
    Claim(
        "ID3",
        f"ablation: {text}",
        "3.8, paper",
        (f"id3.ablation.{name}.rendered",),
        positive,
        "full minus ablated, accuracy",
    )
    for name, text in (
        ("random", "Tammes anchors beat random ones"),
        ("original_score", "the reversed likelihood score helps"),
        ("no_attributes", "attributes help"),
        ("wider", "these bounds beat wider ones, [0.5, 0.7]"),
    )
]
CLAIMS += [
    Claim(
        "ID3",
        "what is drawn is better to train on by the identity term in the loss",
        "3.2, inferred",
        ("id3.ablation.no_loss_term.rendered",),
        positive,
        "full minus without, accuracy",
    )
]
V, A = "id3pm.verification", "id3pm.attribute"
CLAIMS += [
    Claim(
        "ID3PM",
        "inversions are verified with 97.65 % accuracy",
        "4.7, seed",
        (f"{V}.accuracy",),
        at_least(0.95, 0.1),
        "LFW there, rendered people here",
    ),
    Claim("ID3PM", "they beat the nearest training person", "4.6, inferred", (f"{V}.accuracy", f"{V}.nearest"), above),
    Claim(
        "ID3PM",
        "they beat a decoder trained by squared error",
        "4.6, inferred",
        (f"{V}.accuracy", f"{V}.regression"),
        above,
    ),
    Claim(
        "ID3PM",
        "the plain conditional loss is all that a black box needs",
        "4.2, paper",
        ("id3pm.closed_form.error",),
        at_most(0.05),
        "closed form: learnt against exact score",
    ),
    Claim(
        "ID3PM",
        "more guidance: more of the person",
        "4.8, seed",
        ("id3pm.sweep.id3pm.guidance1.auc", "id3pm.sweep.id3pm.guidance3.auc"),
        below,
    ),
    Claim(
        "ID3PM",
        "more guidance: less variety",
        "4.8, seed",
        ("id3pm.sweep.id3pm.guidance1.similarity", "id3pm.sweep.id3pm.guidance3.similarity"),
        below,
    ),
    Claim("ID3PM", "pose is controlled", "4.3, seed", (f"{A}.yaw.r",), at_least(0.9, 0.4)),
    Claim("ID3PM", "age is controlled", "4.3, seed", (f"{A}.age.r",), at_least(0.9, 0.6)),
    Claim(
        "ID3PM",
        "strong attributes overpower identity",
        "4.3, seed",
        (f"{A}.none.auc", f"{A}.yaw.auc.scale4"),
        above,
        "yaw at scale 4",
    ),
    Claim(
        "ID3PM",
        "named directions change what they are named after: gender",
        "4.8, seed",
        ("directions.male.effect",),
        at_least(1.0, 0.9),
        "deviations over people, from -2 to +2",
    ),
    Claim("ID3PM", "and age", "4.8, seed", ("directions.age.effect",), at_least(1.0, 0.9)),
    Claim(
        "ID3PM",
        "super-resolution keeps the person",
        "4.3, seed",
        ("id3pm.superresolution.diffusion.auc", "id3pm.superresolution.none.auc"),
        not_worse,
    ),
    Claim(
        "ID3PM",
        "super-resolution by diffusion is nearer to the truth than bicubic",
        "ours",
        ("id3pm.superresolution.diffusion.psnr", "id3pm.superresolution.bicubic.psnr"),
        above,
    ),
    Claim(
        "ID3PM",
        "biases are inherited: groups are not inverted equally well",
        "4.10, seed",
        ("id3pm.bias.inversion.pale_skin", "id3pm.bias.inversion.dark_skin"),
        above,
        "genuine pairs accepted",
    ),
    Claim(
        "ID3PM",
        "real photographs are inverted",
        "4.7, seed",
        ("id3pm.orl.identity.auc",),
        at_least(0.8, 0.2),
        "ORL; networks that saw renders only",
    ),
    Claim(
        "ID3PM",
        "16 images take about four minutes",
        "4.5, seed",
        (),
        untestable,
        "another network on another machine; ours: figures/<profile>/speed",
    ),
]
