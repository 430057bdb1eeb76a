"""IResNet, the network of ArcFace and CosFace, with InsightFace's names and shapes, at any width and depth.

Deng et al., "ArcFace", CVPR 2019, section 3.2 (embedding setting E, improved residual unit); the modules are named as
in InsightFace's ``arcface_torch/backbones/iresnet.py``, so that public ``.pth`` files of IResNet-18/34/50/100 load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.checkpoints import read_checkpoint, require_fit, require_numbers
from facetransport.devices import full_precision
from facetransport.recognition.align import network_input
from facetransport.tensors import require_finite

DEPTHS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
MOST_BLOCKS = 100  # of a stage; IResNet-200 has 60


@dataclass(frozen=True)
class IResNetConfig:
    """Shape of an IResNet; the defaults are InsightFace's IResNet-50 (112 px, 512-D).

    input_size: pixels, height = width.
    strides: of the stem and of the four stages; their product is the total downsampling.
    """

    layers: tuple[int, int, int, int] = DEPTHS["iresnet50"]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    strides: tuple[int, int, int, int, int] = (1, 2, 2, 2, 2)
    input_size: int = 112
    dim: int = 512
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "strides", tuple(self.strides))
        if len(self.layers) != 4 or len(self.widths) != 4 or len(self.strides) != 5:
            raise ValueError(f"IResNetConfig: expected 4 layers, 4 widths, 5 strides, got {asdict(self)}")
        if self.side < 1:
            raise ValueError(f"IResNetConfig: input_size {self.input_size} is too small for strides {self.strides}")

    @property
    def side(self) -> int:
        """Height = width of the last feature map."""
        side = self.input_size
        for stride in self.strides:
            side = (side - 1) // stride + 1
        return side

    @classmethod
    def named(cls, name: str, **changes: object) -> IResNetConfig:
        """InsightFace's IResNet of that depth: "iresnet18", "iresnet34", "iresnet50", "iresnet100"."""
        if name not in DEPTHS:
            raise ValueError(f"name: expected one of {sorted(DEPTHS)}, got {name!r}")
        return cls(layers=DEPTHS[name], **changes)  # type: ignore[arg-type]


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class _PReLU(torch.autograd.Function):
    """PReLU with a backward pass of operations that CPUs vectorise in bfloat16 (aten's is slow)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.prelu(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(gradient, x, 0)
        negative = gradient - positive
        slope = (negative * x).sum((0, 2, 3), dtype=weight.dtype)
        return torch.addcmul(positive, negative, weight.to(x.dtype).view(1, -1, 1, 1)), slope


class PReLU(nn.PReLU):
    """torch.nn.PReLU on (B, C, H, W) with a backward pass that is fast on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        return _PReLU.apply(x, self.weight) if torch.is_grad_enabled() else super().forward(x)


