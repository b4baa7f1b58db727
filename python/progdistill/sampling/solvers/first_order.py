"""Steps of order 1, which every solver starts from, and Euler and Runge-Kutta in the angle.

All take falling angles (N + 1,) that may start at pi/2 (nothing but noise) and end at 0 (the clean image).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from progdistill.sampling.solvers.stages import Combination, Stage

# Angles from here on (lambda <= -5.1) count as nothing but noise. Schedules that reach them do so by leaps in lambda,
# over which no polynomial says anything; the authors of DPM-Solver cut schedules off here.
NOISE = math.atan(math.exp(5.1))


def ddim(phis: Sequence[float], *, quantity: str = "v") -> list[Stage]:
    """DDIM (Song et al. 2021) = DPM-Solver-1 = Euler in sigma / alpha; `quantity` is what is held constant in a step.

    They are one and the same step: with "eps" and "x" the output can be told apart from the state, which what combines
    several outputs needs.
    """
    return [ddim_stage(s, t, quantity) for s, t in _steps(phis)]


def euler(phis: Sequence[float]) -> list[Stage]:
    """Euler's rule for dz / dphi = v, the probability-flow ODE in the angle (Salimans & Ho 2022, appendices C, D)."""
    return [Stage(s, t, "v", Combination(anchor=1.0, outputs=(t - s,))) for s, t in _steps(phis)]


def rk4(phis: Sequence[float]) -> list[Stage]:
    """The classic Runge-Kutta rule for dz / dphi = v, four network calls a step (Salimans & Ho 2022, appendix C).

    A step to the clean image, where no network can be asked, is one of DDIM.
    """
    stages = []
    for s, t in _steps(phis):
        if t == 0.0:
            stages.append(ddim_stage(s, t, "v"))
            continue
        h, middle = t - s, (s + t) / 2
        stages += [
            Stage(s, middle, "v", Combination(anchor=1.0, outputs=(h / 2,))),
            Stage(middle, middle, "v", Combination(anchor=1.0, outputs=(h / 2,)), anchor=None),
            Stage(middle, t, "v", Combination(anchor=1.0, outputs=(h,)), anchor=None),
            Stage(t, t, "v", Combination(anchor=1.0, outputs=(h / 6, h / 3, h / 3, h / 6)), anchor=None),
        ]
    return stages


def ddim_stage(s: float, t: float, quantity: str) -> Stage:
    """One DDIM step from s to t. From noise, where eps says little, it is made with v."""
    if s >= NOISE and quantity == "eps":
        quantity = "v"
    factor, weight = ddim_coefficients(s, t, quantity)
    return Stage(s, t, quantity, Combination(anchor=factor, outputs=(weight,)))


def ddim_coefficients(s: float, t: float, quantity: str) -> tuple[float, float]:
    """(c_z, c_D) of z_t = c_z z_s + c_D D_s, by differences of angles alone; c_D is 0 for no step.

    v: cos(s - t), -sin(s - t). x: sin t / sin s, sin(s - t) / sin s. eps: cos t / cos s, -sin(s - t) / cos s, which has
    no value at s = pi/2, where eps says nothing that the state does not.
    """
    if quantity == "v":
        return math.cos(s - t), -math.sin(s - t)
    if quantity == "x":
        return math.sin(t) / math.sin(s), math.sin(s - t) / math.sin(s)
    return math.cos(t) / math.cos(s), -math.sin(s - t) / math.cos(s)


def half_logsnr(phi: float) -> float:
    """lambda = log(alpha / sigma) = -log tan(phi): -inf at pi/2, inf at 0."""
    if phi <= 0.0:
        return math.inf
    return -math.inf if phi >= math.pi / 2 else -math.log(math.tan(phi))


def angle_of_half_logsnr(value: float) -> float:
    """The inverse of `half_logsnr`."""
    return math.atan(math.exp(-value))


def _steps(phis: Sequence[float]) -> list[tuple[float, float]]:
    angles = [float(phi) for phi in phis]
    return list(zip(angles[:-1], angles[1:], strict=True))
