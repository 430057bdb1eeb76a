"""DiFace's faces, networks and rivals, as a profile asks for them (`facetransport.papers.diface`).

Networks on features are trained as long as D, on the same people, by words that are drawn in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import given, recognisers, roles
from facetransport.companion.experiments.fitting import MODEL, fit
from facetransport.companion.profiles import DiFace, Profile, RecogniserTraining, as_config
from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.devices import device
from facetransport.diffusion.autoencoder import mirrored
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.vectors import Described, MultiLayer, VectorConfig, VectorDenoiser
from facetransport.evaluation.described import (
    CAPTIONED,
    Faces,
    Matcher,
    People,
    Say,
    Tau,
    another,
    describing,
    features_of,
)
from facetransport.evaluation.matchers import (
    CHUNK,
    Classifier,
    Contrastive,
    DualEncoder,
    Regression,
    Seen,
    classifier_loss,
    contrastive_loss,
    regression_loss,
)
from facetransport.files import write_json
from facetransport.papers.diface import Model, Refinement, Settings, denoiser_loss, refinement_loss, rough_estimates
from facetransport.recognition import dlib
from facetransport.recognition.iresnet import IResNet, WithEarlierMap
from facetransport.recognition.recogniser import Recogniser, embed_faceset
from facetransport.tensors import read_model, save_model, seeded
from facetransport.training import Loss, TrainingConfig, TrainingLog, pick, resident, train
from facetransport.world import grammar, rendered
from facetransport.world.captions import Describer

FACES, SAID = "faces.safetensors", "captions.json"
CAPTION = "caption"  # the column, of CelebA-Dialog's
POPULATION = 10_000  # people: the bound is an average over them


# ---------------------------------------------------------------------------------------------------------------- faces


def population_recipe(profile: Profile) -> Recipe:
    """Attributes of some ``generator`` people, drawn without rendering: what the Bayes bound takes for the world."""
    if "generator" in profile.photographs:
        photographs = (roles.recipe(profile, "generator"),)
        return Recipe("diface.population", {}, _make_photographed_population, upstream=photographs)
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
    _write_population(folder, here, there)


def _make_photographed_population(folder: Path, upstream: tuple[Path, ...]) -> None:
    here, there = _attributes_of_photographs(FaceSet.load(upstream[0]))
    _write_population(folder, here[:POPULATION], there[:POPULATION])


def _write_population(folder: Path, here: pd.DataFrame, there: pd.DataFrame) -> None:
    packed = {"attributes": here, "elsewhere": there}
    tensors = {n: torch.from_numpy(np.packbits(a.to_numpy(bool), axis=1)) for n, a in packed.items()}
    save_model(folder / FACES, tensors, names=list(here))


def _told_of(table: pd.DataFrame) -> list[str]:
    """The attributes of a table that the grammar has words for."""
    return [name for name in rendered.attribute_names(table) if name in grammar.known_names()]


def _attributes_of_photographs(faces: FaceSet) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the table says of each photograph, as far as there are words for it, and of the person's next photograph, or
    of the same where there is none. ValueError where there are words for nothing."""
    names = _told_of(faces.table)
    if not names:
        raise ValueError(
            f"photographs: expected attributes in the table, such as CelebA's ({', '.join(grammar.known_names()[:3])}, "
            f"...), got columns {', '.join(map(str, faces.table))}; import them with their attributes"
        )
    here = faces.table[names].reset_index(drop=True)
    return here, here.iloc[another(faces.identity)].reset_index(drop=True)


