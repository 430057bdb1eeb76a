"""Alignment of finished images: measured, mended, and every failure listed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from facetransport.companion import cli
from facetransport.data import aligning, detection, orl
from facetransport.data.aligning import align_faceset, align_into
from facetransport.data.alignment import similarity, transform_points, warp
from facetransport.data.detection import Detector
from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet
from facetransport.data.template import template
from facetransport.devices import WHOLE
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.recognition.onnx import export_onnx

SIZE = 64


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    """Photographs in the template, then one turned and shifted out of it, then noise: two people."""
    aligned = [orl.align(orl.read(path), SIZE) for _, _, path in islice(orl.photographs(), 4)]
    images = [found[0] for found in aligned if found is not None]
    turned = cv2.warpAffine(images[0], shift(12, 5, -4), (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return FaceSet(np.stack([*images, turned, noise]), pd.DataFrame({"identity": [0, 0, 1, 1, 0, 1]}))


def shift(degrees: float, x: float, y: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    return matrix + np.array([[0, 0, x], [0, 0, y]])


def test_faces_in_the_template_pass_and_every_other_image_is_listed(faces: FaceSet) -> None:
    checked, failures = align_faceset(faces, detection.dlib_detector(), tolerance=3)
    assert failures["row"].tolist() == [4, 5]
    assert failures["identity"].tolist() == [0, 1]
    assert failures["reason"].tolist() == ["too far", "no face found"]
    assert failures["distance"][0] > 5 and np.isnan(failures["distance"][1])
    np.testing.assert_array_equal(checked.images, faces.images)
    assert checked.table["off_template"][:4].max() < 3


def test_realigned_faces_are_in_the_template(faces: FaceSet) -> None:
    aligned, failures = align_faceset(faces, detection.dlib_detector(), tolerance=3, realign=True)
    assert failures["row"].tolist() == [5]
    np.testing.assert_array_equal(aligned.images[[0, 1, 2, 3, 5]], faces.images[[0, 1, 2, 3, 5]])
    again, left = align_faceset(aligned, detection.dlib_detector(), tolerance=3)
    assert left["row"].tolist() == [5]
    inner = slice(16, 48)
    error = abs(again.images[4].astype(float) - faces.images[0])[inner, inner].mean()
    assert error < 0.5 * abs(faces.images[4].astype(float) - faces.images[0])[inner, inner].mean()


@pytest.mark.parametrize(
    ("on_failure", "rows"),
    [("keep", [0, 1, 2, 3, 4, 5]), ("drop_image", [0, 1, 2, 3, 4]), ("drop_identity", [0, 1, 4])],
)
def test_failures_are_kept_or_dropped_as_asked(faces: FaceSet, on_failure, rows: list[int]) -> None:
    result, failures = align_faceset(faces, known_points([4]), 3, realign=True, on_failure=on_failure)
    assert len(result) == len(rows) and len(failures) == 1
    assert result.identity.tolist() == faces.identity[rows].tolist()


def known_points(far: list[int], move: np.ndarray | None = None) -> Detector:
    """Finds the template in each image in turn, moved in the far ones; nothing in the sixth."""
    rows = iter(range(6))

    def find(image: np.ndarray) -> np.ndarray | None:
        row = next(rows)
        points = transform_points(template(SIZE), shift(20, 6, 0) if move is None else move)
        return None if row == 5 else points if row in far else template(SIZE)

    return Detector(find, template)


def test_known_landmarks_follow_their_image(faces: FaceSet) -> None:
    out = transform_points(template(SIZE), shift(20, 6, 0)).ravel()
    rows = [out if row == 4 else template(SIZE).ravel() for row in range(6)]
    labelled = FaceSet(faces.images, faces.table.join(pd.DataFrame(rows, columns=list(LANDMARK_COLUMNS))))
    aligned, _ = align_faceset(labelled, known_points([4]), 3, realign=True)
    np.testing.assert_allclose(aligned.landmarks, np.broadcast_to(template(SIZE), (6, 5, 2)), atol=1e-3)


def test_what_is_no_face_stays_too_far(faces: FaceSet) -> None:
    """Points in a line can't be brought to the template; the image stays as it was."""
    flat = np.array([[1.0, 0, 0], [0, 0, 30]])
    aligned, failures = align_faceset(faces, known_points([2], flat), 3, realign=True)
    assert failures["row"].tolist() == [2, 5] and failures["reason"][0] == "too far"
    np.testing.assert_array_equal(aligned.images, faces.images)


class FakeInsightFace:
    """What SCRFD answers: boxes with a score, five points each; it is given BGR."""

    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.seen = image
        if not image.any():
            return np.zeros((0, 5)), np.zeros((0, 5, 2))
        points = np.stack([template(SIZE) + 40, template(SIZE) + 8]).astype(np.float32)
        return np.array([[60, 60, 80, 80, 0.9], [20, 20, 60, 60, 0.6]]), points


