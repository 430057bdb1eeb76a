"""Codes: shapes, scale, independence of the batch, losses, training, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import autoencoder as stages
from facetransport.companion.experiments import idiff_face as experiment
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion.autoencoder import Autoencoder, CodeConfig, KLCode, LossWeights
from facetransport.tensors import lighten
from facetransport.training import TrainingConfig, train

CONFIG = TrainingConfig(steps=60, batch=8, lr=2e-3, seed=1, warmup=5, ema=0.9)


def blobs(n: int = 24, size: int = 32) -> FaceSet:
    """Soft discs of random colour and place: easy to learn, not constant."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    centre, colour, ground = rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0, 255, (n, 3)), rng.uniform(0, 255, (n, 3))
    mask = 1 / (1 + np.exp(40 * (np.hypot(x - centre[:, :1, None], y - centre[:, 1:, None]) - 0.25)))[..., None]
    images = mask * colour[:, None, None] + (1 - mask) * ground[:, None, None]
    return FaceSet(images.astype(np.uint8), pd.DataFrame({"identity": np.arange(n)}))


def code(downsample: int = 8, channels: int = 4) -> KLCode:
    torch.manual_seed(0)
    return KLCode(CodeConfig("kl", channels, downsample, 16))


@pytest.mark.parametrize(("downsample", "side"), [(4, 8), (8, 4), (16, 2)])
def test_shapes(downsample: int, side: int) -> None:
    autoencoder = Autoencoder(code(downsample))
    latents = autoencoder.encode(blobs(3).tensor())
    assert latents.shape[1:] == autoencoder.latent_shape(32) == (4, side, side)
    images = autoencoder.decode(latents)
    assert images.shape == (3, 3, 32, 32)
    assert images.abs().max() <= 1


def test_laptop_code_is_512_numbers() -> None:
    with torch.device("meta"):
        laptop = KLCode(CodeConfig("kl", 8, 8, 64))
    assert np.prod(Autoencoder(laptop).latent_shape(64)) == 512
    assert sum(p.numel() for p in laptop.parameters()) < 2_000_000


def test_each_image_is_independent_of_its_batch() -> None:
    autoencoder, images = Autoencoder(code()), blobs(19).tensor()
    latents = autoencoder.encode(images)
    assert torch.equal(latents[[7]], autoencoder.encode(images[[7]]))
    decoded = autoencoder.decode(latents)
    assert torch.equal(decoded[[2, 18]], autoencoder.decode(latents[[2, 18]]))


