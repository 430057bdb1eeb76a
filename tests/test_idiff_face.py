"""IDiff-Face: contexts, seeds that belong to identities, generation, the smoke model end to end."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from facetransport import devices, generation
from facetransport.companion import cli
from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import idiff_face as experiment
from facetransport.companion.experiments import recognisers, roles, synthetic_recognition
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet
from facetransport.diffusion import autoencoder, denoisers, sampling
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import Model
from facetransport.papers import idiff_face
from facetransport.recognition.plda import Plda, within_covariance


@pytest.fixture(scope="module")
def model(smoke: Profile, smoke_store: Store) -> Model:
    return experiment.load(smoke, smoke_store)


# --------------------------------------------------------------------------------------------------------- contexts


def test_uniform_contexts_are_uniform_on_the_sphere() -> None:
    y = idiff_face.uniform_contexts(4000, 16, seed=0)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(4000))
    assert y.mean(0).abs().max() < 0.02
    torch.testing.assert_close(y.T @ y / 4000, torch.eye(16) / 16, atol=0.01, rtol=0)


def test_uniform_context_of_an_identity_depends_on_seed_and_index_only() -> None:
    y = idiff_face.uniform_contexts(5, 16, seed=0)
    assert torch.equal(y[:3], idiff_face.uniform_contexts(3, 16, seed=0))
    assert not torch.allclose(y, idiff_face.uniform_contexts(5, 16, seed=1))


def test_two_stage_contexts_are_embeddings_of_drawn_faces(model: Model, smoke: Profile, smoke_store: Store) -> None:
    recogniser = recognisers.load_reference(smoke, smoke_store)
    y = idiff_face.two_stage_contexts(model, recogniser, 3, seed=0, solver="ddim", steps=2)
    assert y.shape == (3, recogniser.dim)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(y[:2], idiff_face.two_stage_contexts(model, recogniser, 2, 0, "ddim", 2))


# ------------------------------------------------------------------------------------------------------- generation


def test_images_of_an_identity_depend_on_seed_and_identity_only(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(4, model.context_dim, seed=0)
    everyone = generation.generate(model, contexts, 3, seed=5, steps=3)
    assert everyone.identity.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    alone = generation.generate(model, contexts[2:3], 3, seed=5, steps=3, identities=[2])
    assert np.array_equal(everyone.images[6:9], alone.images)
    more = generation.generate(model, contexts[2:3], 5, seed=5, steps=3, identities=[2])
    assert np.array_equal(more.images[:3], alone.images)
    other = generation.generate(model, contexts[2:3], 3, seed=6, steps=3, identities=[2])
    assert not np.array_equal(other.images, alone.images)
    assert not np.array_equal(alone.images[0], alone.images[1])


def test_chunks_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = idiff_face.uniform_contexts(3, model.context_dim, seed=0)
    whole = generation.generate(model, contexts, 2, seed=1, steps=2)
    monkeypatch.setattr(generation, "CHUNK", 4)
    assert np.array_equal(whole.images, generation.generate(model, contexts, 2, seed=1, steps=2).images)


def test_guidance_one_is_the_published_method(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(2, model.context_dim, seed=0)
    plain = generation.generate(model, contexts, 1, seed=1, steps=2)
    assert np.array_equal(plain.images, generation.generate(model, contexts, 1, seed=1, steps=2, guidance=1.0).images)
    assert not np.array_equal(
        plain.images, generation.generate(model, contexts, 1, seed=1, steps=2, guidance=8.0).images
    )


def test_images_of_a_person_vary_less_at_a_low_temperature(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(1, model.context_dim, seed=0)
    drawn = [generation.generate(model, contexts, 8, seed=1, steps=2, temperature=t).images for t in (1.0, 0.1)]
    published, cool = (images.astype(float).std(0).mean() for images in drawn)
    assert 0 < cool < 0.5 * published


def test_seeds_differ() -> None:
    seeds = sampling.sample_seeds(0, range(50), 20)
    assert len(set(seeds)) == 1000
    assert sampling.sample_seeds(0, [7], 20) == seeds[140:160]


def test_contexts_that_training_never_saw_are_refused(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(2, model.context_dim, seed=0)
    with pytest.raises(ValueError, match="unit vectors"):
        generation.generate(model, 3 * contexts, 1, seed=0)
    with pytest.raises(ValueError, match="unit vectors"):
        generation.generate(model, contexts * float("nan"), 1, seed=0)
    with pytest.raises(ValueError, match=rf"contexts: expected \(n, {model.context_dim}\)"):
        generation.generate(model, torch.ones(2, 3), 1, seed=0)
    with pytest.raises(ValueError, match="contexts"):
        generation.generate(model, contexts[:0], 1, seed=0)
    with pytest.raises(ValueError, match="identities"):
        generation.generate(model, contexts, 1, seed=0, identities=[1])


# ---------------------------------------------------------------------------------------------------------- recipes


def test_file_describes_itself(model: Model, smoke: Profile, smoke_store: Store) -> None:
    path = smoke_store.get(experiment.recipe(smoke)) / "model.safetensors"
    again = generation.load_model(path, model.autoencoder)
    assert again.metadata["step"] == smoke.idiff_face.steps
    assert again.metadata["config"]["cpd"] == 0.25
    assert {"config", "step", "data", "code_version", "metrics"} <= set(again.metadata)
    x, t = torch.randn(2, *again.shape), torch.tensor([3, 40])
    assert torch.equal(model.denoiser(x, t, None), again.denoiser(x, t, None))


def test_training_data_hold_mirror_images_with_the_contexts_of_their_originals(
    smoke: Profile, smoke_store: Store
) -> None:
    from safetensors.torch import load_file

    data = load_file(smoke_store.get(experiment.training_data(smoke)) / "data.safetensors")
    n = smoke.rendered.roles["generator"].identities
    assert len(data["latents"]) == len(data["contexts"]) == 2 * n
    assert torch.equal(data["contexts"][:n], data["contexts"][n:])
    assert not torch.equal(data["latents"][:n], data["latents"][n:])


def test_stages_are_named_by_their_cpd_level(smoke: Profile) -> None:
    assert experiment.recipe(smoke).stage == "idiff_face.cpd25"
    assert [experiment.recipe(smoke, p).stage for p in (0.0, 0.5)] == ["idiff_face.cpd0", "idiff_face.cpd50"]
    keys = {experiment.recipe(smoke, p).key for p in (0.0, 0.25, 0.5)}
    assert len(keys) == 3
    assert experiment.recipe(smoke, 0.25).key == experiment.recipe(smoke).key


def test_weights_shipped_elsewhere_need_no_upstream(smoke: Profile, smoke_store: Store, tmp_path: Path) -> None:
    """A store with only the shipped folder finds the model under the same key and builds nothing."""
    import shutil

    recipe, shipped = experiment.recipe(smoke), tmp_path / "shipped"
    shutil.copytree(smoke_store.get(recipe), shipped / recipe.place)
    store = Store(tmp_path / "cache", shipped=(shipped,))
    assert store.get(recipe) == shipped / recipe.place
    assert not store.has(experiment.recipe(replace(smoke, idiff_face=replace(smoke.idiff_face, seed=99))))


def test_training_contexts_are_those_of_the_training_data(smoke: Profile, smoke_store: Store) -> None:
    from safetensors.torch import load_file

    data = load_file(smoke_store.get(experiment.training_data(smoke)) / "data.safetensors")["contexts"].numpy()
    known = experiment.load_training_contexts(smoke, smoke_store)
    assert len(known) == smoke.rendered.roles["generator"].identities
    np.testing.assert_allclose(known, data[: len(known)], atol=1e-3)


def test_matched_contexts_have_the_spread_of_the_known_ones():
    rng = torch.Generator().manual_seed(0)
    known = F.normalize(torch.randn(4000, 16, generator=rng) * torch.linspace(1, 0.05, 16), dim=1)
    drawn = idiff_face.matched_contexts(4000, 1, known)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(known.T), atol=0.02, rtol=0)
    torch.testing.assert_close(idiff_face.matched_contexts(10, 1, known), drawn[:10])
    with pytest.raises(ValueError, match="more rows"):
        idiff_face.matched_contexts(3, 0, known[:8])


# ------------------------------------------------------------------------------------------------------ labelled sets


def untrained_model() -> Model:
    """Small networks with weights of their own, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        denoiser = denoisers.build("mlp", (2, 4, 4), 32, 1, 8, 8, 0.25, Schedule(50))
        code = autoencoder.build(autoencoder.CodeConfig("kl", 2, 8, 8))
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Model(denoiser.eval(), autoencoder.Autoencoder(code), (2, 4, 4), 8, {})


