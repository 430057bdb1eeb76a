"""Published weights through files: names, shapes and outputs against reference vectors and against plain functions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from facetransport.checkpoints import CALLBACK, read_checkpoint
from facetransport.diffusion import autoencoder as codes
from facetransport.diffusion.autoencoder import Autoencoder, CodeConfig
from facetransport.diffusion.official import Imported, import_unet, import_vq, ldm_name
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.unet import UNet, UNetConfig
from facetransport.generation import load_model
from facetransport.tensors import read_model
from test_unet import REFERENCE, official

State = dict[str, Tensor]


def published(state: State, prefix: str = "eps_model.", betas: Tensor | None = None) -> State:
    """As IDiff-Face saves: the U-Net inside its DDPM, whose buffers come along."""
    betas = torch.linspace(1e-4, 0.02, 1000) if betas is None else betas
    parent = prefix.removesuffix("eps_model.")
    buffers = {"betas": betas, "alphas": 1 - betas, "sigmas": betas.sqrt()}
    return {prefix + n: v for n, v in state.items()} | {parent + n: v for n, v in buffers.items()}


def doubled(state: State) -> State:
    return {n: 2 * v for n, v in state.items()}


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Imported]:
    """Saves data with torch and imports the file as a U-Net."""

    def run(data: Any, **options: Any) -> Imported:
        torch.save(data, tmp_path / "given.ckpt")
        return import_unet(tmp_path / "given.ckpt", tmp_path / "ours", **options)

    return run


@pytest.fixture(scope="module")
def code() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(codes.build(CodeConfig("kl", 3, 4, 8)))


# ------------------------------------------------------------------------------------------------------------- U-Net


@pytest.mark.parametrize("conditioning", ["ca", "adagn"])
def test_imported_unet_computes_the_reference_vectors(
    imported: Callable[..., Imported], code: Autoencoder, conditioning: str
) -> None:
    state, v = official("small", conditioning)
    done = imported(published(state))
    assert (done.kind, done.prefix) == (f"unet_{conditioning}", "eps_model.")
    assert done.parameters == sum(p.numel() for p in state.values())
    model = load_model(done.path, code)
    assert (model.shape, model.context_dim) == ((3, 16, 16), 64)
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser(v["x"], v["t"], v["context"]), v["eps"], atol=1e-4, rtol=0)
        torch.testing.assert_close(model.denoiser(v["x"], v["t"]), v["eps_null"], atol=1e-4, rtol=0)


def test_unconditional_unet_is_recognised(imported: Callable[..., Imported], code: Autoencoder) -> None:
    network = UNet(UNetConfig(3, 32, (1, 2), (False, True), blocks=2, conditioning="none")).eval()
    torch.nn.init.normal_(network.final.weight)  # it starts at zero, and everything is equal to zero
    model = load_model(imported(network.state_dict()).path, code)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        expected = network(x, t)
        torch.testing.assert_close(model.denoiser(x, t), expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("conditioning", ["ca", "adagn"])
def test_published_size_is_inferred_from_names_and_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditioning: str
) -> None:
    """Expanded zeros take no memory; only the writing, which would make 0.8 GB of them, is left out."""
    expected = json.loads((REFERENCE / f"idiff_face_{conditioning}_state_dict.json").read_text())
    state = {n: torch.zeros(()).expand(shape) for n, shape in expected["state_dict"].items()}
    monkeypatch.setattr("facetransport.diffusion.official.read_checkpoint", lambda path: published(state))
    monkeypatch.setattr("facetransport.diffusion.official.file_digest", lambda path: "")
    monkeypatch.setattr("facetransport.diffusion.official.save_model", lambda *arguments, **metadata: None)
    done = import_unet(tmp_path / "ema_averaged_model.ckpt", tmp_path / "ours", cpd=0.5)
    assert done.parameters == expected["n_parameters"]
    assert done.config == {
        "kind": f"unet_{conditioning}",
        "shape": (3, 32, 32),
        "width": 96,
        "depth": 2,
        "context_dim": 512,
        "projected_dim": 256,
        "cpd": 0.5,
        "schedule": {"timesteps": 1000, "kind": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    }


@pytest.mark.parametrize("prefix", ["", "module.", "module.eps_model.", "_forward_module.eps_model._orig_mod."])
def test_prefixes_and_nesting_are_stripped(imported: Callable[..., Imported], prefix: str) -> None:
    state, _ = official("small", "ca")
    done = imported({"epoch": 3, "model": {prefix + n: v for n, v in state.items()}, "optimizer": {"state": {0: 1}}})
    assert done.prefix == f"model.{prefix}"
    tensors, metadata = read_model(done.path)
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[n], v) for n, v in state.items())
    assert metadata["source"]["files"].keys() == {"given.ckpt"} and metadata["source"]["prefix"] == done.prefix


@pytest.mark.parametrize(("plain", "averaged"), [("model", "ema_model"), ("state_dict", "ema_averaged_model")])
def test_the_ema_copy_is_taken_when_asked_for(
    imported: Callable[..., Imported], code: Autoencoder, plain: str, averaged: str
) -> None:
    state, v = official("small", "adagn")
    both = {averaged: published(state), plain: published(doubled(state))}
    eps = []
    for ema in (True, False):
        denoiser = load_model(imported(both, ema=ema).path, code).denoiser
        with torch.no_grad():
            eps.append(denoiser(v["x"], v["t"], v["context"]))
    torch.testing.assert_close(eps[0], v["eps"], atol=1e-4, rtol=0)
    assert (eps[1] - v["eps"]).abs().max() > 0.1


def test_which_copy_is_never_guessed(imported: Callable[..., Imported]) -> None:
    state, _ = official("small", "ca")
    with pytest.raises(ValueError, match="holds no EMA copy .* leave out --ema"):
        imported(published(state), ema=True)
    with pytest.raises(ValueError, match="holds only an EMA copy .* ask for it with --ema"):
        imported({"ema": state})
    with pytest.raises(ValueError, match=r"holds 2 such networks \(names start with 'a.', 'b.'\)"):
        imported({"a": state, "b": state})


def test_the_schedule_is_that_of_the_betas(imported: Callable[..., Imported], code: Autoencoder) -> None:
    state, _ = official("small", "ca")
    for schedule in (Schedule(500, "linear", 2e-4, 0.04), Schedule(1000, "cosine")):
        betas = schedule.scheduler("ddpm", schedule.timesteps).betas
        done = imported(published(state, "module.eps_model.", betas))
        found = load_model(done.path, code).denoiser.schedule
        torch.testing.assert_close(found.alphas_cumprod, schedule.alphas_cumprod)
    with pytest.raises(ValueError, match="neither a linear nor a cosine schedule"):
        imported(published(state, betas=torch.linspace(0.01, 0.14, 1000).square()))


def test_tensors_that_do_not_fit_are_named(imported: Callable[..., Imported]) -> None:
    state, _ = official("small", "ca")
    without = {n: v for n, v in state.items() if n != "middle.res1.conv1.bias"}
    with pytest.raises(ValueError, match=r"given.ckpt: looks like unet_ca .* 1 .* missing middle\.res1\.conv1\.bias"):
        imported(published(without))
    with pytest.raises(ValueError, match=r"missing context_emb\.weight"):
        imported(published({n: v for n, v in state.items() if n != "context_emb.weight"}))
    with pytest.raises(ValueError, match=r"final\.bias is \(4,\), expected \(3,\)"):
        imported(published({**state, "final.bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match=r"unexpected empty_context"):
        imported(published({**state, "empty_context": torch.zeros(32)}))
    with pytest.raises(ValueError, match=r"given.ckpt: context_dropout"):
        imported(published(state), cpd=1.0)


def test_networks_that_cannot_be_built_are_refused(imported: Callable[..., Imported]) -> None:
    with pytest.raises(ValueError, match=r"multiply the width by \(1, 2, 2\); expected \(1, 2, 2, 2\) or \(1, 2\)"):
        imported(published(official("mid", "ca")[0]))
    with pytest.raises(ValueError, match=r"no image_proj\.weight among conv\.weight"):
        imported({"conv.weight": torch.zeros(3)})


# ----------------------------------------------------------------------------------------------------------- reading


class Shell:
    """Runs a command when unpickled by the book."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.pt"
    data = {"image_proj.weight": torch.zeros(1), "extra": Shell(f"touch '{trace}'")}
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pt: refused: the file asks to load posix\.system.*state dict alone"):
        read_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # so it would have run