class IBasicBlock(nn.Module):
    """BN, conv, BN, PReLU, conv (strided), BN; plus the shortcut (ArcFace, section 3.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.conv1 = conv3x3(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.prelu = PReLU(outputs)
        self.conv2 = conv3x3(outputs, outputs, stride)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs, eps=1e-5))


class IResNet(nn.Module):
    """images (B, 3, S, S) in [-1, 1], S = input_size -> features (B, dim), not normalised.

    The last batch norm (``features``) has its weight fixed at 1, as in InsightFace.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, config: IResNetConfig) -> None:
        super().__init__()
        self.config = config
        stem, *strides = config.strides
        self.conv1 = conv3x3(3, config.widths[0], stem)
        self.bn1 = nn.BatchNorm2d(config.widths[0], eps=1e-5)
        self.prelu = PReLU(config.widths[0])
        inputs = (config.widths[0], *config.widths[:-1])
        for i, shape in enumerate(zip(inputs, config.widths, config.layers, strides, strict=True), start=1):
            setattr(self, f"layer{i}", stage(*shape))
        self.bn2 = nn.BatchNorm2d(config.widths[-1], eps=1e-5)
        self.dropout = nn.Dropout(p=config.dropout)
        self.fc = nn.Linear(config.widths[-1] * config.side**2, config.dim)
        self.features = nn.BatchNorm1d(config.dim, eps=1e-5)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad_(False)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)[-1]

    def stages(self, images: Tensor) -> list[Tensor]:
        """The maps (B, widths[i], side_i, side_i) after each of the four layers, and the features (B, dim)."""
        self.check(images)
        maps = [self.prelu(self.bn1(self.conv1(images)))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return [*maps[1:], self._features(maps[-1])]

    def _features(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with full_precision(x.device):  # the last layer in fp32, as InsightFace's fp16 mode
            return self.features(self.fc(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x))  # (B, dim)

    def check(self, images: Tensor) -> None:
        side = self.config.input_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(
                f"images: expected (B, 3, {side}, {side}), got {tuple(images.shape)}; resize or align first"
            )


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [IBasicBlock(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(IBasicBlock(inputs, outputs, stride), *rest)


def initialise(module: nn.Module) -> None:
    """Normal(0, 0.1) convolutions, as InsightFace."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.1)


def load_insightface_pth(path: Path | str, **changes: object) -> IResNet:
    """An InsightFace ``.pth`` as an IResNet in inference mode; depth, width and dimension follow from its shapes.

    changes: fields of `IResNetConfig` that shapes do not tell (``input_size``, ``strides``).
    """
    return from_state_dict(read_checkpoint(Path(path)), str(path), **changes)


def from_state_dict(state: Mapping[str, Tensor], source: str = "state", **changes: object) -> IResNet:
    """An IResNet of the shape of a state dict (a leading "module." of DataParallel is dropped). source: for errors.

    Raises ValueError where names, shapes or numbers are not those of an IResNet.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    needed = ("conv1.weight", *(f"layer{i}.0.conv2.weight" for i in range(1, 5)), "fc.weight")
    missing = [name for name in needed if name not in state or not state[name].ndim]
    if missing:
        raise ValueError(
            f"{source}: expected InsightFace's IResNet names, found no {missing[0]!r} among {list(state)[:4]}"
        )
    layers = tuple(count_blocks(state, i) for i in range(1, 5))
    if max(layers) > MOST_BLOCKS:
        raise ValueError(f"{source}: its names claim {max(layers)} blocks a stage; expected at most {MOST_BLOCKS}")
    widths = tuple(state[f"layer{i}.0.conv2.weight"].shape[0] for i in range(1, 5))
    fields = {"layers": layers, "widths": widths, "dim": state["fc.weight"].shape[0], **changes}
    config = IResNetConfig(**fields)  # type: ignore[arg-type]
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in IResNet(config).state_dict().items()}
    if state["fc.weight"].shape != expected["fc.weight"]:
        raise ValueError(
            f"{source}: fc.weight is {tuple(state['fc.weight'].shape)}, expected {tuple(expected['fc.weight'])} at "
            f"input_size {config.input_size}; pass the input_size and strides the network was trained with"
        )
    require_fit(expected, state, source, f"an IResNet of layers {layers}")
    require_numbers(state, source)
    model = IResNet(config)
    model.load_state_dict(state)
    return model.eval()


def count_blocks(state: Mapping[str, Tensor], layer: int) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"layer{layer}.")})


class IResNetRecogniser(nn.Module):
    """White box `Recogniser` (differentiable) around an IResNet in inference mode.

    flip: average the features of the image and of its mirror image, as InsightFace's protocol does (for judging).
    margin: False for images that are InsightFace crops already.
    """

    def __init__(self, model: IResNet, name: str = "iresnet", flip: bool = False, margin: bool = True) -> None:
        super().__init__()
        self.model = model.eval()
        self.name, self.flip, self.margin, self.dim = name, flip, margin, model.config.dim

    def train(self, mode: bool = True) -> IResNetRecogniser:
        """Stays in inference mode: a recogniser judges and guides, it does not learn."""
        return super().train(False)

    def embed(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [-1, 1], aligned -> float32 (B, dim), unit norm; gradients flow to images."""
        images = network_input(images, self.model.config.input_size, self.margin)
        features = self.model(images)
        if self.flip:
            features = features + self.model(images.flip(-1))
        if torch.is_inference_mode_enabled():  # in a step of training it would wait for the device
            require_finite(f"{self.name}: features", features)
        return F.normalize(features.float(), dim=1)

    forward = embed


SIDE = 4  # places of an earlier map that are kept: those of the published 112 pixels would be 14 by 14


class WithEarlierMap(nn.Module):
    """`Recogniser` that keeps what a recogniser has not yet forgotten: E(I) beside the map after its third layer.

    embed: (B, dim + C s^2), unit norm; both parts of norm 1 / sqrt(2), the map averaged to at most ``SIDE`` by ``SIDE``
    places and standardised image by image.
    """

    def __init__(self, model: IResNet, name: str = "maps") -> None:
        super().__init__()
        self.model, self.name = model.eval(), name
        with torch.inference_mode():
            *_, earlier, _, features = model.stages(torch.zeros(1, 3, *(model.config.input_size,) * 2))
        self.side = min(SIDE, earlier.shape[-1])
        self.dim = earlier.shape[1] * self.side**2 + features.shape[1]

    def embed(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [-1, 1], aligned -> float32 (B, dim), unit norm."""
        *_, earlier, _, features = self.model.stages(network_input(images, self.model.config.input_size, True))
        flat = F.adaptive_avg_pool2d(earlier.float(), self.side).flatten(1)
        parts = features.float(), F.layer_norm(flat, flat.shape[1:])
        return torch.cat([F.normalize(part, dim=1) for part in parts], 1) / 2**0.5

    forward = embed