def test_latents_have_zero_mean_and_unit_deviation_after_fitting() -> None:
    network, images = code(), blobs().tensor()
    network.fit_scale(images)
    latents = Autoencoder(network).encode(images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    posterior = network._posterior(images)[0]
    raw = network._pixels(posterior).clamp(-1, 1)
    torch.testing.assert_close(Autoencoder(network).decode(latents), raw, atol=1e-4, rtol=0)


def test_faceset_codes_and_mirror_images() -> None:
    autoencoder, faces = Autoencoder(code()), blobs(5)
    images = faces.tensor()
    assert torch.equal(autoencoder.encode_faceset(faces), autoencoder.encode(images))
    assert torch.equal(autoencoder.encode_faceset(faces, flip=True), autoencoder.encode(images.flip(3)))


# ---------------------------------------------------------------------------------------------------------- losses


def test_kl_in_closed_form() -> None:
    network, images = code(), blobs(4).tensor()
    mean, logvar = network._posterior(images)
    p, q = torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(p, q).flatten(1).sum(1)
    torch.testing.assert_close(network.reconstruct(images, torch.Generator().manual_seed(0))[1], expected)


def test_gradient_difference_of_a_shift_in_brightness_is_zero_and_of_blur_is_not() -> None:
    x, w = blobs(2).tensor(), codes.face_weight(32)
    assert codes.gradient_difference(x + 0.25, x, w) < 1e-6
    assert codes.gradient_difference(F.avg_pool2d(x, 5, 1, 2), x, w) > 0.01


def test_face_weight_favours_the_face() -> None:
    w = codes.face_weight(64)[0, 0]
    assert w.mean() == pytest.approx(1, abs=1e-5)
    assert w[34, 32] > 3 * w[0, 0]


def test_feature_difference_of_unit_vectors_is_two_minus_two_cosines() -> None:
    x, y = torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    expected = (2 - 2 * F.cosine_similarity(x.flatten(1), y.flatten(1))).mean()
    torch.testing.assert_close(codes.feature_difference(lambda i: [i.flatten(1)], y, x), expected)


def test_features_act_from_their_step_on_and_reach_the_code() -> None:
    faces, asked = blobs(), []

    def features(images: Tensor) -> list[Tensor]:
        asked.append(len(images))
        return [images.flatten(1)]

    weights = LossWeights(features=1.0, features_from=2)
    loss = codes.code_loss(faces.images, weights, features)
    network, rows = code(), torch.arange(4)
    early, late = (loss(network, rows, torch.Generator().manual_seed(0), step) for step in (1, 2))
    assert asked == [4, 4]
    assert late > early
    late.backward()
    assert all(p.grad is not None for p in network.parameters())


# -------------------------------------------------------------------------------------------------------- training


def test_training_learns_and_its_file_reloads(tmp_path: Path) -> None:
    faces = blobs()
    states = [
        (float(s.loss), s.ema) for s in train(code(), codes.code_loss(faces.images, LossWeights()), len(faces), CONFIG)
    ]
    assert np.mean([loss for loss, _ in states[-5:]]) < 0.6 * np.mean([loss for loss, _ in states[:5]])
    final = states[-1][1]
    final.fit_scale(faces.tensor())
    before = codes.psnr(Autoencoder(code()), faces.tensor())
    after = codes.psnr(Autoencoder(final), faces.tensor())
    assert after > before + 3
    codes.save(tmp_path / "model.safetensors", final, step=60)
    again = codes.load(tmp_path / "model.safetensors")
    assert codes.psnr(again, faces.tensor()) == pytest.approx(after, abs=0.1)  # stored in float16


def test_vq_code_is_quantised_at_decoding_only() -> None:
    torch.manual_seed(0)
    network = codes.build(CodeConfig("vq", 3, 4, 32))
    autoencoder, images = Autoencoder(network), blobs(2, 16).tensor()
    latents = autoencoder.encode(images)
    assert latents.shape[1:] == autoencoder.latent_shape(16) == (3, 4, 4)
    nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 3), network.network.quantize.embedding.weight).argmin(
        1
    )
    quantised = network.network.quantize.embedding.weight[nearest].view(2, 4, 4, 3).permute(0, 3, 1, 2)
    assert not torch.allclose(latents, quantised)
    torch.testing.assert_close(autoencoder.decode(latents), autoencoder.decode(quantised), atol=1e-4, rtol=0)


def test_vq_code_of_the_papers_has_the_ldm_configuration() -> None:
    with torch.device("meta"):
        network = codes.build(CodeConfig("vq", 3, 4, 128)).network
    assert network.config.block_out_channels == (128, 256, 512)
    assert tuple(network.quantize.embedding.weight.shape) == (8192, 3)


def test_smoke_recipe_builds_all_stages(smoke: Profile, smoke_store: Store) -> None:
    autoencoder = stages.load_autoencoder(smoke, smoke_store)
    assert autoencoder.latent_shape(smoke.rendered.size) == (4, 4, 4)
    for recipe, steps in zip(
        stages.recipes(smoke), (smoke.autoencoder.identity_steps, smoke.decoder.steps), strict=True
    ):
        log = (smoke_store.get(recipe) / "log.csv").read_text().splitlines()
        assert len(log) == 1 + steps


def test_without_identity_steps_the_pixel_stage_is_the_code(smoke: Profile) -> None:
    plain = replace(smoke, autoencoder=replace(smoke.autoencoder, identity_steps=0))
    assert stages.code_recipe(plain).stage == "autoencoder.pixels"
    assert stages.code_recipe(smoke).upstream[0].key == stages.code_recipe(plain).key


def test_without_steps_the_code_keeps_its_decoder(smoke: Profile) -> None:
    plain = replace(smoke, decoder=replace(smoke.decoder, steps=0))
    assert [recipe.stage for recipe in stages.recipes(plain)] == ["autoencoder"]


