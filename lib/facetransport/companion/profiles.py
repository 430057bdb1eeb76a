"""Every knob, typed and checked: a profile is data, and the same code runs all of them.

``load("laptop")`` reads ``profiles/laptop.yaml`` into the frozen dataclasses below, which pydantic holds to their types
and bounds; ``__post_init__`` states what values make sense together. A key that does not exist, a value of the wrong
type and a combination that cannot work are refused with the key's full name and what is allowed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

FOLDER = Path(__file__).with_name("profiles")
GIVEN: dict[str, tuple[str, ...]] = {  # network -> what files that stand for it end in
    "autoencoder": (".safetensors",),
    "reference": (".safetensors", ".onnx"),
    "judge": (".safetensors", ".onnx"),
    "idiff_face": (".safetensors",),
    "unconditional": (".safetensors",),
    "detector": (".onnx",),  # of faces, in generated images; without one dlib's
}
ANY = "*"
PLACES = (  # where a profile names a file or a folder
    ("photographs", ANY),
    ("weights", ANY),
    ("tests", ANY),
    ("diface", "text"),
    ("words", "clausewise", "text"),
)
ROLES = ("generator", "train", "val", "test", "authentic", "encoder", "gallery")  # order fixes who is in a role: append
VARIABLE = "FACETRANSPORT_PROFILE"
NAME = re.compile(r"[A-Za-z0-9_][\w. -]*")
LARGEST, DEEPEST, MOST, MOST_KEYS = 2**18, 20, 20_000, 500  # bytes, levels, values, keys of one section of a profile


def require(condition: bool, message: str) -> None:
    """Refuse an impossible value: ``message`` says what was given, what is expected and why."""
    if not condition:
        raise ValueError(message)


Count = Annotated[int, Field(gt=0)]  # at least one
Times = Annotated[int, Field(ge=2)]  # as many, or as long
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Scale = Annotated[float, Field(ge=0, lt=100)]  # of guidance; 1: the conditional model, as published
Temperature = Annotated[float, Field(gt=0, le=1)]  # of the starting noise; 1 as published, below 1 for less variety
LATER = ("warmup", "gradient_clip", "text")  # than the networks that are shipped, whose keys do not have them
STRICT = ConfigDict(extra="forbid", strict=True)


# ---------------------------------------------------------------------------------------------- world.rendered


@dataclass(frozen=True, config=STRICT)
class Role:
    """A split by name: how many people, and how many images of each."""

    identities: Count
    views: Count


@dataclass(frozen=True, config=STRICT)
class Rendered:
    """Rendered people: ``generator`` plays FFHQ, ``train`` CelebA/CASIA, ``authentic`` the set that synthetic
    ones of its size are held against, ``encoder`` more people for the reference recogniser, ``gallery`` those that
    descriptions are searched among; all roles share no identity."""

    world_seed: int
    size: Annotated[Count, Field(multiple_of=16)]  # pixels
    supersampling: Count  # samples per pixel along each axis
    roles: dict[str, Role]

    def __post_init__(self) -> None:
        require(
            set(self.roles) == set(ROLES), f"roles: expected exactly {', '.join(ROLES)}; got {', '.join(self.roles)}"
        )


# ------------------------------------------------------------------------------------------ recognition.training


@dataclass(frozen=True, config=STRICT)
class RecogniserTraining:
    """An IResNet and how it is trained."""

    size: Count  # pixels of the network's input; the middle 7/8 of an image are resized to it
    layers: Annotated[tuple[Count, ...], Field(min_length=4, max_length=4)]  # blocks of the four stages
    widths: Annotated[tuple[Count, ...], Field(min_length=4, max_length=4)]  # channels of the four stages
    strides: Annotated[tuple[Count, ...], Field(min_length=5, max_length=5)]  # of the stem and the four stages
    embedding: Count
    dropout: BelowOne  # before the last layer
    head: Literal["cosface", "arcface", "adaface"]
    scale: Positive
    margin: BelowOne
    batch: Count
    steps: Count
    lr: Positive
    weight_decay: NonNegativeFloat
    momentum: BelowOne
    augment: bool
    randaugment: Annotated[int, Field(ge=0, le=11)]  # operations of RandAugment among the augmentations, 0 for none
    bf16: bool  # convolutions in bfloat16
    seed: int


# ------------------------------------------------------------------------------------------ diffusion.autoencoder


@dataclass(frozen=True, config=STRICT)
class Autoencoder:
    """The code that diffusion lives in: size/downsample square, ``latent_channels`` deep."""

    kind: Literal["kl", "vq"]
    latent_channels: Count
    downsample: Literal[2, 4, 8, 16]
    width: Count
    steps: NonNegativeInt  # 0: not trained, weights.autoencoder names its file
    batch: Count
    lr: Positive
    identity_steps: NonNegativeInt  # more, at a third of lr, with the reference's embedding in the loss; 0: off
    identity_weight: float
    seed: int


@dataclass(frozen=True, config=STRICT)
class Decoder:
    """A decoder trained anew on the finished code, whose encoder stays: larger, and for longer."""

    residuals: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2, max_length=2)]  # on coarsest and finest map
    people: Count  # of the ``generator`` role
    steps: NonNegativeInt  # 0: the autoencoder's own decoder is kept
    batch: Count
    lr: Positive
    feature_weight: float  # of the reference recogniser's features in the loss
    seed: int


# ---------------------------------------------------------------------------------------------- papers.idiff_face


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Denoising:
    """A denoiser of codes and how it is trained."""

    denoiser: str
    width: Count
    depth: Count
    context_dim: Count  # of the projected context
    cpd: BelowOne  # dropout on the projected context
    context_drop: Share  # of contexts dropped whole; above 0 for guidance, 1: unconditional
    prediction: Literal["eps", "v"]  # what the loss weighs evenly over noise levels
    schedule: Literal["linear", "cosine"]
    timesteps: Count
    ema: BelowOne  # 0: no average
    steps: Count
    batch: Count
    lr: Positive
    decay: Literal["constant", "cosine", "restarts"]
    seed: int
    warmup: NonNegativeInt | None = None  # steps; none: a hundredth of them. 0 as published
    gradient_clip: NonNegativeFloat = 1.0  # of the gradient's norm; 0: not at all, as published


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IDiffFace(Denoising):
    """IDiff-Face. As published context_drop is 0, and so in effect is ema."""

    denoiser: Literal["unet_ca", "unet_adagn", "mlp", "mixer", "transformer"]


# --------------------------------------------------------------------------------------------------- papers.id3pm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ID3PM(Denoising):
    """Inversion of a black box. attributes: columns of a FaceSet's table that make the second condition."""

    denoiser: Literal["mlp", "mixer", "transformer", "adm"]  # adm: as published, on pixels
    attributes: tuple[str, ...]
    attributes_drop: Share  # of images whose attributes are all dropped ...
    attribute_drop: Share  # ... and of the attributes of the others, each
    degraded: Share  # of embeddings taken from a degraded view of the image; 0 as published

    def __post_init__(self) -> None:
        adm = self.denoiser == "adm"
        require(not adm or self.cpd == 0, f"cpd: expected 0 where denoiser is adm, which has none, got {self.cpd}")
        require(not adm or self.prediction == "eps", f"prediction: adm predicts eps, got {self.prediction}")


