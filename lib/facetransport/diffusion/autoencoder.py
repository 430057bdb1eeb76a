"""The code that diffusion lives in: a small KL autoencoder for the laptop, the VQ-f4 first stage of LDM for the papers.

Both: ``encode(images (B, 3, H, W) in [-1, 1]) -> latents (B, C, h, w)``, ``decode(latents) -> images``. The KL code is
scaled to zero mean and unit deviation per channel; the VQ code is IDiff-Face's: un-normalised, quantised at decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.diffusion.batching import MICRO_BATCH, in_fixed_batches
from facetransport.tensors import read_model, require_finite, rounding, save_model, seeded
from facetransport.training import Loss, pick

Features = Callable[[Tensor], Sequence[Tensor]]
"""images (B, 3, H, W) in [-1, 1] -> feature tensors (B, C, ...), differentiable: what two images should agree in."""

FOLD = 4  # pixels per side that become channels before the first convolution
DECODER = "decoder."  # how the names of its tensors begin
SMALLEST = 2**16  # numbers in a kernel of a decoder that is shipped as int8


@dataclass(frozen=True)
class CodeConfig:
    """kind: "kl" or "vq". A square image of side s becomes (channels, s / downsample, s / downsample).

    width: channels of the first stage. kl: pixels are folded by 4 first, so that convolutions run on small maps.
    residuals: kl, blocks of the decoder on its coarsest and on its finest map.
    """

    kind: str
    channels: int
    downsample: int
    width: int
    residuals: tuple[int, ...] = (2, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "residuals", tuple(self.residuals))  # a list, where it was read from JSON
        if self.kind not in ("kl", "vq"):
            raise ValueError(f"kind: expected 'kl' or 'vq', got {self.kind!r}")
        if self.kind == "kl" and self.downsample not in (4, 8, 16):
            raise ValueError(f"downsample: expected 4, 8 or 16 for a KL code, got {self.downsample}")


class Residual(nn.Module):
    """x + conv(SiLU(conv(LN(x)))), channels last; layer norm over channels costs a tenth of group norm on CPUs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.conv2(F.silu(self.conv1(h)))


def _encoder(config: CodeConfig) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3 * FOLD**2, config.width, 3, padding=1), Residual(config.width)]
    width = config.width
    for _ in range(_halvings(config)):
        layers += [nn.Conv2d(width, 2 * config.width, 2, stride=2), Residual(2 * config.width)]
        width = 2 * config.width
    return nn.Sequential(*layers, Residual(width), nn.Conv2d(width, 2 * config.channels, 1))


def _decoder(config: CodeConfig) -> nn.Sequential:
    coarsest, finest = config.residuals
    width = 2 * config.width if _halvings(config) else config.width
    layers: list[nn.Module] = [nn.Conv2d(config.channels, width, 1), *(Residual(width) for _ in range(coarsest))]
    for i in reversed(range(_halvings(config))):
        narrower = 2 * config.width if i else config.width
        layers += [Residual(width), nn.ConvTranspose2d(width, narrower, 2, stride=2)]
        width = narrower
    layers += [*(Residual(width) for _ in range(finest)), nn.Conv2d(width, 3 * FOLD**2, 3, padding=1)]
    return nn.Sequential(*layers)


