"""Heads that train a recogniser: softmax over cosines with a margin on the right class. Gradients are the true ones.

InsightFace's ``arcface_torch/losses.py`` adds ArcFace's margin in place under ``no_grad``: its backward pass sees a
plain scale and every logit's derivative with respect to its cosine is s. Here autograd differentiates s cos(theta + m)
itself, as the paper's loss does: s sin(theta + m) / sin(theta). CosFace is the same either way, its margin being a
constant.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.devices import full_precision

EDGE = 1e-6  # cosines are kept this far from -1 and 1, where the angle has no derivative


def cosface(cosine: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Logits s (cos - m) at the label, s cos elsewhere (Wang et al., CVPR 2018, equation 4).

    cosine: (B, classes) in [-1, 1]; labels: int64 (B,).
    """
    return scale * (cosine - margin * one_hot(cosine, labels))


def arcface(cosine: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Logits s cos(theta + m) at the label (Deng et al., CVPR 2019, equation 3), s cos elsewhere.

    Past theta = pi - m, where cos(theta + m) would rise again, the logit goes on falling as s (cos - m sin m), as
    InsightFace's does.
    """
    right = cosine.gather(1, labels[:, None]).clamp(-1 + EDGE, 1 - EDGE)  # (B, 1)
    sine = (1 - right**2).sqrt()
    shifted = right * math.cos(margin) - sine * math.sin(margin)
    kept = torch.where(right > math.cos(math.pi - margin), shifted, right - margin * math.sin(margin))
    return scale * cosine.scatter(1, labels[:, None], kept)


def adaface(cosine: Tensor, labels: Tensor, scale: float, margin: float, quality: Tensor) -> Tensor:
    """Logits s (cos(theta + g_angle) - g_add) at the label (Kim et al., CVPR 2022, equations 8 to 10).

    quality: (B,) in [-1, 1], the normalised feature norm; g_angle = -m quality, g_add = m quality + m.
    """
    right = cosine.gather(1, labels[:, None]).clamp(-1 + EDGE, 1 - EDGE)
    angle = (right.acos() - margin * quality[:, None]).clamp(1e-3, math.pi - 1e-3)  # as the official code clips
    shifted = angle.cos() - margin * (1 + quality[:, None])
    return scale * cosine.scatter(1, labels[:, None], shifted)


def one_hot(cosine: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, cosine.shape[1]).to(cosine.dtype)


class Head(nn.Module):
    """A margin softmax: features (B, dim) and labels (B,) -> logits (B, classes) for cross entropy; computed in fp32.

    weight: (classes, dim), the class centres, normal(0, 0.01) as InsightFace.
    """

    def __init__(self, classes: int, dim: int, scale: float, margin: float) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: expected at least 2 identities to tell apart, got {classes}")
        if scale <= 0 or not 0 <= margin < 1:
            raise ValueError(f"scale, margin: expected scale > 0 and margin in [0, 1), got {scale}, {margin}")
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(classes, dim).normal_(0, 0.01))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with full_precision(features.device):
            features = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
            return self.logits(self.cosine(features), labels, features)

    def cosine(self, features: Tensor) -> Tensor:
        """(B, classes): cosines of features and class centres."""
        return F.linear(F.normalize(features), F.normalize(self.weight)).clamp(-1, 1)

    def logits(self, cosine: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        raise NotImplementedError("Head is abstract: use CosFace, ArcFace or AdaFace")


class CosFace(Head):
    """Additive cosine margin; the IDiff-Face evaluation uses s = 64, m = 0.35."""

    def __init__(self, classes: int, dim: int, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__(classes, dim, scale, margin)

    def logits(self, cosine: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        del features
        return cosface(cosine, labels, self.scale, self.margin)


class ArcFace(Head):
    """Additive angular margin, s = 64, m = 0.5."""

    def __init__(self, classes: int, dim: int, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(classes, dim, scale, margin)

    def logits(self, cosine: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        del features
        return arcface(cosine, labels, self.scale, self.margin)


class AdaFace(Head):
    """Margin that adapts to image quality, read off the feature norm (detached), s = 64, m = 0.4, h = 0.333.

    Mean and deviation of the norm are running averages (momentum 0.99) that start at 20 and 100, as in the official
    code.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, dim: int, scale: float = 64.0, margin: float = 0.4, h: float = 0.333) -> None:
        super().__init__(classes, dim, scale, margin)
        self.h = h
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    def logits(self, cosine: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        norms = features.detach().norm(dim=1).clamp(1e-3, 100)
        if self.training and len(norms) > 1:
            self.mean.lerp_(norms.mean().to(self.mean.dtype), 0.01)
            self.std.lerp_(norms.std().to(self.std.dtype), 0.01)
        quality = ((norms - self.mean) / (self.std + 1e-3) * self.h).clamp(-1, 1)  # equation 7
        return adaface(cosine, labels, self.scale, self.margin, quality.to(cosine.dtype))


HEADS: dict[str, type[CosFace] | type[ArcFace] | type[AdaFace]] = {
    "cosface": CosFace,
    "arcface": ArcFace,
    "adaface": AdaFace,
}


def make_head(name: str, classes: int, dim: int, scale: float, margin: float) -> Head:
    """A head by name: "cosface", "arcface" or "adaface"."""
    if name not in HEADS:
        raise ValueError(f"head: expected one of {sorted(HEADS)}, got {name!r}")
    return HEADS[name](classes, dim, scale, margin)
