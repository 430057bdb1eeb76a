"""What DiFace (`facetransport.papers.diface`) has to beat, and the best that the words allow.

    E[z_0 | c] by least squares, by cosine           plain regression from words to feature        Regression
    InfoNCE of two towers                            a dual encoder, as CLIP (arXiv 2103.00020)    Contrastive
    P(attribute | z_0), then naive Bayes             a classifier of attributes, told the words    Classifier
    P(attribute | pixels), then naive Bayes          the same before any recogniser                Seen
    P(c | true attributes) / P(c)                    the Bayes bound                               Bayes

The choice is ours (papers.md 1.11): which baselines arXiv 2312.01367 has could not be read (1.6). The networks on
features are trained as long as D, on the same people, by words that are drawn in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import roles
from facetransport.companion.profiles import DiFace, Profile, RecogniserTraining, as_config
from facetransport.data.faceset import FaceSet
from facetransport.diffusion.vectors import Described, MultiLayer
from facetransport.evaluation.descriptions import Match, attribute_match, bayes_match, cosine_match
from facetransport.papers.diface import (
    CHUNK,
    MODEL,
    Faces,
    Matcher,
    People,
    describer_of,
    describing,
    faces_recipe,
    features_of,
    fit,
    info_nce,
    load_population,
    read_faces,
    seeded,
    tokeniser,
    training_config,
)
from facetransport.recognition import training as recognition
from facetransport.recognition.iresnet import IResNet
from facetransport.training import Loss, TrainingConfig, TrainingLog, read_model, save_model, train
from facetransport.world import rendered
from facetransport.world.captions import Describer

# ------------------------------------------------------------------------------------------------------------- matchers


@dataclass(frozen=True)
class Regression:
    """Plain regression: E[z_0 | c] by least squares, compared by cosine: what diffusion does in its first step."""

    network: nn.Module
    tokens: str

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        tokens = tokeniser(faces.names, self.tokens, unseen)(said, np.random.default_rng(seed))
        return cosine_match(_unit(self.network, tokens), faces.embeddings)


@dataclass(frozen=True)
class Contrastive:
    """A dual encoder (InfoNCE, as CLIP): words and features meet in a space of its own."""

    words: nn.Module
    images: nn.Module
    tokens: str

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        tokens = tokeniser(faces.names, self.tokens, unseen)(said, np.random.default_rng(seed))
        return cosine_match(_unit(self.words, tokens), _unit(self.images, features_of(faces)))


@dataclass(frozen=True)
class Classifier:
    """Attributes of a feature by a classifier, matched with what was said by naive Bayes: reads no text, is told."""

    network: nn.Module
    prior: np.ndarray  # (A,), share of training people
    persistence: np.ndarray  # (A, 2)
    describer: Describer

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        return attribute_match(self.describer, said, self.present(faces), self.prior, self.persistence)

    @torch.inference_mode()
    def present(self, faces: Faces) -> np.ndarray:
        """float64 (N, A): how probable each attribute is, read off the features."""
        return self.network(features_of(faces)).double().sigmoid().numpy()


@dataclass(frozen=True)
class Seen:
    """As ``Classifier``, but a network read the attributes off the PIXELS: what a photograph shows of the words,
    before a recogniser has forgotten some of it. present: float (N, A), of the faces matched, row by row."""

    present: np.ndarray
    population: People
    describer: Describer

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        known = self.population
        return attribute_match(self.describer, said, self.present, known.attributes.mean(0), known.persistence)


@torch.inference_mode()
def _unit(network: nn.Module, inputs: Tensor) -> np.ndarray:
    parts = [F.normalize(network(part).float(), dim=1) for part in inputs.split(CHUNK)]
    return torch.cat(parts).numpy()


class DualEncoder(nn.Module):
    """Two towers and a learned inverse temperature."""

    def __init__(self, token_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.words, self.images = Described(token_dim, dim, width, depth), MultiLayer(dim, width, dim, dropout=0.1)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        """The InfoNCE of a batch."""
        return info_nce(self.words(tokens).float(), self.images(features).float(), self.log_scale.exp())


@dataclass(frozen=True)
class Bayes:
    """The best that the words allow: the true attributes are known, and how the describer errs (``bayes_match``).

    elsewhere: the caption is of another photograph. hard: impostors share the caption's gender and age band.
    """

    describer: Describer
    population: People
    elsewhere: bool = True
    hard: bool = False

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        """``said`` describes the faces row by row."""
        known = self.population
        persistence = known.persistence if self.elsewhere else None
        groups = (faces.groups, known.groups) if self.hard else (None, None)
        return bayes_match(self.describer, said, faces.attributes, known.attributes, persistence, *groups)


# ------------------------------------------------------------------------------------------------------------- training


def baseline_recipe(profile: Profile, kind: str) -> Recipe:
    """A baseline, trained as long and on the same descriptions: "regression", "contrastive" or "classifier"."""
    section = profile.diface
    names = "tokens width depth ema steps batch lr weight_decay error say_yes say_no seed"
    if kind not in BASELINES:
        raise ValueError(f"kind: expected one of {', '.join(BASELINES)}, got {kind!r}")
    config = {name: as_config(section)[name] for name in names.split()}
    upstream = (faces_recipe(profile, "generator", section.encoder, section.people),)
    return Recipe(f"diface.{kind}", config, partial(_make_baseline, kind, section), upstream=upstream)


def _make_baseline(kind: str, section: DiFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = read_faces(upstream[0])
    dims = {
        "dim": faces.embeddings.shape[1],
        "token_dim": tokeniser(faces.names, section.tokens).dim,
        "attributes": len(faces.names),
    }
    build, loss = BASELINES[kind]
    network = seeded(section.seed, lambda: build(section, dims))
    facts = dims | {"prior": faces.attributes.mean(0).tolist(), "persistence": faces.persistence.tolist()}
    fit(network, loss(faces, section), len(faces), training_config(section), folder, **facts)


def _regression_loss(faces: Faces, section: DiFace) -> Loss:
    features, say = features_of(faces), describing(faces, section)
    return lambda network, rows, generator, _: F.mse_loss(network(say(rows, generator)).float(), features[rows])


def _contrastive_loss(faces: Faces, section: DiFace) -> Loss:
    features, say = features_of(faces), describing(faces, section)

    return lambda network, rows, generator, _: network(say(rows, generator), features[rows])


def _classifier_loss(faces: Faces, section: DiFace) -> Loss:
    features, present = features_of(faces), torch.from_numpy(faces.attributes).float()
    return lambda network, rows, *_: F.binary_cross_entropy_with_logits(network(features[rows]).float(), present[rows])


Build = Callable[[DiFace, dict[str, int]], nn.Module]
BASELINES: dict[str, tuple[Build, Callable[[Faces, DiFace], Loss]]] = {
    "regression": (lambda s, d: Described(d["token_dim"], d["dim"], s.width, s.depth), _regression_loss),
    "contrastive": (lambda s, d: DualEncoder(d["token_dim"], d["dim"], s.width, s.depth), _contrastive_loss),
    "classifier": (lambda s, d: MultiLayer(d["dim"], s.width, d["attributes"], dropout=0.2), _classifier_loss),
}


# ----------------------------------------------------------------------------------------------- attributes from pixels


def pixels_recipe(profile: Profile) -> Recipe:
    """How probable each attribute is in each photograph of `val` and `gallery`, as a network reads them off the pixels.

    It is built and trained like the encoder E, with A outputs, on the images of the ``generator`` people.
    """
    seen = ("generator", "val", "gallery")
    upstream = tuple(roles.rendered_recipe(profile, role) for role in seen)
    config = as_config(profile.reference) | {"steps": profile.diface.pixel_steps}
    section = replace(profile.reference, steps=profile.diface.pixel_steps)
    return Recipe("diface.pixels", config, partial(_make_pixels, section), upstream=upstream)


def load_pixels(profile: Profile, store: Store, role: str) -> Seen:
    """The matcher that sees the photographs of a role, "val" or "gallery"."""
    present = read_model(store.get(pixels_recipe(profile)) / MODEL)[0][role].float().numpy()
    return Seen(present, load_population(profile, store), describer_of(profile.diface))


def _make_pixels(section: RecogniserTraining, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, *others = (FaceSet.load(path) for path in upstream)
    names, side = rendered.attribute_names(faces.table), faces.images.shape[1]
    present = torch.from_numpy(faces.table[names].to_numpy(np.float32, copy=True))
    backbone = replace(recognition.network_config(section), input_size=side, dropout=0.2)
    build = lambda: nn.Sequential(IResNet(backbone), nn.Linear(backbone.dim, len(names)))  # noqa: E731

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        images, mirrored = faces.tensor(rows.numpy()), torch.rand(len(rows), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return F.binary_cross_entropy_with_logits(network(images).float(), present[rows])

    training = TrainingConfig(
        section.steps,
        section.batch,
        2e-3,
        section.seed,
        ema=0.99,
        warmup=50,
        decay="cosine",
        weight_decay=0.01,
        bf16=True,
    )
    network = seeded(section.seed, build)
    log, checkpoint = TrainingLog(folder / "log.csv", training), folder / "checkpoint.safetensors"
    for state in train(network, loss, len(faces), training, checkpoint):
        log.write(state)
    found = {role: _present(state.ema, other).half() for role, other in zip(("val", "gallery"), others, strict=True)}
    save_model(folder / MODEL, found, names=names, step=state.step, metrics={"loss": state.loss})
    checkpoint.unlink(missing_ok=True)


@torch.inference_mode()
def _present(network: nn.Module, faces: FaceSet) -> Tensor:
    parts = [network(faces.tensor(slice(i, i + CHUNK))).sigmoid() for i in range(0, len(faces), CHUNK)]
    return torch.cat(parts)


# -------------------------------------------------------------------------------------------------------------- loading


def load_baseline(profile: Profile, store: Store, kind: str) -> Matcher:
    """A trained baseline of `BASELINES`."""
    return read_baseline(kind, profile.diface, store.get(baseline_recipe(profile, kind)))


def read_baseline(kind: str, section: DiFace, folder: Path) -> Matcher:
    """The baseline that was written into a folder."""
    tensors, facts = read_model(folder / MODEL)
    network = BASELINES[kind][0](section, facts)
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    if kind == "classifier":
        prior, persistence = np.array(facts["prior"]), np.array(facts["persistence"])
        return Classifier(network, prior, persistence, describer_of(section))
    if isinstance(network, DualEncoder):
        return Contrastive(network.words, network.images, section.tokens)
    return Regression(network, section.tokens)
