"""Calls that find nothing of their arguments in a GPU's L2 cache, launched one by one or replayed from a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


# Beyond it a graph of all copies' launches takes longer to make than to measure.
MOST_COPIES = 100


def copies_beyond(cache_bytes: int, bytes_of_one: int) -> int:
    """How many copies of a working set exceed twice the cache (1 if there is no cache), at most MOST_COPIES."""
    if not cache_bytes:
        return 1
    return min(MOST_COPIES, math.floor(2 * cache_bytes / max(bytes_of_one, 1)) + 1)


class Rotation:
    """A contender's calls on each of several sets of inputs in turn.

    The last result on every set is kept: a freed one would be the next call's output, still in the cache.
    """

    def __init__(self, call: Callable[[Any], Any], sets: list[Any]) -> None:
        self._call = call
        self._sets = sets
        self._results: list[Any] = [None] * len(sets)

    def __call__(self) -> None:
        for place, inputs in enumerate(self._sets):
            self._results[place] = self._call(inputs)

    def forget(self) -> None:
        """Frees the results."""
        self._results = [None] * len(self._sets)


def captured(rotation: Callable[[], None], pool: Any) -> Callable[[], None]:
    """The replay of a CUDA graph of all that `rotation` launches.

    Graphs may share a memory pool: their results are not read, and each replay writes before it reads.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # lazy initialisation, compilation and autograd's streams must lie before the capture
            rotation()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Graphs of one stream share cuBLAS's workspace, which torch 2.13 frees with the first of them. Those of one pool
    # share its memory only if they have one stream: torch's own for captures.
    stream = torch.cuda.Stream() if pool is None else None
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        rotation()
    return graph.replay
