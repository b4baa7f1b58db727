"""What plain diffusers draws from a folder, held against our own sampler."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill.core.denoiser import Condition, Denoiser
from progdistill.core.modes import evaluating
from progdistill.ops import ddim_step

_IMAGES = 2
_SEED = 0
# A step count follows from the schedule like any other; beyond this the time is better spent.
_MOST_STEPS = 16


def deviations(folder: Path, denoiser: Denoiser, levels: int) -> dict[int, float] | None:
    """By step count, the largest deviation of diffusers' images of `folder` from ours of the model, in [0, 1].

    Two images for each of the model's step counts up to 16, on the CPU in float32; of a model for any step count, and
    of one for more, those of one and of the most up to 16 that divide the scheduler's `levels`. None without diffusers.
    """
    try:
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging
    except ImportError:
        return None
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, low_cpu_mem_usage=False)
    finally:
        if shown:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return {steps: _deviation(pipeline, denoiser, steps) for steps in _steps_to_compare(denoiser, levels)}


def _steps_to_compare(denoiser: Denoiser, levels: int) -> list[int]:
    reachable = [steps for steps in range(1, _MOST_STEPS + 1) if levels % steps == 0]
    known = [steps for steps in denoiser.valid_steps or () if steps in reachable]
    if known:
        return known
    # A single step amplifies the rounding of an epsilon prediction by 1 / alpha.
    return reachable[-1:] if denoiser.prediction_type == "epsilon" else sorted({1, reachable[-1]})


def _deviation(pipeline: Any, denoiser: Denoiser, steps: int) -> float:
    labels = None
    arguments: dict[str, Any] = {}
    if denoiser.num_classes is not None:
        labels = torch.tensor([0, denoiser.num_classes - 1])
        arguments["class_labels"] = labels.tolist()
    theirs = pipeline(
        batch_size=_IMAGES,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(_SEED),
        output_type="np",
        **arguments,
    ).images
    ours = _images(denoiser, steps, labels)
    return float((ours - torch.from_numpy(theirs).movedim(-1, 1)).abs().max())


@torch.no_grad()
def _images(denoiser: Denoiser, steps: int, labels: Tensor | None) -> Tensor:
    if denoiser.device.type != "cpu" or next(denoiser.network.parameters()).dtype != torch.float32:
        denoiser = denoiser.with_network(copy.deepcopy(denoiser.network).to("cpu", torch.float32))
    z = torch.randn((_IMAGES, *denoiser.sample_shape), generator=torch.Generator().manual_seed(_SEED))
    cond = None if labels is None else Condition(labels)
    phis = denoiser.schedule.grid(steps).unsqueeze(1).expand(-1, _IMAGES)
    with evaluating(denoiser):
        for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
            out = denoiser.raw(z, phi, cond)
            z = ddim_step(z, out, phi, phi_next, prediction_type=denoiser.prediction_type)
    return (z / 2 + 0.5).clamp(0, 1)