# ---------------------------------------------------------------------------------------------------- papers.id3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ID3(Denoising):
    """ID3. Where it begins at IDiff-Face's network without CPD, both need the same architecture."""

    denoiser: Literal["mlp", "mixer", "transformer", "ldm"]  # ldm: as published
    attributes: tuple[str, ...]
    attributes_drop: Share  # of images whose attributes are all dropped; 0 as published ...
    attribute_drop: Share  # ... and of the attributes of the others, each
    begins: Literal["new", "idiff_face"]  # untrained, as published, or where IDiff-Face ended
    identity_weight: NonNegativeFloat  # before the inner product; 1 as published
    identity_rows: Count  # of a batch that have one
    sight: Literal["decoded", "distilled"]  # f of the decoded estimate, as published, or a reader of codes
    sight_steps: Count  # of training the reader of codes
    reconstruction: Literal["first", "every"]
    clip: Positive | None  # of its weight at every t; none where the network computes v

    def __post_init__(self) -> None:
        ldm = self.denoiser == "ldm"
        require(not ldm or self.cpd == 0, f"cpd: expected 0 where denoiser is ldm, which has none, got {self.cpd}")
        require(not ldm or self.begins == "new", f"begins: an ldm begins new, got {self.begins}")
        even = self.reconstruction == "every" and self.clip is None
        require(even == (self.prediction == "v"), "prediction: v is reconstruction every without clip")


