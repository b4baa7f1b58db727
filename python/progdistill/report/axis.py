"""Axes of a chart: the range that is shown, and where it gets ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Ticks = tuple[tuple[float, str], ...]

# Between these, products and ratios of two values neither overflow nor vanish in float64.
_LARGEST = 1e150
_SMALLEST = 1e-150


@dataclass(frozen=True)
class Axis:
    """A shown range `low` < `high` in data units, linear or logarithmic, and its ticks as (value, label)."""

    low: float
    high: float
    log: bool
    ticks: Ticks

    def fraction(self, value: float) -> float:
        """Where `value` stands between the low end (0) and the high end (1); outside it, the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def drawable(value: float | None, *, log: bool) -> bool:
    """Whether a value has a place on an axis.

    None, NaN, infinity and what is larger than 1e150 have none; nor have, on a logarithmic axis, values below
    1e-150.
    """
    return value is not None and abs(value) <= _LARGEST and (not log or value >= _SMALLEST)


def make_axis(values: Sequence[float], *, log: bool, max_ticks: int) -> Axis:
    """An axis that shows all `values`, which are drawable, with about `max_ticks` ticks; any axis if there
    are none.

    A logarithmic axis whose values are all powers of two, as step counts are, gets its ticks at powers of
    two. Any other gets them at powers of ten, with 2 and 5 between if these are few, or at round numbers if
    it spans too little for those.
    """
    values = values or [1.0, 10.0]
    low, high = float(min(values)), float(max(values))
    if not log:
        return _linear_axis(low, high, max_ticks)
    of_two = all(math.frexp(value)[0] == 0.5 for value in values)
    # One value alone gets a factor of two on either side, so that there are ticks beside it.
    margin = 0.7 if high < 1.1 * low else max(0.04 * math.log(high / low), 0.1)
    low, high = low * math.exp(-margin), high * math.exp(margin)
    ticks = _power_of_two_ticks if of_two else _power_of_ten_ticks
    return Axis(low, high, True, ticks(low, high, max_ticks))


def _linear_axis(low: float, high: float, max_ticks: int) -> Axis:
    """An axis whose ends are ticks."""
    largest = max(-low, high)
    if high - low <= max(1e-12 * largest, _SMALLEST):
        margin = 0.5 * largest if largest > _SMALLEST else 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / max_ticks)
    values = [index * step for index in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return Axis(values[0], values[-1], False, _labelled(values, step))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _power_of_two_ticks(low: float, high: float, max_ticks: int) -> Ticks:
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    powers = range(first, last + 1, -(-(last - first + 1) // max_ticks))
    return tuple((2.0**power, f"{2.0**power:.6g}" if -4 < power < 20 else f"2^{power}") for power in powers)


def _power_of_ten_ticks(low: float, high: float, max_ticks: int) -> Ticks:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        shown = [value for value in values if low <= value <= high]
        if len(shown) >= 3:
            chosen = shown[:: -(-len(shown) // (max_ticks + 2))]
            return tuple((value, f"{value:g}" if 1e-3 <= value < 1e6 else _scientific(value, 0)) for value in chosen)
    step = _round_step((high - low) / max_ticks)
    if math.floor(high / step) == math.ceil(low / step):  # a single one
        step = _round_step(step / 2.5)
    return _labelled([index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)], step)


def _labelled(values: Sequence[float], step: float) -> Ticks:
    """Labels with as many digits as tell neighbours apart, scientific where plain ones would be long."""
    largest = max(abs(value) for value in values)
    place = math.floor(math.log10(step) + 1e-9)
    if largest < 1e6 and place >= -5:
        return tuple((value, f"{value:.{max(-place, 0)}f}") for value in values)
    digits = max(math.floor(math.log10(largest) + 1e-9) - place, 0)
    return tuple((value, _scientific(value, digits) if value else "0") for value in values)


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
