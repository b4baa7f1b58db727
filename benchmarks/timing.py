"""Times calls that take turns, with the clock of the host or of the GPU.

Contenders take turns within a repetition, so that another load on the machine meets all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch

LEAST_CALIBRATED_SECONDS = 1e-7


class Clock(Protocol):
    """Marks points in time; `wait` returns when the device has done all that it was told."""

    def mark(self) -> Any: ...

    def elapsed(self, start: Any, end: Any) -> float: ...

    def wait(self) -> None: ...


class HostClock:
    """The host's clock. Work that a GPU still has to do when a call returns is not in it."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device

    def mark(self) -> float:
        return time.perf_counter()

    def elapsed(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


class EventClock:
    """Events in the GPU's current stream: the time between two of them as the GPU sees it."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1e3

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: str) -> Clock:
    """The clock that sees the work of "cpu" or "cuda"."""
    return EventClock() if device == "cuda" else HostClock()


class Spread(NamedTuple):
    """Seconds of a call over the repetitions, quantiles interpolated."""

    quantile_20: float
    median: float
    quantile_80: float
    minimum: float


def spread(seconds: list[float]) -> Spread:
    """The spread of one figure for each repetition."""
    if len(seconds) == 1:
        return Spread(*seconds * 4)
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Spread(fifths[0], statistics.median(seconds), fifths[-1], min(seconds))


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    clock: Clock,
    *,
    repetitions: int = 20,
    seconds_per_turn: float = 0.05,
    most_calls: int = 1000,
) -> dict[str, list[float]]:
    """Seconds a call for each contender, one figure for each repetition.

    A turn repeats short calls until it is about `seconds_per_turn` long, at most `most_calls` times. The device is idle
    when a turn starts, so what the host takes to launch the first call is in the figure, shared by the turn's calls.
    """
    counts = {name: _calls_a_turn(call, clock, seconds_per_turn, most_calls) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, call in contenders.items():
            seconds[name].append(_turn(call, clock, counts[name]))
    return seconds


def latencies(
    contenders: Mapping[str, Callable[[], object]],
    clock: Clock,
    *,
    most: int = 200,
    least: int = 10,
    most_seconds: float = 6.0,
) -> dict[str, list[float]]:
    """Seconds of single calls, with the device idle before each and done after it: what the caller waits for.

    Each contender is called `most` times, or, once it was called `least` times, until its calls have taken
    `most_seconds` together; one call more comes first and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    waiting = list(contenders)
    while waiting:
        for name in waiting:
            clock.wait()
            start = clock.mark()
            contenders[name]()
            clock.wait()
            seconds[name].append(clock.elapsed(start, clock.mark()))
        waiting = [
            name
            for name in waiting
            if len(seconds[name]) < most and (len(seconds[name]) < least or sum(seconds[name]) < most_seconds)
        ]
    return seconds


def percentile_99(seconds: list[float]) -> float | None:
    """What 99 of 100 calls do not exceed, interpolated; None for fewer than 100 calls, which cannot tell."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[-1] if len(seconds) >= 100 else None


def _calls_a_turn(call: Callable[[], object], clock: Clock, seconds_per_turn: float, most_calls: int) -> int:
    _turn(call, clock, 1)  # the first call compiles, allocates and loads
    once = max(_turn(call, clock, 1), LEAST_CALIBRATED_SECONDS)
    return max(1, min(most_calls, int(seconds_per_turn / once)))


def _turn(call: Callable[[], object], clock: Clock, count: int) -> float:
    clock.wait()
    start = clock.mark()
    for _ in range(count):
        call()
    end = clock.mark()
    clock.wait()
    return clock.elapsed(start, end) / count