def faces_recipe(profile: Profile, role: str, encoder: str = "reference", people: int | None = None) -> Recipe:
    """Embeddings and attributes of a role's first ``people``, by default all. encoder: E, as in a profile's section, or
    "maps": E beside its own earlier feature map. Where the role is played by photographs, what their table says of them
    (CelebA's attributes), as far as the grammar has words for it, and their captions where DiFace reads some."""
    config: dict[str, Any] = {
        "people": people or profile.rendered.roles[role].identities,
        "views": profile.rendered.roles[role].views,
    }
    if role in profile.photographs and profile.diface.tokens == "captions":
        config["captions"] = True
    network = recognisers.dlib_recipe(profile) if encoder == "dlib" else recognisers.recipe(profile)
    head = () if role in profile.photographs else (roles.head_recipe(),)
    upstream = (roles.recipe(profile, role), network, *head)
    make = partial(_make_faces, config, profile.rendered.world_seed, encoder)
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
    captions = tuple(json.loads(told.read_text(encoding="utf-8"))) if (told := folder / SAID).is_file() else ()
    return Faces(attributes, elsewhere, tuple(metadata["names"]), embeddings, tensors["identity"].numpy(), captions)


def _make_faces(
    config: dict[str, Any], world_seed: int, encoder: str, folder: Path, upstream: tuple[Path, ...]
) -> None:
    faceset, recogniser = FaceSet.load(upstream[0]), _read_recogniser(upstream[1], encoder)
    faceset = faceset.select(np.flatnonzero(np.unique(faceset.identity, return_inverse=True)[1] < config["people"]))
    if len(upstream) == 2:
        here, elsewhere = _attributes_of_photographs(faceset)
    else:
        here = faceset.table[_told_of(faceset.table)]
        another = [(int(i), int(k) + config["views"]) for i, k in faceset.table[["identity", "view"]].to_numpy()]
        elsewhere = rendered.attributes(another, upstream[2], world_seed)[list(here)]
    tensors = {
        "embeddings": torch.from_numpy(embed_faceset(recogniser, faceset)).half(),
        "attributes": torch.from_numpy(here.to_numpy(bool, copy=True)),
        "elsewhere": torch.from_numpy(elsewhere.to_numpy(bool, copy=True)),
        "identity": torch.from_numpy(faceset.identity.astype(np.int64)),
    }
    save_model(folder / FACES, tensors, names=list(here))
    if config.get("captions"):
        write_json(folder / SAID, _captions_of_photographs(faceset))


def _captions_of_photographs(faces: FaceSet) -> list[str]:
    """ValueError where a photograph has none."""
    if CAPTION not in faces.table:
        raise ValueError(f"photographs: {CAPTIONED}")
    texts = faces.table[CAPTION].astype(str).tolist()
    missing = [row for row, text in enumerate(texts) if text.strip() in ("", "None", "nan")]  # as tables write them
    if missing:
        raise ValueError(f"photographs: row {missing[0]} (of {len(missing)}) has no caption; {CAPTIONED}")
    return texts


def _read_recogniser(folder: Path, encoder: str) -> Recogniser:
    if encoder == "dlib":
        return dlib.load(folder / recognisers.STATISTICS)
    if encoder == "maps":
        return WithEarlierMap(recognisers.read_white_box(folder).model).to(device())
    return recognisers.read(folder)


# --------------------------------------------------------------------------------------------------------- the networks


def ours(section: DiFace) -> DiFace:
    """The section with the R that was best on val people: trained by InfoNCE, and applied to the gallery too."""
    return replace(section, refine_loss="infonce", refine_gallery=True, l2=0.0)


def describer_of(section: DiFace) -> Describer:
    """The describer whose captions a profile's networks are trained on."""
    return Describer(section.error, section.say_yes, section.say_no)


def tau_of(section: DiFace) -> Tau:
    """How what is said becomes tokens."""
    return Tau(section.tokens, Path(section.text) if section.text else None)


def words_of(section: DiFace) -> dict[str, str]:
    """What a recipe knows of words: the phrases, where they are read, and what the user's text model holds."""
    phrased = {"phrases": grammar.phrases_digest()} if section.tokens in ("clauses", "text") else {}
    return phrased | given.text_model(section.text, "diface.text")


def settings_of(section: DiFace) -> Settings:
    """How the section's model is asked."""
    steps, samples = section.sampling_steps, section.samples
    return Settings(tau_of(section), steps, samples, section.guidance, section.refine_gallery)


