"""Published weights into our classes: IDiff-Face's U-Net (github.com/fdbtrs/IDiff-Face) and LDM's VQ-f4 first stage.

    model.ckpt | ema_averaged_model.ckpt                            --import_unet-->  papers.idiff_face.load_model
    first_stage_{encoder,decoder}_state_dict.pt | LDM's model.ckpt  --import_vq---->  diffusion.autoencoder.load

What a file holds is told from names and shapes alone, and refused where those do not tell. Nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from facetransport.checkpoints import read_checkpoint, require_fit, require_numbers
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion import denoisers
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.unet import UNetConfig
from facetransport.files import file_digest
from facetransport.tensors import save_model
from facetransport.version import code_version

CODE_SIDES = {(1, 2, 2, 2): 32, (1, 2): 16}  # multipliers that `denoisers.build` knows -> side of the codes
DEEPEST = 16  # blocks a level, or levels of an autoencoder, that names may claim; published: 2 and 3
AVERAGED = re.compile(r"(^|[._])(ema|averaged)[._]")


class _Kind(NamedTuple):
    """How to find a network among the tensors of a file."""

    name: str
    first: str  # the tensor that each such network has
    files: str  # where published


UNET = _Kind("IDiff-Face U-Net", "image_proj.weight", "IDiff-Face's model.ckpt or ema_averaged_model.ckpt")
VQ = _Kind(
    "VQ-f4 autoencoder",
    "encoder.conv_in.weight",
    "LDM's vq-f4 model.ckpt, or first_stage_encoder_state_dict.pt and first_stage_decoder_state_dict.pt together",
)
VQ_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")  # beside them: losses, LDM's U-Net


@dataclass(frozen=True)
class Imported:
    """What was recognised. path: the file written; prefix: of the names that were taken."""

    path: Path
    kind: str  # "unet_ca", "unet_adagn", "unet_none" (unconditional) or "vq"
    parameters: int
    prefix: str
    config: dict[str, Any]  # as in the metadata of the file written


# -------------------------------------------------------------------------------------------------------- networks


def _choose(tensors: Mapping[str, Tensor], kind: _Kind, ema: bool, source: str) -> tuple[str, dict[str, Tensor]]:
    """The prefix and the tensors, without it, of the one network of a kind: the EMA copy, or the one that is not."""
    prefixes = [n.removesuffix(kind.first) for n in tensors if f".{n}".endswith(f".{kind.first}")]
    if not prefixes:
        names = ", ".join(list(tensors)[:3])
        raise ValueError(f"{source}: holds no {kind.name} (no {kind.first} among {names}, ...); expected {kind.files}")
    wanted = [p for p in prefixes if bool(AVERAGED.search(p)) == ema]
    if len(wanted) != 1:
        raise ValueError(f"{source}: {_which(prefixes, wanted, ema)}")
    return wanted[0], _under(wanted[0], tensors)


def _which(prefixes: Sequence[str], wanted: Sequence[str], ema: bool) -> str:
    held = ", ".join(repr(p) for p in prefixes)
    if wanted:
        return f"holds {len(wanted)} such networks (names start with {held}); save one of them in a file of its own"
    if ema:
        return (
            f"holds no EMA copy (names start with {held}); leave out --ema; "
            "IDiff-Face's EMA copy is a file of its own, ema_averaged_model.ckpt"
        )
    return f"holds only an EMA copy (names start with {held}); ask for it with --ema"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _shape(state: Mapping[str, Tensor], name: str, source: str, kind: _Kind, sides: int = 1) -> tuple[int, ...]:
    """The first ``sides`` sizes of a tensor that each such network has."""
    shape = tuple(state[name].shape) if name in state else ()
    if len(shape) < sides or min(shape) < 1:
        found = f"{name} of shape {shape}" if name in state else f"missing {name}"
        raise ValueError(f"{source}: {found}, so it is no {kind.name}; expected {kind.files}")
    return shape[:sides]


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The different numbers that a pattern's group catches in names, ascending."""
    return sorted({int(found[1]) for n in state if (found := re.match(pattern, n))})


