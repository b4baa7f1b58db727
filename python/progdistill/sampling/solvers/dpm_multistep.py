"""DPM-Solver++ multistep, 2M and 3M (Lu et al. 2022b), for x and eps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from progdistill.sampling.solvers.first_order import NOISE, ddim_coefficients, ddim_stage, half_logsnr
from progdistill.sampling.solvers.single_step import slope_weight
from progdistill.sampling.solvers.stages import Combination, Stage


def dpm_solver_multistep(
    phis: Sequence[float],
    order: int,
    *,
    quantity: str = "x",
    lower_order_final: bool = True,
    corrected: bool = False,
) -> list[Stage]:
    """DPM-Solver++ 2M or 3M, one network call a step.

    Args:
        phis: falling angles (N + 1,).
        order: 2 or 3; 1 is DDIM.
        quantity: "x" (the ++ variant) or "eps".
        lower_order_final: lower the order towards the end, so that the last step is of order 1. A step to 0 always is.
        corrected: the published third-order formula takes D2, an estimate of h^2 D'' / 2, for h^2 D'', which makes it
            of second order; yes: twice that, and third order. No is what everybody else samples with.

    Raises:
        ValueError: another order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; DPM-Solver++ multistep has 1, 2 and 3")
    angles = [float(phi) for phi in phis]
    count, stages = len(angles) - 1, []
    for i in range(count):
        s, t = angles[i], angles[i + 1]
        now = min(order, i + 1, count - i if lower_order_final else order)
        if t <= 0.0 or s >= NOISE:
            now = 1
        if now == 1:
            stages.append(ddim_stage(s, t, quantity))
            continue
        factor, outputs = _step(angles[i - now + 1 : i + 2], quantity, corrected)
        stages.append(Stage(s, t, quantity, Combination(anchor=factor, outputs=outputs), averaged=True))
    return stages


def _step(nodes: Sequence[float], quantity: str, corrected: bool) -> tuple[float, tuple[float, ...]]:
    """(c_z, weights of D_0, D_-1 (, D_-2)) of a step from the last node but one to the last.

    With r_j = h_j / h: D10 = (D_0 - D_-1) / r0, D11 = (D_-1 - D_-2) / r1, D1 = D10 + r0 / (r0 + r1) (D10 - D11),
    D2 = (D10 - D11) / (r0 + r1). A node at pi/2 is infinitely far: its differences vanish.
    """
    lambdas = [half_logsnr(phi) for phi in nodes]
    s, t = nodes[-2:]
    h = lambdas[-1] - lambdas[-2]
    factor, weight = ddim_coefficients(s, t, quantity)
    r0 = (lambdas[-2] - lambdas[-3]) / h
    if len(nodes) == 3:
        # 2M puts expm1(h) / 2 where the exact weight of the slope is expm1(h) / h - 1.
        bend = weight / (2 * r0)
        return factor, (weight + bend, -bend)
    r1 = (lambdas[-3] - lambdas[-4]) / h
    d10 = (1 / r0, -1 / r0, 0.0)
    d11 = (0.0, 1 / r1, -1 / r1)
    share = 0.0 if math.isinf(r1) else r0 / (r0 + r1)
    first = [a + share * (a - b) for a, b in zip(d10, d11, strict=True)]
    second = [(a - b) / (r0 + r1) for a, b in zip(d10, d11, strict=True)]
    slope, bow = slope_weight(s, t, quantity), curvature_weight(s, t, quantity) * (2.0 if corrected else 1.0)
    weights = [slope * a + bow * b for a, b in zip(first, second, strict=True)]
    weights[0] += weight
    return factor, tuple(weights)


def curvature_weight(s: float, t: float, quantity: str) -> float:
    """What h^2 d^2D/dlambda^2 is multiplied by in a step from s to t of length h in lambda.

    eps: -sigma_t ((expm1(h) / h - 1) / h - 1 / 2); x: -alpha_t ((expm1(-h) / h + 1) / h - 1 / 2).
    """
    h = half_logsnr(t) - half_logsnr(s)
    if quantity == "eps":
        return -math.sin(t) * ((math.expm1(h) / h - 1.0) / h - 0.5)
    return -math.cos(t) * ((math.expm1(-h) / h + 1.0) / h - 0.5)