def test_lightnings_callback_class_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LDM's own files have it as a dictionary key; the class need not be installed."""
    module, name = CALLBACK.rsplit(".", 1)
    callback = type(name, (), {"__module__": module})
    parts = module.split(".")
    packages = [".".join(parts[: i + 1]) for i in range(len(parts))]
    with monkeypatch.context() as context:
        for package in packages:
            context.setitem(sys.modules, package, type("Module", (), {name: callback}))
        torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": {callback: {"best": 1}}}, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt").keys() == {"state_dict.a"}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    state = {"image_proj.weight": torch.zeros(1000)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    for length in (path.stat().st_size // 2, 11, 0):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(ValueError, match=rf"cut\{suffix}: cannot be read .* copy it anew"):
            read_checkpoint(path)


def test_a_dictionary_within_itself_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"a": torch.zeros(1)}
    endless["again"] = endless
    torch.save(endless, tmp_path / "endless.pt")
    with pytest.raises(
        ValueError, match=r"endless\.pt: refused: dictionaries within dictionaries, more than 16 levels"
    ):
        read_checkpoint(tmp_path / "endless.pt")


def test_files_without_a_state_dict_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: expected a state dict .* got a list"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"ending in \.ckpt"):
        read_checkpoint(tmp_path / "weights.bin")
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        read_checkpoint(tmp_path / "none.pt")


# ------------------------------------------------------------------------------------------------------------- VQ-f4


def ldm_shapes(ch: int, embed: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of LDM's vq-f4: multipliers 1, 2, 4; 2 residual blocks a level; attention in the middle only."""
    widths, top = (ch, 2 * ch, 4 * ch), 4 * ch
    layers = [
        *conv("encoder.conv_in", 3, ch, 3),
        *(layer for level in range(3) for layer in down(level, widths)),
        *middle("encoder", top),
        *norm("encoder.norm_out", top),
        *conv("encoder.conv_out", top, embed, 3),
        *conv("quant_conv", embed, embed, 1),
        *conv("post_quant_conv", embed, embed, 1),
        *conv("decoder.conv_in", embed, top, 3),
        *middle("decoder", top),
        *(layer for level in range(3) for layer in up(level, widths)),
        *norm("decoder.norm_out", ch),
        *conv("decoder.conv_out", ch, 3, 3),
        ("quantize.embedding.weight", (8192, embed)),
    ]
    return dict(layers)


Layers = list[tuple[str, tuple[int, ...]]]


def conv(name: str, i: int, o: int, k: int) -> Layers:
    return [(f"{name}.weight", (o, i, k, k)), (f"{name}.bias", (o,))]


def norm(name: str, c: int) -> Layers:
    return [(f"{name}.weight", (c,)), (f"{name}.bias", (c,))]


def block(name: str, i: int, o: int) -> Layers:
    straight = norm(f"{name}.norm1", i) + conv(f"{name}.conv1", i, o, 3)
    straight += norm(f"{name}.norm2", o) + conv(f"{name}.conv2", o, o, 3)
    return straight if i == o else straight + conv(f"{name}.nin_shortcut", i, o, 1)


def middle(part: str, c: int) -> Layers:
    attention = [layer for name in ("q", "k", "v", "proj_out") for layer in conv(f"{part}.mid.attn_1.{name}", c, c, 1)]
    blocks = block(f"{part}.mid.block_1", c, c) + block(f"{part}.mid.block_2", c, c)
    return blocks + norm(f"{part}.mid.attn_1.norm", c) + attention


def down(level: int, widths: tuple[int, ...]) -> Layers:
    name, c, before = f"encoder.down.{level}", widths[level], widths[max(0, level - 1)]
    blocks = block(f"{name}.block.0", before, c) + block(f"{name}.block.1", c, c)
    return blocks + conv(f"{name}.downsample.conv", c, c, 3) if level < 2 else blocks


def up(level: int, widths: tuple[int, ...]) -> Layers:
    """Level 0 is that of the images."""
    name, c, before = f"decoder.up.{level}", widths[level], widths[min(2, level + 1)]
    blocks = block(f"{name}.block.0", before, c) + block(f"{name}.block.1", c, c) + block(f"{name}.block.2", c, c)
    return blocks + conv(f"{name}.upsample.conv", c, c, 3) if level else blocks


class LDM:
    """LDM's VQ autoencoder as functions of a state dict in its own names."""

    def __init__(self, state: State) -> None:
        self.state = state

    def encode(self, x: Tensor) -> Tensor:
        h = self.conv("encoder.conv_in", x)
        for level in range(3):
            for i in range(2):
                h = self.block(f"encoder.down.{level}.block.{i}", h)
            if level < 2:  # padded on the right and below only
                h = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
        h = F.silu(self.norm("encoder.norm_out", self.middle("encoder", h)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", h))

    def decode(self, z: Tensor) -> Tensor:
        codebook = self.state["quantize.embedding.weight"]
        nearest = (z.movedim(1, -1)[..., None, :] - codebook).square().sum(-1).argmin(-1)
        h = self.conv("decoder.conv_in", self.conv("post_quant_conv", codebook[nearest].movedim(-1, 1)))
        h = self.middle("decoder", h)
        for level in (2, 1, 0):
            for i in range(3):
                h = self.block(f"decoder.up.{level}.block.{i}", h)
            if level:
                h = self.conv(f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0))
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h)))

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(
            x, weight, self.state[f"{name}.bias"], stride, weight.shape[-1] // 2 if padding is None else padding
        )

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        shortcut = f"{name}.nin_shortcut"
        return h + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.state else x)

    def middle(self, part: str, x: Tensor) -> Tensor:
        x = self.block(f"{part}.mid.block_1", x)
        h = self.norm(f"{part}.mid.attn_1.norm", x)
        q, k, v = (self.conv(f"{part}.mid.attn_1.{name}", h).flatten(2) for name in "qkv")  # (B, C, h w)
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        x = x + self.conv(f"{part}.mid.attn_1.proj_out", (v @ weights.transpose(1, 2)).view_as(x))
        return self.block(f"{part}.mid.block_2", x)


