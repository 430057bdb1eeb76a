"""DiFace: cross-modal face recognition through controlled diffusion.

arXiv 2312.01367; no official code is known: papers.md section 1 says what could be read and what is our default.

    z_0 = sqrt(d) E(I)                                       feature of a photograph, unit variance   faces_recipe
    tau(c)                                                   tokens of a description c                Tokeniser
    L = E || eps - D(z_t, t, tau(c)) ||^2                    denoiser in the feature space            denoiser_recipe
    z_T ~ N(0, I), T~ steps -> zhat_0                        rough estimate                           rough_estimates
    L_R = cosine embedding + lambda || R(zhat_0) - z_0 ||^2  refinement                               refinement_recipe
    s(c, I) = cos(R(zhat_0(c)), E(I))                        score                                    Model.match

This module is the method. What a diffusion model has to beat is in `diface_baselines`, how they compare and what the
method depends on in `diface_study`, D as a density in `diface_likelihood`. All see the same descriptions in training
(`describing`): of ANOTHER photograph of the person, so that a smile or glasses in the words weigh what they say about
the person (papers.md 1.11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import recognisers, roles
from facetransport.companion.profiles import DiFace, Profile, as_config
from facetransport.data.faceset import FaceSet
from facetransport.diffusion.batching import in_fixed_batches
from facetransport.diffusion.guidance import classifier_free
from facetransport.diffusion.sampling import sample, sample_seeds
from facetransport.diffusion.schedule import Schedule, add_noise, uniform_timesteps
from facetransport.diffusion.text import TextEncoder
from facetransport.diffusion.vectors import MultiLayer, VectorConfig, VectorDenoiser
from facetransport.evaluation.descriptions import Match, cosine_match
from facetransport.recognition import dlib
from facetransport.recognition import training as recognition
from facetransport.recognition.iresnet import IResNetRecogniser
from facetransport.recognition.recogniser import Recogniser, embed_faceset
from facetransport.tensors import compact
from facetransport.training import Loss, TrainingConfig, TrainingLog, read_model, save_model, train
from facetransport.version import code_version
from facetransport.world import captions, rendered
from facetransport.world.captions import Describer

MODEL, FACES = "model.safetensors", "faces.safetensors"
CHUNK = 1024  # descriptions at a time: bounds memory (and is part of what R's training data are drawn from)
POPULATION = 10_000  # people: the bound is an average over them
HARD = ("Male", "Young", "Senior")  # what hard negatives share: gender and age band


# ------------------------------------------------------------------------------------------------- faces and features


@dataclass(frozen=True)
class People:
    """Who could be meant: attributes bool (N, A) of a photograph of each; elsewhere: the same of another photograph of
    the person, which was never rendered; names: of the A attributes."""

    attributes: np.ndarray
    elsewhere: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def groups(self) -> np.ndarray:
        """int64 (N,): gender and age band, the same for hard negatives."""
        columns = self.attributes[:, [self.names.index(name) for name in HARD]]
        return columns @ (1 << np.arange(len(HARD)))

    @property
    def persistence(self) -> np.ndarray:
        """float64 (A, 2): how attributes carry over from one photograph of a person to another."""
        return captions.persistence(self.elsewhere, self.attributes)


@dataclass(frozen=True)
class Faces(People):
    """Photographs as DiFace sees them: embeddings E(I), float32 (N, d), unit norm; identity int64 (N,)."""

    embeddings: np.ndarray
    identity: np.ndarray


def population_recipe(profile: Profile) -> Recipe:
    """Attributes of some ``generator`` people, drawn without rendering: what the Bayes bound takes for the world."""
    config: dict[str, Any] = {"identities": min(POPULATION, profile.rendered.roles["generator"].identities)}
    world = dict(roles.rendered_recipe(profile, "generator").config)
    pairs = roles.role_pairs(world | config | {"views": 1})
    make = partial(_make_population, pairs, profile.rendered.world_seed)
    return Recipe(
        "diface.population", config | {"seed": profile.rendered.world_seed}, make, upstream=(roles.head_recipe(),)
    )


def load_population(profile: Profile, store: Store) -> People:
    """The people of ``population_recipe``."""
    return read_population(store.get(population_recipe(profile)))


def read_population(folder: Path) -> People:
    """The people that were written into a folder."""
    tensors, metadata = read_model(folder / FACES)
    names = tuple(metadata["names"])
    here, there = (
        np.unpackbits(tensors[name].numpy(), axis=1, count=len(names)).astype(bool)
        for name in ("attributes", "elsewhere")
    )
    return People(here, there, names)


def _make_population(pairs: list[tuple[int, int]], world_seed: int, folder: Path, upstream: tuple[Path, ...]) -> None:
    here, there = (rendered.attributes([(i, k + n) for i, k in pairs], upstream[0], world_seed) for n in (0, 1))
    packed = {"attributes": here, "elsewhere": there}
    tensors = {n: torch.from_numpy(np.packbits(a.to_numpy(bool), axis=1)) for n, a in packed.items()}
    save_model(folder / FACES, tensors, names=list(here))


def faces_recipe(profile: Profile, role: str, encoder: str = "reference", people: int | None = None) -> Recipe:
    """Embeddings and attributes of a role's first ``people``, by default all. encoder: E, as in a profile's section."""
    config = {"people": people or profile.rendered.roles[role].identities, "views": profile.rendered.roles[role].views}
    network = recognisers.dlib_recipe(profile) if encoder == "dlib" else recognisers.recipe(profile, encoder)
    upstream = (roles.rendered_recipe(profile, role), network, roles.head_recipe())
    make = partial(_make_faces, config, profile.rendered.world_seed)
    return Recipe(f"diface.faces.{role}.{encoder}", config, make, upstream=upstream)


def load_faces(
    profile: Profile, store: Store, role: str, encoder: str = "reference", people: int | None = None
) -> Faces:
    """The faces of a role, embedded now where they were not before."""
    return read_faces(store.get(faces_recipe(profile, role, encoder, people)))


def read_faces(folder: Path) -> Faces:
    """The faces that were written into a folder."""
    tensors, metadata = read_model(folder / FACES)
    embeddings = F.normalize(tensors["embeddings"].float(), dim=1).numpy()
    attributes, elsewhere = (tensors[name].numpy() for name in ("attributes", "elsewhere"))
    return Faces(attributes, elsewhere, tuple(metadata["names"]), embeddings, tensors["identity"].numpy())


def _make_faces(config: dict[str, Any], world_seed: int, folder: Path, upstream: tuple[Path, ...]) -> None:
    faceset, recogniser = FaceSet.load(upstream[0]), _read_recogniser(upstream[1])
    faceset = faceset.select(np.arange(config["people"] * config["views"]))
    names = rendered.attribute_names(faceset.table)
    another = [(int(i), int(k) + config["views"]) for i, k in faceset.table[["identity", "view"]].to_numpy()]
    elsewhere = rendered.attributes(another, upstream[2], world_seed)[names]
    tensors = {
        "embeddings": torch.from_numpy(embed_faceset(recogniser, faceset)).half(),
        "attributes": torch.from_numpy(faceset.table[names].to_numpy(bool, copy=True)),
        "elsewhere": torch.from_numpy(elsewhere.to_numpy(bool, copy=True)),
        "identity": torch.from_numpy(faceset.identity.astype(np.int64)),
    }
    save_model(folder / FACES, tensors, names=names)


def _read_recogniser(folder: Path) -> Recogniser:
    if (folder / MODEL).is_file():
        return IResNetRecogniser(recognition.load_model(folder / MODEL))
    return dlib.load(folder / recognisers.STATISTICS)


# ------------------------------------------------------------------------------------------------- tau: words to tokens


class Tokeniser:
    """tau: said int8 (B, A) -> tokens float32 (B, L, e), those of the description's text, statement by statement.

    kind: "clauses" (MiniLM's mean state of each statement), "words" (the state of each of its word pieces) or
    "attributes" (one-hot of attribute and value: no language; a network's first layer is then a learned embedding).
    unseen: everything is said in paraphrases that no training uses.
    """

    def __init__(self, names: Sequence[str], kind: str, unseen: bool = False) -> None:
        phrases = captions.phrase_bank(names, unseen)
        states = _states(kind, phrases, len(names))
        self.kind, self.dim = kind, states.shape[2]
        self.first = np.full((len(names), 2), -1)  # row of a statement's first phrase ...
        self.ways = np.zeros((len(names), 2), int)  # ... and how many phrases it has, one after the other
        for i, phrase in reversed(list(enumerate(phrases))):
            self.first[phrase.attribute, phrase.value] = i
            self.ways[phrase.attribute, phrase.value] += 1
        self.states = states

    def __call__(self, said: np.ndarray, rng: np.random.Generator) -> Tensor:
        """One of its phrases for each statement, drawn with ``rng``; zero rows where a description says less."""
        said = np.asarray(said)
        if said.ndim != 2 or said.shape[1] != len(self.ways):
            raise ValueError(f"said: expected (B, {len(self.ways)}), got {said.shape}")
        row, attribute = np.nonzero(said >= 0)
        value = said[row, attribute]
        phrase = self.first[attribute, value] + (rng.random(len(row)) * self.ways[attribute, value]).astype(int)
        place = np.arange(len(row)) - np.searchsorted(row, row)  # of a statement in its description
        tokens = torch.zeros(len(said), max(1, *np.bincount(row, minlength=1)), *self.states.shape[1:])
        tokens[row, place] = self.states[phrase]
        return tokens.flatten(1, 2)


def _states(kind: str, phrases: Sequence[captions.Phrase], attributes: int) -> Tensor:
    """float32 (P, n, e): the tokens of every phrase, zero rows after the last."""
    if kind == "attributes":
        return F.one_hot(torch.tensor([2 * p.attribute + p.value for p in phrases]), 2 * attributes)[:, None].float()
    texts = [phrase.text for phrase in phrases]
    if kind == "clauses":
        return text_encoder().clause_states(texts)[:, None]
    if kind == "words":
        return text_encoder().word_states(texts)
    raise ValueError(f"tokens: expected 'clauses', 'words' or 'attributes', got {kind!r}")


@cache
def text_encoder() -> TextEncoder:
    """The frozen MiniLM of this process."""
    return TextEncoder()


@cache
def tokeniser(names: tuple[str, ...], kind: str, unseen: bool = False) -> Tokeniser:
    """The tokeniser of this process: encoding the phrases takes seconds."""
    return Tokeniser(names, kind, unseen)


# --------------------------------------------------------------------------------------------------------- the method


def ours(section: DiFace) -> DiFace:
    """The section with the R that was best on val people: trained by InfoNCE, and applied to the gallery too."""
    return replace(section, refine_loss="infonce", refine_gallery=True, l2=0.0)


class Matcher(Protocol):
    """Whatever scores descriptions against faces: DiFace, the baselines, the Bayes bound."""

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        """Scores of descriptions said (Q, A), phrased with ``seed``, against all faces."""
        ...


@dataclass(frozen=True)
class Model:
    """A trained DiFace. refinement: R, or None for rough estimates alone. settings: T~, K, guidance and the rest."""

    denoiser: VectorDenoiser
    refinement: Refinement | None
    settings: DiFace

    def features(self, tokens: Tensor, seed: int) -> Tensor:
        """tokens (B, L, e) -> float32 (B, d), unit norm: the mean direction of K refined estimates."""
        settings = self.settings
        rough = rough_estimates(
            self.denoiser, tokens, settings.sampling_steps, settings.samples, seed, settings.guidance
        )
        return self.refine(rough)

    @torch.inference_mode()
    def refine(self, features: Tensor) -> Tensor:
        """(B, K, d), scaled -> (B, d), unit norm: the mean direction of R of K features."""
        refined = features if self.refinement is None else self.refinement(features)
        return F.normalize(refined.mean(1), dim=1)

    def gallery(self, embeddings: np.ndarray) -> np.ndarray:
        """What descriptions are compared with, float32 (N, d): E(I), or R(sqrt(d) E(I)) with ``refine_gallery``."""
        if not self.settings.refine_gallery:
            return embeddings
        return self.refine(torch.from_numpy(scaled(embeddings))[:, None]).numpy()

    def match(self, said: np.ndarray, faces: Faces, seed: int, unseen: bool = False) -> Match:
        """s(c, I) = cos(R(zhat_0(c)), E(I))."""
        tokens = tokeniser(faces.names, self.settings.tokens, unseen)(said, np.random.default_rng(seed))
        return cosine_match(self.features(tokens, seed).numpy(), self.gallery(faces.embeddings))

    def read(self, descriptions: Sequence[str], seed: int = 0) -> np.ndarray:
        """Free text -> what to look for: float32 (B, d), unit norm. Needs a model of MiniLM's tokens."""
        if isinstance(descriptions, str) or not len(descriptions):
            raise ValueError(f"descriptions: expected a list of at least one text, got {descriptions!r}")
        if self.settings.tokens != "clauses":
            raise ValueError(f"tokens: free text needs a model trained on 'clauses', got {self.settings.tokens!r}")
        return self.features(text_encoder().tokens(descriptions), seed).numpy()


def scaled(embeddings: np.ndarray) -> np.ndarray:
    """float32 (N, d): unit vectors times sqrt(d), whose components have unit variance (papers.md 1.3)."""
    return embeddings * np.float32(embeddings.shape[1] ** 0.5)


def rough_estimates(
    denoiser: VectorDenoiser, tokens: Tensor, steps: int, samples: int, seed: int, guidance: float = 1.0
) -> Tensor:
    """zhat_0: tokens (B, L, e) -> float32 (B, K, d), K samples of each description by T~ = steps DDIM steps.

    Sample k of description i depends on (seed, i, k) and the description only.
    """
    guided, shape = classifier_free(denoiser, guidance), (denoiser.config.dim,)
    seeds = sample_seeds(seed, range(len(tokens)), samples)
    parts = []
    for i in range(0, len(tokens), CHUNK):
        prompts = prompts_of(denoiser, tokens[i : i + CHUNK]).repeat_interleave(samples, 0)
        parts.append(sample(guided, shape, prompts, "ddim", steps, seeds[i * samples : i * samples + len(prompts)]))
    return torch.cat(parts).unflatten(0, (len(tokens), samples))


@torch.inference_mode()
def prompts_of(denoiser: VectorDenoiser, tokens: Tensor) -> Tensor:
    """What a denoiser takes in the place of tokens (B, L, e), row by row (B, ...), see ``VectorDenoiser.prompt``.

    In batches of one size, as ``sample`` evaluates the network: a description's prompt is the same in all.
    """
    return in_fixed_batches(denoiser.prompt, tokens, size=denoiser.micro_batch)


class Refinement(nn.Module):
    """R: z (..., d) -> z + MLP(z), its last matrix zero at first (a default of ours: papers.md 1.3)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.change = MultiLayer(dim, width, dim, dropout=0.3)  # it overfits: each person is one feature
        nn.init.zeros_(self.change.out.weight)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.change(z)


def refinement_loss(rough: Tensor, features: Tensor, l2: float, refine_gallery: bool, kind: str = "cosine") -> Loss:
    """Cosine embedding loss (margin 0; the negatives are the batch shifted by one) + l2 || R(zhat) - z ||^2 / d.

    rough: (N c, K, d), samples of zhat_0 for c descriptions of each person, whose R are averaged as in use; features:
    (N, d), z_0; both scaled. refine_gallery: compare with R(z_0) instead of z_0. kind: "cosine" as published, or
    "infonce" (ours): against everybody else in the batch.
    """
    compare: Callable[[Tensor, Tensor], Tensor] = info_nce if kind == "infonce" else _cosine_embedding

    def loss(refinement: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        target = features[rows % len(features)].float()
        found = refinement(rough[rows].float()).float().mean(1)
        mate = refinement(target).float() if refine_gallery else target
        return compare(found, mate) + l2 * F.mse_loss(found, target)

    return loss


def _cosine_embedding(found: Tensor, mate: Tensor) -> Tensor:
    same = torch.ones(len(found))
    return F.cosine_embedding_loss(found, mate, same) + F.cosine_embedding_loss(found, mate.roll(1, 0), -same)


def info_nce(left: Tensor, right: Tensor, scale: float | Tensor = 16.0) -> Tensor:
    """Cross-entropy of finding each row's mate among the others', both ways, by scaled cosine; (B, d) each."""
    logits = scale * F.normalize(left, dim=1) @ F.normalize(right, dim=1).T
    target = torch.arange(len(left))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


# ------------------------------------------------------------------------------------------------------------- training


Say = Callable[[Tensor, torch.Generator], Tensor]
"""say(rows, generator) -> tokens (B, L, e): fresh descriptions of the faces in these rows."""


def describing(faces: Faces, section: DiFace) -> Say:
    """Descriptions for training: of another photograph of the person, drawn and phrased anew each time."""
    read, describer = tokeniser(faces.names, section.tokens), describer_of(section)

    def say(rows: Tensor, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        return read(describer.say(faces.elsewhere[rows.numpy()], rng), rng)

    return say


def describer_of(section: DiFace) -> Describer:
    """The describer whose captions a profile's networks are trained on."""
    return Describer(section.error, section.say_yes, section.say_no)


def captions_of(faces: Faces, describer: Describer, seed: int) -> np.ndarray:
    """said int8 (N, A): one description of each photograph."""
    return describer.say(faces.attributes, np.random.default_rng((seed, 1)))


def denoiser_loss(features: Tensor, say: Say, schedule: Schedule, token_drop: float) -> Loss:
    """E w(t) || eps - D(z_t, t, tau(c)) ||^2, t uniform, w = 1 / abar_t: least squares in v for a network that computes
    v (as in ``denoising_loss``). token_drop: share of descriptions dropped whole, for guidance."""
    abar = schedule.alphas_cumprod

    def loss(denoiser: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        z0, t = features[rows].float(), uniform_timesteps(len(rows), schedule, generator)
        noise, a = torch.randn(z0.shape, generator=generator), abar[t]
        kept = torch.rand(len(rows), generator=generator) >= token_drop
        tokens = say(rows, generator) * kept[:, None, None]
        error = denoiser(add_noise(z0, noise, a), t, tokens).float() - noise
        return (error.square().mean(1) / a).mean()

    return loss


def denoiser_recipe(profile: Profile, section: DiFace) -> Recipe:
    """D: trained on features of the ``generator`` people and descriptions of them."""
    names = (
        "tokens denoiser width depth token_drop schedule timesteps ema steps batch lr weight_decay error say_yes say_no"
    )
    config = {name: as_config(section)[name] for name in [*names.split(), "seed"]}
    upstream = (faces_recipe(profile, "generator", section.encoder, section.people),)
    return Recipe("diface.denoiser", config, partial(_make_denoiser, section), upstream=upstream)


def refinement_recipe(profile: Profile, section: DiFace) -> Recipe:
    """R: trained on what the finished D makes of descriptions in T~ steps, K samples of each."""
    names = "refine_people refine_captions refine_width refine_loss refine_steps l2 refine_gallery sampling_steps"
    names += " samples guidance batch lr ema"
    config = {name: as_config(section)[name] for name in [*names.split(), "weight_decay", "seed"]}
    upstream = (denoiser_recipe(profile, section), *denoiser_recipe(profile, section).upstream)
    return Recipe("diface.refinement", config, partial(_make_refinement, section), upstream=upstream)


def training_config(section: DiFace, steps: int | None = None) -> TrainingConfig:
    """AdamW, cosine decay; bfloat16 products."""
    steps = steps or section.steps
    return TrainingConfig(
        steps=steps,
        batch=section.batch,
        lr=section.lr,
        seed=section.seed,
        ema=section.ema,
        warmup=min(200, steps // 10),
        decay="cosine",
        weight_decay=section.weight_decay,
        bf16=True,
    )


def features_of(faces: Faces) -> Tensor:
    """z_0 = sqrt(d) E(I) of each photograph, float32 (N, d)."""
    return torch.from_numpy(scaled(faces.embeddings))


def _build_denoiser(section: DiFace, dim: int, token_dim: int) -> VectorDenoiser:
    schedule = Schedule(section.timesteps, section.schedule)
    return VectorDenoiser(VectorConfig(section.denoiser, dim, token_dim, section.width, section.depth, schedule))


def seeded(seed: int, build: Callable[[], nn.Module]) -> Any:
    """A network with initial weights from ``seed``; the ambient generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def fit(network: nn.Module, loss: Loss, n: int, training: TrainingConfig, folder: Path, **facts: Any) -> None:
    """Train on n rows into ``folder``, with ``facts`` beside the weights; continues an interrupted attempt."""
    log, checkpoint = TrainingLog(folder / "log.csv", training), folder / "checkpoint.safetensors"
    for state in train(network, loss, n, training, checkpoint):
        log.write(state)
    metrics = {"loss": state.loss}
    tensors = compact(state.ema.state_dict())
    save_model(folder / MODEL, tensors, step=state.step, metrics=metrics, code_version=code_version(), **facts)
    checkpoint.unlink(missing_ok=True)


def _make_denoiser(section: DiFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = read_faces(upstream[0])
    dims = {"dim": faces.embeddings.shape[1], "token_dim": tokeniser(faces.names, section.tokens).dim}
    denoiser = seeded(section.seed, lambda: _build_denoiser(section, **dims))
    loss = denoiser_loss(features_of(faces), describing(faces, section), denoiser.schedule, section.token_drop)
    fit(denoiser, loss, len(faces), training_config(section), folder, **dims)


def _make_refinement(section: DiFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, denoiser = read_faces(upstream[1]), _read_denoiser(section, upstream[0])
    say, generator = describing(faces, section), torch.Generator().manual_seed(section.seed)
    people = min(len(faces), section.refine_people)
    parts = torch.arange(people).repeat(section.refine_captions).split(CHUNK)
    rough = torch.cat([_rough(denoiser, say(rows, generator), section, i) for i, rows in enumerate(parts)])
    features = features_of(faces)[:people]
    refinement = seeded(section.seed, lambda: Refinement(features.shape[1], section.refine_width))
    loss = refinement_loss(rough, features, section.l2, section.refine_gallery, section.refine_loss)
    fit(refinement, loss, len(rough), training_config(section, section.refine_steps), folder, dim=features.shape[1])


def _rough(denoiser: VectorDenoiser, tokens: Tensor, section: DiFace, part: int) -> Tensor:
    steps, samples = section.sampling_steps, section.samples
    return rough_estimates(denoiser, tokens, steps, samples, section.seed + part, section.guidance).half()


# -------------------------------------------------------------------------------------------------------------- loading


def load(profile: Profile, store: Store, section: DiFace | None = None, refined: bool = True) -> Model:
    """The model of a profile, or of another section: shipped, cached, or trained now. refined: with R."""
    section = section or profile.diface
    denoiser = store.get(denoiser_recipe(profile, section))
    return assemble(section, denoiser, store.get(refinement_recipe(profile, section)) if refined else None)


def assemble(section: DiFace, denoiser: Path, refinement: Path | None = None) -> Model:
    """The model whose D, and R if there is one, were written into these folders."""
    refined = _read_refinement(section, refinement) if refinement else None
    return Model(_read_denoiser(section, denoiser), refined, section)


def _read_denoiser(section: DiFace, folder: Path) -> VectorDenoiser:
    tensors, facts = read_model(folder / MODEL)
    denoiser = _build_denoiser(section, facts["dim"], facts["token_dim"])
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)


def _read_refinement(section: DiFace, folder: Path) -> Refinement:
    tensors, facts = read_model(folder / MODEL)
    refinement = Refinement(facts["dim"], section.refine_width)
    refinement.load_state_dict(tensors)
    return refinement.eval().requires_grad_(False)