def test_insightface_finds_the_central_face() -> None:
    model = FakeInsightFace()
    detect = detection.insightface_detector(model, border=8)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert detect.find(image) is None
    image[..., 0] = 200
    np.testing.assert_allclose(detect.find(image), template(SIZE), atol=1e-5)
    assert model.seen.shape == (80, 80, 3) and model.seen[..., 2].all() and not model.seen[..., 0].any()
    _, failures = align_faceset(FaceSet(image[None], pd.DataFrame({"identity": [0]})), detect, 1)
    assert failures.empty


def test_refusals(faces: FaceSet) -> None:
    detect = detection.dlib_detector()
    with pytest.raises(ValueError, match="tolerance"):
        align_faceset(faces, detect, float("nan"))
    with pytest.raises(ValueError, match="on_failure: expected 'keep'"):
        align_faceset(faces, detect, 3, on_failure="resize")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square"):
        align_faceset(FaceSet(faces.images[:, :50], faces.table), detect, 3)
    with pytest.raises(ValueError, match="at least one"):
        align_faceset(faces.select(slice(0, 0)), detect, 3)


# ------------------------------------------------------------------------------------------------- sets of any size

AWAY = shift(8, 3, -2)


def write_scrfd(path: Path, points: np.ndarray) -> Path:
    """A detector of InsightFace's interface (nine outputs, two anchors a place): one face with these points (5, 2) in
    the 640 pixels that it is given, unless they are black."""
    looks = {name: [] for name in ("score", "box", "points")}
    for stride in (8, 16, 32):
        places = 2 * (640 // stride) ** 2
        score, box, five = np.zeros((places, 1)), np.zeros((places, 4)), np.zeros((places, 10))
        if stride == 16:
            column, row = (points.mean(0) // stride).astype(int)
            score[2 * (row * 40 + column)] = 0.9
            box[:] = 10
            five[:] = ((points - (column * stride, row * stride)) / stride).ravel()
        for name, values in (("score", score), ("box", box), ("points", five)):
            looks[name].append(values.astype(np.float32))
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["brightest"], keepdims=0),
        helper.make_node("Add", ["brightest", "not_black"], ["light"]),
        helper.make_node("Clip", ["light", "zero", "one"], ["lit"]),
    ]
    constants = {"not_black": np.float32(0.99), "zero": np.float32(0), "one": np.float32(1)}
    outputs = []
    for name, values in looks.items():
        for level, array in enumerate(values):
            constants[f"{name}{level}_is"] = array if name != "score" else array * 5
            factor = "lit" if name == "score" else "one"
            nodes.append(helper.make_node("Mul", [f"{name}{level}_is", factor], [f"{name}{level}"]))
            outputs.append(helper.make_tensor_value_info(f"{name}{level}", TensorProto.FLOAT, array.shape))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 640, 640))
    known = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "scrfd", [image], outputs, known)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def scrfd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sees one face, off the template, in each image of SIZE pixels that is not black."""
    border = SIZE // detection.MARGIN
    points = (transform_points(template(SIZE), AWAY) + border) * 640 / (SIZE + 2 * border)
    return write_scrfd(tmp_path_factory.mktemp("scrfd") / "det.onnx", points)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Seven people of three images, out of order; one image each of the people 2 and 5 is black."""
    identity = np.tile(np.arange(7), 3)
    rng = np.random.default_rng(0)
    images = rng.integers(100, 200, (21, SIZE, SIZE, 3), dtype=np.uint8)
    images[[2, 12]] = 0
    FaceSet(images, pd.DataFrame({"identity": identity, "sample": np.repeat(np.arange(3), 7)})).save(tmp_path / "drawn")
    return tmp_path / "drawn"


def test_an_onnx_detector_sees_what_its_file_sees(scrfd: Path) -> None:
    detect = detection.onnx_detector(scrfd)
    grey = np.full((SIZE, SIZE, 3), 180, np.uint8)
    np.testing.assert_allclose(detect.find(grey), transform_points(template(SIZE), AWAY), atol=0.02)
    assert detect.find(grey * 0) is None
    assert detection.onnx_detector(scrfd).name == detect.name != detection.DLIB.name


