"""The researcher's chain on tiny files in the field's formats: the README's commands, from FFHQ, CASIA and LFW on disk
to a table of LFW accuracies. The files are written by code that shares nothing with the readers."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from facetransport.companion import artifacts, cli, profiles
from facetransport.companion.experiments.synthetic_recognition import recognition_run
from facetransport.data.alignment import transform_points
from facetransport.data.detection import MARGIN
from facetransport.data.faceset import FaceSet, load_table
from facetransport.data.template import template
from facetransport.diffusion.unet import UNet, UNetConfig
from facetransport.recognition.iresnet import IResNet, IResNetConfig
from test_aligning import AWAY, write_scrfd
from test_annotation import turned, write_model
from test_official import ldm_shapes
from test_text import write_clip

README = Path(__file__).parents[1] / "README.md"
SIDE, DIM = 64, 64
RNG = np.random.default_rng(0)


def face(side: int, person: int) -> Image.Image:
    """A smooth picture; pictures of one person are alike."""
    base = np.random.default_rng(person).integers(0, 256, (4, 4, 3))
    noisy = np.clip(base + RNG.integers(-20, 20, base.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def write_ffhq(folder: Path, count: int) -> None:
    """FFHQ's own layout, and one file that a broken download left."""
    for i in range(count):
        path = folder / f"{i // 100 * 100:05d}" / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        face(128, i).save(path)
    (folder / "00000" / "00099.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def record(label: list[float], image: bytes = b"") -> bytes:
    flag = len(label) if len(label) > 1 else 0
    payload = struct.pack("<IfQQ", flag, 0.0 if flag else label[0], 0, 0)
    payload += struct.pack(f"<{flag}f", *label) if flag else b""
    payload += image
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + b"\0" * (-len(payload) % 4)


def write_rec(path: Path, people: list[int]) -> None:
    """people: how many images each has, as uneven as CASIA's are."""
    images = [(p, jpeg(face(112, 1000 + p))) for p, count in enumerate(people) for _ in range(count)]
    ends = np.cumsum(people) + 1
    records = [record([len(images) + 1, len(images) + 1 + len(people)])]
    records += [record([float(p)], image) for p, image in images]
    records += [record([end - count, end]) for end, count in zip(ends, people, strict=True)]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(records))
    starts = np.cumsum([0, *map(len, records[:-1])])
    path.with_suffix(".idx").write_text("".join(f"{key}\t{start}\n" for key, start in enumerate(starts)))


def write_bin(path: Path, pairs: int) -> None:
    same = [i % 2 == 0 for i in range(pairs)]
    images = [
        jpeg(face(112, 5000 + 2 * i + (0 if is_same else side))) for i, is_same in enumerate(same) for side in (0, 1)
    ]
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps((images, same)))


CELEBA = ("Eyeglasses", "Male", "Smiling", "Young")


def write_celeba(folder: Path, people: list[int]) -> None:
    """people: in the splits train, val and test; everyone has three photographs and a caption of each."""
    (folder / "img_align_celeba").mkdir(parents=True)
    split = np.repeat(np.repeat(np.arange(3), people), 3)
    person = np.repeat(np.arange(sum(people)), 3)
    names = [f"{i:06d}.jpg" for i in range(1, len(person) + 1)]
    told = RNG.choice([-1, 1], (sum(people), len(CELEBA)))[person]
    for name, i in zip(names, person, strict=True):
        face(218, 9000 + i).crop((20, 0, 198, 218)).save(folder / "img_align_celeba" / name)
    points = "69 111 108 111 88 133 72 152 105 152"
    rows = list(zip(names, person + 1, split, told, strict=True))
    count = str(len(names))
    lists = {
        "identity_CelebA": [f"{name} {i}" for name, i, _, _ in rows],
        "list_eval_partition": [f"{name} {part}" for name, _, part, _ in rows],
        "list_attr_celeba": [count, " ".join(CELEBA), *(f"{n}  {' '.join(map(str, a))}" for n, _, _, a in rows)],
        "list_landmarks_align_celeba": [count, " ".join("abcdefghij"), *(f"{name}  {points}" for name in names)],
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    said = {name: {"overall_caption": caption(row == 1)} for name, _, _, row in rows}
    (folder / "captions.json").write_text(json.dumps(said))


def caption(present: np.ndarray) -> str:
    glasses, male, smiling, young = present
    age, who = ("young" if young else "old"), ("man" if male else "woman")
    return f"A {age} {who} {'smiles' if smiling else 'is serious'}. {'Glasses.' if glasses else 'No glasses.'}"


def write_weights(folder: Path) -> None:
    """Random ones under the official names and shapes: LDM's VQ-f4, IDiff-Face's U-Net, InsightFace's IResNet."""
    torch.manual_seed(0)
    vq = {f"first_stage_model.{n}": 0.1 * torch.randn(s) for n, s in ldm_shapes(32).items()}
    unet = UNet(UNetConfig(3, 32, (1, 2), (False, True), blocks=1, context_dim=DIM))
    iresnet = IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 16, 16), input_size=112, dim=DIM))
    for name, state in {
        "vq-f4/model.ckpt": {"state_dict": vq},
        "idiff_face/ema_averaged_model.ckpt": {"model": unet.state_dict()},
        "elasticface_arc_r100.pth": iresnet.state_dict(),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / name)