def make(folder: Path, identities: int, samples: int = 3, workers: int = 1, seed: int = 5) -> FaceSet:
    contexts = idiff_face.uniform_contexts(identities, 8, seed=0)
    made = generation.generate_into(folder, untrained_model(), contexts, samples, seed, "ddim", 3, 1.0, workers)
    assert made is not None
    return made


def test_jobs_draw_shares_of_one_set_and_the_last_joins_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "CHUNK", 7)  # two identities a shard
    whole, contexts = make(tmp_path / "whole", 9), idiff_face.uniform_contexts(9, 8, seed=0)
    for jobs in (2, 3, 8):
        folder = tmp_path / str(jobs)
        for job in reversed(range(jobs)):
            made = generation.generate_into(
                folder, untrained_model(), contexts, 3, 5, "ddim", 3, 1.0, 1, share=(job, jobs)
            )
            assert (made is None) == (job > 0)
        assert made is not None and np.array_equal(made.images, whole.images) and made.table.equals(whole.table)
        assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "plan.json", "table.npz"]


def test_a_set_is_the_same_in_shards_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tmp_path / "whole", 9)
    contexts = idiff_face.uniform_contexts(9, 8, seed=0)
    assert np.array_equal(whole.images, generation.generate(untrained_model(), contexts, 3, 5, "ddim", 3).images)
    assert whole.identity.tolist() == np.arange(9).repeat(3).tolist()
    monkeypatch.setattr(generation, "CHUNK", 7)  # two identities a shard
    sharded = make(tmp_path / "sharded", 9)
    assert np.array_equal(whole.images, sharded.images) and whole.table.equals(sharded.table)
    assert len(np.unique(whole.images.reshape(27, -1), axis=0)) == 27


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    large, small = make(tmp_path / "large", 9), make(tmp_path / "small", 4)
    assert np.array_equal(large.images[:12], small.images)
    fewer = make(tmp_path / "fewer", 4, samples=2)
    assert np.array_equal(small.images[small.table["sample"] < 2], fewer.images)


