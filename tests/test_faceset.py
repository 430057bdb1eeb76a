"""FaceSet: shapes, errors, and that saving loses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from facetransport.data.faceset import LANDMARK_COLUMNS, FaceSet, concatenate, to_tensor, to_uint8


def some(n: int = 4, size: int = 8) -> FaceSet:
    rng = np.random.default_rng(0)
    points = pd.DataFrame(rng.uniform(0, size, (n, 10)).astype(np.float32), columns=list(LANDMARK_COLUMNS))
    table = pd.DataFrame(
        {"identity": np.arange(n) // 2, "Male": np.arange(n) % 2 == 0, "style": ["é", "b", "c", "d"][:n]}
    )
    return FaceSet(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), pd.concat([table, points], axis=1))


def test_uint8_survives_the_round_trip_through_tensors():
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 2, 2, 3))
    tensor = to_tensor(levels)
    assert tensor.dtype == torch.float32 and tensor.min() == -1 and tensor.max() == 1
    np.testing.assert_array_equal(to_uint8(tensor), levels)


def test_saved_and_loaded_sets_are_equal(tmp_path: Path):
    faces = some()
    faces.save(tmp_path / "set")
    loaded = FaceSet.load(tmp_path / "set")
    np.testing.assert_array_equal(loaded.images, faces.images)
    pd.testing.assert_frame_equal(loaded.table, faces.table, check_dtype=False)
    assert loaded.table["Male"].dtype == bool
    assert isinstance(loaded.images, np.memmap)


def test_rows_are_selected_by_mask_slice_and_index():
    faces = some()
    for rows in (faces.identity == 1, slice(2, 4), np.array([2, 3])):
        np.testing.assert_array_equal(faces.select(rows).images, faces.images[2:])
    assert concatenate([faces, faces]).landmarks.shape == (8, 5, 2)


@pytest.mark.parametrize(
    ("images", "table", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), {"identity": [0, 1]}, "expected uint8"),
        (np.zeros((2, 4, 4, 3), np.float32), {"identity": [0, 1]}, "expected uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"identity": [0]}, "expected 2 rows"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"who": [0, 1]}, "column 'identity'"),
    ],
)
def test_what_is_no_faceset_is_refused(images: np.ndarray, table: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FaceSet(images, pd.DataFrame(table))


def test_bad_tensors_are_refused():
    with pytest.raises(ValueError, match="convert to RGB"):
        to_tensor(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 3, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])


def test_missing_files_and_landmarks_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"images\.npy"):
        FaceSet.load(tmp_path)
    faces = some()
    with pytest.raises(ValueError, match="left_eye_x"):
        _ = FaceSet(faces.images, faces.table[["identity"]]).landmarks
