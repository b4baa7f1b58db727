"""Schedules as diffusers' scheduler_config.json, and when its DDIM sampler does exactly what ours does."""

from __future__ import annotations

import math
from typing import Any

import torch

from progdistill.core.denoiser import Denoiser
from progdistill.core.schedules import CosineSchedule, Schedule, TableSchedule
from progdistill.nets.config import UNetConfig

# Divisible by every power of two up to itself: diffusers' trailing spacing then visits exactly our grid.
LEVELS = 1024


def scheduler_config(denoiser: Denoiser) -> dict[str, Any]:
    """A DDIMScheduler's configuration whose trailing N-step grid is the schedule's, for every N that divides the
    number of levels: level i is time (i + 1) / T, and the last step goes to the clean image."""
    levels = _levels(denoiser.schedule)
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.24.0",
        "num_train_timesteps": len(levels),
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": _betas(levels).tolist(),
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": denoiser.prediction_type,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "trailing",
        # Changes nothing for DDIM, whose last level is at SNR 0 already; keeps other solvers finite.
        "rescale_betas_zero_snr": float(levels[-1]) == 0.0,
    }


def diffusers_obstacle(denoiser: Denoiser, config: UNetConfig) -> str | None:
    """Why plain diffusers cannot reproduce the model, or None if it can.

    diffusers knows one output head, its own time input (the level's number) and a fixed list of levels.
    """
    schedule, count = denoiser.schedule, level_count(denoiser.schedule)
    if denoiser.prediction_type == "sample_epsilon":
        return "diffusers knows no two-headed networks; distil into a v_prediction student"
    if not isinstance(schedule, (CosineSchedule, TableSchedule)):
        return f"diffusers' DDIM knows no {schedule.kind!r} schedule"
    if not _passes_level_numbers(denoiser, count):
        return f"the network's time input is not {count} t - 1 on the model's own schedule, which diffusers passes"
    if denoiser.prediction_type == "epsilon" and float(_betas(_levels(schedule))[-1].float()) == 1.0:
        return "an epsilon prediction says nothing at SNR 0, where the schedule starts; use v_prediction"
    unreachable = [steps for steps in denoiser.valid_steps or () if count % steps]
    if unreachable:
        return (
            f"diffusers' time grid of {', '.join(map(str, unreachable))} steps is another one: {count} is no multiple"
        )
    if denoiser.num_classes is not None:
        if config.class_embed_type is not None:
            return f"diffusers' pipelines pass no labels to class_embed_type={config.class_embed_type!r}"
        if denoiser.sample_shape[1] != denoiser.sample_shape[2]:
            return "diffusers' class-conditional pipeline makes square images only"
    return None


def level_count(schedule: Schedule) -> int:
    """How many levels the schedule has in a scheduler_config.json."""
    return len(schedule.alphas_cumprod) if isinstance(schedule, TableSchedule) else LEVELS


def _levels(schedule: Schedule) -> torch.Tensor:
    """alphas_cumprod, float64; exactly 0 where the angle is pi/2."""
    if isinstance(schedule, TableSchedule):
        return torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    angles = schedule.angle(torch.arange(1, LEVELS + 1, dtype=torch.float64) / LEVELS)
    return torch.where(angles < math.pi / 2, torch.cos(angles) ** 2, 0.0)


def _betas(levels: torch.Tensor) -> torch.Tensor:
    return 1 - levels / torch.cat([levels.new_ones(1), levels[:-1]])


def _passes_level_numbers(denoiser: Denoiser, count: int) -> bool:
    time = denoiser.time_map
    return (
        time.schedule == denoiser.schedule
        and (time.scale, time.offset) == (count, -1)
        and (time.minimum is None or time.minimum <= 0)
        and (time.maximum is None or time.maximum >= count - 1)
    )
