"""What training a profile would take, without training: ``facetransport train --dry-run``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from facetransport.companion.artifacts import Recipe
from facetransport.companion.experiments import id3, id3pm, idiff_face, recognisers
from facetransport.companion.experiments.fitting import network_config
from facetransport.companion.profiles import Denoising, Profile
from facetransport.diffusion.conditions import Attributes
from facetransport.generation import build
from facetransport.recognition.dlib import DIM
from facetransport.recognition.iresnet import IResNet

RATES = {"A100": 65e12, "H100": 120e12}  # FLOP a second in bfloat16 that a training reaches of 312 and 990; assumed
COPIES = 5  # of every weight: itself, gradient, two moments, average; 4 bytes each


@dataclass(frozen=True)
class Cost:
    """parameters; flops: of one sample, forward and backward."""

    parameters: int
    flops: int

    @property
    def mib(self) -> float:
        """Memory of weights, gradient, moments and average; activations come on top."""
        return COPIES * 4 * self.parameters / 2**20


def lines(profile: Profile, recipes: Iterable[Recipe], status: Callable[[Recipe], str]) -> Iterator[str]:
    """What training each recipe would take, one a line; last, the room that images take."""
    networks = _networks(profile)
    yield from (_line(recipe, status(recipe), networks.get(recipe.key)) for recipe in recipes)
    yield _disk(profile)


def _disk(profile: Profile) -> str:
    """Of the roles and of one set of new people, as they are kept: 8 bits a channel, nothing compressed."""
    pixels, main = profile.rendered.size**2, profile.generation
    people = sum(role.identities * role.views for role in profile.rendered.roles.values())
    gigabytes = [3 * pixels * images / 1e9 for images in (people, main.identities * main.samples)]
    return f"disk: {gigabytes[0]:,.1f} GB of photographs or renders, {gigabytes[1]:,.1f} GB a set of new people"


def _line(recipe: Recipe, status: str, network: Build | None) -> str:
    """Status, steps, batch and, where its network is a denoiser of images or a recogniser, its cost."""
    config = dict(recipe.config)
    told = f"{recipe.stage:46} {status:8}"
    if not {"steps", "batch"} <= set(config):
        return f"{told}  {recipe.label}".rstrip()
    samples = config["steps"] * config["batch"]
    told += f"  {config['steps']:,} steps x {config['batch']:,} = {samples:,} samples"
    if network is None:
        return told
    cost = cost_of(*network())
    told += f", {cost.parameters:,} parameters, {cost.mib:,.0f} MiB"
    hours = ", ".join(f"{cost.flops * samples / rate / 3600:.2g} h on one {name}" for name, rate in RATES.items())
    return f"{told}, {cost.flops / 1e9:.3g} GFLOP a sample, {cost.flops * samples:.2g} in all: about {hours}"


def cost_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> Cost:
    """Counted on the meta device: nothing is computed. inputs: of one sample (two where batch norm wants them)."""
    counter = FlopCounterMode(display=False)
    with counter:
        network(*inputs).float().sum().backward()
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Cost(parameters, counter.get_total_flops() // len(inputs[0]))


Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def _networks(profile: Profile) -> dict[str, Build]:
    """key -> what builds a network on the meta device and its inputs."""
    found: dict[str, Build] = {}
    for name in recognisers.NETWORKS:
        section = getattr(profile, name)
        found[recognisers.recipe(profile, name).key] = partial(_recogniser, section)
    variants = [None, *idiff_face.conditioned_variants(profile)]
    for variant, level in [(v, c) for v in variants for c in (None, *idiff_face.LEVELS)]:
        section = idiff_face.network_section(profile, level, variant)
        recipe = idiff_face.recipe(profile, level, variant)
        found[recipe.key] = partial(_denoiser, section, _code(profile), recognisers.dimension(profile))
    for variant in (None, *profile.id3pm_variants):
        section = id3pm.section_of(profile, variant)
        pixels = (3, id3pm.PIXELS, id3pm.PIXELS)
        shape = pixels if section.denoiser == "adm" else _code(profile)
        second = Attributes(section.attributes, (), ()).size
        found[id3pm.recipe(profile, variant).key] = partial(_denoiser, section, shape, DIM, second)
    second, dim = Attributes(profile.id3.attributes, (), ()).size, recognisers.dimension(profile)
    found[id3.recipe(profile).key] = partial(_denoiser, profile.id3, _code(profile), dim, second)
    return found


def _code(profile: Profile) -> tuple[int, int, int]:
    side = profile.rendered.size // profile.autoencoder.downsample
    return profile.autoencoder.latent_channels, side, side


def _recogniser(section: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    with torch.device("meta"):
        network = IResNet(recognisers.network_config(section))
        return network, (torch.zeros(2, 3, section.size, section.size),)


def _denoiser(
    section: Denoising, shape: tuple[int, int, int], dim: int, attributes: int = 0
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    more = {"attributes": attributes} if attributes else {}
    with torch.device("meta"):
        network = build(network_config(section, shape, dim, **more))
        return network, (torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dim + attributes))