def _halvings(config: CodeConfig) -> int:
    return (config.downsample // FOLD).bit_length() - 1


class KLCode(nn.Module):
    """The KL autoencoder of latent diffusion (Rombach et al. 2022), small: pixels folded by 4, residual convolutions.

    Its code has zero mean and unit deviation per channel.
    """

    mean: Tensor
    deviation: Tensor
    micro_batch = 64  # images at a time, once trained: half as fast again on two cores as 16

    def __init__(self, config: CodeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        self.register_buffer("mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("deviation", torch.ones(config.channels, 1, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def reconstruct(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training: images -> reconstructions from sampled codes, and the codes' KL to N(0, 1) per image, summed."""
        mean, logvar = self._posterior(images)
        noise = torch.randn(mean.shape, generator=generator, device=images.device)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        return self._pixels(mean + (0.5 * logvar).exp() * noise), kl

    def fit_scale(self, images: Tensor) -> None:
        """Set mean and deviation from the codes of some images."""
        with torch.no_grad():
            codes = in_fixed_batches(lambda x: self._posterior(x)[0], images)
        self.mean.copy_(codes.mean((0, 2, 3)).view(-1, 1, 1))
        self.deviation.copy_(codes.std((0, 2, 3)).view(-1, 1, 1))

    def to_code(self, images: Tensor) -> Tensor:
        return (self._posterior(images)[0] - self.mean) / self.deviation

    def to_images(self, latents: Tensor) -> Tensor:
        return self._pixels(latents * self.deviation + self.mean)

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code."""
        folded = F.pixel_unshuffle(images, FOLD).contiguous(memory_format=torch.channels_last)
        mean, logvar = self.encoder(folded).float().chunk(2, dim=1)
        return mean, (logvar - 6).clamp(-20, 2)  # starts at a deviation of 0.05

    def _pixels(self, codes: Tensor) -> Tensor:
        codes = codes.contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(self.decoder(codes).float(), FOLD)


class VQCode(nn.Module):
    """LDM's VQ-f4 first stage (FFHQ: embed 3, codebook 8192) as IDiff-Face uses it: quantised only at decoding."""

    micro_batch = MICRO_BATCH

    def __init__(self, config: CodeConfig) -> None:
        from diffusers import VQModel  # seconds to import: only where one is built

        super().__init__()
        self.config = config
        stages = config.downsample.bit_length()
        self.network = VQModel(
            block_out_channels=tuple(config.width * 2**i for i in range(stages)),
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            layers_per_block=2,
            latent_channels=config.channels,
            num_vq_embeddings=8192,
            vq_embed_dim=config.channels,
            norm_num_groups=min(32, config.width),
        )

    def reconstruct(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training: images -> reconstructions through the codebook, and the commitment loss per image."""
        output = self.network.decode(self.network.encode(images).latents)
        return output.sample.float(), output.commit_loss.expand(len(images))

    def fit_scale(self, images: Tensor) -> None:
        """Nothing to set: the papers use these codes as they are."""

    def to_code(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latents

    def to_images(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample


@dataclass(frozen=True)
class PixelConfig:
    """An image is its own code."""

    channels: int = 3
    downsample: int = 1


class PixelCode(nn.Module):
    """No code at all: diffusion on pixels (ID3PM, as published)."""

    micro_batch, config = 256, PixelConfig()

    def to_code(self, images: Tensor) -> Tensor:
        return images

    def to_images(self, latents: Tensor) -> Tensor:
        return latents


class Autoencoder:
    """A trained code, frozen. Each image's code and each code's image do not depend on the rest of the batch."""

    def __init__(self, code: KLCode | VQCode | PixelCode) -> None:
        self.code: Any = code.eval().requires_grad_(False)
        self.config = code.config

    def to(self, device: torch.device | str) -> Autoencoder:
        """The same network on another device (moved, not copied)."""
        self.code.to(device)
        return self

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, h, w) of the code of a square image of side ``size``."""
        if size % self.config.downsample:
            raise ValueError(f"size: expected a multiple of {self.config.downsample}, got {size}")
        return (self.config.channels, size // self.config.downsample, size // self.config.downsample)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """float32 (B, 3, H, W) in [-1, 1] -> float32 (B, C, h, w)."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.config.downsample:
            raise ValueError(
                f"images: expected (B, 3, H, W), sides multiples of {self.config.downsample}, got {tuple(images.shape)}"
            )
        require_finite("images", images)
        return in_fixed_batches(self.code.to_code, images, size=self.code.micro_batch).contiguous()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """float32 (B, C, h, w) -> float32 (B, 3, H, W) in [-1, 1]."""
        if latents.ndim != 4 or latents.shape[1] != self.config.channels:
            raise ValueError(f"latents: expected (B, {self.config.channels}, h, w), got {tuple(latents.shape)}")
        return in_fixed_batches(self.code.to_images, latents, size=self.code.micro_batch).clamp(-1, 1).contiguous()

    def encode_faceset(self, faceset: FaceSet, flip: bool = False) -> Tensor:
        """Codes of a whole FaceSet (of its mirror images with ``flip``): float32 (N, C, h, w)."""
        parts = (faceset.images[i : i + 512] for i in range(0, len(faceset), 512))
        device = getattr(next(self.code.parameters(), None), "device", torch.device("cpu"))
        return torch.cat([self.encode(to_tensor(p[:, :, ::-1] if flip else p).to(device)).cpu() for p in parts])


def build(config: CodeConfig) -> KLCode | VQCode:
    return KLCode(config) if config.kind == "kl" else VQCode(config)


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class LossWeights:
    """Beside |error|: its gradients at three scales, features (from ``features_from`` on), KL (or commitment)."""

    gradient: float = 1.0
    features: float = 0.0
    features_from: int = 0
    regulariser: float = 1e-6


def code_loss(images: np.ndarray | Tensor, weights: LossWeights, features: Features | None = None) -> Loss:
    """Reconstruction loss over uint8 images (N, H, W, 3), each mirrored half of the time, of a code's ``reconstruct``.

    The centre, where the aligned face is, weighs more than the border: see ``face_weight``.
    """
    size = images.shape[1]
    weight = face_weight(size)

    def loss(code: Any, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        x = mirrored(to_tensor(pick(images, rows, generator.device)), generator)
        y, regulariser = code.reconstruct(x, generator)
        w = weight.to(x.device)
        total = (w * (y - x).abs()).mean() + weights.gradient * gradient_difference(y, x, w)
        if features is not None and weights.features and step >= weights.features_from:
            total = total + weights.features * feature_difference(features, y, x)
        return total + weights.regulariser * regulariser.float().mean()

    return loss


def face_weight(size: int, border: float = 0.3) -> Tensor:
    """float32 (1, 1, size, size), mean 1: the corners count ``border`` times the face of the ArcFace template."""
    axis = torch.linspace(-1, 1, size)
    radius = torch.hypot(axis[None, :] / 0.75, (axis[:, None] - 0.1) / 0.85)
    weight = border + (1 - border) * torch.sigmoid(8 * (1.05 - radius))
    return (weight / weight.mean())[None, None]


def gradient_difference(y: Tensor, x: Tensor, weight: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of finite differences of y and x (B, 3, H, W), over scales 1, 1/2, 1/4."""
    error, total = y - x, y.new_zeros(())
    for _ in range(scales):
        total = (
            total
            + (weight[..., 1:] * error.diff(dim=3).abs()).mean()
            + (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
        )
        error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
    return total / scales


def feature_difference(features: Features, y: Tensor, x: Tensor) -> Tensor:
    """Squared distance of features normalised along channels (2 - 2 cos for embeddings), averaged over tensors."""
    with torch.no_grad():
        wanted = [F.normalize(f.float(), dim=1) for f in features(x)]
    got = [F.normalize(f.float(), dim=1) for f in features(y)]
    return torch.stack([(g - w).square().sum(1).mean() for g, w in zip(got, wanted, strict=True)]).mean()


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) mirrored half of the time."""
    flip = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def save(path: Path, code: KLCode | VQCode, **metadata: Any) -> None:
    """One safetensors file that ``load`` needs nothing else for. Shipped, a KL decoder's large kernels become int8."""
    small = rounding(SMALLEST, DECODER)
    save_model(path, code.state_dict(), small=small, config=asdict(code.config), **metadata)


def load(path: Path, decoder: Path | None = None) -> Autoencoder:
    """The autoencoder of a file written by ``save``; with the decoder of another file, for the same codes."""
    tensors, metadata = read_model(path)
    if decoder is not None:
        later, metadata = read_model(decoder)
        tensors = {n: v for n, v in tensors.items() if not n.startswith(DECODER)} | later
    code = build(CodeConfig(**metadata["config"]))
    code.load_state_dict(tensors)
    return Autoencoder(code)


def with_new_decoder(code: KLCode | VQCode, residuals: tuple[int, ...], seed: int) -> KLCode:
    """The same code with a decoder at its start, and the encoder frozen."""
    if not isinstance(code, KLCode):
        raise ValueError(f"decoder: expected a KL code, got {code.config.kind}; set decoder.steps to 0")
    with seeded(seed):
        new = KLCode(replace(code.config, residuals=residuals))
    kept = {n: v for n, v in code.state_dict().items() if not n.startswith(DECODER)}
    new.load_state_dict(kept | {n: v for n, v in new.state_dict().items() if n.startswith(DECODER)})
    new.encoder.requires_grad_(False)
    return new


def psnr(autoencoder: Autoencoder, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructions, dB; images (B, 3, H, W) in [-1, 1]."""
    error = (autoencoder.decode(autoencoder.encode(images)) - images).square().mean((1, 2, 3)) / 4
    return float(-10 * error.log10().mean())
