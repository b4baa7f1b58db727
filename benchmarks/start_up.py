"""What it takes until a contender of benchmarks/sampling.py runs at its speed: seconds, and the GPU's memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sampling_contenders import FIRST_CALLS, Call, Contender, Size


class Metered(NamedTuple):
    """What was made, the seconds that took, the bytes of the GPU at most taken meanwhile and those still held after.

    Bytes are those that PyTorch reserves, graphs' pools included, beyond what it had before; None on a CPU.
    """

    made: Any
    seconds: float
    peak_bytes: int | None
    held_bytes: int | None


def metered(device: torch.device, make: Callable[[], Any]) -> Metered:
    """Makes it, the device idle before and after."""
    release(device)
    if device.type != "cuda":
        start = time.perf_counter()
        return Metered(make(), time.perf_counter() - start, None, None)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    made = make()
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_reserved(device) - before
    release(device)
    return Metered(made, seconds, peak, torch.cuda.memory_reserved(device) - before)


def release(device: torch.device) -> None:
    """Gives back to the GPU what nothing refers to any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def prepare(contender: Contender, size: Size) -> Metered:
    """What a contender needs at every number of steps of this size."""
    return metered(size.device, lambda: contender.prepare(size))


def start_up(contender: Contender, size: Size, steps: int, prepared: Metered) -> tuple[Call, float, int | None]:
    """(the call, seconds until its first calls were done, bytes at most), what was `prepared` included."""

    def make() -> Call:
        call = contender.start(size, steps, prepared.made)
        for _ in range(FIRST_CALLS):
            call()
        return call

    started = metered(size.device, make)
    peak = None
    if started.peak_bytes is not None:
        peak = max(prepared.peak_bytes, prepared.held_bytes + started.peak_bytes)
    return started.made, prepared.seconds + started.seconds, peak
