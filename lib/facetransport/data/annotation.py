"""What a table does not say of photographs: age and pose, by models of the user's (`facetransport.zoo`).

ID3 (2409.17576) and ID3PM (2303.13006) condition on age and pose; FFHQ and CASIA come without them. The models of
InsightFace's packs look at a loose crop around the face; images in the template hold less of it, the rest is black.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation
from tqdm.auto import tqdm

from facetransport import zoo
from facetransport.data.faceset import FaceSet, link_images, save_table
from facetransport.files import require_new_folder

Look = Callable[[np.ndarray], Mapping[str, float]]
"""look(image) -> values by column. image: uint8 (S, S, 3), RGB, in the template."""

BOX = np.array([24.0, 14.0, 104.0, 120.0]) / 128  # about what a detector draws around a face in the template
# InsightFace's axes in ours: its y is down and its z towards the camera, our z is up and our y away from it
AXES = np.array([[1, 0, 0], [0, 0, -1], [0, -1, 0]])


def age_by(path: Path) -> Look:
    """Columns age (years) and Male (bool), by InsightFace's ``genderage.onnx``."""
    what = "the reader of age of an InsightFace pack, buffalo_l/genderage.onnx"
    return partial(_age, _of_task(path, what, "genderage"))


def pose_by(path: Path) -> Look:
    """Columns yaw, pitch, roll (degrees, as of rendered people), by InsightFace's ``1k3d68.onnx``."""
    what = "the landmarks in space of an InsightFace pack, buffalo_l/1k3d68.onnx"
    return partial(_pose, _of_task(path, what, "landmark_3d_68"))


def _of_task(path: Path, what: str, task: str) -> Any:
    model = zoo.load(path, what)
    found = getattr(model, "taskname", type(model).__name__)
    if found != task:
        raise ValueError(f"{path}: expected {what}; insightface takes it for {found}")
    return model


def _age(model: Any, image: np.ndarray) -> dict[str, float]:
    male, age = model.get(*_seen(image))
    return {"age": float(age), "Male": bool(male)}


def _pose(model: Any, image: np.ndarray) -> dict[str, float]:
    seen, face = _seen(image)
    model.get(seen, face)
    return dict(zip(("yaw", "pitch", "roll"), pose_from(face.pose), strict=True))


def _seen(image: np.ndarray) -> tuple[np.ndarray, Any]:
    """BGR, and where the face is."""
    from insightface.app.common import Face

    return np.ascontiguousarray(image[:, :, ::-1]), Face(bbox=BOX * image.shape[0])


def pose_from(angles: Sequence[float]) -> tuple[float, float, float]:
    """InsightFace's (pitch, yaw, roll), turned one after the other -> ours (yaw, pitch, roll), degrees."""
    theirs = Rotation.from_euler("xyz", np.asarray(angles, float), degrees=True).as_matrix()
    yaw, pitch, roll = Rotation.from_matrix(AXES.T @ theirs @ AXES).as_euler("zxy", degrees=True)
    return float(yaw), float(pitch), float(roll)


def annotate(faces: FaceSet, looks: Sequence[Look]) -> pd.DataFrame:
    """The set's table with what each look finds in each image; columns that were there give way."""
    if not looks or not len(faces):
        raise ValueError(f"expected at least one look and one image, got {len(looks)} and {len(faces)}")
    images = tqdm(faces.images, unit="face", desc="annotating", disable=None)
    found = pd.DataFrame([{k: v for look in looks for k, v in look(np.asarray(image)).items()} for image in images])
    return faces.table.assign(**{str(name): found[name].to_numpy() for name in found})


def annotate_into(folder: Path, source: Path, looks: Sequence[Look]) -> FaceSet:
    """The FaceSet in ``source`` with `annotate`'s table, in a new folder; images linked where the disk allows it."""
    require_new_folder(folder)
    table = annotate(FaceSet.load(source), looks)
    folder.mkdir(parents=True, exist_ok=True)
    link_images(source, folder)
    save_table(table, folder / "table.npz")
    return FaceSet.load(folder)
