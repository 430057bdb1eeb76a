"""From contexts to labelled sets of images: one way for every generator (papers.md 2.5; design section 2).

z_T ~ N(0, I), T denoising steps, decode              images of an identity                     generate
10,000 identities x 50 images                         a labelled set to train recognisers on    generate_into
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from facetransport import devices
from facetransport.data import shards
from facetransport.data.faceset import FaceSet, to_uint8
from facetransport.devices import WHOLE, Share, mixed_precision
from facetransport.diffusion import denoisers
from facetransport.diffusion.autoencoder import Autoencoder
from facetransport.diffusion.guidance import Denoiser, InBfloat16, classifier_free, separate_scales
from facetransport.diffusion.sampling import device_of, sample, sample_seeds
from facetransport.diffusion.schedule import Schedule
from facetransport.tensors import read_model

CHUNK = 256  # samples drawn at a time, and about as many images in a shard: bounds memory, changes nothing else


class Adjustment(Protocol):
    """Makes a denoiser of another score: a torch module, whose weights are part of what a set was made by."""

    def __call__(self, denoiser: Denoiser, scale: float) -> Denoiser: ...
    def to(self, device: str | torch.device) -> Any: ...
    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Model:
    """A trained generator: the denoiser, the code it lives in, and how both were made."""

    denoiser: nn.Module
    autoencoder: Autoencoder
    shape: tuple[int, int, int]  # (C, h, w) of a code
    context_dim: int
    metadata: dict[str, Any]
    adjustment: Adjustment | None = None  # of the score, last of all guidance (ID3)

    def decode(self, latents: Tensor) -> Tensor:
        """float32 (B, C, h, w) -> images float32 (B, 3, H, W) in [-1, 1]."""
        return self.autoencoder.decode(latents)

    def to(self, device: str | torch.device) -> Model:
        """The same networks on another device (moved, not copied)."""
        self.denoiser.to(device)
        self.autoencoder.code.to(device)
        if self.adjustment is not None:
            self.adjustment.to(device)
        return self


def load_model(path: Path, autoencoder: Autoencoder) -> Model:
    """The model of a file written in training, on a code."""
    tensors, metadata = read_model(path)
    denoiser = build(metadata["config"])
    denoiser.load_state_dict(tensors)
    config = metadata["config"]
    return Model(
        denoiser.eval().requires_grad_(False), autoencoder, tuple(config["shape"]), config["context_dim"], metadata
    )


def build(config: dict[str, Any]) -> nn.Module:
    """The denoiser of ``denoisers.build``'s arguments as plain JSON data: what a file of weights says of itself."""
    schedule = Schedule(**config["schedule"])
    return denoisers.build(**{**config, "shape": tuple(config["shape"]), "schedule": schedule})