def test_a_larger_set_copies_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "CHUNK", 7)  # two identities a shard
    whole = make(tmp_path / "whole", 9)
    made = {name: make(tmp_path / name, n, **how) for name, n, how in CANDIDATES}
    drawn: list[int] = []

    def drawing(*arguments: object, identities: range, **rest: object) -> FaceSet:
        drawn.extend(identities)
        return draw(*arguments, identities=identities, **rest)  # type: ignore[arg-type]

    draw = generation.generate
    monkeypatch.setattr(generation, "generate", drawing)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "plan.json").write_bytes((tmp_path / "five" / "plan.json").read_bytes())
    folders = [tmp_path / name for name in (*made, "unfinished", "nowhere")]
    contexts = idiff_face.uniform_contexts(9, 8, seed=0)
    again = generation.generate_into(
        tmp_path / "again", untrained_model(), contexts, 3, 5, "ddim", 3, 1.0, 1, beginnings=folders
    )
    assert again is not None and again.table.equals(whole.table)
    np.testing.assert_array_equal(again.images, whole.images)
    assert drawn == [4, 5, 6, 7, 8]  # five are there, and two are drawn at a time


CANDIDATES: list[tuple[str, int, dict[str, int]]] = [
    ("three", 3, {}), ("five", 5, {}), ("all", 9, {}), ("of_two", 7, {"samples": 2}),
    ("of_another_seed", 8, {"seed": 6}),
]  # fmt: skip