@pytest.fixture(scope="module")
def vq() -> State:
    """Random weights in LDM's names, small enough for outputs of order 1."""
    g = torch.Generator().manual_seed(0)
    state = {n: torch.randn(shape, generator=g) for n, shape in ldm_shapes(32).items()}
    scaled = {n: v / v[0].numel() ** 0.5 if v.ndim == 4 else 0.1 * v + n.endswith("weight") for n, v in state.items()}
    return {**scaled, "quantize.embedding.weight": state["quantize.embedding.weight"]}


def parts(state: State, *starts: str) -> State:
    return {n: v for n, v in state.items() if n.startswith(starts)}


def test_imported_vq_computes_what_ldm_computes(tmp_path: Path, vq: State) -> None:
    others = {"loss.discriminator.main.0.weight": torch.zeros(2), "global_step": torch.tensor(1)}
    torch.save({"state_dict": {**vq, **others}, "epoch": 1}, tmp_path / "model.ckpt")
    done = import_vq([tmp_path / "model.ckpt"], tmp_path / "ours.safetensors")
    assert (done.kind, done.parameters) == ("vq", sum(v.numel() for v in vq.values()))
    autoencoder, reference = codes.load(done.path), LDM(vq)
    assert autoencoder.config == CodeConfig("vq", 3, 4, 32)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = reference.encode(images)
    assert latents.std() > 0.1
    torch.testing.assert_close(autoencoder.encode(images), latents, atol=1e-4, rtol=0)
    decoded = reference.decode(latents)
    assert decoded.std() > 0.1
    torch.testing.assert_close(autoencoder.decode(latents), decoded.clamp(-1, 1), atol=1e-4, rtol=0)


