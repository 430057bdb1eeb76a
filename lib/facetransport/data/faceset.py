"""FaceSet: images plus what is known about them. Photographs, renders and generated people are all FaceSets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facetransport.files import file_digest

if TYPE_CHECKING:  # seconds to import: left to where they are needed
    import pandas as pd
    import torch

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left = left in the image, as InsightFace
WILD = 10.0  # beyond any overshoot of a decoder: other units, or a network that diverged
LANDMARK_COLUMNS = tuple(f"{name}_{axis}" for name in LANDMARKS for axis in "xy")


def to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) in 0..255, an array or a tensor -> float32 (B, 3, H, W) in [-1, 1], on the same device."""
    import torch

    if images.dtype not in (np.uint8, torch.uint8) or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images: expected uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}; convert to RGB first"
        )
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """float (B, 3, H, W) in [-1, 1] (clamped) -> uint8 (B, H, W, 3)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected (B, 3, H, W), got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError("images: expected finite values, found NaN or inf; the generator diverged")
    if images.numel() and images.detach().abs().amax() > WILD:
        raise ValueError(f"images: expected [-1, 1], or near it, got up to {float(images.detach().abs().amax()):.3g}")
    scaled = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def _require_whole(identity: np.ndarray) -> None:
    """Labels of people; as floats, NaN would become one of them."""
    if identity.dtype.kind in "iu" or not len(identity):
        return
    if identity.dtype.kind != "f":
        raise ValueError(f"table: identity: expected whole numbers, got {identity.dtype}; number the people first")
    wrong = np.flatnonzero(~np.isfinite(identity) | (identity != np.round(identity)))
    if len(wrong):
        raise ValueError(f"table: identity: expected whole numbers, row {wrong[0]} has {identity[wrong[0]]}")


@dataclass(frozen=True)
class FaceSet:
    """Images and the table that describes them, row by row.

    images: uint8 (N, H, W, 3), RGB; an array or a read-only memory map.
    table: N rows; the column ``identity`` (int) is required, every other column is optional: attributes (bool), ``age``
        (years), ``yaw``/``pitch``/``roll`` (degrees), landmarks (``left_eye_x`` ... in pixels of ``images``).
    """

    images: np.ndarray
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise ValueError(f"images: expected uint8 (N, H, W, 3), got {self.images.dtype} {self.images.shape}")
        if len(self.images) != len(self.table):
            raise ValueError(f"table: expected {len(self.images)} rows, one per image, got {len(self.table)}")
        if "identity" not in self.table:
            raise ValueError(f"table: expected a column 'identity', got {list(self.table.columns)[:8]}")
        _require_whole(self.table["identity"].to_numpy())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def identity(self) -> np.ndarray:
        """int64 (N,): the label of each image."""
        return self.table["identity"].to_numpy(np.int64)

    @property
    def landmarks(self) -> np.ndarray:
        """float32 (N, 5, 2): five points in pixels (x right, y down), in the order of ``LANDMARKS``."""
        missing = [c for c in LANDMARK_COLUMNS if c not in self.table]
        if missing:
            raise ValueError(f"table: no landmarks in this FaceSet (missing {missing[0]}, ...); detect them first")
        return self.table[list(LANDMARK_COLUMNS)].to_numpy(np.float32).reshape(-1, 5, 2)

    def select(self, rows: np.ndarray | slice) -> FaceSet:
        """The FaceSet of some rows (a boolean mask, integer index or slice)."""
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "b":
            rows = np.flatnonzero(rows)
        return FaceSet(self.images[rows], self.table.iloc[rows].reset_index(drop=True))

    def tensor(self, rows: np.ndarray | slice = slice(None)) -> torch.Tensor:
        """float32 (B, 3, H, W) in [-1, 1] of some rows."""
        return to_tensor(np.asarray(self.images[rows]))

    def save(self, folder: Path) -> None:
        """Write images.npy and table.npz (no pickle) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", self.images)
        save_table(self.table, folder / "table.npz")

    @classmethod
    def load(cls, folder: Path) -> FaceSet:
        """Read a saved FaceSet; images stay on disk (memory map)."""
        for name in ("images.npy", "table.npz"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: not there; a FaceSet folder holds images.npy and table.npz")
        return cls(np.load(folder / "images.npy", mmap_mode="r"), load_table(folder / "table.npz"))


def digest_of(folder: Path) -> dict[str, str]:
    """Hex digests of the table and of the images of the FaceSet in a folder; the images are read for it."""
    return {name: file_digest(folder / f"{name}.{end}") for name, end in (("table", "npz"), ("images", "npy"))}


def link_images(source: Path, folder: Path) -> None:
    """The images of the FaceSet in ``source``, in ``folder`` too: one file by a hard link where the disk allows it."""
    target = folder / "images.npy"
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source / "images.npy")
    except OSError:
        shutil.copyfile(source / "images.npy", target)


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Columns as plain arrays; text as fixed-width unicode, so that reading needs no pickle."""
    plain: dict[str, Any] = {str(name): table[name].to_numpy() for name in table}
    np.savez(
        path, **{name: column.astype(str) if column.dtype.kind in "OT" else column for name, column in plain.items()}
    )


def load_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    with np.load(path, allow_pickle=False) as columns:
        return pd.DataFrame({name: columns[name] for name in columns.files})


def concatenate(parts: Sequence[FaceSet]) -> FaceSet:
    """Several FaceSets as one, in order."""
    if not parts:
        raise ValueError("parts: expected at least one FaceSet, got none")
    import pandas as pd

    tables = pd.concat([p.table for p in parts], ignore_index=True)
    return FaceSet(np.concatenate([p.images for p in parts]), tables)