def _require_few(number: int, source: str, what: str) -> int:
    if not 1 <= number <= DEEPEST:
        raise ValueError(f"{source}: its names claim {number:,} {what}; expected 1 to {DEEPEST}")
    return number


# ------------------------------------------------------------------------------------------------------------- U-Net


def import_unet(file: Path, out: Path, ema: bool = False, cpd: float = 0.25) -> Imported:
    """Write an official U-Net as a model file, float type as it is, for ``papers.idiff_face.load_model``.

    ema: take the EMA copy of a file that holds both (IDiff-Face keeps it in a file of its own: False). cpd: the dropout
    of the projected context in training, which weights do not tell; without effect on samples. The schedule is that of
    the file's betas, the published one where there are none. Raises ValueError naming the file and what does not fit.
    """
    source = str(file)
    tensors = read_checkpoint(file)
    prefix, state = _choose(tensors, UNET, ema, source)
    schedule = _schedule(tensors, prefix, source)
    arguments = {**_unet_arguments(state, source), "cpd": cpd}
    network = _on_meta(lambda: denoisers.build(**arguments, schedule=schedule), source)
    what = f"{arguments['kind']} of width {arguments['width']} with {arguments['depth']} blocks a level"
    require_fit({n: v.shape for n, v in network.state_dict().items()}, state, source, what)
    return _write(out, (file,), prefix, state, {**arguments, "schedule": asdict(schedule)})


