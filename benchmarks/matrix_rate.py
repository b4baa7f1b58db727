"""The rate of a large matrix product: the ceiling for convolutions."""

from __future__ import annotations

from typing import Any

import torch

from timing import Clock, interleaved, spread

SIZE = {"cuda": 8192, "cpu": 1024}
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


def matrix_rate(device: str, clock: Clock, *, size: int | None = None, repetitions: int = 10) -> dict[str, Any]:
    """Operations a second (2 a multiply-add) of a square product, by the median: bfloat16 on a GPU, else float32."""
    size = size or SIZE[device]
    # Random numbers: zeros need less power, and so run at a higher clock.
    a, b = (torch.randn(size, size, device=device).to(DTYPE[device]) for _ in range(2))
    result = torch.empty_like(a)
    seconds = interleaved(
        {"product": lambda: torch.mm(a, b, out=result)}, clock, repetitions=repetitions, seconds_per_turn=0.02
    )["product"]
    figures = spread(seconds)
    return {"size": size, "dtype": str(a.dtype)[6:], "flop_per_second": 2 * size**3 / figures.median} | (
        figures._asdict()
    )
