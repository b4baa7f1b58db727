"""DDIM on any angle grid (Song et al. 2021; Salimans & Ho 2022, eq. 8 and 38)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser, SamplingPlan
from progdistill.ops import ddim_step

StepCallback = Callable[[int, Tensor], None]


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    z: Tensor,
    phis: Tensor,
    cond: Condition | None = None,
    *,
    clip: float | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Follows the deterministic path from phis[0] to phis[-1].

    Args:
        denoiser: called once for each step.
        z: (B, ...) float32 or float64 state at phis[0].
        phis: (N + 1,) float64 falling angles, for instance `denoiser.schedule.grid(N)`.
        cond: what the samples are conditioned on.
        clip: None, or the bound of |x| at each step, with eps recomputed (the released code samples with 1.0).
        callback: called as callback(step, z) after each step.

    Returns:
        z at phis[-1]; for a grid that ends at 0 that is the clean sample, not yet clamped to the data's range.
    """
    angles = phis.to(z.device)
    for step in range(len(phis) - 1):
        phi, phi_next = (angles[i].expand(len(z)) for i in (step, step + 1))
        out = denoiser.raw(z, phi, cond)
        z = ddim_step(z, out, phi, phi_next, prediction_type=denoiser.prediction_type, clip=clip)
        if callback is not None:
            callback(step, z)
    return z


@torch.no_grad()
def follow_plan(
    denoiser: Denoiser,
    z: Tensor,
    plan: SamplingPlan,
    cond: Condition | None = None,
    *,
    clip: float | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """The sample that DDIM makes of noise z along a plan; `callback` is not called after an analytic first step."""
    z = scaled(z, plan.first_factor)
    z = ddim(denoiser, z, plan.trained_phis, cond, clip=clip, callback=callback)
    return scaled(z, plan.last_factor)


def scaled(z: Tensor, factor: float) -> Tensor:
    """factor z; z itself for 1."""
    return z if factor == 1.0 else factor * z