def generate(
    model: Model,
    contexts: Tensor,
    samples_per_identity: int,
    seed: int,
    solver: str = "dpm++",
    steps: int = 20,
    guidance: float = 1.0,
    identities: Sequence[int] | None = None,
    temperature: float = 1.0,
    attributes: Tensor | None = None,
    attribute_guidance: float = 1.0,
    adjustment: float = 0.0,
    bf16: bool = False,
) -> FaceSet:
    """Images of each context: a FaceSet of len(contexts) x samples_per_identity, columns identity and sample.

    contexts: (n, d), unit norm, or (n, samples_per_identity, d): one for each image. identities: labels, by default 0
    to n - 1; images of identity i depend on (seed, i) and its contexts only. guidance: 1 is the published method; above
    1 needs ``context_drop`` in training. temperature: as for ``sample``, 1 as published. attributes: a second
    condition, (n, a) or (n, samples_per_identity, a), of a network that has one; it has a scale of its own
    (`guidance.separate_scales`). adjustment: how much of the model's ``adjustment`` of the score, 0 for none.
    bf16: the networks' products in bfloat16 where the device has it; images then depend on the device.
    """
    contexts = _unit(contexts, model.context_dim, samples_per_identity)
    labels = np.arange(len(contexts)) if identities is None else np.asarray(identities)
    if len(labels) != len(contexts) or samples_per_identity < 1:
        raise ValueError(f"identities: expected {len(contexts)} labels and at least one sample each, got {len(labels)}")
    network: Denoiser = devices.compiled(model.denoiser)
    network = InBfloat16(network) if bf16 else network
    denoiser, told = classifier_free(network, guidance), contexts.expand(-1, samples_per_identity, -1)
    if attributes is not None:
        denoiser = separate_scales(network, model.context_dim, guidance, attribute_guidance)
        told = torch.cat([told, _beside(attributes, told)], dim=2)
    if adjustment:
        denoiser = _adjustment_of(model)(denoiser, adjustment)
    import pandas as pd  # a second, for who only reads networks

    seeds = sample_seeds(seed, labels.tolist(), samples_per_identity)
    repeated = told.flatten(0, 1).to(device_of(model.denoiser))
    draw = partial(sample, denoiser, model.shape, solver=solver, steps=steps, temperature=temperature)
    with devices.falling_back():
        images = [
            _decoded(model, draw(repeated[i : i + CHUNK], seeds=seeds[i : i + CHUNK]), bf16)
            for i in range(0, len(seeds), CHUNK)
        ]
    table = {
        "identity": labels.repeat(samples_per_identity),
        "sample": np.tile(np.arange(samples_per_identity), len(labels)),
    }
    return FaceSet(np.concatenate(images), pd.DataFrame(table))


def _decoded(model: Model, latents: Tensor, bf16: bool) -> np.ndarray:
    with mixed_precision(latents.device, bf16):
        return to_uint8(model.decode(latents).float())


def _adjustment_of(model: Model) -> Adjustment:
    if model.adjustment is None:
        raise ValueError("adjustment: this model has none; expected 0, or a model of ID3")
    return model.adjustment


def _unit(contexts: Tensor, dim: int, samples: int) -> Tensor:
    """(n, 1 or samples, dim)."""
    contexts = torch.as_tensor(contexts, dtype=torch.float32)
    each = contexts[:, None] if contexts.ndim == 2 else contexts
    if each.ndim != 3 or each.shape[2] != dim or each.shape[1] not in (1, samples) or not len(each):
        raise ValueError(
            f"contexts: expected (n, {dim}) or (n, {samples}, {dim}) with n above 0, got {tuple(contexts.shape)}"
        )
    norms = each.norm(dim=2)
    if not torch.isfinite(norms).all() or (norms - 1).abs().max() > 1e-3:
        raise ValueError(
            "contexts: expected finite unit vectors, as in training; divide by the norm (NaN: look upstream)"
        )
    return each


def _beside(attributes: Tensor, contexts: Tensor) -> Tensor:
    """(n, a) or (n, samples, a) -> (n, samples, a), as the contexts (n, samples, d) are."""
    each = attributes[:, None] if attributes.ndim == 2 else attributes
    if each.ndim != 3 or len(each) != len(contexts) or each.shape[1] not in (1, contexts.shape[1]):
        raise ValueError(
            f"attributes: expected ({len(contexts)}, a) or ({len(contexts)}, {contexts.shape[1]}, a), "
            f"as there are contexts, got {tuple(attributes.shape)}"
        )
    return each.expand(-1, contexts.shape[1], -1)


