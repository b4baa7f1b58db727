"""A model's schedule as the scheduler_config.json of diffusers' DDIM sampler."""

from __future__ import annotations

import math
from typing import Any

import torch

from progdistill.core.denoiser import Denoiser
from progdistill.core.schedules import Schedule, TableSchedule
from progdistill.nets.unet import UNet

# Divisible by every power of two up to itself: diffusers' trailing spacing then visits exactly our grid.
LEVELS = 1024


def ddim_config(denoiser: Denoiser) -> dict[str, Any]:
    """A DDIMScheduler's configuration whose trailing N-step grid is the schedule's, for every N that divides the
    number of levels: level i is time (i + 1) / T, and the last step goes to the clean image."""
    levels = alphas_cumprod(denoiser.schedule, level_count(denoiser))
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


def level_count(denoiser: Denoiser) -> int:
    """T, the number of levels that a model saved as it is has in diffusers.

    The rows of a network's time table, the levels of a discrete schedule, or 1024.
    """
    network, schedule = denoiser.network, denoiser.schedule
    if isinstance(network, UNet) and network.config.time_embedding_type == "learned":
        return network.config.num_train_timesteps
    return len(schedule.alphas_cumprod) if isinstance(schedule, TableSchedule) else LEVELS


def alphas_cumprod(schedule: Schedule, count: int) -> torch.Tensor:
    """cos^2 of the schedule's angles at times 1 / T ... 1, float64; exactly 0 where the angle is pi / 2."""
    if isinstance(schedule, TableSchedule) and len(schedule.alphas_cumprod) == count:
        return torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    angles = schedule.angle(torch.arange(1, count + 1, dtype=torch.float64) / count)
    return torch.where(angles < math.pi / 2, torch.cos(angles) ** 2, 0.0)


def starts_at_zero_snr(denoiser: Denoiser) -> bool:
    """Whether the last level is pure noise to diffusers, which knows it in float32."""
    return float(_betas(alphas_cumprod(denoiser.schedule, level_count(denoiser)))[-1].float()) == 1.0


def _betas(levels: torch.Tensor) -> torch.Tensor:
    return 1 - levels / torch.cat([levels.new_ones(1), levels[:-1]])