def test_names_agree_with_diffusers_own_conversion(vq: State) -> None:
    network = codes.build(CodeConfig("vq", 3, 4, 32)).network
    theirs = convert_ldm_vae_checkpoint(vq, network.config)
    ours = {n: vq[ldm_name(n, 3)] for n in network.state_dict()}
    assert ours.keys() - theirs.keys() == {"quantize.embedding.weight"}
    assert all(torch.equal(ours[n].reshape(v.shape), v) for n, v in theirs.items())
    assert {ldm_name(n, 3) for n in ours} == vq.keys()


def test_the_published_vq_f4_has_our_names_and_shapes() -> None:
    with torch.device("meta"):
        ours = codes.build(CodeConfig("vq", 3, 4, 128)).network.state_dict()
    published = ldm_shapes(128)
    assert {ldm_name(n, 3) for n in ours} == published.keys()
    assert all(v.numel() == torch.Size(published[ldm_name(n, 3)]).numel() for n, v in ours.items())
    assert round(sum(v.numel() for v in ours.values()) / 1e6, 1) == 55.3  # the paper's count


def test_encoder_and_decoder_come_in_two_files(tmp_path: Path, vq: State) -> None:
    encoder, decoder = tmp_path / "encoder.pt", tmp_path / "decoder.pt"
    torch.save(parts(vq, "encoder.", "quant_conv."), encoder)
    torch.save(parts(vq, "decoder.", "post_quant_conv.", "quantize."), decoder)
    tensors, _ = read_model(import_vq([decoder, encoder], tmp_path / "ours").path)
    ours = {ldm_name(n.removeprefix("network."), 3): v for n, v in tensors.items()}
    assert ours.keys() == vq.keys() and all(torch.equal(ours[n].view_as(v), v) for n, v in vq.items())
    with pytest.raises(ValueError, match=r"encoder\.pt: missing quantize\.embedding\.weight.*state_dict\.pt together"):
        import_vq([encoder], tmp_path / "ours")
    with pytest.raises(ValueError, match=r"decoder\.pt: holds no VQ-f4 autoencoder"):
        import_vq([decoder], tmp_path / "ours")
    with pytest.raises(ValueError, match=r"which another file held already"):
        import_vq([encoder, encoder], tmp_path / "ours")