def smoke_with(number: int) -> dict:
    """The smoke profile, with what the guide's blocks say that a user writes into theirs."""
    data = yaml.load((profiles.FOLDER / "smoke.yaml").read_text(), profiles._Loader)
    block = re.findall(r"```yaml\n(photographs:.*?)```", README.read_text(encoding="utf-8"), re.S)[number]
    for name, value in yaml.safe_load(block).items():
        data[name] = data[name] | value
    return data


def write_profile(path: Path) -> None:
    data = smoke_with(0)
    data["rendered"]["size"] = SIDE
    data["autoencoder"] |= {"kind": "vq", "latent_channels": 3, "downsample": 4, "steps": 0, "identity_steps": 0}
    data["decoder"]["steps"] = 0
    data["idiff_face"] |= {"denoiser": "unet_ca", "width": 32, "depth": 1, "context_drop": 0, "cpd": 0.25}
    data["sampling"] |= {"guidance": 1.0, "temperature": 1.0, "steps": 2}
    data["generation"] |= {"identities": 5, "samples": 4, "cpd": 0.25, "guidance": 1.0, "temperature": 1.0}
    path.write_text(yaml.safe_dump(data))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a researcher has on disk."""
    folder = tmp_path_factory.mktemp("desk")
    write_ffhq(folder / "ffhq" / "thumbnails128x128", 30)
    write_rec(folder / "casia" / "train.rec", [3, 5, 2, 4, 6, 2])
    write_bin(folder / "tests" / "lfw.bin", 60)
    write_weights(folder)
    write_profile(folder / "mine.yaml")
    return folder


def commands(number: int) -> list[list[str]]:
    """Those of one of the guide's blocks, at this size."""
    blocks = re.findall(r"```sh\n(facetransport import-faces .*?)```", README.read_text(encoding="utf-8"), re.S)
    lines = blocks[number].replace("--size 128", f"--size {SIDE}").replace("10000x50", "5x4").splitlines()
    return [line.split()[1:] for line in lines]


def test_the_guide_names_rows_and_notebooks_that_there_are() -> None:
    text = README.read_text(encoding="utf-8")
    rows = [row for line in re.findall(r"`facetransport benchmark ([^`]*)`", text) for row in line.split()]
    assert {"id3_flip", "authentic_flip", "two_stage.cpd50.10000x50.flip"} <= set(rows)
    large = profiles.load("paper")
    for row in rows:
        assert recognition_run(large, row, 0).stage.startswith("synthetic_recognition.")
    notebooks = re.findall(r"`(?:facetransport execute )?(notebooks/[^`]*)`", text)
    assert len(notebooks) >= 5 and all((README.parent / name).is_file() for name in notebooks)