def test_photographs_are_searched_by_the_detector_that_is_named(scrfd: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(2):
        path = tmp_path / "people" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(100, 200, (SIZE, SIZE, 3)) * (1 - number))
    command = ["import-faces", "folders", str(tmp_path / "people"), str(tmp_path / "out"), "--size", str(SIZE)]
    assert cli.main([*command, "--detector", str(scrfd)]) == 0
    faces, shown = FaceSet.load(tmp_path / "out"), cv2.imread(str(tmp_path / "people/a/0.png"))[:, :, ::-1]
    there = transform_points(template(SIZE), AWAY)
    np.testing.assert_allclose(faces.images[0], warp(shown, similarity(there, template(SIZE)), SIZE), atol=2)
    assert len(faces) == 1 and "no face found" in (tmp_path / "out" / "failures.json").read_text()


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("on_failure", ["keep", "drop_image", "drop_identity"])
def test_a_set_in_shards_is_the_set_in_one(
    drawn: Path, scrfd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_failure, shards: int | None
) -> None:
    monkeypatch.setattr(aligning, "PART", 4)
    detect, out = detection.onnx_detector(scrfd), tmp_path / "out"
    faces = FaceSet.load(drawn)
    order = np.argsort(faces.identity, kind="stable")
    whole, failures = align_faceset(faces.select(order), detect, 2, True, on_failure)
    jobs = [(i, shards) for i in range(shards)] if shards else [WHOLE]
    *early, done = [align_into(out, drawn, detect, 2, on_failure, workers=1, share=job) for job in jobs]
    assert early == [None] * (len(jobs) - 1) and done is not None
    np.testing.assert_array_equal(done[0].images, whole.images)
    assert done[0].identity.tolist() == whole.identity.tolist()
    assert done[1]["row"].tolist() == sorted(order[failures["row"]]) == [2, 12]
    assert done[1]["reason"].tolist() == ["no face found"] * 2 and done[1]["identity"].tolist() == [2, 5]
    again = align_into(out, drawn, detect, 2, on_failure)  # finished: read, not made
    assert again is not None and len(again[0]) == len(whole)


def test_spare_people_take_the_place_of_those_who_fail(drawn: Path, scrfd: Path, tmp_path: Path, capsys) -> None:
    command = ["align", str(drawn), str(tmp_path / "five"), "--detector", str(scrfd), "--tolerance", "2"]
    command += ["--on-failure", "drop_identity"]
    assert cli.main([*command, "--identities", "5"]) == 0
    assert "not aligned  2, listed" in capsys.readouterr().out
    assert FaceSet.load(tmp_path / "five").identity.tolist() == np.repeat([0, 1, 3, 4, 6], 3).tolist()
    lost = pd.read_csv(tmp_path / "five" / "failures.csv")
    assert lost["row"].tolist() == [2, 12] and lost["distance"].isna().all()
    command[2] = str(tmp_path / "four")
    assert cli.main([*command, "--identities", "4", "--shard", "1/2"]) == 0
    assert cli.main([*command, "--identities", "4", "--shard", "2/2"]) == 0
    assert FaceSet.load(tmp_path / "four").identity.tolist() == np.repeat([0, 1, 3, 4], 3).tolist()
    command[2] = str(tmp_path / "six")
    assert cli.main([*command, "--identities", "6"]) == 1
    assert "expected 1 to 5, as many people as could be aligned, got 6" in capsys.readouterr().err


def test_by_default_proper_faces_stay(faces: FaceSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """dlib's points are never exactly in the template."""
    faces.save(tmp_path / "faces")
    assert cli.main(["align", str(tmp_path / "faces"), str(tmp_path / "out")]) == 0
    assert "not aligned  1, listed" in capsys.readouterr().out
    aligned = FaceSet.load(tmp_path / "out").table
    assert sorted(aligned["row"]) == [0, 1, 2, 3, 4] and aligned["off_template"].max() <= aligning.TOLERANCE * SIZE


def test_a_folder_is_not_two_sets(drawn: Path, scrfd: Path, tmp_path: Path) -> None:
    align_into(tmp_path / "out", drawn, detection.onnx_detector(scrfd), 2, workers=1)
    with pytest.raises(ValueError, match="begun with tolerance 2, now 3"):
        align_into(tmp_path / "out", drawn, detection.onnx_detector(scrfd), 3, workers=1)
    faces = FaceSet.load(drawn)
    FaceSet(255 - faces.images, faces.table).save(tmp_path / "negatives")
    with pytest.raises(ValueError, match="begun with images"):
        align_into(tmp_path / "out", tmp_path / "negatives", detection.onnx_detector(scrfd), 2, workers=1)


def test_what_is_no_detector_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"det_10g.onnx: no such .onnx file; name a detector"):
        detection.onnx_detector(tmp_path / "det_10g.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"broken.onnx: onnxruntime cannot load it"):
        detection.onnx_detector(tmp_path / "broken.onnx")
    model = IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), input_size=112, dim=16))
    export_onnx(model, tmp_path / "recogniser.onnx")
    with pytest.raises(ValueError, match="expected a detector with five landmarks"):
        detection.onnx_detector(tmp_path / "recogniser.onnx")
    (tmp_path / "people" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "people" / "a" / "0.png"), np.zeros((SIZE, SIZE, 3), np.uint8))
    command = ["import-faces", "folders", str(tmp_path / "people"), str(tmp_path / "out"), "--geometry", "whole"]
    assert cli.main([*command, "--detector", str(tmp_path / "det.onnx")]) == 1
    assert "--detector: folders is not searched for faces; leave it out" in capsys.readouterr().err