@dataclass(frozen=True, config=STRICT)
class ID3Set:
    """How ID3 draws: the solver, the adjustment of its score, and where contexts lie around anchors."""

    solver: Literal["ddpm", "ddim", "dpm++", "sde-dpm++"]
    steps: Count
    guidance: Scale
    temperature: Temperature
    adjustment: NonNegativeFloat  # 1 as published, 0 the original score
    single_adjustment: NonNegativeFloat  # the same of single images, which take the exact slope and few steps
    slope: Literal["exact", "stopped", "unit"]  # of the estimate
    sight: Literal["decoded", "distilled"]  # as in `ID3`, of sets; single images are always looked at decoded
    anchors: Literal["tammes", "random"]
    where: Literal["sphere", "people", "plda"]  # as published; as contexts vary; as they do between and within people
    bounds: tuple[float, float]  # lb, ub
    attributes: bool  # told, by the joint law of `val` people's
    directions: Literal["drawn", "photographs"]  # u_ij, as ``where`` has it; or, with attributes, of a `val` photograph


@dataclass(frozen=True, config=STRICT)
class Tammes:
    """How far apart anchors can be, at the paper's size. sizes: numbers of points; sweeps: over all, for each size."""

    dim: Annotated[int, Field(ge=2)]
    sizes: tuple[Annotated[int, Field(ge=2)], ...]
    sweeps: tuple[Count, ...]

    def __post_init__(self) -> None:
        require(len(self.sizes) == len(self.sweeps), f"sweeps: expected {len(self.sizes)}, one for each of sizes")


@dataclass(frozen=True, config=STRICT)
class SuperResolution:
    """ID3PM's second stage: renders of ``rendered.size`` to ``size``."""

    size: Annotated[Count, Field(multiple_of=16)]  # pixels
    people: Count  # of the ``generator`` role
    width: Annotated[Count, Field(multiple_of=32)]
    steps: Count
    batch: Count
    lr: Positive
    seed: int
    sampling_steps: Count
    temperature: Temperature


# ------------------------------------------------------------------------------------------- diffusion.statements


@dataclass(frozen=True, config=STRICT)
class Clausewise:
    """The network that finds the statements of each clause."""

    texts: Count  # that it is trained on
    width: Count
    steps: Count
    batch: Count
    lr: Positive
    weight_decay: Share
    text: str | None = None  # folder of its sentence model, as sentence-transformers saves it; None: MiniLM's


@dataclass(frozen=True, config=STRICT)
class Words:
    """The networks that find the statements of a text, whole and clause by clause, and the search that uses them."""

    width: Count
    depth: Count  # layers of its Transformer
    steps: Count
    batch: Count
    lr: Positive
    seed: int
    clausewise: Clausewise
    search: Literal["pixels", "maps", "classifier"]  # what tells the search which attributes a photograph has


# -------------------------------------------------------------------------------------------------- papers.diface


