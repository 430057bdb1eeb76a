"""IDiff-Face: contexts, seeds that belong to identities, generation, the smoke model end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facetransport.artifacts import Store
from facetransport.papers import idiff_face
from facetransport.papers.idiff_face import Model
from facetransport.profiles import Profile
from facetransport.recognition import training as recognition


@pytest.fixture(scope="module")
def model(smoke: Profile, smoke_store: Store) -> Model:
    return idiff_face.load(smoke, smoke_store)


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
    recogniser = recognition.load_reference(smoke, smoke_store)
    y = idiff_face.two_stage_contexts(model, recogniser, 3, seed=0, solver="ddim", steps=2)
    assert y.shape == (3, recogniser.dim)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(y[:2], idiff_face.two_stage_contexts(model, recogniser, 2, 0, "ddim", 2))


# ------------------------------------------------------------------------------------------------------- generation


def test_images_of_an_identity_depend_on_seed_and_identity_only(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(4, model.context_dim, seed=0)
    everyone = idiff_face.generate(model, contexts, 3, seed=5, steps=3)
    assert everyone.identity.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    alone = idiff_face.generate(model, contexts[2:3], 3, seed=5, steps=3, identities=[2])
    assert np.array_equal(everyone.images[6:9], alone.images)
    more = idiff_face.generate(model, contexts[2:3], 5, seed=5, steps=3, identities=[2])
    assert np.array_equal(more.images[:3], alone.images)
    other = idiff_face.generate(model, contexts[2:3], 3, seed=6, steps=3, identities=[2])
    assert not np.array_equal(other.images, alone.images)
    assert not np.array_equal(alone.images[0], alone.images[1])


def test_chunks_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = idiff_face.uniform_contexts(3, model.context_dim, seed=0)
    whole = idiff_face.generate(model, contexts, 2, seed=1, steps=2)
    monkeypatch.setattr(idiff_face, "CHUNK", 4)
    assert np.array_equal(whole.images, idiff_face.generate(model, contexts, 2, seed=1, steps=2).images)


def test_guidance_one_is_the_published_method(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(2, model.context_dim, seed=0)
    plain = idiff_face.generate(model, contexts, 1, seed=1, steps=2)
    assert np.array_equal(plain.images, idiff_face.generate(model, contexts, 1, seed=1, steps=2, guidance=1.0).images)
    assert not np.array_equal(
        plain.images, idiff_face.generate(model, contexts, 1, seed=1, steps=2, guidance=8.0).images
    )


def test_seeds_differ() -> None:
    seeds = idiff_face.sample_seeds(0, range(50), 20)
    assert len(set(seeds)) == 1000
    assert idiff_face.sample_seeds(0, [7], 20) == seeds[140:160]


def test_contexts_that_training_never_saw_are_refused(model: Model) -> None:
    contexts = idiff_face.uniform_contexts(2, model.context_dim, seed=0)
    with pytest.raises(ValueError, match="unit vectors"):
        idiff_face.generate(model, 3 * contexts, 1, seed=0)
    with pytest.raises(ValueError, match="unit vectors"):
        idiff_face.generate(model, contexts * float("nan"), 1, seed=0)
    with pytest.raises(ValueError, match=rf"contexts: expected \(n, {model.context_dim}\)"):
        idiff_face.generate(model, torch.ones(2, 3), 1, seed=0)
    with pytest.raises(ValueError, match="contexts"):
        idiff_face.generate(model, contexts[:0], 1, seed=0)
    with pytest.raises(ValueError, match="identities"):
        idiff_face.generate(model, contexts, 1, seed=0, identities=[1])


# ---------------------------------------------------------------------------------------------------------- recipes


def test_file_describes_itself(model: Model, smoke: Profile, smoke_store: Store) -> None:
    path = smoke_store.get(idiff_face.recipe(smoke)) / "model.safetensors"
    again = idiff_face.load_model(path, model.autoencoder)
    assert again.metadata["step"] == smoke.idiff_face.steps
    assert again.metadata["config"]["cpd"] == 0.25
    assert {"config", "step", "data", "code_version", "metrics"} <= set(again.metadata)
    x, t = torch.randn(2, *again.shape), torch.tensor([3, 40])
    assert torch.equal(model.denoiser(x, t, None), again.denoiser(x, t, None))


def test_training_data_hold_mirror_images_with_the_contexts_of_their_originals(
    smoke: Profile, smoke_store: Store
) -> None:
    from safetensors.torch import load_file

    data = load_file(smoke_store.get(idiff_face.training_data(smoke)) / "data.safetensors")
    n = smoke.rendered.roles["generator"].identities
    assert len(data["latents"]) == len(data["contexts"]) == 2 * n
    assert torch.equal(data["contexts"][:n], data["contexts"][n:])
    assert not torch.equal(data["latents"][:n], data["latents"][n:])


def test_stages_are_named_by_their_cpd_level(smoke: Profile) -> None:
    assert idiff_face.recipe(smoke).stage == "idiff_face.cpd25"
    assert [idiff_face.recipe(smoke, p).stage for p in (0.0, 0.5)] == ["idiff_face.cpd0", "idiff_face.cpd50"]
    keys = {idiff_face.recipe(smoke, p).key for p in (0.0, 0.25, 0.5)}
    assert len(keys) == 3
    assert idiff_face.recipe(smoke, 0.25).key == idiff_face.recipe(smoke).key


def test_weights_shipped_elsewhere_need_no_upstream(smoke: Profile, smoke_store: Store, tmp_path: Path) -> None:
    """A store with only the shipped folder finds the model under the same key and builds nothing."""
    import shutil

    recipe, shipped = idiff_face.recipe(smoke), tmp_path / "shipped"
    shutil.copytree(smoke_store.get(recipe), shipped / recipe.place)
    store = Store(tmp_path / "cache", shipped=(shipped,))
    assert store.get(recipe) == shipped / recipe.place
    assert not store.has(idiff_face.recipe(replace(smoke, idiff_face=replace(smoke.idiff_face, seed=99))))


def test_training_contexts_are_those_of_the_training_data(smoke: Profile, smoke_store: Store) -> None:
    from safetensors.torch import load_file

    data = load_file(smoke_store.get(idiff_face.training_data(smoke)) / "data.safetensors")["contexts"].numpy()
    known = idiff_face.load_training_contexts(smoke, smoke_store)
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
