"""Solvers with several network calls in a step: Heun's rule of EDM, DPM-Solver-2 and -3, DPM-Solver++ 2S and 3S.

Steps from noise and to 0, where logSNR is infinite, are of first order and cost one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from progdistill.sampling.solvers.first_order import (
    NOISE,
    angle_of_half_logsnr,
    ddim_coefficients,
    ddim_stage,
    half_logsnr,
)
from progdistill.sampling.solvers.stages import Combination, Stage


def heun(phis: Sequence[float]) -> list[Stage]:
    """Heun's rule for d(z / alpha) / d(sigma / alpha) = eps (Karras et al. 2022, algorithm 1 without churn)."""
    stages = []
    for s, t in zip(phis[:-1], phis[1:], strict=True):
        stages.append(ddim_stage(s, t, "eps"))
        if t > 0.0 and s < NOISE:
            factor, weight = ddim_coefficients(s, t, "eps")
            stages.append(Stage(t, t, "eps", Combination(anchor=factor, outputs=(weight / 2, weight / 2)), anchor=None))
    return stages


def dpm_solver_2(phis: Sequence[float], *, quantity: str = "eps", r1: float = 0.5) -> list[Stage]:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 4) with "eps"; DPM-Solver++ 2S (Lu et al. 2022b) with "x".

    `r1`: where in a step the second call is, in lambda.
    """
    stages = []
    for s, t in zip(phis[:-1], phis[1:], strict=True):
        if s >= NOISE or t <= 0.0:
            stages.append(ddim_stage(s, t, quantity))
        else:
            stages += second_order_step(s, _within(s, t, r1), t, quantity)
    return stages


def dpm_solver_3(
    phis: Sequence[float], *, quantity: str = "eps", r1: float = 1.0 / 3.0, r2: float = 2.0 / 3.0
) -> list[Stage]:
    """DPM-Solver-3 (Lu et al. 2022a, algorithm 5) with "eps"; DPM-Solver++ 3S with "x"."""
    stages = []
    for s, t in zip(phis[:-1], phis[1:], strict=True):
        if s >= NOISE or t <= 0.0:
            stages.append(ddim_stage(s, t, quantity))
        else:
            stages += third_order_step(s, _within(s, t, r1), _within(s, t, r2), t, quantity)
    return stages


def dpm_solver_on_nodes(phis: Sequence[float], order: int, *, quantity: str = "eps") -> list[Stage]:
    """DPM-Solver-2 or -3 with exactly one network call at each angle of the grid but the last.

    The calls within a step are at grid angles too, so that r1 and r2 follow from the grid; orders are allotted as the
    authors do, lower ones last: 3, 3, ..., 2, 1 or 3, 3, ..., 1 or 3, 3, ..., 2; and 2, 2, ..., 1. A part that starts
    from noise or ends at 0 is taken in steps of first order.
    """
    angles = [float(phi) for phi in phis]
    stages: list[Stage] = []
    first = 0
    for size in allotted_orders(len(angles) - 1, order):
        nodes = angles[first : first + size + 1]
        first += size
        if nodes[0] >= NOISE or nodes[-1] <= 0.0:
            stages += [ddim_stage(s, t, quantity) for s, t in zip(nodes[:-1], nodes[1:], strict=True)]
        elif size == 1:
            stages.append(ddim_stage(*nodes, quantity))
        else:
            stages += (second_order_step if size == 2 else third_order_step)(*nodes, quantity)
    return stages


def allotted_orders(calls: int, order: int) -> list[int]:
    """The orders of the steps that make so many network calls."""
    if order == 2:
        return [2] * (calls // 2) + [1] * (calls % 2)
    if calls % 3:
        return [3] * (calls // 3) + [calls % 3]
    return [3] * (calls // 3 - 1) + [2, 1]


def second_order_step(s: float, middle: float, t: float, quantity: str) -> list[Stage]:
    """From s to t with a call at s and one at `middle`."""
    h = half_logsnr(t) - half_logsnr(s)
    r1 = (half_logsnr(middle) - half_logsnr(s)) / h
    factor, weight = ddim_coefficients(s, t, quantity)
    last = Combination(anchor=factor, outputs=(weight / (2 * r1), weight - weight / (2 * r1)))
    return [ddim_stage(s, middle, quantity), Stage(middle, t, quantity, last, anchor=None)]


def third_order_step(s: float, first: float, second: float, t: float, quantity: str) -> list[Stage]:
    """From s to t with calls at s, `first` and `second`."""
    h = half_logsnr(t) - half_logsnr(s)
    r1, r2 = ((half_logsnr(node) - half_logsnr(s)) / h for node in (first, second))
    factor2, weight2 = ddim_coefficients(s, second, quantity)
    bend2 = r2 / r1 * slope_weight(s, second, quantity)
    factor3, weight3 = ddim_coefficients(s, t, quantity)
    bend3 = slope_weight(s, t, quantity) / r2
    return [
        ddim_stage(s, first, quantity),
        Stage(first, second, quantity, Combination(anchor=factor2, outputs=(bend2, weight2 - bend2)), anchor=None),
        Stage(second, t, quantity, Combination(anchor=factor3, outputs=(bend3, 0.0, weight3 - bend3)), anchor=None),
    ]


def slope_weight(s: float, t: float, quantity: str) -> float:
    """What h dD/dlambda is multiplied by in a step from s to t of length h in lambda.

    eps: -sigma_t (expm1(h) / h - 1); x: alpha_t (expm1(-h) / h + 1).
    """
    h = half_logsnr(t) - half_logsnr(s)
    if quantity == "eps":
        return -math.sin(t) * (math.expm1(h) / h - 1.0)
    return math.cos(t) * (math.expm1(-h) / h + 1.0)


def _within(s: float, t: float, share: float) -> float:
    """The angle at a share of the way from s to t in lambda."""
    low, high = half_logsnr(s), half_logsnr(t)
    return angle_of_half_logsnr(low + share * (high - low))
