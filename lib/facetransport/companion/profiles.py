"""Every knob, typed and checked: a profile is data, and the same code runs all of them.

``load("laptop")`` reads ``profiles/laptop.yaml`` into the frozen dataclasses below. A key that does not exist, a value
of the wrong type and a combination that cannot work are refused with the key's full name and what is allowed. Each
dataclass belongs to the module that uses it; its ``__post_init__`` states what values make sense.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

FOLDER = Path(__file__).with_name("profiles")
ROLES = ("generator", "train", "val", "test", "authentic", "encoder", "gallery")  # order fixes who is in a role: append
VARIABLE = "FACETRANSPORT_PROFILE"


def require(condition: bool, message: str) -> None:
    """Refuse an impossible value: ``message`` says what was given, what is expected and why."""
    if not condition:
        raise ValueError(message)


def positive(section: object, *names: str) -> None:
    """Refuse zero and negative numbers in the named fields (of a number, or of each number of a list)."""
    for name in names:
        value = getattr(section, name)
        numbers = value if isinstance(value, tuple) else (value,)
        require(all(n > 0 for n in numbers), f"{name}: expected above 0, got {value}")


# ---------------------------------------------------------------------------------------------- data.rendered


@dataclass(frozen=True)
class Role:
    """A split by name: how many people, and how many images of each."""

    identities: int
    views: int

    def __post_init__(self) -> None:
        positive(self, "identities", "views")


@dataclass(frozen=True)
class Rendered:
    """Rendered people: ``generator`` plays FFHQ, ``train`` CelebA/CASIA, ``authentic`` the set that synthetic
    ones of its size are held against, ``encoder`` more people for the reference recogniser, ``gallery`` those that
    descriptions are searched among; all roles share no identity."""

    world_seed: int
    size: int  # pixels
    supersampling: int  # samples per pixel along each axis
    roles: dict[str, Role]

    def __post_init__(self) -> None:
        positive(self, "size", "supersampling")
        require(self.size % 16 == 0, f"size: expected a multiple of 16, got {self.size}")
        require(
            set(self.roles) == set(ROLES), f"roles: expected exactly {', '.join(ROLES)}; got {', '.join(self.roles)}"
        )


# ------------------------------------------------------------------------------------------ recognition.training


@dataclass(frozen=True)
class RecogniserTraining:
    """An IResNet and how it is trained."""

    size: int  # pixels of the network's input; the middle 7/8 of an image are resized to it
    layers: tuple[int, ...]  # blocks of the four stages
    widths: tuple[int, ...]  # channels of the four stages
    strides: tuple[int, ...]  # of the stem and the four stages
    embedding: int
    dropout: float  # before the last layer
    head: Literal["cosface", "arcface", "adaface"]
    scale: float
    margin: float
    batch: int
    steps: int
    lr: float
    weight_decay: float
    momentum: float
    augment: bool
    randaugment: int  # operations of RandAugment among the augmentations, 0 for none
    bf16: bool  # convolutions in bfloat16
    seed: int

    def __post_init__(self) -> None:
        for name, n in (("layers", 4), ("widths", 4), ("strides", 5)):
            value = getattr(self, name)
            require(len(value) == n, f"{name}: expected {n} numbers, one per stage, got {list(value)}")
        positive(self, "size", "layers", "widths", "strides", "embedding", "scale", "batch", "steps", "lr")
        require(0 <= self.dropout < 1, f"dropout: expected within [0, 1), got {self.dropout}")
        require(0 <= self.randaugment <= 11, f"randaugment: expected 0 to 11 operations, got {self.randaugment}")
        require(0 <= self.margin < 1, f"margin: expected within [0, 1), got {self.margin}")
        require(0 <= self.momentum < 1, f"momentum: expected within [0, 1), got {self.momentum}")


# ------------------------------------------------------------------------------------------ diffusion.autoencoder


@dataclass(frozen=True)
class Autoencoder:
    """The code that diffusion lives in: size/downsample square, ``latent_channels`` deep."""

    kind: Literal["kl", "vq"]
    latent_channels: int
    downsample: int
    width: int
    steps: int
    batch: int
    lr: float
    identity_steps: int  # more steps, at a third of lr, with the reference recogniser's embedding in the loss
    identity_weight: float
    seed: int

    def __post_init__(self) -> None:
        positive(self, "latent_channels", "width", "steps", "batch", "lr")
        require(self.identity_steps >= 0, f"identity_steps: expected 0 (off) or more, got {self.identity_steps}")
        require(self.downsample in (2, 4, 8, 16), f"downsample: expected 2, 4, 8 or 16, got {self.downsample}")


@dataclass(frozen=True)
class Decoder:
    """A decoder trained anew on the finished code, whose encoder stays: larger, and for longer."""

    residuals: tuple[int, ...]  # blocks on the coarsest and on the finest map
    people: int  # of the ``generator`` role
    steps: int  # 0: the autoencoder's own decoder is kept
    batch: int
    lr: float
    feature_weight: float  # of the reference recogniser's features in the loss
    seed: int

    def __post_init__(self) -> None:
        positive(self, "people", "batch", "lr")
        require(len(self.residuals) == 2, f"residuals: expected 2 numbers, got {list(self.residuals)}")
        require(min(self.residuals) >= 0, f"residuals: expected 0 or more, got {list(self.residuals)}")
        require(self.steps >= 0, f"steps: expected 0 (off) or more, got {self.steps}")


# ---------------------------------------------------------------------------------------------- papers.idiff_face


@dataclass(frozen=True)
class IDiffFace:
    """The denoiser of IDiff-Face and how it is trained."""

    denoiser: Literal["unet_ca", "unet_adagn", "mlp", "mixer", "transformer"]
    width: int
    depth: int
    context_dim: int  # of the projected context
    cpd: float  # dropout on the projected context
    context_drop: float  # share of contexts dropped whole; 0 as published, above 0 for guidance, 1: unconditional
    prediction: Literal["eps", "v"]  # what the loss weighs evenly over noise levels
    schedule: Literal["linear", "cosine"]
    timesteps: int
    ema: float  # 0: no average, as the published code in effect
    steps: int
    batch: int
    lr: float
    decay: Literal["constant", "cosine", "restarts"]
    seed: int

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "context_dim", "timesteps", "steps", "batch", "lr")
        require(0 <= self.cpd < 1, f"cpd: expected within [0, 1), got {self.cpd}")
        require(0 <= self.context_drop <= 1, f"context_drop: expected within [0, 1], got {self.context_drop}")
        require(0 <= self.ema < 1, f"ema: expected within [0, 1), got {self.ema}")


# -------------------------------------------------------------------------------------------------- papers.diface


@dataclass(frozen=True)
class DiFace:
    """Recognition from words: how descriptions are made, D and R trained, features drawn."""

    encoder: Literal["reference", "dlib"]  # E
    tokens: Literal["clauses", "words", "attributes"]  # tau
    people: int  # of the ``generator`` role
    error: float  # of the describer: wrong about an attribute ...
    say_yes: float  # ... mentions one that is there ...
    say_no: float  # ... mentions that one is not
    denoiser: Literal["mlp", "unet"]  # D
    width: int
    depth: int
    token_drop: float  # share of descriptions dropped whole
    schedule: Literal["linear", "cosine"]
    timesteps: int
    ema: float
    steps: int
    batch: int
    lr: float
    weight_decay: float
    pixel_steps: int  # of the network that reads attributes off the pixels
    refine_people: int  # R: of ``people`` ...
    refine_captions: int  # ... and descriptions of each
    refine_width: int
    refine_loss: Literal["cosine", "infonce"]  # as published, or contrastive over the batch
    refine_steps: int
    l2: float  # lambda of its loss
    refine_gallery: bool
    sampling_steps: int  # T~
    samples: int  # K, averaged
    guidance: float  # 1: the conditional model
    seed: int

    def __post_init__(self) -> None:
        positive(self, "people", "width", "depth", "timesteps", "steps", "batch", "lr", "refine_width", "refine_steps")
        positive(self, "refine_people", "refine_captions", "pixel_steps", "sampling_steps", "samples")
        for name in ("error", "say_yes", "say_no"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name}: expected a probability in 0..1, got {value}")
        require(self.l2 >= 0, f"l2: expected at least 0, got {self.l2}")
        require(
            self.denoiser != "unet" or self.width % 32 == 0, f"width: unet takes a multiple of 32, got {self.width}"
        )
        require(0 <= self.token_drop < 1, f"token_drop: expected within [0, 1), got {self.token_drop}")
        require(0 <= self.ema < 1, f"ema: expected within [0, 1), got {self.ema}")
        require(0 <= self.guidance < 100, f"guidance: expected from 0 to below 100 (1 is none), got {self.guidance}")
        most, steps = self.timesteps, self.sampling_steps
        require(steps <= most, f"sampling_steps: expected at most timesteps {most}, got {steps}")
        require(
            self.guidance == 1 or self.token_drop > 0, f"guidance: {self.guidance} needs token_drop above 0, or take 1"
        )


@dataclass(frozen=True)
class Generation:
    """A labelled set of synthetic people, for training recognisers."""

    identities: int  # of the main set; sets of half and of double the identities stand beside it
    samples: int  # images of each
    cpd: float  # of the network that draws them
    guidance: float  # 1: the conditional model, as published
    temperature: float  # of the starting noise; 1 as published
    seed: int

    def __post_init__(self) -> None:
        positive(self, "identities", "samples")
        require(0 < self.temperature <= 1, f"temperature: expected above 0, at most 1, got {self.temperature}")
        require(self.identities >= 4, f"identities: expected at least 4 (half of them is a set), got {self.identities}")
        require(0 <= self.cpd < 1, f"cpd: expected within [0, 1), got {self.cpd}")
        require(0 <= self.guidance < 100, f"guidance: expected from 0 to below 100 (1 is none), got {self.guidance}")


# ------------------------------------------------------------------------------------------ recognition.benchmark


@dataclass(frozen=True)
class SyntheticRecognition:
    """How recognisers are trained from nothing on a set whose worth is to be measured."""

    training: RecogniserTraining  # lr and seed come from below; augment and randaugment are the row's
    lrs: tuple[float, ...]  # tried once, on the main set; the best on `val` people is used everywhere
    seeds: tuple[int, ...]
    evaluations: int  # looks at `val` during training; the best one is kept

    def __post_init__(self) -> None:
        positive(self, "lrs", "evaluations")
        require(len(set(self.seeds)) == len(self.seeds) > 0, f"seeds: expected different ones, got {list(self.seeds)}")
        most, asked = self.training.steps, self.evaluations
        require(asked <= most, f"evaluations: expected at most training.steps {most}, got {asked}")


# --------------------------------------------------------------------------------------------- diffusion.sampling


@dataclass(frozen=True)
class Sampling:
    """The solver that turns noise into codes."""

    solver: Literal["ddpm", "ddim", "dpm++", "sde-dpm++"]
    steps: int
    guidance: float  # 1: the conditional model, as published
    temperature: float  # deviation of the starting noise; 1 as published, below 1 for less variety

    def __post_init__(self) -> None:
        positive(self, "steps")
        require(0 < self.temperature <= 1, f"temperature: expected above 0, at most 1, got {self.temperature}")
        require(0 <= self.guidance < 100, f"guidance: expected from 0 to below 100 (1 is none), got {self.guidance}")


# ------------------------------------------------------------------------------------- what the notebooks measure


@dataclass(frozen=True)
class Evaluation:
    """How much is measured."""

    verification_identities: int  # rendered `test` people in verification ...
    views: int  # ... and images of each
    identities: int  # `test` people whose embeddings are conditions ...
    samples_per_identity: int  # ... and samples of each
    folds: int
    bootstrap: int  # resamples for a 95 % interval
    pairs: int  # of a description and a face, half genuine ...
    pair_sets: int  # ... in each of several sets
    galleries: tuple[int, ...]  # sizes that descriptions are searched in

    def __post_init__(self) -> None:
        positive(self, "verification_identities", "identities", "samples_per_identity", "bootstrap", "pair_sets")
        require(
            bool(self.galleries) and min(self.galleries) >= 2,
            f"galleries: expected sizes of at least 2, got {list(self.galleries)}",
        )
        require(self.pairs >= 2 and self.pairs % 2 == 0, f"pairs: expected an even number above 0, got {self.pairs}")
        require(self.views >= 2, f"views: expected at least 2 (a genuine pair needs two images), got {self.views}")
        require(self.folds >= 2, f"folds: expected at least 2, got {self.folds}")


# -------------------------------------------------------------------------------------------------- the profile


@dataclass(frozen=True)
class Profile:
    """All sections. ``name`` is the file's stem; it names the folder under ``figures/``."""

    name: str
    seed: int
    rendered: Rendered
    photographs: dict[str, str]  # role -> folder of an imported FaceSet that plays it in place of rendered people
    reference: RecogniserTraining
    judge: RecogniserTraining
    autoencoder: Autoencoder
    decoder: Decoder
    idiff_face: IDiffFace
    idiff_face_variants: dict[str, IDiffFace]  # other networks of the ablations, by name
    diface: DiFace
    generation: Generation
    synthetic_recognition: SyntheticRecognition
    sampling: Sampling
    evaluation: Evaluation

    def __post_init__(self) -> None:
        self._check_photographs()
        self._check_evaluation()
        size, factor = self.rendered.size, self.autoencoder.downsample
        require(size % factor == 0, f"autoencoder.downsample: expected a divisor of rendered.size {size}, got {factor}")
        self._check_decoder()
        most, steps = self.idiff_face.timesteps, self.sampling.steps
        require(steps <= most, f"sampling.steps: expected at most idiff_face.timesteps {most}, got {steps}")
        people = self.rendered.roles["generator"].identities
        for name, asked in (("diface", self.diface.people), ("decoder", self.decoder.people)):
            require(asked <= people, f"{name}.people: expected at most rendered.roles.generator {people}, got {asked}")
        scale, drop = self.sampling.guidance, self.idiff_face.context_drop
        require(scale == 1 or drop > 0, f"sampling.guidance: {scale} needs idiff_face.context_drop above 0, got {drop}")
        require(
            self.reference.seed != self.judge.seed, "judge.seed: expected another than reference.seed, got the same"
        )

    def _check_decoder(self) -> None:
        kind, steps = self.autoencoder.kind, self.decoder.steps
        require(kind == "kl" or not steps, f"decoder.steps: expected 0 where autoencoder.kind is {kind}, got {steps}")

    def _check_photographs(self) -> None:
        unknown = sorted(set(self.photographs) - set(ROLES))
        require(not unknown, f"photographs: expected roles among {', '.join(ROLES)}; got {', '.join(unknown)}")
        folders = list(self.photographs.values())
        twice = sorted({f for f in folders if folders.count(f) > 1})
        require(not twice, f"photographs: {', '.join(twice)} is given to two roles, which must share no person")

    def _check_evaluation(self) -> None:
        test, asked = self.rendered.roles["test"], self.evaluation
        people, views = f"rendered.roles.test.identities {test.identities}", f"rendered.roles.test.views {test.views}"
        _at_most("verification_identities", asked.verification_identities, test.identities, people)
        _at_most("identities", asked.identities, test.identities, people)
        _at_most("views", asked.views, test.views, views)
        gallery = self.rendered.roles["gallery"].identities
        _at_most("galleries", max(asked.galleries), gallery, f"rendered.roles.gallery.identities {gallery}")
        people = f"evaluation.verification_identities {asked.verification_identities}"
        _at_most("folds", asked.folds, asked.verification_identities, people)


