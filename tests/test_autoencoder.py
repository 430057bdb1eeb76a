"""Codes: shapes, scale, independence of the batch, losses, training, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from facetransport.artifacts import Store
from facetransport.data.faceset import FaceSet, to_tensor
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion.autoencoder import Autoencoder, CodeConfig, KLCode, LossWeights
from facetransport.diffusion.training import TrainingConfig
from facetransport.profiles import Profile

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
    network, rows = codes._Reconstruct(code()), torch.arange(4)
    early, late = (loss(network, rows, torch.Generator().manual_seed(0), step) for step in (1, 2))
    assert asked == [4, 4]
    assert late > early
    late.backward()
    assert all(p.grad is not None for p in network.parameters())


# -------------------------------------------------------------------------------------------------------- training


def test_training_learns_and_its_file_reloads(tmp_path: Path) -> None:
    faces = blobs()
    states = [(s.loss, s.ema) for s in codes.train_code(code(), faces, CONFIG, LossWeights())]
    assert np.mean([loss for loss, _ in states[-5:]]) < 0.6 * np.mean([loss for loss, _ in states[:5]])
    final = states[-1][1].code
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


def test_smoke_recipe_builds_both_stages(smoke: Profile, smoke_store: Store) -> None:
    autoencoder = codes.load_autoencoder(smoke, smoke_store)
    assert autoencoder.latent_shape(smoke.rendered.size) == (4, 4, 4)
    log = (smoke_store.get(codes.recipe(smoke)) / "log.csv").read_text().splitlines()
    assert len(log) == 1 + smoke.autoencoder.identity_steps


def test_without_identity_steps_the_pixel_stage_is_the_autoencoder(smoke: Profile) -> None:
    from dataclasses import replace

    plain = replace(smoke, autoencoder=replace(smoke.autoencoder, identity_steps=0))
    assert codes.recipe(plain).stage == "autoencoder.pixels"
    assert codes.recipe(smoke).upstream[0].key == codes.recipe(plain).key


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
    mirrored = codes._mirrored(x, torch.Generator().manual_seed(0))
    flipped = (mirrored == x.flip(3)).flatten(1).all(1)
    assert ((mirrored == x).flatten(1).all(1) | flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6
