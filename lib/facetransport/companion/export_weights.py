"""Our weights as others' code reads them: ONNX, one safetensors file under the published names, a diffusers folder.

recogniser     official (InsightFace's names), onnx (insightface, onnxruntime)
IDiff-Face     official (github.com/fdbtrs/IDiff-Face)
VQ-f4          official (LDM's first stage), diffusers (VQModel.from_pretrained)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from facetransport.diffusion import autoencoder, official
from facetransport.recognition.onnx import export_onnx
from facetransport.recognition.training import load_network
from facetransport.tensors import read_model, save_model


def kind_of(config: Mapping[str, Any]) -> str:
    """What a file of ours holds, by its configuration: "iresnet", "unet", "vq", or another network's kind."""
    if {"layers", "widths"} <= set(config):
        return "iresnet"
    kind = str(config.get("kind", "network without a kind"))
    return "unet" if kind.startswith("unet_") else kind


def export(file: Path, out: Path, to: str) -> Path:
    """Write a file of weights of ours as ``to``, one of FORMATS; returns what was written, which must not exist yet.

    ValueError where it does, and for a network that the format is not made for.
    """
    out = official.named(out) if to == "official" else out
    if out.exists():
        raise ValueError(f"{out}: exists; name a new file or folder, or remove it first")
    tensors, facts = read_model(file)
    config = facts.get("config", {})
    kind, writers = kind_of(config), FORMATS[to]
    if kind not in writers:
        takes = ", ".join(writers)
        raise ValueError(f"{file}: holds a network of kind {kind}; --format {to} is for {takes}")
    return writers[kind](file, out, tensors, config)


Writer = Callable[[Path, Path, dict[str, Tensor], dict[str, Any]], Path]


def _as_it_is(file: Path, out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    """Networks that are named as the published ones."""
    save_model(
        out, {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    )
    return out


def _ldm(file: Path, out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    return _as_it_is(file, out, official.to_ldm(tensors), config)


def _onnx(file: Path, out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    return export_onnx(load_network(file), out)


def _vq_model(file: Path, out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    code: Any = autoencoder.build(autoencoder.CodeConfig(**config))
    code.load_state_dict(tensors)
    unfinished = out.with_name(f".{out.name}.partial")
    code.network.save_pretrained(unfinished)
    return unfinished.rename(out)


FORMATS: dict[str, dict[str, Writer]] = {
    "official": {"iresnet": _as_it_is, "unet": _as_it_is, "vq": _ldm},
    "onnx": {"iresnet": _onnx},
    "diffusers": {"vq": _vq_model},
}