def test_only_the_same_people_are_a_beginning(tmp_path: Path) -> None:
    small, contexts = make(tmp_path / "small", 4), idiff_face.uniform_contexts(6, 8, seed=1)
    made = generation.generate_into(
        tmp_path / "set", untrained_model(), contexts, 3, 5, "ddim", 3, 1.0, 1, beginnings=[tmp_path / "small"]
    )
    assert made is not None and not np.array_equal(made.images[:12], small.images)


def test_a_model_that_travelled_to_another_process_draws_the_same() -> None:
    settings = {"samples_per_identity": 2, "seed": 5, "solver": "ddim", "steps": 2}
    part = (4, [idiff_face.uniform_contexts(2, 8, seed=0).numpy()])
    here = partial(generation._generate_part, untrained_model(), settings, None)
    there = pickle.loads(pickle.dumps(here))
    assert np.array_equal(here(part).images, there(part).images)
    assert there(part).identity.tolist() == [4, 4, 5, 5]


def test_threads_are_given_back_and_change_nothing(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    alone = make(tmp_path / "alone", 4)
    try:
        torch.set_num_threads(3)
        assert np.array_equal(alone.images, make(tmp_path / "three", 4).images)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_idiff_face
test_idiff_face.generation.CHUNK = 3
test_idiff_face.make(Path(sys.argv[1]), 40)
"""


def test_a_killed_generation_resumes_to_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(killed), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("shard-*[0-9].npy"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {p: p.read_bytes() for p in killed.glob("shard-*[0-9].npy")}
    assert left and not (killed / "images.npy").exists()
    monkeypatch.setattr(generation, "CHUNK", 3)
    resumed, whole = make(killed, 40), make(tmp_path / "whole", 40)
    assert np.array_equal(resumed.images, whole.images) and resumed.table.equals(whole.table)
    assert not list(killed.glob("*shard-*"))


def test_a_folder_holds_one_set(tmp_path: Path) -> None:
    made = make(tmp_path, 3)
    written = (tmp_path / "images.npy").stat().st_mtime_ns
    assert np.array_equal(make(tmp_path, 3).images, made.images)
    assert (tmp_path / "images.npy").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="begun with seed 5, now 6"):
        make(tmp_path, 3, seed=6)


def test_sets_refuse_bad_contexts(tmp_path: Path) -> None:
    contexts = idiff_face.uniform_contexts(3, 8, seed=0)
    with pytest.raises(ValueError, match="n above 0"):
        generation.generate_into(tmp_path / "set", untrained_model(), contexts[:0], 2, 0)
    contexts[1, 2] = float("nan")
    with pytest.raises(ValueError, match="unit vectors"):
        generation.generate_into(tmp_path / "set", untrained_model(), contexts, 2, 0)
    with pytest.raises(ValueError, match="samples"):
        generation.generate_into(tmp_path / "set", untrained_model(), contexts[:1], 0, 0)
    assert not (tmp_path / "set").exists()


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one shard's images at a time, however many shards."""
    import tracemalloc

    def large(model: Model, contexts: torch.Tensor, samples_per_identity: int, seed: int, **_: object) -> FaceSet:
        n = len(contexts) * samples_per_identity
        return FaceSet(np.zeros((n, 256, 256, 3), np.uint8), pd.DataFrame({"identity": np.zeros(n, int)}))

    monkeypatch.setattr(generation, "generate", large)
    monkeypatch.setattr(generation, "CHUNK", 4)
    peaks = []
    for identities in (2, 20):
        tracemalloc.start()
        make(tmp_path / str(identities), identities, samples=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] and peaks[0] > 4 * 256 * 256 * 3


# ------------------------------------------------------------------------------------ variants, contexts, sets at smoke


def test_variants_have_stages_and_keys_of_their_own(smoke: Profile) -> None:
    variants = [experiment.recipe(smoke, variant=v) for v in smoke.idiff_face_variants]
    assert [r.stage for r in variants] == [f"idiff_face.{v}" for v in smoke.idiff_face_variants]
    assert len({r.key for r in variants} | {experiment.recipe(smoke).key}) == len(variants) + 1
    assert experiment.recipe(smoke, 0.5, "ca").stage == "idiff_face.ca.cpd50"
    assert experiment.recipe(smoke, 0.25, "ca").key == experiment.recipe(smoke, variant="ca").key  # its own level
    own = replace(smoke, idiff_face_variants={"same": smoke.idiff_face})
    assert experiment.recipe(own, variant="same").key == experiment.recipe(smoke).key
    assert experiment.recipe(own, 0.5, "same").key == experiment.recipe(smoke, 0.5).key
    with pytest.raises(ValueError, match=r"idiff_face_variants \(unconditional, ca, adagn\), got 'film'"):
        experiment.recipe(smoke, variant="film")


def test_everything_made_once_is_listed_once(smoke: Profile) -> None:
    stages = [r.stage for r in experiment.recipes(smoke)]
    levels, ways = len(experiment.LEVELS), len(experiment.conditioned_variants(smoke))
    assert ways == 2 and len(stages) == len(set(stages)) == levels + levels * ways + 3
    assert not {"idiff_face.unconditional", "idiff_face.contexts.plda"} & set(stages)  # not to be shipped
    assert {"idiff_face.cpd0", "idiff_face.ca", "idiff_face.contexts.two_stage"} <= set(stages)
    bare = [r.stage for r in experiment.recipes(replace(smoke, idiff_face_variants={}))]
    more = {f"idiff_face.{way}{level}" for way in ("ca", "adagn") for level in ("", ".cpd0", ".cpd50")}
    assert set(stages) - set(bare) == more | {"idiff_face.contexts.two_stage"}


@pytest.mark.parametrize("variant", ["ca", "adagn"])
def test_variants_draw_images(smoke: Profile, smoke_store: Store, variant: str) -> None:
    model = experiment.load(smoke, smoke_store, variant=variant)
    assert model.metadata["config"]["kind"] == f"unet_{variant}"
    contexts = idiff_face.uniform_contexts(2, model.context_dim, seed=0)
    faces = generation.generate(model, contexts, 2, seed=0, steps=2)
    assert faces.images.shape == (4, smoke.rendered.size, smoke.rendered.size, 3)


def test_an_unconditional_model_never_saw_a_context(smoke: Profile, smoke_store: Store) -> None:
    """Its context projection has had no gradient: the bias is as at the start, up to rounding."""
    section = smoke.idiff_face_variants["unconditional"]
    model = experiment.load(smoke, smoke_store, variant="unconditional")
    with torch.random.fork_rng():
        torch.manual_seed(section.seed)
        fresh = generation.build(model.metadata["config"])
    torch.testing.assert_close(model.denoiser.context_emb.bias, fresh.context_emb.bias, atol=1e-3, rtol=0)
    assert not torch.allclose(model.denoiser.time[0].bias, fresh.time[0].bias, atol=1e-3)


@pytest.mark.parametrize("kind", ["uniform", "matched", "two_stage", "authentic"])
def test_contexts_of_every_kind_are_unit_vectors(smoke: Profile, smoke_store: Store, kind: str) -> None:
    most = experiment.available(smoke, kind)
    y = experiment.load_contexts(smoke, smoke_store, kind)
    assert y.shape == (most, smoke.reference.embedding) and y.dtype == torch.float32
    torch.testing.assert_close(y.norm(dim=1), torch.ones(most))
    assert torch.equal(experiment.load_contexts(smoke, smoke_store, kind, 3), y[:3])
    assert len(np.unique(y.numpy(), axis=0)) == most


def test_authentic_contexts_are_first_views(smoke: Profile, smoke_store: Store) -> None:
    faces = roles.load_rendered(smoke, "authentic", smoke_store)
    first = faces.select(np.flatnonzero(faces.table["view"] == 0))
    wanted = idiff_face.authentic_contexts(recognisers.load_reference(smoke, smoke_store), first)
    torch.testing.assert_close(experiment.load_contexts(smoke, smoke_store, "authentic"), wanted)


def test_two_stage_rows_do_not_depend_on_their_number(smoke: Profile, smoke_store: Store) -> None:
    fewer = replace(smoke, generation=replace(smoke.generation, identities=4))
    few, many = (experiment.load_contexts(p, smoke_store, "two_stage") for p in (fewer, smoke))
    assert len(few) == 8 and len(many) == 16 and torch.equal(few, many[:8])


def test_more_contexts_than_there_are_are_refused(smoke: Profile, smoke_store: Store) -> None:
    with pytest.raises(ValueError, match=r"1 to 6 authentic contexts, got 7; raise rendered\.roles\.authentic"):
        experiment.load_contexts(smoke, smoke_store, "authentic", 7)
    with pytest.raises(ValueError, match=r"1 to 6 authentic"):
        experiment.dataset_recipe(smoke, "authentic")
    with pytest.raises(ValueError, match=r"1 to 16 uniform contexts, got 17; raise 2 x generation\.identities"):
        experiment.dataset_recipe(smoke, "uniform", identities=17)
    with pytest.raises(
        ValueError, match="one of uniform, matched, plda, plda_shown, two_stage, authentic, got 'stylegan'"
    ):
        experiment.contexts_recipe(smoke, "stylegan")


def test_sets_that_cannot_be_made_are_refused(smoke: Profile) -> None:
    with pytest.raises(ValueError, match="unconditional"):
        experiment.dataset_recipe(smoke, "uniform", variant="unconditional")
    with pytest.raises(ValueError, match="samples"):
        experiment.dataset_recipe(smoke, "uniform", samples=0)
    published = replace(smoke, idiff_face=replace(smoke.idiff_face, context_drop=0.0))
    with pytest.raises(ValueError, match="guidance: 2.0 needs"):
        experiment.dataset_recipe(published, "uniform", guidance=2)


def test_set_of_a_profile(smoke: Profile, smoke_store: Store, model: Model) -> None:
    recipe = experiment.dataset_recipe(smoke, "uniform")
    faces = FaceSet.load(smoke_store.get(recipe))
    main, contexts = smoke.generation, experiment.load_contexts(smoke, smoke_store, "uniform", 8)
    assert len(faces) == main.identities * main.samples
    how = {"solver": smoke.sampling.solver, "steps": smoke.sampling.steps}
    assert main.temperature < 1
    again = generation.generate(model, contexts[:2], main.samples, main.seed, temperature=main.temperature, **how)
    assert np.array_equal(faces.images[:8], again.images)
    published = FaceSet.load(smoke_store.get(experiment.dataset_recipe(smoke, "uniform", 2, temperature=1)))
    again = generation.generate(model, contexts[:2], main.samples, main.seed, **how)
    assert np.array_equal(published.images, again.images) and not np.array_equal(faces.images[:8], again.images)
    others = [
        experiment.dataset_recipe(smoke, "matched"),
        experiment.dataset_recipe(smoke, "uniform", identities=4),
        experiment.dataset_recipe(smoke, "uniform", guidance=2),
        experiment.dataset_recipe(smoke, "uniform", temperature=1),
        experiment.dataset_recipe(smoke, "uniform", cpd=0.5),
        experiment.dataset_recipe(smoke, "uniform", variant="ca"),
    ]
    assert len({recipe.key, *(r.key for r in others)}) == 7
    assert experiment.dataset_recipe(smoke, "uniform", 8, 0.25, None, 1, 4).key == recipe.key


def test_the_command_makes_a_set(
    smoke: Profile, smoke_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACETRANSPORT_CACHE", str(smoke_store.root))
    assert cli.main(["generate", "matched", "--profile", "smoke", "--identities", "3", "--samples", "2"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder == smoke_store.folder(experiment.dataset_recipe(smoke, "matched", 3, samples=2))
    assert FaceSet.load(folder).identity.tolist() == [0, 0, 1, 1, 2, 2]


def test_recognition_runs_share_sets_and_differ_in_seed(smoke: Profile) -> None:
    runs, rows = synthetic_recognition.recognition_runs(smoke), synthetic_recognition.recognition_rows(smoke)
    assert {row for row, _ in runs} == set(rows) and len({r.key for r in runs.values()}) == len(runs)
    assert runs["plda", 0].upstream[0].key == runs["plda_flip", 1].upstream[0].key
    assert runs["plda_half", 0].upstream[0].config["identities"] * 4 == rows["plda_double"][0].config["identities"]
    main, section = smoke.generation, smoke.synthetic_recognition
    pilots = synthetic_recognition.pilot_runs(smoke)
    assert {("plda", main.cpd, main.guidance, main.temperature, lr) for lr in section.lrs} <= set(pilots)
    assert pilots["plda", 0.25, 3.0, 1.0, section.training.lr].upstream[0].config["guidance"] == 3
    with pytest.raises(ValueError, match="row: expected one of authentic"):
        synthetic_recognition.recognition_run(smoke, "casia", 0)
    drawing, of_id3 = smoke.id3_set, synthetic_recognition.id3_pilot_runs(smoke)
    knobs = drawing.adjustment, drawing.steps, drawing.guidance, drawing.temperature
    own, named = ("photographs", "0.7 to 0.9", *knobs), ("photographs", "0.5 to 0.7", *knobs)
    assert list(of_id3) == [("drawn", *own[1:]), own, named]
    assert of_id3[own].upstream[0].key == rows["id3_flip"][0].key
    assert of_id3["drawn", *own[1:]].upstream[0].key == rows["id3_drawn_flip"][0].key
    fast, mirrored = smoke.sampling.steps, synthetic_recognition.mirrored_pilot_runs(smoke)
    assert mirrored["plda", fast, main.guidance, main.temperature].key == runs["plda_flip", section.seeds[0]].key
    sampled = {name: getattr(drawing, name) for name in ("steps", "guidance", "temperature")}
    for kind in ("plda", "plda_shown"):
        same = mirrored[(kind, *sampled.values())].upstream[0]
        assert {name: same.config[name] for name in sampled} == sampled
    shown = {how: run.upstream[0].key for how, run in mirrored.items() if how[0] == "plda_shown"}
    assert len(set(shown.values())) == len(shown) >= 3 and rows["plda_shown_flip"][0].key in shown.values()
    longer = synthetic_recognition.longer_runs(smoke)
    steps = 2 * section.training.steps
    assert set(longer) == {("authentic", steps), ("id3", steps), ("id3_x2", steps)}


def test_plda_contexts_vary_within_people_as_told_and_match_the_whole() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((8, 8)) * np.linspace(0.2, 1, 8)
    like = torch.from_numpy(rng.standard_normal((5000, 8)) @ mixing.T * 0.1 + 1).float()
    total = torch.cov(like.double().T)
    within = 0.3 * total
    y = idiff_face.plda_contexts(400, 6, 1, Plda.of(like, within))
    assert y.shape == (400, 6, 8) and torch.allclose(y.norm(dim=2), torch.ones(400, 6))
    flat = F.normalize(like, dim=1)  # compare on the sphere, where both end
    person = np.repeat(np.arange(400), 6)
    pooled = within_covariance(y.flatten(0, 1).numpy(), person)
    share = float(pooled.trace() / torch.cov(y.flatten(0, 1).double().T).trace())
    assert 0.25 < share < 0.35
    assert torch.allclose(torch.cov(y.flatten(0, 1).T), torch.cov(flat.T), atol=0.15 * float(torch.cov(flat.T).max()))


def test_plda_contexts_depend_on_their_own_place_only() -> None:
    like = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 4))).float()
    plda = Plda.of(like, 0.5 * torch.cov(like.double().T))
    whole = idiff_face.plda_contexts(5, 4, 2, plda)
    torch.testing.assert_close(whole[:3, :2], idiff_face.plda_contexts(3, 2, 2, plda))
    assert not torch.allclose(whole, idiff_face.plda_contexts(5, 4, 3, plda))


def test_plda_contexts_may_vary_by_example() -> None:
    like = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 4))).float()
    plda, shown = Plda.of(like, 0.5 * torch.cov(like.double().T)), 0.1 * torch.eye(4, dtype=torch.float64)
    whole = idiff_face.plda_contexts(5, 4, 2, plda, shown)
    torch.testing.assert_close(whole[:3, :2], idiff_face.plda_contexts(3, 2, 2, plda, shown))
    people = idiff_face.plda_contexts(5, 4, 2, plda, torch.zeros(1, 4, dtype=torch.float64))
    still = Plda(plda.mean, plda.between, 0 * plda.within)
    torch.testing.assert_close(people, idiff_face.plda_contexts(5, 4, 2, still))  # the same people, who do not vary
    assert not torch.allclose(whole, people)


