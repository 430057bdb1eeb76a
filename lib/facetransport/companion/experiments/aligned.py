"""Generated people brought into the template before a recogniser sees them, as IDiff-Face does (papers.md 2.5)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from facetransport import devices
from facetransport.companion.artifacts import Recipe
from facetransport.companion.experiments import given
from facetransport.companion.profiles import Profile
from facetransport.data import detection
from facetransport.data.aligning import TOLERANCE, align_into
from facetransport.data.faceset import FaceSet
from facetransport.files import replacing


def recipe(profile: Profile, faces: Recipe, people: int) -> Recipe:
    """The first ``people`` of a set whose images all are, or could be moved, in the template; failures.csv lists the
    others. By the profile's ``weights.detector``, else by dlib."""
    detector = given.recipe(profile, "detector")
    config = {"people": people, "tolerance": TOLERANCE, "detector": "given" if detector else "dlib"}
    upstream = (faces, detector) if detector else (faces,)
    return Recipe("aligned", config, partial(_make, people), upstream=upstream, collective=True)


def _make(people: int, folder: Path, upstream: tuple[Path, ...]) -> None:
    source, *given_file = upstream
    detector = detection.onnx_detector(given_file[0] / given.ONNX) if given_file else detection.dlib_detector()
    tolerance = TOLERANCE * FaceSet.load(source).images.shape[1]
    share = devices.share()
    done = align_into(folder, source, detector, tolerance, "drop_identity", people, share=share)
    if done is not None:
        with replacing(folder / "failures.csv") as temporary:
            done[1].to_csv(temporary, index=False)