def _at_most(name: str, value: int, most: int, bound: str) -> None:
    require(value <= most, f"evaluation.{name}: expected at most {bound}, got {value}")


def names() -> list[str]:
    """The profiles that come with the package, smallest first."""
    found = {path.stem for path in FOLDER.glob("*.yaml")}
    return [n for n in ("smoke", "laptop", "paper") if n in found] + sorted(found - {"smoke", "laptop", "paper"})


def load(name: str | Path) -> Profile:
    """A profile by name (``smoke``, ``laptop``, ``paper``) or by the path of a YAML file with the same keys."""
    path = _locate(name)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML that can be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    try:
        return _build(Profile, {"name": path.stem, **data}, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def resolve(name: str | Path) -> Profile:
    """The profile that runs: FACETRANSPORT_PROFILE where it is set, else ``name``."""
    return load(os.environ.get(VARIABLE) or name)


def as_config(section: object) -> dict[str, Any]:
    """A section as plain JSON data, for recipes and metadata."""
    if not is_dataclass(section) or isinstance(section, type):
        raise ValueError(f"section: expected a section of a profile, got {type(section).__name__}")
    return _plain(asdict(section))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _locate(name: str | Path) -> Path:
    if str(name) in names():
        return FOLDER / f"{name}.yaml"
    if Path(name).suffix not in (".yaml", ".yml"):
        raise ValueError(
            f"profile: expected one of {', '.join(names())} or the path of a .yaml file, got {str(name)!r}"
        )
    if not Path(name).is_file():
        raise FileNotFoundError(f"{name}: no such profile file; copy {FOLDER / 'laptop.yaml'} and edit it")
    return Path(name)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number (YAML 1.2) and a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        require(not twice, f"line {node.start_mark.line + 1}: key {', '.join(twice)} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _build(kind: Any, data: Any, where: str) -> Any:
    """``data`` as an instance of the annotation ``kind``; ``where`` is the key's full name."""
    if is_dataclass(kind):
        return _section(kind, data, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choice(arguments, data, where)
    if origin in (Union, types.UnionType):
        return None if data is None else _build(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_typed(list, data, where)))
    if origin is dict:
        return {str(k): _build(arguments[1], v, f"{where}.{k}") for k, v in _typed(dict, data, where).items()}
    return _typed(kind, data, where)


def _section(kind: Any, data: Any, where: str) -> Any:
    given, known = _typed(dict, data, where), [f.name for f in fields(kind)]
    prefix = f"{where}." if where else ""
    unknown, missing = [k for k in given if k not in known], [k for k in known if k not in given]
    require(not unknown, f"unknown key {prefix}{(unknown or [''])[0]}; allowed: {', '.join(known)}")
    require(not missing, f"missing key {prefix}{(missing or [''])[0]}; expected all of: {', '.join(known)}")
    hints = get_type_hints(kind)
    values = {name: _build(hints[name], given[name], prefix + name) for name in known}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _choice(allowed: tuple[Any, ...], data: Any, where: str) -> Any:
    require(data in allowed, f"{where}: expected one of {', '.join(map(str, allowed))}; got {data!r}")
    return data


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def _typed(kind: Any, data: Any, where: str) -> Any:
    if kind is float and type(data) is int:
        return float(data)
    require(type(data) is kind, f"{where or 'profile'}: expected {_WORDS.get(kind, kind)}, got {data!r}")
    return data