def test_photographs_of_people_who_have_several_show_how_one_varies(smoke: Profile, smoke_store: Store) -> None:
    reference, val = (
        recognisers.load_recogniser(smoke, smoke_store, "reference"),
        roles.load_rendered(smoke, "val", smoke_store),
    )
    alone = val.select(np.flatnonzero((val.identity != val.identity[0]) | (np.arange(len(val)) == 0)))
    several, shown = experiment.shown_by(reference, alone)
    assert len(several) == len(shown) == len(alone) - 1 and val.identity[0] not in several.identity
    y = experiment.load_contexts(smoke, smoke_store, "plda_shown", 3)
    plain = experiment.load_contexts(smoke, smoke_store, "plda", 3)
    assert y.shape == plain.shape and not torch.allclose(y, plain)


def test_sets_drawn_in_bfloat16_are_nearly_the_same_and_say_so(
    smoke: Profile, smoke_store: Store, tmp_path: Path
) -> None:
    model = experiment.load(smoke, smoke_store)
    y = idiff_face.uniform_contexts(3, model.context_dim, 0)
    plain, rounded = (generation.generate(model, y, 2, 0, steps=3, bf16=on).images for on in (False, True))
    apart = np.abs(plain.astype(int) - rounded.astype(int))
    assert apart.mean() < 2 and (apart.any() == devices.has_bfloat16(devices.device()))
    generation.generate_into(tmp_path / "set", model, y, 2, 0, steps=3, workers=1, bf16=True)
    assert json.loads((tmp_path / "set" / "plan.json").read_text())["bf16"] is True
    quick = replace(smoke, generation=replace(smoke.generation, bf16=True))
    recipes = [experiment.dataset_recipe(p, "plda") for p in (smoke, quick)]
    assert [r.config.get("bf16") for r in recipes] == [None, True]