def test_a_later_decoder_leaves_the_codes_as_they_are(smoke: Profile, smoke_store: Store) -> None:
    before = codes.load(smoke_store.get(stages.code_recipe(smoke)) / stages.MODEL)
    after, images = stages.load_autoencoder(smoke, smoke_store), blobs(5, smoke.rendered.size).tensor()
    latents = after.encode(images)
    assert torch.equal(latents, before.encode(images))
    assert after.config == replace(before.config, residuals=smoke.decoder.residuals)
    assert not torch.equal(after.decode(latents), before.decode(latents))


def test_networks_are_trained_on_codes_whatever_decodes_them(smoke: Profile) -> None:
    """A better decoder costs no denoiser and no contexts, but every set that was decoded."""
    other = replace(smoke, decoder=replace(smoke.decoder, steps=smoke.decoder.steps + 1))
    assert [r.key for r in experiment.recipes(other)] == [r.key for r in experiment.recipes(smoke)]
    for kind in ("uniform", "two_stage"):
        assert experiment.dataset_recipe(other, kind).key != experiment.dataset_recipe(smoke, kind).key


def test_only_the_new_decoder_learns() -> None:
    faces, start = blobs(), code()
    new = codes.with_new_decoder(start, (1, 3), seed=4)
    frozen = [v.clone() for v in new.encoder.parameters()]
    states = [
        (float(s.loss), s.ema) for s in train(new, codes.code_loss(faces.images, LossWeights()), len(faces), CONFIG)
    ]
    assert states[-1][0] < 0.7 * states[0][0]
    assert all(torch.equal(a, b) for a, b in zip(frozen, states[-1][1].encoder.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(frozen, start.encoder.parameters(), strict=True))


def test_a_new_decoder_is_drawn_from_its_seed_and_needs_a_kl_code() -> None:
    first, again, other = (codes.with_new_decoder(code(), (1, 2), seed).decoder[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.device("meta"), pytest.raises(ValueError, match=r"expected a KL code.*decoder\.steps to 0"):
        codes.with_new_decoder(codes.build(CodeConfig("vq", 3, 4, 32)), (2, 2), 0)


def test_decoders_large_kernels_are_shipped_as_int8(tmp_path: Path) -> None:
    path, network = tmp_path / "model.safetensors", KLCode(CodeConfig("kl", 12, 8, 64, (3, 1)))
    codes.save(path, network)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}  # until it is shipped
    lighten(path)
    kinds = {name: tensor.dtype for name, tensor in load_file(path).items()}
    assert kinds["decoder.1.conv1.weight"] == torch.int8
    assert {kind for name, kind in kinds.items() if name.startswith("encoder.")} == {torch.float16}
    images = blobs(4, 64).tensor()
    expected, found = Autoencoder(network), codes.load(path)
    assert (found.encode(images) - expected.encode(images)).abs().max() < 0.02
    assert (found.decode(expected.encode(images)) - expected.decode(expected.encode(images))).abs().max() < 0.02


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    autoencoder = Autoencoder(code())
    with pytest.raises(ValueError, match=r"images: expected \(B, 3, H, W\), sides multiples of 8"):
        autoencoder.encode(torch.zeros(1, 3, 30, 30))
    with pytest.raises(ValueError, match="images"):
        autoencoder.encode(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"latents: expected \(B, 4, h, w\)"):
        autoencoder.decode(torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match="size: expected a multiple of 8"):
        autoencoder.latent_shape(30)
    with pytest.raises(ValueError, match="kind"):
        CodeConfig("gan", 4, 8, 16)
    with pytest.raises(FileNotFoundError, match="no such model file"):
        codes.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="at least one sample"):
        autoencoder.encode(torch.zeros(0, 3, 32, 32))


def test_mirroring_touches_half_of_the_batch() -> None:
    x = to_tensor(blobs(400, 16).images)
    mirrored = codes.mirrored(x, torch.Generator().manual_seed(0))
    flipped = (mirrored == x.flip(3)).flatten(1).all(1)
    assert ((mirrored == x).flatten(1).all(1) | flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6
