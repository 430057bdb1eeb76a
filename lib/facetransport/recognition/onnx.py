"""Recognisers as ONNX files: any ArcFace model through insightface (black box), our networks exported for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from facetransport import zoo
from facetransport.data.faceset import to_uint8
from facetransport.files import replacing
from facetransport.recognition.align import network_input
from facetransport.recognition.iresnet import IResNet


class OnnxRecogniser:
    """Black box `Recogniser` around an ArcFace ONNX file, loaded by ``insightface.model_zoo``.

    insightface takes 112-pixel BGR crops and swaps them to RGB itself; (x - 127.5) / 127.5 unless the file normalises.
    providers: of onnxruntime, default insightface's. margin: False for images that are InsightFace crops already. flip:
    average with the features of the mirror image.
    """

    def __init__(
        self,
        path: Path | str,
        name: str | None = None,
        providers: list[str] | None = None,
        margin: bool = True,
        flip: bool = False,
    ) -> None:
        path = Path(path)
        self.model = load_arcface(path, providers)
        self.size = int(self.model.input_size[0])
        self.dim = int(self.model.output_shape[1])
        self.name, self.margin, self.flip = name or path.stem, margin, flip

    def embed(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [-1, 1], aligned -> float32 (B, dim), unit norm, detached, on the images' device."""
        rgb = to_uint8(network_input(images.detach().float(), self.size, self.margin))
        features = self._features(rgb) + (self._features(rgb[:, :, ::-1]) if self.flip else 0)
        if not np.isfinite(features).all() or not features.any(1).all():
            raise ValueError(f"{self.name}: the ONNX model returned NaN, inf or zeros; is it a recogniser, and whole?")
        return torch.nn.functional.normalize(torch.from_numpy(features).float(), dim=1).to(images.device)

    def _features(self, rgb: np.ndarray) -> np.ndarray:
        return self.model.get_feat([cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR) for image in rgb])


def load_arcface(path: Path, providers: list[str] | None = None) -> Any:
    """insightface's ArcFaceONNX of a file; FileNotFoundError or ValueError that says what to do."""
    what = (
        "the recogniser of an InsightFace pack (buffalo_l/w600k_r50.onnx, antelopev2/glintr100.onnx; weights for "
        "non-commercial research), or write one with export_onnx"
    )
    model = zoo.load(path, what, providers)
    from insightface.model_zoo import ArcFaceONNX

    if not isinstance(model, ArcFaceONNX):
        raise ValueError(
            f"{path}: insightface takes it for {type(model).__name__}, expected a recogniser with a square input >= 112"
        )
    return model


def export_onnx(model: IResNet, path: Path | str, opset: int = 18) -> Path:
    """Write an IResNet as an ONNX file with a free batch size; its output is that of `IResNet`, not normalised.

    insightface recognises inputs of 112 pixels and more, a multiple of 16.
    """
    path, size = Path(path), model.config.input_size
    example = torch.zeros(2, 3, size, size, device=next(model.parameters()).device)
    with replacing(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter about itself
        torch.onnx.export(
            model.eval(),
            (example,),
            str(temporary),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
            opset_version=opset,
            dynamo=False,  # the other exporter needs onnxscript
        )
    return path