def denoiser_recipe(profile: Profile, section: DiFace) -> Recipe:
    """D: trained on features of the ``generator`` people and descriptions of them."""
    names = (
        "tokens denoiser width depth token_drop schedule timesteps ema steps batch lr weight_decay error say_yes say_no"
    )
    config = {name: as_config(section)[name] for name in [*names.split(), "seed"]} | words_of(section)
    upstream = (faces_recipe(profile, "generator", section.encoder, section.people),)
    return Recipe("diface.denoiser", config, partial(_make_denoiser, section), upstream=upstream, collective=True)


def refinement_recipe(profile: Profile, section: DiFace) -> Recipe:
    """R: trained on what the finished D makes of descriptions in T~ steps, K samples of each."""
    names = "refine_people refine_captions refine_width refine_loss refine_steps l2 refine_gallery sampling_steps"
    names += " samples guidance batch lr ema"
    config = {name: as_config(section)[name] for name in [*names.split(), "weight_decay", "seed"]}
    upstream = (denoiser_recipe(profile, section), *denoiser_recipe(profile, section).upstream)
    return Recipe("diface.refinement", config, partial(_make_refinement, section), upstream=upstream, collective=True)


def training_config(section: DiFace, steps: int | None = None) -> TrainingConfig:
    """AdamW, cosine decay; bfloat16 products."""
    steps = steps or section.steps
    config = _adamw(steps, section.batch, section.lr, section.seed)
    return replace(config, ema=section.ema, warmup=min(200, steps // 10), weight_decay=section.weight_decay)


def _build_denoiser(section: DiFace, dim: int, token_dim: int) -> VectorDenoiser:
    schedule = Schedule(section.timesteps, section.schedule)
    return VectorDenoiser(VectorConfig(section.denoiser, dim, token_dim, section.width, section.depth, schedule))


def _make_denoiser(section: DiFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = read_faces(upstream[0])
    dims = {"dim": faces.embeddings.shape[1], "token_dim": tau_of(section).of(faces.names).dim}
    with seeded(section.seed):
        denoiser = _build_denoiser(section, **dims)
    say = describing(faces, tau_of(section), describer_of(section))
    loss = denoiser_loss(resident(features_of(faces), device()), say, denoiser.schedule, section.token_drop)
    fit(denoiser, loss, len(faces), training_config(section), folder, **dims)


def _make_refinement(section: DiFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, denoiser = read_faces(upstream[1]), _read_denoiser(section, upstream[0])
    say = describing(faces, tau_of(section), describer_of(section))
    people = min(len(faces), section.refine_people)
    parts = torch.arange(people).repeat(section.refine_captions).split(CHUNK)
    said = (say(rows, torch.Generator().manual_seed(section.seed + i)) for i, rows in enumerate(parts))
    rough = torch.cat([_rough(denoiser, tokens, section, i) for i, tokens in enumerate(said)])
    features = features_of(faces)[:people]
    with seeded(section.seed):
        refinement = Refinement(features.shape[1], section.refine_width)
    rough, features = (resident(part, device()) for part in (rough, features))
    loss = refinement_loss(rough, features, section.l2, section.refine_gallery, section.refine_loss)
    fit(refinement, loss, len(rough), training_config(section, section.refine_steps), folder, dim=features.shape[1])


def _rough(denoiser: VectorDenoiser, tokens: Tensor, section: DiFace, part: int) -> Tensor:
    steps, samples = section.sampling_steps, section.samples
    return rough_estimates(denoiser, tokens, steps, samples, section.seed + part, section.guidance).half().cpu()


def load(profile: Profile, store: Store, section: DiFace | None = None, refined: bool = True) -> Model:
    """The model of a profile, or of another section: shipped, cached, or trained now. refined: with R."""
    section = section or profile.diface
    denoiser = store.get(denoiser_recipe(profile, section))
    return assemble(section, denoiser, store.get(refinement_recipe(profile, section)) if refined else None)


def assemble(section: DiFace, denoiser: Path, refinement: Path | None = None) -> Model:
    """The model whose D, and R if there is one, were written into these folders."""
    refined = _read_refinement(section, refinement) if refinement else None
    return Model(_read_denoiser(section, denoiser), refined, settings_of(section))


def _read_denoiser(section: DiFace, folder: Path) -> VectorDenoiser:
    tensors, facts = read_model(folder / MODEL)
    denoiser = _build_denoiser(section, facts["dim"], facts["token_dim"])
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False).to(device())


def _read_refinement(section: DiFace, folder: Path) -> Refinement:
    tensors, facts = read_model(folder / MODEL)
    refinement = Refinement(facts["dim"], section.refine_width)
    refinement.load_state_dict(tensors)
    return refinement.eval().requires_grad_(False).to(device())


# ----------------------------------------------------------------------------------------------------------- the rivals


def rivals(profile: Profile) -> list[tuple[str, str]]:
    """Kind and encoder of every baseline that is trained; an ONNX file in the place of E has no maps to look at."""
    black_box = profile.weights.get("reference", "").endswith(".onnx")
    maps = [] if black_box else [("classifier", "maps")]
    return [*((kind, profile.diface.encoder) for kind in BASELINES), *maps]


def baseline_recipe(profile: Profile, kind: str, encoder: str | None = None) -> Recipe:
    """A baseline, trained as long and on the same descriptions: "regression", "contrastive" or "classifier".

    encoder: of the features it sees, by default E of the profile.
    """
    section, encoder = profile.diface, encoder or profile.diface.encoder
    names = "tokens width depth ema steps batch lr weight_decay error say_yes say_no seed"
    if kind not in BASELINES:
        raise ValueError(f"kind: expected one of {', '.join(BASELINES)}, got {kind!r}")
    config = {name: as_config(section)[name] for name in names.split()} | words_of(section)
    upstream = (faces_recipe(profile, "generator", encoder, section.people),)
    return Recipe(f"diface.{kind}", config, partial(_make_baseline, kind, section), upstream=upstream, collective=True)


def _make_baseline(kind: str, section: DiFace, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces = read_faces(upstream[0])
    dims = {
        "dim": faces.embeddings.shape[1],
        "token_dim": tau_of(section).of(faces.names).dim,
        "attributes": len(faces.names),
    }
    build, loss = BASELINES[kind]
    with seeded(section.seed):
        network = build(section, dims)
    facts = dims | {"prior": faces.attributes.mean(0).tolist(), "persistence": faces.persistence.tolist()}
    say = describing(faces, tau_of(section), describer_of(section))
    fit(network, loss(faces, say), len(faces), training_config(section), folder, **facts)


Build = Callable[[DiFace, dict[str, int]], nn.Module]
BASELINES: dict[str, tuple[Build, Callable[[Faces, Say], Loss]]] = {
    "regression": (lambda s, d: Described(d["token_dim"], d["dim"], s.width, s.depth), regression_loss),
    "contrastive": (lambda s, d: DualEncoder(d["token_dim"], d["dim"], s.width, s.depth), contrastive_loss),
    "classifier": (lambda s, d: MultiLayer(d["dim"], s.width, d["attributes"], dropout=0.2), classifier_loss),
}


def load_baseline(profile: Profile, store: Store, kind: str, encoder: str | None = None) -> Matcher:
    """A trained baseline of `BASELINES`; encoder: as `baseline_recipe`."""
    return read_baseline(kind, profile.diface, store.get(baseline_recipe(profile, kind, encoder)))


def read_baseline(kind: str, section: DiFace, folder: Path) -> Matcher:
    """The baseline that was written into a folder."""
    tensors, facts = read_model(folder / MODEL)
    network = BASELINES[kind][0](section, facts)
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False).to(device())
    if kind == "classifier":
        prior, persistence = np.array(facts["prior"]), np.array(facts["persistence"])
        return Classifier(network, prior, persistence, describer_of(section))
    if isinstance(network, DualEncoder):
        return Contrastive(network.words, network.images, tau_of(section))
    return Regression(network, tau_of(section))


# ----------------------------------------------------------------------------------------------- attributes from pixels


def pixels_recipe(profile: Profile) -> Recipe:
    """How probable each attribute is in each photograph of `val` and `gallery`, as a network reads them off the pixels.

    It is built and trained like the encoder E, with A outputs, on the images of the ``generator`` people.
    """
    seen = ("generator", "val", "gallery")
    upstream = tuple(roles.recipe(profile, role) for role in seen)
    config = as_config(profile.reference) | {"steps": profile.diface.pixel_steps}
    section = replace(profile.reference, steps=profile.diface.pixel_steps)
    return Recipe("diface.pixels", config, partial(_make_pixels, section), upstream=upstream, collective=True)


def load_pixels(profile: Profile, store: Store, role: str) -> Seen:
    """The matcher that sees the photographs of a role, "val" or "gallery"."""
    present = read_model(store.get(pixels_recipe(profile)) / MODEL)[0][role].float().numpy()
    return Seen(present, load_population(profile, store), describer_of(profile.diface))


def load_beliefs(profile: Profile, store: Store, role: str, method: str) -> np.ndarray:
    """float (N, A): how probable each attribute is in each photograph of a role, "val" or "gallery", according to
    "pixels", to the "classifier" of features, or to that of "maps"."""
    if method == "pixels":
        return load_pixels(profile, store, role).present
    encoder = "maps" if method == "maps" else profile.diface.encoder
    matcher = load_baseline(profile, store, "classifier", encoder)
    assert isinstance(matcher, Classifier)
    return matcher.present(load_faces(profile, store, role, encoder))


def _make_pixels(section: RecogniserTraining, folder: Path, upstream: tuple[Path, ...]) -> None:
    faces, *others = (FaceSet.load(path) for path in upstream)
    names = _told_of(faces.table)
    side, present = faces.images.shape[1], torch.from_numpy(faces.table[names].to_numpy(np.float32, copy=True))
    backbone = replace(recognisers.network_config(section), input_size=side, dropout=0.2)
    with seeded(section.seed):
        network = nn.Sequential(IResNet(backbone), nn.Linear(backbone.dim, len(names)))
    training = replace(_adamw(section.steps, section.batch, 2e-3, section.seed), ema=0.99, warmup=50, weight_decay=0.01)
    log, checkpoint = TrainingLog(folder / "log.csv", training), folder / "checkpoint.safetensors"
    for state in train(network, pixel_loss(faces, present), len(faces), training, checkpoint):
        log.write(state)
    found = {role: _present(state.ema, other).half() for role, other in zip(("val", "gallery"), others, strict=True)}
    save_model(folder / MODEL, found, names=names, step=state.step, metrics={"loss": float(state.loss)})
    checkpoint.unlink(missing_ok=True)


def _adamw(steps: int, batch: int, lr: float, seed: int) -> TrainingConfig:
    return TrainingConfig(steps, batch, lr, seed, decay="cosine", bf16=True)


def pixel_loss(faces: FaceSet, present: Tensor) -> Loss:
    """Cross-entropy of each attribute, read off the pixels; each image mirrored half of the time."""

    pixels = resident(faces.images, device())

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        images = mirrored(to_tensor(pick(pixels, rows, generator.device)), generator)
        return F.binary_cross_entropy_with_logits(network(images).float(), pick(present, rows, generator.device))

    return loss


@torch.inference_mode()
def _present(network: nn.Module, faces: FaceSet) -> Tensor:
    images = (faces.tensor(slice(i, i + CHUNK)).to(device()) for i in range(0, len(faces), CHUNK))
    return torch.cat([network(part).sigmoid().cpu() for part in images])
