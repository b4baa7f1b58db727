"""UniPC (Zhao et al. 2023): a multistep predictor whose next network call corrects it, at no call more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from progdistill.sampling.solvers.first_order import NOISE, ddim_coefficients, half_logsnr
from progdistill.sampling.solvers.stages import Combination, Stage

VARIANTS = ("bh1", "bh2")


def unipc(
    phis: Sequence[float],
    order: int = 2,
    *,
    quantity: str = "x",
    variant: str = "bh2",
    lower_order_final: bool = True,
) -> list[Stage]:
    """UniPC-p with B(h) = h ("bh1") or expm1(h) ("bh2"); the accuracy is of order p + 1.

    The output at a predicted state first corrects that state and then, as it is, serves the next steps; the last step
    is not corrected. Steps from noise and to 0 are of first order, the former without a correction.

    Raises:
        ValueError: an order outside 1 to 3, or another variant.
    """
    if order not in (1, 2, 3) or variant not in VARIANTS:
        raise ValueError(f"order is {order}, variant {variant!r}; UniPC has orders 1 to 3 and {' and '.join(VARIANTS)}")
    angles = [float(phi) for phi in phis]
    count, stages = len(angles) - 1, []
    correction = Combination(state=1.0)
    for i in range(count):
        now = min(order, i + 1, count - i if lower_order_final else order)
        nodes = [phi for phi in angles[i - now + 1 : i + 2] if phi < NOISE]
        s, t = angles[i], angles[i + 1]
        from_noise = s >= NOISE
        of = "v" if from_noise and quantity == "eps" else quantity
        factor, weight = ddim_coefficients(s, t, of)
        predicted = (weight,) if from_noise or t <= 0.0 else _predicted(nodes, weight, quantity, variant)
        stages.append(Stage(s, t, of, Combination(anchor=factor, outputs=predicted), correction, averaged=True))
        if from_noise or i == count - 1:
            correction = Combination(state=1.0)
        else:
            correction = Combination(anchor=factor, outputs=_corrected(nodes, weight, quantity, variant))
    return stages


def _predicted(nodes: Sequence[float], weight: float, quantity: str, variant: str) -> tuple[float, ...]:
    """Weights of D_0, D_-1, ... in the step from the last node but one to the last."""
    ratios, matrix, right, scale = _system(nodes, quantity, variant)
    size = len(ratios) - 1
    if size == 0:
        return (weight,)
    slopes = np.array([0.5]) if size == 1 else np.linalg.solve(matrix[:size, :size], right[:size])
    return _weights(weight, scale, slopes, ratios[:size])


def _corrected(nodes: Sequence[float], weight: float, quantity: str, variant: str) -> tuple[float, ...]:
    """Weights of D_1 (the output at the predicted state), D_0, D_-1, ..."""
    ratios, matrix, right, scale = _system(nodes, quantity, variant)
    slopes = np.array([0.5]) if len(ratios) == 1 else np.linalg.solve(matrix, right)
    newest = scale * slopes[-1] / ratios[-1]
    first, *others = _weights(weight, scale, slopes[:-1], ratios[:-1])
    return (newest, first - newest, *others)


def _system(nodes: Sequence[float], quantity: str, variant: str):
    """(r_k, R, b, what the sum over a_k D_k is multiplied by), D_k = (D_-k - D_0) / r_k and r_p = 1 for D_1."""
    lambdas = [half_logsnr(phi) for phi in nodes]
    h = lambdas[-1] - lambdas[-2]
    signed = -h if quantity == "x" else h
    ratios = np.array([(earlier - lambdas[-2]) / h for earlier in reversed(lambdas[:-2])] + [1.0])
    scale = signed if variant == "bh1" else math.expm1(signed)
    psi, factorial, right = math.expm1(signed) / signed - 1.0, 1, []
    for i in range(1, len(ratios) + 1):
        factorial *= i
        right.append(psi * factorial / scale)
        psi = psi / signed - 1.0 / (factorial * (i + 1))
    matrix = np.stack([ratios**i for i in range(len(ratios))])
    outside = math.cos(nodes[-1]) if quantity == "x" else math.sin(nodes[-1])
    return ratios, matrix, np.array(right), -outside * scale


def _weights(weight: float, scale: float, slopes: np.ndarray, ratios: np.ndarray) -> tuple[float, ...]:
    """Weights of D_0, D_-1, ... of weight D_0 + scale sum_k a_k (D_-k - D_0) / r_k."""
    each = scale * slopes / ratios
    return (float(weight - each.sum()), *map(float, each))
