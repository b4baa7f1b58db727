"""What a network call says of x, eps and v, with x bounded where that is asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.ops import rotation
from progdistill.sampling.solvers.terms import Term, evaluated


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
) -> dict[str, list[Term]]:
    """Each of "x", "eps", "v" that is asked for, (B, ...), from one network call at angle phi in (0, pi/2].

    They are sums of z and the network's own output, or of z and the bounded x, which nobody has formed yet: the pass
    over memory that does so can be the one that makes a state of them.
    """
    angle = torch.full((len(z),), phi, dtype=torch.float64, device=z.device)
    out = denoiser.raw(z, angle, cond)
    kind = denoiser.prediction_type
    if clip is not None or thresholding is not None:
        x = evaluated(_converted(z, out, kind, phi, "x"), z)
        x = thresholding(x) if thresholding is not None else x
        out, kind = x.clamp(-clip, clip) if clip is not None else x, "sample"
    return {quantity: _converted(z, out, kind, phi, quantity) for quantity in quantities}


def analytic_predictions(z: Tensor, phi: float, quantities: Collection[str]) -> dict[str, list[Term]]:
    """The same without a network: eps is z, hence x = v = (1 - sin phi) / cos phi z."""
    clean = [Term(z, (math.tan(math.pi / 4 - phi / 2),))]
    found = {"x": clean, "eps": [Term(z)], "v": clean}
    return {quantity: found[quantity] for quantity in quantities}


def _converted(z: Tensor, out: Tensor, prediction_type: str, phi: float, quantity: str) -> list[Term]:
    of_z, of_out = _factors(prediction_type, quantity, phi)
    return [Term(z, (of_z,)), Term(out, of_out)]


@functools.lru_cache(maxsize=4096)
def _factors(prediction_type: str, quantity: str, phi: float) -> tuple[float, tuple[float, ...]]:
    """What z and the heads of an output are multiplied by."""
    form = rotation.prediction_form(prediction_type, quantity, torch.tensor(phi, dtype=torch.float64))
    return form.z.item(), tuple(factor.item() for factor in form.output)
