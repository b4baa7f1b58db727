"""Where a solver's steps are: falling angles (N + 1,) that end at 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core.schedules import Schedule, angle_of_logsnr

GRIDS = ("trailing", "uniform", "linspace", "polynomial", "logsnr")


def make_grid(
    schedule: Schedule,
    steps: int,
    grid: str | Sequence[float] | Tensor = "trailing",
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """The angles of a grid, float64.

    Args:
        schedule: maps times to angles.
        steps: N.
        grid: "trailing" or "uniform", times N / N, ..., 1 / N, 0, as in distillation; "linspace", N times from 1 to
            1 / 1000, then 0; "polynomial" (Karras et al. 2022, eq. 5), N equidistant sigma^(1 / rho) from sigma_max to
            sigma_min, then 0; "logsnr", the same for the logarithm of sigma; or the N + 1 angles themselves.
        sigma_min, sigma_max, rho: sigma is sigma / alpha = tan(phi); both are held within the schedule.

    Raises:
        ValueError: an unknown grid, or angles that do not fall from at most pi/2 to 0.
    """
    if not isinstance(grid, str):
        return _checked(torch.as_tensor(grid, dtype=torch.float64), steps)
    if grid not in GRIDS:
        raise ValueError(f"grid is {grid!r}; use one of {', '.join(GRIDS)}, or {steps + 1} angles")
    if grid in ("trailing", "uniform"):
        return schedule.grid(steps)
    if grid == "linspace":
        times = torch.linspace(1.0, 1e-3, steps, dtype=torch.float64)
        return _ending(schedule.angle(times))
    ends = torch.tan(schedule.angle(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    high, low = min(sigma_max, float(ends[0])), max(sigma_min, float(ends[1]))
    if not 0 < low < high:
        raise ValueError(f"sigma_min is {sigma_min}, sigma_max {sigma_max}; 0 < sigma_min < sigma_max is needed")
    part = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    if grid == "logsnr":
        return _ending(angle_of_logsnr(-2 * (math.log(high) + part * (math.log(low) - math.log(high)))))
    return _ending(torch.atan((high ** (1 / rho) + part * (low ** (1 / rho) - high ** (1 / rho))) ** rho))


def _ending(angles: Tensor) -> Tensor:
    return torch.cat([angles, angles.new_zeros(1)])


def _checked(angles: Tensor, steps: int) -> Tensor:
    falling = angles.dim() == 1 and bool((angles[1:] < angles[:-1]).all())
    if not falling or len(angles) != steps + 1 or not 0 < float(angles[0]) <= math.pi / 2 or float(angles[-1]) != 0:
        raise ValueError(
            f"a grid of {steps} steps is {steps + 1} angles that fall from at most pi/2 to exactly 0; got "
            f"{angles.tolist()}"
        )
    return angles
