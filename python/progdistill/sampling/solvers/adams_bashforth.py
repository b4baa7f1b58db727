"""Multistep solvers that extrapolate eps: iPNDM with constant weights, and exact ones as DEIS integrates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from progdistill.sampling.solvers.first_order import NOISE, ddim_coefficients, ddim_stage, half_logsnr
from progdistill.sampling.solvers.stages import Combination, Stage

_EQUIDISTANT = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
# Exact to rounding for the polynomials times exponentials that are integrated here, over any step of a grid.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def ipndm(phis: Sequence[float], order: int = 4) -> list[Stage]:
    """iPNDM (Liu et al. 2022; Zhang & Chen 2023): the weights of equal steps in sigma / alpha, whatever the steps are.

    Raises:
        ValueError: an order outside 1 to 4.
    """
    _check_order(order, len(_EQUIDISTANT))
    stages = []
    for i, (s, t) in enumerate(zip(phis[:-1], phis[1:], strict=True)):
        if s >= NOISE:
            stages.append(ddim_stage(s, t, "eps"))
            continue
        factor, weight = ddim_coefficients(s, t, "eps")
        outputs = tuple(weight * w for w in _EQUIDISTANT[min(order, i + 1)])
        stages.append(Stage(s, t, "eps", Combination(anchor=factor, outputs=outputs), averaged=True))
    return stages


def adams_bashforth(
    phis: Sequence[float], order: int, variable: Callable[[np.ndarray], np.ndarray] = np.tan
) -> list[Stage]:
    """Exact integration of a polynomial in some variable through the last outputs (DEIS-AB, Zhang & Chen 2023).

    With z / alpha = y: y_t = y_s + sum_j C_j eps_j, C_j the integral over rho = tan phi of the Lagrange polynomials.

    Args:
        phis: falling angles (N + 1,).
        order: how many outputs, 1 to 4. (DEIS counts those before the newest: its tAB3 is order 4.)
        variable: angles -> what the polynomials are in: tan (rhoAB: iPNDM with the right weights for steps that are not
            equal), the model's time (tAB), or lambda.

    Raises:
        ValueError: an order outside 1 to 4.
    """
    _check_order(order, 4)
    angles = [float(phi) for phi in phis]
    stages = []
    for i, (s, t) in enumerate(zip(angles[:-1], angles[1:], strict=True)):
        known = [phi for phi in reversed(angles[max(0, i + 1 - order) : i + 1]) if _finite(variable, phi)]
        if s >= NOISE or not known or known[0] != s:
            stages.append(ddim_stage(s, t, "eps"))
            continue
        factor = math.cos(t) / math.cos(s)
        outputs = tuple(math.cos(t) * c for c in _integrals(s, t, known, variable))
        stages.append(Stage(s, t, "eps", Combination(anchor=factor, outputs=outputs), averaged=True))
    return stages


def _integrals(s: float, t: float, nodes: Sequence[float], variable: Callable) -> list[float]:
    """C_j of each node: the integral of its Lagrange polynomial over rho from tan s to tan t."""
    if t > 0.0:  # rho may fall by powers of ten: its logarithm is -lambda
        low, high = -half_logsnr(s), -half_logsnr(t)
        logs = (high - low) / 2 * _NODES + (high + low) / 2
        rho = np.exp(logs)
        measure = (high - low) / 2 * _WEIGHTS * rho
    else:
        rho = math.tan(s) * (1 - _NODES) / 2
        measure = -math.tan(s) / 2 * _WEIGHTS
    at, of_nodes = variable(np.arctan(rho)), variable(np.asarray(nodes))
    integrals = []
    for j in range(len(nodes)):
        product = np.ones_like(at)
        for m in range(len(nodes)):
            if m != j:
                product = product * (at - of_nodes[m]) / (of_nodes[j] - of_nodes[m])
        integrals.append(float((measure * product).sum()))
    return integrals


def _finite(variable: Callable, phi: float) -> bool:
    # tan(pi/2) is a large number in floating point, not infinity.
    if phi >= NOISE and variable is np.tan:
        return False
    with np.errstate(divide="ignore"):
        return bool(np.isfinite(variable(np.asarray([phi]))).all())


def _check_order(order: int, most: int) -> None:
    if order not in range(1, most + 1):
        raise ValueError(f"order is {order}; allowed: 1 to {most}")