def generate_into(
    folder: Path,
    model: Model,
    contexts: Tensor,
    samples: int,
    seed: int,
    solver: str = "dpm++",
    steps: int = 20,
    guidance: float = 1.0,
    workers: int | None = None,
    temperature: float = 1.0,
    attributes: Tensor | None = None,
    attribute_guidance: float = 1.0,
    adjustment: float = 0.0,
    share: Share = WHOLE,
    beginnings: Iterable[Path] = (),
    bf16: bool = False,
) -> FaceSet | None:
    """``generate`` for sets of any size: in shards, on every core, into ``folder``; resumes where a kill stopped it.

    Images of identity i depend on (seed, i) and its context only, bit for bit on CPU, whatever the shard, the number
    of workers and the set's size: the set of the first contexts is the beginning of the set of all of them. ``folder``
    also says what was made (plan.json). workers: processes, by default one per core (on CPU; else one). share: (i, n)
    draws every n-th shard, as one of n jobs on one folder; the last to end joins them, the others return None.
    beginnings: folders that may hold the finished set of the first contexts: it is copied instead of drawn again. The
    rest as for ``generate``.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least one per identity, got {samples}")
    contexts = _unit(contexts, model.context_dim, samples).cpu()
    settings = {"seed": seed, "solver": solver, "steps": steps, "guidance": float(guidance), "temperature": temperature}
    told = [contexts]
    if attributes is not None:
        settings |= {"attribute_guidance": float(attribute_guidance)}
        told.append(_beside(attributes, contexts.expand(-1, samples, -1)).contiguous())
    settings |= {"adjustment": float(adjustment)} if adjustment else {}
    settings |= {"bf16": True} if bf16 else {}
    plan = _plan(settings, samples, model, told)
    if shards.claim(folder, plan):
        return FaceSet.load(folder)
    known = _longest(beginnings, lambda n: _plan(settings, samples, model, [data[:n] for data in told]), len(contexts))
    each = max(1, CHUNK // samples)
    parts = [(i, [data[i : i + each].numpy() for data in told]) for i in range(0, len(contexts), each)]
    sizes = [samples * len(part[0]) for _, part in parts]
    make = partial(_generate_part, model, settings | {"samples_per_identity": samples}, known)
    workers = workers if device_of(model.denoiser).type == "cpu" else 1
    return shards.build(folder, parts, sizes, make, workers, f"generating {folder.name}", share)


def _plan(settings: dict[str, Any], samples: int, model: Model, told: Sequence[Tensor]) -> dict[str, Any]:
    """What a folder says of its set."""
    digest = _digest(model, told, settings.get("adjustment", 0))
    return settings | {"identities": len(told[0]), "samples": samples, "digest": digest}


def _longest(folders: Iterable[Path], plan: Callable[[int], dict[str, Any]], people: int) -> tuple[Path, int] | None:
    """The largest finished set among ``folders`` that is the beginning of this one, and how many people it has.

    plan: of the first n people; who differs in more than these is not asked for its digest, which takes time.
    """
    found, mine = [], {k: v for k, v in plan(people).items() if k not in ("identities", "digest")}
    for folder in folders:
        if (folder / shards.PLAN).is_file() and (folder / shards.TABLE).is_file():
            there = json.loads((folder / shards.PLAN).read_text(encoding="utf-8"))
            alike = {k: v for k, v in there.items() if k not in ("identities", "digest")} == mine
            if alike and there["identities"] < people and there == plan(there["identities"]):
                found.append((folder, int(there["identities"])))
    return max(found, key=lambda one: one[1], default=None)


def _generate_part(
    model: Model, settings: dict[str, Any], known: tuple[Path, int] | None, part: tuple[int, list[np.ndarray]]
) -> FaceSet:
    first, (contexts, *rest) = part
    if known and first + len(contexts) <= known[1]:
        samples = settings["samples_per_identity"]
        return FaceSet.load(known[0]).select(slice(first * samples, (first + len(contexts)) * samples))
    attributes = torch.from_numpy(rest[0]) if rest else None
    with _one_thread():
        identities = range(first, first + len(contexts))
        return generate(model, torch.from_numpy(contexts), identities=identities, attributes=attributes, **settings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """How many threads share a sum decides its last bits; processes use the cores better anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(model: Model, told: Sequence[Tensor], adjustment: float) -> str:
    """Hex digest of the weights that draw, decode and adjust, and of contexts and attributes."""
    weights = [*model.denoiser.state_dict().values(), *model.autoencoder.code.state_dict().values()]
    weights += _adjustment_of(model).state_dict().values() if adjustment else []
    hasher = hashlib.sha256()
    for tensor in [*told, *weights]:
        hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]