def test_the_guide_ends_in_a_table(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv(artifacts.VARIABLE, str(desk / "cache"))
    said: dict[str, str] = {}
    for arguments in commands(0):
        assert cli.main(arguments) == 0, capsys.readouterr().err
        said[" ".join(arguments[:3])] = capsys.readouterr().out
    assert "1 without a face or broken" in said["import-faces ffhq ffhq/thumbnails128x128"]
    assert "not an image that can be read whole" in (desk / "faces/ffhq/failures.json").read_text()
    assert FaceSet.load(desk / "faces/casia").identity.tolist() == np.arange(6).repeat([3, 5, 2, 4, 6, 2]).tolist()
    [lfw] = json.loads((desk / "lfw.json").read_text())["sets"]
    assert lfw["set"] == "lfw" and lfw["pairs"] == 60 and 0.3 < lfw["low"] <= lfw["accuracy"] <= lfw["high"] <= 1
    rows = json.loads((desk / "table.json").read_text())
    assert [(r["row"], r["images"]) for r in rows] == [("uniform.cpd25.5x4.flip", 20)] * 2 + [
        ("authentic_flip", 22)
    ] * 2
    assert all({"rendered", "orl", "lfw"} <= set(row) for row in rows)
    assert "| uniform.cpd25.5x4.flip | 0 | 5 | 20 |" in said["benchmark uniform.cpd25.5x4.flip authentic_flip"]
    trained = {path.name for path in (desk / "cache").iterdir()}
    assert "weights.autoencoder" in trained and not trained & {
        "autoencoder.pixels",
        "recognition.reference",
        "idiff_face.cpd25",
    }


def write_models(folder: Path) -> None:
    """A detector, a reader of ages and one of poses, of InsightFace's interfaces."""
    folder.mkdir()
    border = SIDE // MARGIN
    points = (transform_points(template(SIDE), AWAY) + border) * 640 / (SIDE + 2 * border)
    write_scrfd(folder / "det_10g.onnx", points)
    write_model(folder / "genderage.onnx", 96, np.array([0.9, 0.1, 0.4]), 0.1)
    write_model(folder / "1k3d68.onnx", 192, np.tile(turned(12, 3, -4) * 0.5, (17, 1))[-1103:].ravel(), 0.0)


def test_sets_are_aligned_annotated_and_embedded(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (desk / "table.json").is_file():
        pytest.skip("the guide did not get so far")
    monkeypatch.chdir(desk)
    monkeypatch.setenv(artifacts.VARIABLE, str(desk / "cache"))
    write_models(desk / "buffalo_l")
    for arguments in commands(1):
        assert cli.main(arguments) == 0, capsys.readouterr().err
    told = FaceSet.load(desk / "faces" / "annotated").table
    np.testing.assert_allclose(told[["yaw", "pitch", "roll"]], np.tile([12, 3, -4], (30, 1)), atol=0.1)
    assert np.load(desk / "features" / "casia" / "embeddings.npy").shape == (22, DIM)
    assert len(FaceSet.load(desk / "faces" / "detected")) == 30
    data = yaml.safe_load((desk / "mine.yaml").read_text())
    data["weights"] |= {"detector": "buffalo_l/det_10g.onnx"}
    (desk / "aligning.yaml").write_text(yaml.safe_dump(data))
    row = "uniform.cpd25.4+1x4.flip"
    command = ["benchmark", row, "--seeds", "0", "--profile", "aligning.yaml", "--json", "aligned.json"]
    assert cli.main(command) == 0, capsys.readouterr().err
    [found] = json.loads((desk / "aligned.json").read_text())
    assert (found["row"], found["people"], found["images"]) == (row, 4, 16)
    [aligned] = (desk / "cache" / "aligned").glob("*/table.npz")
    assert (load_table(aligned)["off_template"] < 0.1).all()


def test_diface_reads_celebas_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "cache"))
    write_celeba(tmp_path / "celeba", [20, 12, 12])
    write_clip(tmp_path / "clip-vit-large-patch14")
    data = smoke_with(1)
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(data))
    size = ["--size", str(data["rendered"]["size"])]
    for arguments in commands(2):
        assert cli.main([*arguments, *size * (arguments[0] == "import-faces")]) == 0, capsys.readouterr().err
    train = FaceSet.load(tmp_path / "faces/celeba_train").table
    assert len(train) == 60 and train["caption"].str.contains("glasses", case=False).all()
    rows = json.loads((tmp_path / "words.json").read_text())
    assert {row["method"] for row in rows} == {"diface", "diface, infonce r", "regression", "contrastive"}
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows)


def test_two_processes_draw_the_set_of_one(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (desk / "weights" / "vq.safetensors").is_file():
        pytest.skip("the guide did not get so far")
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "facetransport",
    ]
    environment = {**os.environ, artifacts.VARIABLE: str(desk / "other"), "OMP_NUM_THREADS": "1"}
    command = [*run, "generate", "uniform", "--profile", str(desk / "mine.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (next((desk / cache).glob("idiff_face.set/*/images.npy")) for cache in ("cache", "other"))
    assert one.parent.name == two.parent.name and np.array_equal(np.load(one), np.load(two))
