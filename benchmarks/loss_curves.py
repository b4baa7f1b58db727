"""How far apart two curves of losses on the same data are."""

from __future__ import annotations

import statistics
from typing import NamedTuple

# Single losses scatter with their batch, and a difference of rounding grows: means over so many are compared too.
WINDOW = 20


class Apart(NamedTuple):
    """Differences from another curve, of its values: of the first loss and gradient norm, of all losses, of means of
    `WINDOW` losses at most, and of the sum of all losses, with its sign."""

    first_loss: float
    first_grad_norm: float
    mean: float
    largest_window: float
    total: float


def apart(curve: dict[str, list[float]], reference: dict[str, list[float]]) -> Apart:
    """`curve` and `reference`: {"loss": [...], "grad_norm": [...]} of the same updates."""
    losses, expected = curve["loss"], reference["loss"]
    differences = [_relative(a, b) for a, b in zip(losses, expected, strict=True)]
    windows = [_relative(a, b) for a, b in zip(_means(losses), _means(expected), strict=True)]
    return Apart(
        abs(differences[0]),
        abs(_relative(curve["grad_norm"][0], reference["grad_norm"][0])),
        statistics.fmean(map(abs, differences)),
        max(map(abs, windows)),
        _relative(sum(losses), sum(expected)),
    )


def _relative(value: float, expected: float) -> float:
    return (value - expected) / expected


def _means(losses: list[float]) -> list[float]:
    starts = range(0, len(losses) - len(losses) % WINDOW, WINDOW) if len(losses) >= WINDOW else (0,)
    return [statistics.fmean(losses[start : start + WINDOW]) for start in starts]
