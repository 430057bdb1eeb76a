"""How a network is trained into a folder, whatever the paper: a log while it runs, one file when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facetransport import devices
from facetransport.companion.profiles import Denoising
from facetransport.diffusion.schedule import Schedule
from facetransport.generation import build
from facetransport.tensors import rounding, save_model, seeded
from facetransport.training import Loss, TrainingConfig, TrainingLog, train
from facetransport.version import code_version

MODEL, RAW = "model.safetensors", "raw.safetensors"
SMALL_NETS = 2**10  # matrix of a denoiser that is rounded to whole numbers for shipping: small U-Nets are made of such


def fit(
    network: nn.Module,
    loss: Loss,
    n: int,
    training: TrainingConfig,
    folder: Path,
    smallest: int = 2**14,
    milestones: Sequence[int] = (),
    **facts: Any,
) -> None:
    """Train on n rows into ``folder``, with ``facts`` beside the weights; continues an interrupted attempt.

    Nothing is rounded: that is for shipping. Beside the averaged weights lie those that were averaged (raw.safetensors)
    and the averaged ones at each of the ``milestones`` (step70000.safetensors).
    """
    log, checkpoint = TrainingLog(folder / "log.csv", training), folder / "checkpoint.safetensors"
    facts |= {"code_version": code_version(), "small": rounding(smallest)}
    for state in train(network, loss, n, training, checkpoint):
        log.write(state)
        if state.step in milestones and devices.share()[0] == 0:
            save_model(folder / f"step{state.step}.safetensors", state.ema.state_dict(), step=state.step, **facts)
    facts |= {"step": state.step, "metrics": {"loss": float(state.loss)}}
    save_model(folder / MODEL, state.ema.state_dict(), **facts)
    if training.ema:
        save_model(folder / RAW, state.model.state_dict(), **facts)
    checkpoint.unlink(missing_ok=True)


def fit_denoiser(
    section: Denoising,
    config: dict[str, Any],
    loss: Loss,
    n: int,
    folder: Path,
    begins: dict[str, Tensor] | None = None,
    milestones: Sequence[int] = (),
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
    fit(denoiser, loss, n, training_config(section), folder, SMALL_NETS, milestones, config=config, **facts)


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
        warmup=section.steps // 100 if section.warmup is None else section.warmup,
        decay=section.decay,
        betas=betas,
        clip=section.gradient_clip or None,
        bf16=True,
    )
