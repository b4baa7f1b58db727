"""The rate of a large copy: the ceiling for operations that read and write each byte once."""

from __future__ import annotations

from typing import Any

import torch

from machine import free_bytes
from timing import Clock, interleaved, spread


def copy_rate(device: str, clock: Clock, *, largest: int = 2**31, repetitions: int = 10) -> dict[str, Any]:
    """Bytes read plus written a second of copying one buffer to another, by the median.

    The buffers hold at most `largest` bytes each (256 MB on a CPU, far beyond its caches) and at most an eighth of the
    free memory. On a CPU the copy is PyTorch's, with its threads; a processor that fetches a line before it writes it
    moves half as much again as is counted here.
    """
    size = min(largest, 2**28) if device == "cpu" else largest
    free = free_bytes(device)
    if free is not None:
        size = max(2**20, min(size, free // 8))
    # Random numbers: some chips move zeros faster.
    source = torch.randint(-128, 128, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    seconds = interleaved(
        {"copy": lambda: target.copy_(source)}, clock, repetitions=repetitions, seconds_per_turn=0.02
    )["copy"]
    figures = spread(seconds)
    return {"buffer_bytes": size, "bytes_per_second": 2 * size / figures.median, **figures._asdict()}
