"""Checkpoints that ask for more than they hold."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from borders import state

from facetransport.checkpoints import read_checkpoint
from facetransport.diffusion.official import import_unet, import_vq
from facetransport.recognition.iresnet import IResNet, IResNetConfig, from_state_dict


def nested(levels: int, times: int = 1) -> dict[str, Any]:
    inner: dict[str, Any] = {"weight": torch.ones(2)}
    for _ in range(levels):
        inner = {f"{i}": inner for i in range(times)}
    return inner


def sparse() -> torch.Tensor:
    return torch.eye(3).to_sparse()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (nested(60), "dictionaries within dictionaries, more than 16 levels"),
        (nested(16, 4), "more than 200,000 entries in its dictionaries"),
        (
            {"weight": torch.ones(1).expand(100_000, 16_000)},
            r"weight has the shape \(100000, 16000\) but fewer numbers",
        ),
        (dict.fromkeys((f"s{i}" for i in range(999)), torch.ones(50_000)), "its tensors would take 199,800,000 bytes"),
        ({"weight": sparse()}, r"weight is not a dense tensor with numbers \(torch.sparse_coo"),
        ({"weight": torch.empty(3, device="meta")}, "weight is not a dense tensor with numbers .*meta"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(held: Any, said: str, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt: refused: .*{said}.*; save the state dict alone"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as squeezed,
    ):
        for name in archive.namelist():
            squeezed.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match=r"b\.pt: refused: its parts would unpack to 40\d,\d+ bytes"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("betas", torch.empty(0), r"its betas have the shape \(0,\); expected \(T,\) finite numbers"),
        ("betas", torch.tensor(0.1), r"its betas have the shape \(\)"),
        ("betas", torch.tensor([0.1, float("nan")]), r"its betas have the shape \(2,\)"),
        ("image_proj.weight", torch.ones(0, 3), r"image_proj.weight of shape \(0, 3\), so it is no IDiff-Face U-Net"),
        ("image_proj.weight", torch.ones(3), r"image_proj.weight of shape \(3,\), so it is no"),
        ("image_proj.weight", torch.tensor(1.0), r"image_proj.weight of shape \(\), so it is no"),
    ],
)
def test_shapes_that_no_unet_has_are_named(name: str, tensor: torch.Tensor, said: str, tmp_path: Path) -> None:
    torch.save(state() | {name: tensor}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt: {said}"):
        import_unet(tmp_path / "a.pt", tmp_path / "out")


def test_absurd_counts_in_names_are_refused_at_once(tmp_path: Path) -> None:
    widths = {"down.0.res.conv2.weight": 2, "down.200001.res.conv2.weight": 4}
    names = {name: torch.ones(width, 1) for name, width in widths.items()}
    names |= {"image_proj.weight": torch.ones(2, 3), "down.200000.conv.weight": torch.ones(2)}
    torch.save(names, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: its names claim 200,000 blocks a level; expected 1 to 16"):
        import_unet(tmp_path / "a.pt", tmp_path / "out")
    levels = {f"encoder.down.{i}.x": torch.ones(1) for i in range(40)}
    torch.save(state() | levels, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt: its names claim 40 levels; expected 1 to 16"):
        import_vq([tmp_path / "b.pt"], tmp_path / "out")
    blocks = {f"layer1.{i}.x": torch.ones(1) for i in range(200)}
    with pytest.raises(ValueError, match="a: its names claim 200 blocks a stage; expected at most 100"):
        from_state_dict(state() | blocks, "a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w * float("nan"), "conv1.weight holds NaN or infinite numbers"),
        (lambda w: w.long(), "conv1.weight is int64, expected float numbers"),
        (lambda w: w.to(torch.complex64), "conv1.weight is complex64, expected float numbers"),
    ],
)
def test_numbers_that_no_network_has_are_refused(change: Any, said: str) -> None:
    whole = IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), (2, 2, 2, 2, 2), 32, 16)).state_dict()
    whole["conv1.weight"] = change(whole["conv1.weight"])
    with pytest.raises(ValueError, match=f"a.pth: {said}"):
        from_state_dict(whole, "a.pth", input_size=32, strides=(2, 2, 2, 2, 2))
