"""What a network call says of x, eps and v, with x bounded where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser


class Thresholding(NamedTuple):
    """Dynamic thresholding (Saharia et al. 2022): x is clipped to the `quantile` of its magnitudes, at least
    `floor`, and divided by it times `floor`."""

    quantile: float = 0.995
    floor: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Each sample (B, ...) by its own quantile."""
        magnitudes = x.abs().flatten(1)
        bound = torch.quantile(magnitudes, self.quantile, dim=1).clamp(min=self.floor)
        bound = bound.reshape(-1, *(1,) * (x.dim() - 1))
        return x.clamp(-bound, bound) * (self.floor / bound)


def predictions(
    denoiser: Denoiser,
    z: Tensor,
    phi: float,
    cond: Condition | None,
    quantities: Collection[str],
    clip: float | None = None,
    thresholding: Thresholding | None = None,
) -> dict[str, Tensor]:
    """Each of "x", "eps", "v" that is asked for, (B, ...), from one network call at angle phi in (0, pi/2]."""
    angle = torch.full((len(z),), phi, dtype=torch.float64, device=z.device)
    out = denoiser.raw(z, angle, cond)
    if clip is None and thresholding is None:
        return {quantity: denoiser.converted(out, z, angle, quantity) for quantity in quantities}
    x = denoiser.converted(out, z, angle, "x")
    x = thresholding(x) if thresholding is not None else x
    x = x.clamp(-clip, clip) if clip is not None else x
    cos, sin = math.cos(phi), math.sin(phi)
    eps = (z - cos * x) / sin
    found = {"x": x, "eps": eps, "v": cos * eps - sin * x}
    return {quantity: found[quantity] for quantity in quantities}


def analytic_predictions(z: Tensor, phi: float, quantities: Collection[str]) -> dict[str, Tensor]:
    """The same without a network: eps is z, hence x = v = (1 - sin phi) / cos phi z."""
    clean = math.tan(math.pi / 4 - phi / 2) * z
    found = {"x": clean, "eps": z, "v": clean}
    return {quantity: found[quantity] for quantity in quantities}
