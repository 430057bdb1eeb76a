"""How a network is trained into a folder, whatever the paper: a log while it runs, one file when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facetransport.companion.profiles import Denoising
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import build
from facetransport.tensors import compact, save_model, seeded
from facetransport.training import Loss, TrainingConfig, TrainingLog, train
from facetransport.version import code_version

MODEL = "model.safetensors"
SMALL_NETS = 2**10  # matrix of a denoiser that is rounded to whole numbers for shipping: small U-Nets are made of such


def fit(
    network: nn.Module,
    loss: Loss,
    n: int,
    training: TrainingConfig,
    folder: Path,
    smallest: int = 2**14,
    **facts: Any,
) -> None:
    """Train on n rows into ``folder``, with ``facts`` beside the weights; continues an interrupted attempt."""
    log, checkpoint = TrainingLog(folder / "log.csv", training), folder / "checkpoint.safetensors"
    for state in train(network, loss, n, training, checkpoint):
        log.write(state)
    metrics = {"loss": float(state.loss)}
    tensors = compact(state.ema.state_dict(), smallest)
    save_model(folder / MODEL, tensors, step=state.step, metrics=metrics, code_version=code_version(), **facts)
    checkpoint.unlink(missing_ok=True)


def fit_denoiser(
    section: Denoising,
    config: dict[str, Any],
    loss: Loss,
    n: int,
    folder: Path,
    begins: dict[str, Tensor] | None = None,
    **facts: Any,
) -> None:
    """`fit` of a denoiser of codes that `network_config` describes.

    begins: weights of a trained one without attributes, which then have no say at first.
    """
    with seeded(section.seed):
        denoiser = build(config)
    if begins is not None:
        state = denoiser.state_dict()
        nothing = {name: torch.zeros_like(state[name]) for name in state if name.startswith("attribute_emb")}
        denoiser.load_state_dict({**begins, **nothing})
    fit(denoiser, loss, n, training_config(section), folder, SMALL_NETS, config=config, **facts)


def network_config(section: Denoising, shape: Sequence[int], context_dim: int, **more: Any) -> dict[str, Any]:
    """Arguments of ``denoisers.build`` as plain JSON data. more: those that only some papers have."""
    return {
        "kind": section.denoiser,
        "shape": list(shape),
        "width": section.width,
        "depth": section.depth,
        "context_dim": context_dim,
        "projected_dim": section.context_dim,
        "cpd": section.cpd,
        "schedule": asdict(Schedule(section.timesteps, section.schedule)),
        "prediction": section.prediction,
        **more,
    }


def training_config(section: Denoising) -> TrainingConfig:
    """Mixed precision as published; Adam's defaults for the published U-Net, quicker second moments for the others."""
    betas = (0.9, 0.999) if section.denoiser.startswith("unet") else (0.9, 0.99)
    return TrainingConfig(
        steps=section.steps,
        batch=section.batch,
        lr=section.lr,
        seed=section.seed,
        ema=section.ema,
        warmup=section.steps // 100,
        decay=section.decay,
        betas=betas,
        bf16=True,
    )
