from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from facetransport.companion import profiles
from facetransport.companion.experiments import fitting
from facetransport.companion.profiles import Profile


def variant(folder: Path, **changes: Any) -> Path:
    """The smoke profile as a file, with dotted keys changed; None deletes a key."""
    data = yaml.safe_load((profiles.FOLDER / "smoke.yaml").read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = data
        for key in path:
            section = section[key]
        if value is None:
            del section[last]
        else:
            section[last] = value
    target = folder / "mine.yaml"
    target.write_text(yaml.safe_dump(data))
    return target


@pytest.mark.parametrize("name", ["smoke", "laptop", "paper"])
def test_shipped_profiles_load_and_are_plain_data(name: str) -> None:
    profile = profiles.load(name)
    config = profiles.as_config(profile)
    assert config["name"] == name
    assert json.loads(json.dumps(config)) == config


def test_names_are_in_order_of_size() -> None:
    assert profiles.names()[:3] == ["smoke", "laptop", "paper"]


def test_a_file_of_ones_own_is_a_profile_named_after_it(tmp_path: Path) -> None:
    profile = profiles.load(variant(tmp_path, **{"rendered.size": 48}))
    assert (profile.name, profile.rendered.size) == ("mine", 48)


def test_lists_become_tuples_and_whole_numbers_floats(smoke: profiles.Profile) -> None:
    assert smoke.reference.layers == (1, 1, 1, 1)
    assert isinstance(smoke.reference.scale, float)
    assert isinstance(smoke.autoencoder.lr, float)  # 1e-3 is text to YAML 1.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rendered.sice": 64}, r"unknown key rendered\.sice; allowed: world_seed, size"),
        ({"colour": 1}, r"unknown key colour; allowed: name, seed, rendered"),
        ({"rendered.size": None}, r"missing key rendered\.size"),
        ({"rendered.size": "64"}, r"rendered\.size: expected a whole number, got '64'"),
        ({"rendered.size": 64.0}, r"rendered\.size: expected a whole number, got 64\.0"),
        ({"rendered.size": True}, r"rendered\.size: expected a whole number, got True"),
        ({"rendered": 3}, r"rendered: expected a mapping, got 3"),
        ({"reference.augment": 1}, r"reference\.augment: expected true or false, got 1"),
        ({"reference.layers": [1, 1, "x", 1]}, r"reference\.layers\[2\]: expected a whole number, got 'x'"),
        ({"reference.layers": [1, 1]}, r"reference\.layers: expected 4 numbers"),
        ({"reference.head": "softmax"}, r"reference\.head: expected one of cosface, arcface, adaface; got 'softmax'"),
        (
            {"sampling.solver": "euler"},
            r"sampling\.solver: expected one of ddpm, ddim, dpm\+\+, sde-dpm\+\+; got 'euler'",
        ),
        ({"rendered.roles.train": None}, r"rendered\.roles: expected exactly generator, train, val, test"),
        ({"rendered.roles.dev": {"identities": 1, "views": 1}}, r"rendered\.roles: expected exactly"),
        ({"rendered.roles.test.views": 0}, r"rendered\.roles\.test\.views: expected above 0, got 0"),
        ({"idiff_face.cpd": 1.0}, r"idiff_face\.cpd: expected below 1, got 1\.0"),
        ({"evaluation.identities": 1000}, r"evaluation\.identities: expected at most rendered\.roles\.test"),
        ({"evaluation.views": 99}, r"evaluation\.views: expected at most rendered\.roles\.test\.views 3, got 99"),
        ({"evaluation.folds": 11}, r"evaluation\.folds: expected at most evaluation\.verification_identities 10"),
        ({"sampling.steps": 51}, r"sampling\.steps: expected at most idiff_face\.timesteps 50, got 51"),
        ({"sampling.temperature": 0.0}, r"sampling\.temperature: expected above 0, got 0\.0"),
        ({"sampling.guidance": -1.0}, r"sampling\.guidance: expected at least 0, got -1\.0"),
        (
            {"sampling.guidance": 2.0, "idiff_face.context_drop": 0.0},
            r"sampling\.guidance: 2\.0 needs idiff_face\.context_drop above 0, got 0\.0",
        ),
        ({"judge.seed": 6}, r"judge\.seed: expected another than reference\.seed"),
        ({"diface.people": 49}, r"diface\.people: expected at most rendered\.roles\.generator 48, got 49"),
        ({"diface.sampling_steps": 51}, r"diface\.sampling_steps: expected at most timesteps 50, got 51"),
        ({"diface.guidance": 2.0, "diface.token_drop": 0.0}, r"diface\.guidance: .*needs token_drop above 0"),
        ({"diface.guidance": 100.0}, r"diface\.guidance: expected below 100, got 100\.0"),
        ({"diface.token_drop": 1.0}, r"diface\.token_drop: expected below 1, got 1\.0"),
        ({"diface.samples": 0}, r"diface\.samples: expected above 0, got 0"),
        (
            {"diface.tokens": "letters"},
            r"diface\.tokens: expected one of statements, clauses, text, captions; got 'letters'",
        ),
        ({"diface.text": "clip"}, r"diface\.text: .*clip reads tokens text or captions, not statements"),
        ({"diface.encoder": "judge"}, r"diface\.encoder: expected one of reference, dlib; got 'judge'"),
        (
            {"evaluation.galleries": [4, 13]},
            r"evaluation\.galleries: expected at most rendered\.roles\.gallery\.identities 12, got 13",
        ),
        ({"evaluation.galleries": [4, 0]}, r"evaluation\.galleries\[1\]: expected at least 2, got 0"),
        ({"evaluation.pairs": 41}, r"evaluation\.pairs: expected a multiple of 2, got 41"),
        ({"evaluation.pairs": 0}, r"evaluation\.pairs: expected above 0, got 0"),
        ({"decoder.residuals": [2]}, r"decoder\.residuals: expected 2 numbers, got \[2\]"),
        ({"decoder.residuals": [2, -1]}, r"decoder\.residuals\[1\]: expected at least 0, got -1"),
        ({"decoder.steps": -1}, r"decoder\.steps: expected at least 0, got -1"),
        ({"decoder.people": 10_000}, r"decoder\.people: expected at most rendered\.roles\.generator \d+, got 10000"),
        ({"autoencoder.kind": "vq"}, r"decoder\.steps: expected 0 where autoencoder\.kind is vq, got 4"),
        ({"idiff_face.denoiser": "adm"}, r"idiff_face\.denoiser: expected one of unet_ca, .*; got 'adm'"),
        ({"id3pm.denoiser": "unet_ca"}, r"id3pm\.denoiser: expected one of mlp, .*; got 'unet_ca'"),
        ({"id3pm.denoiser": "adm"}, r"id3pm\.prediction: adm predicts eps, got v"),
        (
            {"inversion.guidance": 2.0, "id3pm.context_drop": 0.0},
            r"inversion\.guidance: 2\.0 needs id3pm",
        ),
        ({"evaluation.pair_sets": 0}, r"evaluation\.pair_sets: expected above 0, got 0"),
        ({"idiff_face.lr": float("nan")}, r"idiff_face\.lr: expected text, true, false or a finite number, got nan"),
        ({"seed": date(2026, 1, 2)}, r"seed: expected text, .*got 2026-01-02; quote what is text"),
        ({"photographs": {1: "x"}}, r"expected a name as key in photographs, got 1"),
        ({"synthetic_recognition.lrs": [0.1, float("inf")]}, r"synthetic_recognition\.lrs\[1\]: .*got inf"),
    ],
)
def test_bad_profiles_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        profiles.load(variant(tmp_path, **changes))
    assert "mine.yaml" in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    text = (profiles.FOLDER / "smoke.yaml").read_text()
    (tmp_path / "twice.yaml").write_text(text + "\nseed: 3\n")
    with pytest.raises(ValueError, match=r"twice\.yaml.*key seed is given twice"):
        profiles.load(tmp_path / "twice.yaml")