def _unet_arguments(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """What ``denoisers.build`` needs, as far as names and shapes tell; heads have 32 channels, as published."""
    width, channels = _shape(state, UNET.first, source, UNET, 2)
    halvings = _numbers(state, r"down\.(\d{1,9})\.conv\.")
    multipliers = _multipliers(state, width, halvings, source)
    if multipliers not in CODE_SIDES:
        known = " or ".join(str(m) for m in CODE_SIDES)
        raise ValueError(f"{source}: its levels multiply the width by {multipliers}; expected {known}, as published")
    conditioning = _conditioning(state)
    projected, context = UNetConfig.projected_dim, UNetConfig.context_dim  # of no effect where there is no context
    if conditioning != "none":
        projected, context = _shape(state, "context_emb.weight", source, UNET, 2)
    return {
        "kind": f"unet_{conditioning}",
        "shape": (channels, CODE_SIDES[multipliers], CODE_SIDES[multipliers]),
        "width": width,
        "depth": _require_few(halvings[0], source, "blocks a level"),
        "context_dim": context,
        "projected_dim": projected,
    }


def _multipliers(state: Mapping[str, Tensor], width: int, halvings: Sequence[int], source: str) -> tuple[int, ...]:
    """Width of each level over that of the one before; a level starts behind each halving."""
    starts = (0, *(i + 1 for i in halvings))
    widths = [_shape(state, f"down.{i}.res.conv2.weight", source, UNET)[0] for i in starts]
    return tuple(wider // narrower for narrower, wider in pairwise((width, *widths)))


def _conditioning(state: Mapping[str, Tensor]) -> str:
    if any(".cross_attention." in n for n in state):
        return "ca"
    return "adagn" if any(".context_emb." in n for n in state) else "none"


def _schedule(tensors: Mapping[str, Tensor], prefix: str, source: str) -> Schedule:
    """The schedule whose betas stand beside the network or above it."""
    parts = prefix.split(".")[:-1]
    above = [".".join([*parts[:i], "betas"]) for i in range(len(parts) + 1)]
    betas = next((tensors[n].double() for n in reversed(above) if n in tensors), None)
    if betas is None:
        return Schedule()
    if betas.ndim != 1 or not len(betas) or not betas.isfinite().all():
        raise ValueError(f"{source}: its betas have the shape {tuple(betas.shape)}; expected (T,) finite numbers")
    first, last = (float(f"{b:.4g}") for b in (betas[0], betas[-1]))
    for schedule in (Schedule(len(betas), "linear", first, last), Schedule(len(betas), "cosine")):
        if torch.allclose(schedule.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-3, atol=1e-7):
            return schedule
    raise ValueError(f"{source}: its betas, {first} to {last}, follow neither a linear nor a cosine schedule")


def _on_meta(build: Any, source: str) -> nn.Module:
    """A network without numbers; a configuration that it refuses is the file's fault."""
    try:
        with torch.device("meta"):
            return build()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


# ------------------------------------------------------------------------------------------------------------- VQ-f4


def import_vq(files: Sequence[Path], out: Path, ema: bool = False) -> Imported:
    """Write LDM's VQ-f4 first stage as a code, float type as it is, for ``diffusion.autoencoder.load``.

    files: one that holds all of it (an LDM, or its first stage), or IDiff-Face's encoder and decoder. ema: as for
    ``import_unet``. Raises ValueError naming the files and what does not fit.
    """
    source = " and ".join(str(f) for f in files)
    prefix, state = _choose(_merged(files), VQ, ema, source)
    state = {n: v for n, v in state.items() if n.startswith(VQ_PARTS)}
    levels = _require_few(len(_numbers(state, r"encoder\.down\.(\d{1,9})\.")), source, "levels")
    config = codes.CodeConfig(
        kind="vq",
        channels=_shape(state, "quantize.embedding.weight", source, VQ, 2)[1],
        downsample=2 ** (levels - 1),
        width=_shape(state, VQ.first, source, VQ)[0],
    )
    ours = _on_meta(lambda: codes.build(config), source).state_dict()
    names = {n: ldm_name(n.removeprefix("network."), levels) for n in ours}
    expected = {names[n]: _ldm_shape(names[n], v) for n, v in ours.items()}
    require_fit(expected, state, source, f"a VQ code of width {config.width} with {levels} levels")
    return _write(out, files, prefix, {n: state[names[n]].reshape(v.shape) for n, v in ours.items()}, asdict(config))


def _merged(files: Sequence[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        new = read_checkpoint(file)
        twice = [n for n in new if n in tensors]
        if twice:
            raise ValueError(f"{file}: holds {twice[0]}, which another file held already; give each part once")
        tensors |= new
    return tensors


LDM_NAMES = (
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
)


def ldm_name(name: str, levels: int) -> str:
    """What LDM calls a tensor of diffusers' VQModel; LDM counts the decoder's levels from the images on.

    diffusers converts the other way (``convert_ldm_vae_checkpoint``) but leaves the codebook out, drops names that it
    does not know and fails on missing ones without saying which.
    """
    for ours, theirs in LDM_NAMES:
        name = re.sub(ours, theirs, name)
    return re.sub(r"\bup\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)


def _ldm_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """LDM's attention has 1x1 convolutions where diffusers has matrices."""
    shape = tuple(tensor.shape)
    return (*shape, 1, 1) if ".attn_1." in name and len(shape) == 2 else shape


def to_ldm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our VQ code's tensors under LDM's names and in its shapes: what ``import_vq`` reads."""
    levels = 1 + max(_numbers(tensors, r"network\.encoder\.down_blocks\.(\d{1,9})\."))
    named = {ldm_name(name.removeprefix("network."), levels): tensor for name, tensor in tensors.items()}
    return {name: tensor.reshape(_ldm_shape(name, tensor)) for name, tensor in named.items()}


# ----------------------------------------------------------------------------------------------------------- writing


def named(out: Path) -> Path:
    """The file that is written: .safetensors is added where it is missing."""
    return out if out.suffix == ".safetensors" else out.with_name(f"{out.name}.safetensors")


def _write(
    out: Path, files: Sequence[Path], prefix: str, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Imported:
    path = named(out)
    if path.exists() and any(path.samefile(f) for f in files):
        raise ValueError(f"{path}: is what would be read; give the result another name")
    require_numbers(state, " and ".join(str(f) for f in files))
    source = {"files": {f.name: file_digest(f) for f in files}, "prefix": prefix}
    save_model(path, state, config=config, source=source, code_version=code_version())
    parameters = sum(v.numel() for v in state.values())
    return Imported(path, str(config["kind"]), parameters, prefix, dict(config))