def test_sets_may_be_drawn_by_compiled_networks(
    smoke: Profile, smoke_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = experiment.load(smoke, smoke_store)
    y = idiff_face.uniform_contexts(2, model.context_dim, 0)
    plain = generation.generate(model, y, 2, 0, steps=2).images
    monkeypatch.setenv(devices.COMPILE, "aot_eager")
    compiled = generation.generate(model, y, 2, 0, steps=2).images
    assert np.abs(plain.astype(int) - compiled.astype(int)).max() <= 1  # sums may differ in their last bits


def test_a_context_for_each_image(smoke: Profile, smoke_store: Store) -> None:
    model = experiment.load(smoke, smoke_store)
    y = idiff_face.uniform_contexts(6, model.context_dim, 0)
    each = generation.generate(model, y.unflatten(0, (2, 3)), 3, 0, steps=2)
    shared = generation.generate(model, y[:1], 3, 0, steps=2)
    assert len(each) == 6 and each.identity.tolist() == [0, 0, 0, 1, 1, 1]
    assert (each.images[0] == shared.images[0]).all()  # the same context, seed, place
    assert (each.images[1] != shared.images[1]).any()
    with pytest.raises(ValueError, match=r"contexts: expected \(n, 32\) or \(n, 2, 32\)"):
        generation.generate(model, y.unflatten(0, (2, 3)), 2, 0, steps=2)