@dataclass(frozen=True, config=STRICT)
class DiFace:
    """Recognition from words: how descriptions are made, D and R trained, features drawn."""

    encoder: Literal["reference", "dlib"]  # E
    tokens: Literal["statements", "clauses", "text", "captions"]  # tau; the last reads what came with photographs
    people: Count  # of the ``generator`` role
    error: Share  # of the describer: wrong about an attribute ...
    say_yes: Share  # ... mentions one that is there ...
    say_no: Share  # ... mentions that one is not
    denoiser: Literal["mlp", "unet"]  # D
    width: Count
    depth: Count
    token_drop: BelowOne  # share of descriptions dropped whole
    schedule: Literal["linear", "cosine"]
    timesteps: Count
    ema: BelowOne
    steps: Count
    batch: Count
    lr: Positive
    weight_decay: NonNegativeFloat
    pixel_steps: Count  # of the network that reads attributes off the pixels
    refine_people: Count  # R: of ``people`` ...
    refine_captions: Count  # ... and descriptions of each
    refine_width: Count
    refine_loss: Literal["cosine", "infonce"]  # as published, or contrastive over the batch
    refine_steps: Count
    l2: NonNegativeFloat  # lambda of its loss
    refine_gallery: bool
    sampling_steps: Count  # T~
    samples: Count  # K, averaged
    guidance: Scale
    seed: int
    text: str | None = None  # folder of the text model of tokens "text" and "captions", such as CLIP's; None: MiniLM's

    def __post_init__(self) -> None:
        reads = self.tokens in ("text", "captions")
        require(self.text is None or reads, f"text: {self.text} reads tokens text or captions, not {self.tokens}")
        require(
            self.denoiser != "unet" or self.width % 32 == 0, f"width: unet takes a multiple of 32, got {self.width}"
        )
        most, steps = self.timesteps, self.sampling_steps
        require(steps <= most, f"sampling_steps: expected at most timesteps {most}, got {steps}")
        require(
            self.guidance == 1 or self.token_drop > 0, f"guidance: {self.guidance} needs token_drop above 0, or take 1"
        )


@dataclass(frozen=True, config=STRICT)
class Generation:
    """A labelled set of synthetic people, for training recognisers."""

    identities: Annotated[int, Field(ge=4)]  # of the main set; sets of half and of double the identities beside it
    samples: Count  # images of each
    cpd: BelowOne  # of the network that draws them
    guidance: Scale
    temperature: Temperature
    seed: int
    bf16: bool = False  # of sets by IDiff-Face and ID3: faster where the device has it, no longer the same on all


# ------------------------------------------------------------------------------------------ evaluation.benchmark


@dataclass(frozen=True, config=STRICT)
class ID3Pilot:
    """Fields of `ID3Set` with other values than the profile's."""

    bounds: tuple[float, float] | None = None
    adjustment: NonNegativeFloat | None = None
    steps: Count | None = None
    guidance: Scale | None = None
    temperature: Temperature | None = None
    directions: Literal["drawn", "photographs"] | None = None


@dataclass(frozen=True, config=STRICT)
class SyntheticRecognition:
    """How recognisers are trained from nothing on a set whose worth is to be measured."""

    training: RecogniserTraining  # lr and seed come from below; augment and randaugment are the row's
    lrs: tuple[Positive, ...]  # tried once, on the main set; the best on `val` people is used everywhere
    seeds: tuple[int, ...]
    evaluations: Count  # looks at `val` during training; the best one is kept
    longer: tuple[Times, ...]  # times the steps, of runs that show whether training has converged
    larger: tuple[tuple[Times, Times], ...]  # (times the people of ID3's set, times the steps)
    id3_pilots: tuple[ID3Pilot, ...]  # tried once; the set that is best on `val` people is the profile's

    def __post_init__(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds) > 0, f"seeds: expected different ones, got {list(self.seeds)}")
        most, asked = self.training.steps, self.evaluations
        require(asked <= most, f"evaluations: expected at most training.steps {most}, got {asked}")


# --------------------------------------------------------------------------------------------- diffusion.sampling


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """The solver that turns noise into codes."""

    solver: Literal["ddpm", "ddim", "dpm++", "sde-dpm++"]
    steps: Count
    guidance: Scale
    temperature: Temperature


# ------------------------------------------------------------------------------------- what the notebooks measure


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """How much is measured."""

    verification_identities: Count  # rendered `test` people in verification ...
    views: Annotated[int, Field(ge=2)]  # ... and images of each: a genuine pair needs two
    identities: Count  # `test` people whose embeddings are conditions ...
    samples_per_identity: Count  # ... and samples of each
    folds: Annotated[int, Field(ge=2)]
    bootstrap: Count  # resamples for a 95 % interval
    pairs: Annotated[Count, Field(multiple_of=2)]  # of a description and a face, half genuine ...
    pair_sets: Count  # ... in each of several sets
    galleries: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]  # that descriptions search


# -------------------------------------------------------------------------------------------------- the profile