def test_the_first_stage_of_a_whole_ldm_is_found(tmp_path: Path, vq: State) -> None:
    whole = {f"first_stage_model.{n}": v for n, v in vq.items()} | {"model.diffusion_model.out.0.weight": torch.ones(1)}
    save_file(whole, tmp_path / "ldm.safetensors")
    done = import_vq([tmp_path / "ldm.safetensors"], tmp_path / "ours")
    assert (done.prefix, done.parameters) == ("first_stage_model.", sum(v.numel() for v in vq.values()))


def test_other_autoencoders_are_refused(tmp_path: Path, vq: State) -> None:
    path, out = tmp_path / "other.pt", tmp_path / "ours"
    for change, said in (
        ({"quantize.embedding.weight": torch.zeros(512, 3)}, r"\(512, 3\), expected \(8192, 3\)"),
        ({"encoder.down.0.attn.0.q.weight": torch.zeros(1)}, r"unexpected encoder\.down\.0\.attn\.0\.q\.weight"),
        ({"encoder.mid.attn_1.q.weight": torch.zeros(128, 128)}, r"\(128, 128\), expected \(128, 128, 1, 1\)"),
    ):
        torch.save({**vq, **change}, path)
        with pytest.raises(ValueError, match=rf"other\.pt: looks like a VQ code of width 32 with 3 levels.*{said}"):
            import_vq([path], out)
    assert not list(tmp_path.glob("ours*"))


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    save_file(official("small", "adagn")[0], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="give the result another name"):
        import_unet(path, tmp_path / "unet")
    assert path.read_bytes() == before