def test_what_is_not_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("seed: 1\nrendered: {size: [")
    with pytest.raises(ValueError, match=r"(?s)broken\.yaml: not YAML that can be read.*line 2"):
        profiles.load(tmp_path / "broken.yaml")


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of smoke, laptop, paper.*got 'desktop'"):
        profiles.load("desktop")


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such profile file; copy .*laptop\.yaml"):
        profiles.load(tmp_path / "nowhere.yaml")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ValueError, match="expected a mapping of sections"):
        profiles.load(tmp_path / "empty.yaml")


def test_the_environment_comes_before_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(profiles.VARIABLE, "paper")
    assert profiles.resolve("laptop").name == "paper"
    monkeypatch.delenv(profiles.VARIABLE)
    assert profiles.resolve("laptop").name == "laptop"


def test_as_config_refuses_what_is_no_section() -> None:
    with pytest.raises(ValueError, match="expected a section of a profile, got dict"):
        profiles.as_config({"a": 1})


def test_variants_inherit_what_they_do_not_change() -> None:
    laptop = profiles.load("laptop")
    assert laptop.idiff_face_variants["unconditional"].context_drop == 1
    assert laptop.idiff_face_variants["adagn"].cpd == laptop.idiff_face.cpd
    assert laptop.idiff_face_variants["ca"].denoiser == "unet_ca" != laptop.idiff_face.denoiser


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "seeds: [0, 0]", "synthetic_recognition.seeds: expected different ones"),
        ("evaluations: 2", "evaluations: 9", "synthetic_recognition.evaluations: expected at most training.steps 8"),
        ("identities: 8\n", "identities: 2\n", "generation.identities: expected at least 4"),
    ],
)
def test_impossible_generation_and_recognition_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (profiles.FOLDER / "smoke.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        profiles.load(tmp_path / "mine.yaml")


def test_a_knob_at_its_default_stays_out_of_the_key_and_counts_elsewhere(smoke: Profile) -> None:
    section = smoke.idiff_face
    assert not {"warmup", "gradient_clip"} & set(profiles.as_config(section)) and (
        section.warmup,
        section.gradient_clip,
    ) == (None, 1.0)
    published = replace(section, warmup=0, gradient_clip=0.0)
    assert profiles.as_config(published) == profiles.as_config(section) | {"warmup": 0, "gradient_clip": 0.0}
    how = fitting.training_config(published)
    assert how.warmup == 0 and how.clip is None and fitting.training_config(section).clip == 1.0
    paper = profiles.load("paper").idiff_face
    assert (paper.warmup, paper.gradient_clip) == (0, 0.0)


def test_files_and_folders_are_meant_from_where_a_profile_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, mine = (profiles.FOLDER / "smoke.yaml").read_text(), tmp_path / "mine.yaml"
    entries = {"photographs": "train: faces", "weights": "judge: w.onnx", "tests": "lfw: /data/lfw.bin"}
    for section, entry in entries.items():
        text = text.replace(f"{section}: {{}}", f"{section}: {{{entry}}}")
    text = text.replace("tokens: statements", "tokens: text\n  text: clip").replace(
        "{texts: 400,", "{text: mpnet, texts: 400,"
    )
    mine.write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    loaded = profiles.load(f"{tmp_path.name}/mine.yaml")
    assert loaded.photographs == {"train": str(tmp_path / "faces")}
    assert loaded.weights == {"judge": str(tmp_path / "w.onnx")} and loaded.tests == {"lfw": "/data/lfw.bin"}
    assert loaded.diface.text == str(tmp_path / "clip")
    assert loaded.words.clausewise.text == str(tmp_path / "mpnet")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weights": {"vq": "a.safetensors"}}, "weights: expected networks among autoencoder.*got vq"),
        ({"weights": {"autoencoder": "a.onnx"}}, r"weights\.autoencoder: expected a file ending in \.safetensors, got"),
        ({"tests": {"orl": "a.bin"}}, "tests: orl is the name of something else"),
    ],
)
def test_what_files_cannot_stand_for_is_refused(smoke: Profile, wrong: dict[str, dict[str, str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(smoke, **wrong)  # type: ignore[arg-type]


def test_every_value_of_the_paper_profile_says_where_it_is_from() -> None:
    lines = (profiles.FOLDER / "paper.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"  \w+: [^{\s#]", line)]
    tags = ("[paper]", "[code]", "[code:", "[seed]", "[inferred]", "[ours]", "of no effect")
    assert len(values) > 150 and not [line for line in values if not any(tag in line for tag in tags)]