@dataclass(frozen=True, config=STRICT)
class Profile:
    """All sections. ``name`` is the file's stem; it names the folder under ``figures/``."""

    name: str
    seed: int
    rendered: Rendered
    photographs: dict[str, str]  # role -> folder of an imported FaceSet that plays it in place of rendered people
    weights: dict[str, str]  # network -> file that stands for it: what `import-weights` wrote, or a recogniser's .onnx
    tests: dict[str, str]  # name -> a verification set (lfw.bin) that recognisers of synthetic people are tested on
    reference: RecogniserTraining
    judge: RecogniserTraining
    autoencoder: Autoencoder
    decoder: Decoder
    idiff_face: IDiffFace
    milestones: tuple[Count, ...]  # steps of IDiff-Face's trainings whose networks are kept beside the last
    idiff_face_variants: dict[str, IDiffFace]  # other networks of the ablations, by name
    id3pm: ID3PM
    id3pm_variants: dict[str, ID3PM]
    id3: ID3
    id3_set: ID3Set
    tammes: Tammes
    superresolution: SuperResolution
    words: Words
    diface: DiFace
    generation: Generation
    synthetic_recognition: SyntheticRecognition
    sampling: Sampling  # of IDiff-Face
    inversion: Sampling  # of ID3PM
    evaluation: Evaluation

    def __post_init__(self) -> None:
        self._check_photographs()
        self._check_weights()
        self._check_evaluation()
        size, factor = self.rendered.size, self.autoencoder.downsample
        require(size % factor == 0, f"autoencoder.downsample: expected a divisor of rendered.size {size}, got {factor}")
        self._check_decoder()
        most, steps = self.idiff_face.timesteps, self.sampling.steps
        require(steps <= most, f"sampling.steps: expected at most idiff_face.timesteps {most}, got {steps}")
        people = self.rendered.roles["generator"].identities
        wanted = {name: getattr(self, name).people for name in ("diface", "decoder", "superresolution")}
        for name, asked in wanted.items():
            require(asked <= people, f"{name}.people: expected at most rendered.roles.generator {people}, got {asked}")
        scale, drop = self.sampling.guidance, self.idiff_face.context_drop
        require(scale == 1 or drop > 0, f"sampling.guidance: {scale} needs idiff_face.context_drop above 0, got {drop}")
        scale, drop = self.inversion.guidance, self.id3pm.context_drop
        require(scale == 1 or drop > 0, f"inversion.guidance: {scale} needs id3pm.context_drop above 0, got {drop}")
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

    def _check_weights(self) -> None:
        unknown = sorted(set(self.weights) - set(GIVEN))
        require(not unknown, f"weights: expected networks among {', '.join(GIVEN)}; got {', '.join(unknown)}")
        for name, path in self.weights.items():
            kinds = GIVEN[name]
            require(path.endswith(kinds), f"weights.{name}: expected a file ending in {' or '.join(kinds)}, got {path}")
        taken = sorted(set(self.tests) & {"rendered", "orl", "val", "step", "loss"})
        require(not taken, f"tests: {', '.join(taken)} is the name of something else; take another")

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
        data = _read(path)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML that can be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    _require_plain(data, str(path), count())
    _require_name(str(data.get("name", path.stem)), path)
    for place in PLACES:
        data = _beside(data, place, path.absolute().parent)
    try:
        return TypeAdapter(Profile).validate_json(json.dumps({"name": path.stem, **data}))
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(map(_sentence, error.errors()))}") from None


def _read(path: Path) -> Any:
    """YAML without the depth and the size that no profile has, which are found before anything is built from it."""
    size, depth = path.stat().st_size, 0
    require(size <= LARGEST, f"{size:,} bytes, expected at most {LARGEST:,}")
    text = path.read_text(encoding="utf-8")
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        require(depth <= DEEPEST, f"more than {DEEPEST} levels of sections within sections")
    return yaml.load(text, _Loader)  # a SafeLoader


def _require_name(name: str, path: Path) -> None:
    """Figures go to a folder of the profile's name, and those of the package's profiles are committed."""
    wanted = "expected letters, digits, dots, spaces, - and _, of no profile that comes with the package"
    require(bool(NAME.fullmatch(name)), f"{path}: name: {wanted}; got {name!r}")
    require(path.parent == FOLDER or name not in names(), f"{path}: name: {wanted}; {name} is one: choose another")


