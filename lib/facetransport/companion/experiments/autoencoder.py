"""The code that a profile's diffusion lives in: the stages that train it, and a later decoder of finished codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import given, recognisers, roles
from facetransport.companion.profiles import Autoencoder as AutoencoderSection
from facetransport.companion.profiles import Decoder as DecoderSection
from facetransport.companion.profiles import Profile, as_config
from facetransport.data.faceset import FaceSet
from facetransport.devices import device
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion.autoencoder import Autoencoder, CodeConfig, Features, KLCode, LossWeights, VQCode
from facetransport.recognition.align import network_input
from facetransport.recognition.iresnet import IResNetRecogniser
from facetransport.tensors import rounding, save_model, seeded
from facetransport.training import TrainingConfig, TrainingLog, resident, train
from facetransport.version import code_version

MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"


def recipes(profile: Profile) -> tuple[Recipe, ...]:
    """All of a profile's autoencoder: what makes its codes and, with ``decoder.steps``, a later decoder of them."""
    return (code_recipe(profile), *[decoder_recipe(profile)] * bool(profile.decoder.steps))


def load_folders(folders: Sequence[Path]) -> Autoencoder:
    """The autoencoder from the folders of ``recipes``."""
    return codes.load(*(folder / MODEL for folder in folders)).to(device())


def load_autoencoder(profile: Profile, store: Store) -> Autoencoder:
    """The autoencoder of a profile: shipped, cached or trained now."""
    return load_folders([store.get(recipe) for recipe in recipes(profile)])


def code_recipe(profile: Profile) -> Recipe:
    """The code: trained on pixels, then, with ``identity_steps``, on the reference's embeddings too; or a file."""
    brought = given.recipe(profile, "autoencoder")
    if brought:
        return brought
    config = profile.autoencoder
    pixels = _pixels_recipe(profile)
    if not config.identity_steps:
        return pixels
    kept = {"identity_steps": config.identity_steps, "identity_weight": config.identity_weight}
    upstream = (pixels, roles.recipe(profile, "train"), recognisers.recipe(profile))
    return Recipe("autoencoder", kept, partial(_make_identity, config), upstream=upstream, collective=True)


def decoder_recipe(profile: Profile) -> Recipe:
    """A decoder trained for longer on codes that stay as they are, and with them all that was trained on them."""
    upstream = (
        code_recipe(profile),
        roles.recipe(profile, "generator"),
        recognisers.recipe(profile),
    )
    make = partial(_make_decoder, profile.decoder)
    return Recipe("autoencoder.decoder", as_config(profile.decoder), make, upstream=upstream, collective=True)


def _pixels_recipe(profile: Profile) -> Recipe:
    config = as_config(profile.autoencoder)
    for name in ("identity_steps", "identity_weight"):
        config.pop(name)
    upstream = (roles.recipe(profile, "train"),)
    make = partial(_make_pixels, profile)
    return Recipe("autoencoder.pixels", config, make, upstream=upstream, collective=True)


def _make_pixels(profile: Profile, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train on pixels into ``folder``; continues an interrupted attempt."""
    given.require(profile)
    section = profile.autoencoder
    with seeded(section.seed):
        code = codes.build(CodeConfig(section.kind, section.latent_channels, section.downsample, section.width))
    training = TrainingConfig(
        section.steps, section.batch, section.lr, section.seed, warmup=section.steps // 100, decay="cosine", bf16=True
    )
    _train_code_into(folder, code, upstream[0], training, LossWeights())


def _make_identity(section: AutoencoderSection, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Go on from the pixel code with the reference recogniser's embedding in the loss."""
    pixels, faces, reference = upstream
    code = codes.load(pixels / MODEL).code.train().requires_grad_(True)
    training = TrainingConfig(
        section.identity_steps, section.batch, section.lr / 3, section.seed, warmup=100, decay="cosine", bf16=True
    )
    features = partial(_embedding, recognisers.read_white_box(reference).requires_grad_(False))
    _train_code_into(folder, code, faces, training, LossWeights(features=section.identity_weight), features)


def _make_decoder(section: DecoderSection, folder: Path, upstream: tuple[Path, ...]) -> None:
    """Train a decoder from nothing, the encoder frozen; continues an interrupted attempt."""
    finished, faces, reference = upstream
    code = codes.with_new_decoder(codes.load(finished / MODEL).code, section.residuals, section.seed)
    training = TrainingConfig(
        section.steps,
        section.batch,
        section.lr,
        section.seed,
        warmup=section.steps // 100,
        decay="cosine",
        betas=(0.9, 0.99),
        bf16=True,
    )
    faceset = FaceSet.load(faces).select(slice(section.people))
    features = partial(_stages, recognisers.read_white_box(reference).requires_grad_(False))
    weights = LossWeights(features=section.feature_weight)
    final, facts = _train_into(folder, code, faceset, training, weights, features)
    tensors = {n: v for n, v in final.state_dict().items() if n.startswith(codes.DECODER)}
    about = {"config": asdict(final.config), "data": faces.name, "small": rounding(codes.SMALLEST)}
    save_model(folder / MODEL, tensors, **about, **facts)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _embedding(recogniser: IResNetRecogniser, images: Tensor) -> list[Tensor]:
    return [recogniser.to(images.device).embed(images)]


def _stages(recogniser: IResNetRecogniser, images: Tensor) -> list[Tensor]:
    """The recogniser's four feature maps, and its embedding."""
    network = recogniser.to(images.device).model
    return network.stages(network_input(images, network.config.input_size))


def _train_code_into(
    folder: Path,
    code: KLCode | VQCode,
    faces: Path,
    training: TrainingConfig,
    weights: LossWeights,
    features: Features | None = None,
) -> None:
    faceset = FaceSet.load(faces)
    final, facts = _train_into(folder, code, faceset, training, weights, features)
    final.fit_scale(faceset.tensor(slice(0, 2048)))
    codes.save(folder / MODEL, final, data=faces.name, **facts)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _train_into(
    folder: Path,
    code: KLCode | VQCode,
    faceset: FaceSet,
    training: TrainingConfig,
    weights: LossWeights,
    features: Features | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The trained network, and what its file says of it."""
    log, where = TrainingLog(folder / "log.csv", training), device()
    loss = codes.code_loss(resident(faceset.images, where), weights, features)
    for state in train(code, loss, len(faceset), training, folder / CHECKPOINT):
        log.write(state)
    final: Any = state.ema.to("cpu")
    metrics = {"psnr": codes.psnr(Autoencoder(final), faceset.tensor(slice(0, 256))), "loss": float(state.loss)}
    return final, {"step": state.step, "code_version": code_version(), "metrics": metrics}
