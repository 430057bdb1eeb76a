"""Every network on a device that is not this one's: tensors there (torch's "meta") have no content, so they can neither
be mixed with this device's nor be read by a host that would wait for them. A step that passes does neither.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from facetransport import devices
from facetransport.data.faceset import FaceSet
from facetransport.diffusion import autoencoder, denoisers
from facetransport.diffusion.autoencoder import CodeConfig, LossWeights
from facetransport.diffusion.denoising import denoising_loss
from facetransport.diffusion.schedule import Schedule
from facetransport.diffusion.vectors import Described, MultiLayer, VectorConfig, VectorDenoiser
from facetransport.evaluation.described import Faces, Tau, describing
from facetransport.evaluation.matchers import DualEncoder, classifier_loss, contrastive_loss, regression_loss
from facetransport.papers.diface import Refinement, denoiser_loss, refinement_loss
from facetransport.recognition.iresnet import IResNetConfig, IResNetRecogniser
from facetransport.recognition.training import HeadConfig, Learner, recogniser_loss
from facetransport.training import EMA, Loss
from facetransport.world.captions import Describer
from facetransport.world.grammar import known_names

ELSEWHERE = torch.device("meta")  # as good as any: it can be had without its machine
NAMES = known_names()[:16]
ROWS = torch.arange(8)
SMALL = IResNetConfig((1, 1, 1, 1), (8, 8, 16, 16), (2, 2, 2, 2, 1), 28, 16)


class Elsewhere(torch.Generator):
    """A generator that says it is there."""

    device = ELSEWHERE


def people() -> FaceSet:
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    return FaceSet(images, pd.DataFrame({"identity": np.arange(16) // 2}))


def described() -> Faces:
    rng = np.random.default_rng(0)
    seen = rng.random((16, len(NAMES))) < 0.5
    vectors = rng.standard_normal((16, 16)).astype(np.float32)
    return Faces(seen, seen, NAMES, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.arange(16))


def codes(kind: str) -> tuple[nn.Module, Loss]:
    latents, contexts = torch.randn(16, 4, 8, 8).half(), nn.functional.normalize(torch.randn(16, 8))
    network = denoisers.build(kind, (4, 8, 8), 32, 1, 8, 32, 0.25, Schedule(50), "v")
    return network, denoising_loss(latents, contexts, Schedule(50), "v", 0.1)


def words(kind: str) -> tuple[nn.Module, Loss]:
    faces = described()
    say, width = describing(faces, Tau(), Describer()), 2 * len(NAMES)
    if kind == "denoiser":
        network: nn.Module = VectorDenoiser(VectorConfig("mlp", 16, width, 32, 1, Schedule(50)))
        return network, denoiser_loss(torch.from_numpy(faces.embeddings), say, Schedule(50), 0.1)
    if kind in ("cosine", "infonce"):
        rough = torch.randn(32, 2, 16).half()
        return Refinement(16, 16), refinement_loss(rough, torch.from_numpy(faces.embeddings), 1.0, True, kind)
    if kind == "regression":
        return Described(width, 16, 32, 1), regression_loss(faces, say)
    if kind == "contrastive":
        return DualEncoder(width, 16, 32, 1), contrastive_loss(faces, say)
    return MultiLayer(16, 32, len(NAMES), dropout=0.2), classifier_loss(faces, say)


def recogniser(head: str) -> tuple[nn.Module, Loss]:
    learner = Learner.drawn(
        IResNetConfig((1, 1, 1, 1), (8, 8, 16, 16), (2, 2, 2, 2, 1), 28, 16), HeadConfig(head), 8, 0
    )
    return learner, recogniser_loss(people(), 28)


def code() -> tuple[nn.Module, Loss]:
    judge = IResNetRecogniser(Learner.drawn(SMALL, HeadConfig(), 8, 0).network).requires_grad_(False)
    features = lambda images: [judge.to(images.device).embed(images)]  # noqa: E731
    made = autoencoder.build(CodeConfig("kl", 4, 8, 8))
    return made, autoencoder.code_loss(people().images, LossWeights(features=1.0), features)


CASES: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
    **{kind: (lambda kind=kind: codes(kind)) for kind in ("mlp", "mixer", "transformer", "unet_ca", "unet_adagn")},
    **{f"diface.{k}": (lambda k=k: words(k)) for k in ("denoiser", "cosine", "infonce", "regression", "contrastive")},
    "diface.classifier": lambda: words("classifier"),
    **{head: (lambda head=head: recogniser(head)) for head in ("cosface", "arcface", "adaface")},
    "autoencoder": code,
}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """The generator of a device without numbers. What is cached meanwhile is forgotten."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    return Elsewhere()


@pytest.mark.parametrize("case", CASES)
def test_a_step_stays_on_its_device_and_waits_for_nothing(case: str, elsewhere: torch.Generator) -> None:
    network, loss = CASES[case]()
    network.to(ELSEWHERE).train()
    optimizer, ema = torch.optim.AdamW(network.parameters()), EMA(network, 0.9)
    found = loss(network, ROWS, elsewhere, 0)
    scalar = found if isinstance(found, torch.Tensor) else found["loss"]
    assert scalar.device == ELSEWHERE and scalar.ndim == 0
    scalar.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    ema.update(network, 0)
    assert norm.device == ELSEWHERE
    assert {p.device for p in ema.model.parameters()} == {ELSEWHERE}


def test_the_test_can_fail() -> None:
    network = nn.Linear(2, 2).to(ELSEWHERE)
    with pytest.raises(RuntimeError, match="device"):
        network(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="meta"):
        network(torch.ones(1, 2, device=ELSEWHERE)) + torch.ones(1, 2)
    with pytest.raises(RuntimeError, match="meta"):
        float(network(torch.ones(1, 2, device=ELSEWHERE)).sum())


def test_devices_are_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.VARIABLE, "cpu")
    assert devices.device.__wrapped__() == torch.device("cpu")
    monkeypatch.setenv(devices.VARIABLE, "abacus")
    with pytest.raises(ValueError, match="FACETRANSPORT_DEVICE: expected a device of this machine .*'abacus'"):
        devices.device.__wrapped__()