def _beside(value: Any, place: Sequence[str], here: Path) -> Any:
    """The data with what stands in this place, a file or a folder, meant from where the profile lies, not where it is
    run."""
    if not place:
        return str(here / Path(value).expanduser()) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        return value
    key, *inner = place
    return {name: _beside(item, inner, here) if key in (name, ANY) else item for name, item in value.items()}


def _require_plain(value: Any, path: str, counted: Iterator[int], key: str = "") -> None:
    """Refuse what YAML knows and JSON does not: dates, sets, NaN, keys that are no text; and aliases of aliases."""
    require(next(counted) < MOST, f"{path}: more than {MOST:,} values, aliases counted as what they stand for")
    if isinstance(value, Mapping):
        for name, item in value.items():
            where = f" in {key}" if key else ""
            require(isinstance(name, str), f"{path}: expected a name as key{where}, got {_short(name)}")
            _require_plain(item, path, counted, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _require_plain(item, path, counted, f"{key}[{i}]")
    else:
        known = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and isfinite(value))
        wanted = "expected text, true, false or a finite number"
        require(known, f"{path}: {key}: {wanted}, got {value}; quote what is text")


def resolve(name: str | Path) -> Profile:
    """The profile that runs: FACETRANSPORT_PROFILE where it is set, else ``name``."""
    return load(os.environ.get(VARIABLE) or name)


def as_config(section: object) -> dict[str, Any]:
    """A section as plain JSON data, for recipes and metadata, without knobs (``LATER``) that have their default."""
    if not is_dataclass(section) or isinstance(section, type):
        raise ValueError(f"section: expected a section of a profile, got {type(section).__name__}")
    values = {field: getattr(section, field.name) for field in fields(section)}
    same = [field for field, value in values.items() if field.name in LATER and value == field.default]
    return {field.name: _plain(value) for field, value in values.items() if field not in same}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if is_dataclass(value):
        return as_config(value)
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
        keys = Counter(str(key.value) for key, _ in node.value)
        twice = sorted(key for key, times in keys.items() if times > 1)
        require(not twice, f"line {node.start_mark.line + 1}: key {', '.join(twice)[:99]} is given twice")
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)  # merges (<<) grow without end where they hold each other
        require(len(node.value) <= MOST_KEYS, f"line {node.start_mark.line + 1}: more than {MOST_KEYS} keys, merged")


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "tuple": "a list"}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


def _sentence(error: Any) -> str:
    """What pydantic found, with the key's full name, what is expected there and what was given."""
    kind, given, about = error["type"], error["input"], error.get("ctx", {})
    where = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, error["loc"])))
    if kind == "value_error":
        return f"{where}.{about['error']}".removeprefix(".")
    if kind == "unexpected_keyword_argument":
        return f"unknown key {where}; allowed: {', '.join(_keys(error['loc'][:-1]))}"
    if kind == "missing" and isinstance(error["loc"][-1], int):  # of a pair of numbers
        return f"{where}: missing; expected another number in {where.partition('[')[0]}"
    if kind == "missing":
        return f"missing key {where}; expected all of: {', '.join(_keys(error['loc'][:-1]))}"
    if kind == "literal_error":
        wanted = about["expected"].replace("'", "").replace(" or ", ", ")
        return f"{where}: expected one of {wanted}; got {_short(given)}"
    if kind in ("too_short", "too_long"):
        return f"{where}: expected {about.get('min_length', about.get('max_length'))} numbers, got {_short(given)}"
    if kind == "multiple_of":
        return f"{where}: expected a multiple of {about['multiple_of']}, got {given}"
    if kind in _BOUNDS:
        return f"{where}: expected {_BOUNDS[kind]} {next(iter(about.values())):g}, got {given}"
    return f"{where}: expected {_WORDS.get(kind.split('_')[0], 'a mapping')}, got {_short(given)}"


def _short(given: Any) -> str:
    """What was given, in errors: a profile can hold thousands of values in the place of one."""
    text = repr(given)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at a place in a profile."""
    kind: Any = Profile
    for key in path:
        kind = get_type_hints(kind).get(str(key)) if is_dataclass(kind) else get_args(kind)[1]
    return [f.name for f in fields(kind)]
