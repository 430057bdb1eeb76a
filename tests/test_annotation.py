"""Ages and poses by models of the user's: InsightFace's interfaces, its axes in ours, nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from insightface.data import get_object
from insightface.utils import transform
from onnx import TensorProto, helper, numpy_helper

from facetransport.companion import cli
from facetransport.data import annotation
from facetransport.data.faceset import FaceSet
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from facetransport.recognition.onnx import export_onnx
from facetransport.world.rendered import rotation

SIZE = 64
ANGLES = st.floats(-40, 40)


def mean_shape() -> np.ndarray:
    """(68, 3): InsightFace's, x right, y down, z towards the camera."""
    return get_object("meanshape_68.pkl")


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The same head as the renderer would turn it."""
    ours = mean_shape()[:, [0, 2, 1]] * (1, -1, -1)  # x right, y away from the camera, z up
    seen = ours @ rotation(yaw, pitch, roll).T
    return seen[:, [0, 2, 1]] * (1, -1, -1)


@given(ANGLES, ANGLES, ANGLES)
def test_poses_are_the_renderers(yaw: float, pitch: float, roll: float) -> None:
    shape = transform.estimate_affine_matrix_3d23d(mean_shape(), turned(yaw, pitch, roll))
    theirs = transform.matrix2angle(transform.P2sRt(shape)[1])
    np.testing.assert_allclose(annotation.pose_from(theirs), (yaw, pitch, roll), atol=1e-3)


def write_model(path: Path, side: int, answer: np.ndarray, scale: float) -> Path:
    """Answers ``answer`` plus ``scale`` times the mean of what it is shown: (x - 127.5) / 128 of (1, 3, side, side)."""
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "answer"], ["out"]),
    ]
    known = {"answer": answer[None].astype(np.float32), "scale": np.full((1, 1), scale, np.float32)}
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, (1, 3, side, side))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, answer.size))],
        [numpy_helper.from_array(value, name) for name, value in known.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three grey images, dark to light."""
    images = np.stack([np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 100, 250)])
    FaceSet(images, pd.DataFrame({"identity": [4, 4, 9], "age": [0.0, 0.0, 0.0]})).save(tmp_path / "faces")
    return tmp_path / "faces"


@pytest.fixture
def genderage(tmp_path: Path) -> Path:
    return write_model(tmp_path / "genderage.onnx", 96, np.array([0.1, 0.9, 0.5]), 0.2)


@pytest.fixture
def pose(tmp_path: Path) -> Path:
    """1,103 points as the real one has, the last 68 of them those of a turned head, as large as the box."""
    points = np.zeros((1103, 3))
    points[-68:] = turned(20, -10, 5) * 0.5
    return write_model(tmp_path / "1k3d68.onnx", 192, points.ravel(), 0.0)


def test_a_set_gains_ages_and_poses(source: Path, genderage: Path, pose: Path, tmp_path: Path, capsys) -> None:
    command = ["annotate", str(source), str(tmp_path / "told"), "--age", str(genderage), "--pose", str(pose)]
    assert cli.main(command) == 0
    told = FaceSet.load(tmp_path / "told")
    assert "columns      identity, age, Male, yaw, pitch, roll" in capsys.readouterr().out
    assert told.table["Male"].all() and told.identity.tolist() == [4, 4, 9]
    assert told.table["age"].tolist() == sorted(told.table["age"]) and 30 <= told.table["age"][0] < 45
    assert told.table["age"].nunique() == 3  # the image is looked at
    np.testing.assert_allclose(told.table[["yaw", "pitch", "roll"]], np.tile([20, -10, 5], (3, 1)), atol=0.1)
    np.testing.assert_array_equal(told.images, FaceSet.load(source).images)
    assert (tmp_path / "told" / "images.npy").samefile(source / "images.npy")
    assert FaceSet.load(source).table["age"].tolist() == [0, 0, 0]


def test_nothing_is_overwritten_and_something_is_asked_for(source: Path, genderage: Path, tmp_path: Path, capsys):
    assert cli.main(["annotate", str(source), str(tmp_path / "told")]) == 1
    assert "expected --age FILE, --pose FILE or both" in capsys.readouterr().err
    assert cli.main(["annotate", str(source), str(source), "--age", str(genderage)]) == 1
    assert "holds something already" in capsys.readouterr().err


def test_a_file_of_another_kind_is_refused(source: Path, genderage: Path, pose: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the reader of age .* insightface takes it for landmark_3d_68"):
        annotation.age_by(pose)
    with pytest.raises(ValueError, match="expected the landmarks in space .* insightface takes it for genderage"):
        annotation.pose_by(genderage)
    model = IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), input_size=112, dim=16))
    export_onnx(model, tmp_path / "recogniser.onnx")
    with pytest.raises(ValueError, match="insightface takes it for recognition"):
        annotation.age_by(tmp_path / "recogniser.onnx")
    with pytest.raises(ValueError, match="at least one look and one image, got 0 and 3"):
        annotation.annotate(FaceSet.load(source), [])
