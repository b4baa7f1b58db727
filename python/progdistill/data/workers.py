"""The thread pool that decodes images, and its progress bar."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_MAX_THREADS = 32
_MAX_CHUNK = 256


def map_indices(function: Callable[[int], T], indices: Sequence[int]) -> Iterator[T]:
    """`function(index)` of every index, in order, computed by the pool's threads.

    Raises the first error, or stops when nobody asks for more, once no thread is working on it any longer.
    """

    def run(chunk: Sequence[int]) -> list[T]:
        return [function(index) for index in chunk]

    size = min(_MAX_CHUNK, -(-len(indices) // (4 * _thread_count())))
    chunks = (indices[start : start + size] for start in range(0, len(indices), max(1, size)))
    waiting = deque(_pool().submit(run, chunk) for chunk in chunks)
    try:
        while waiting:
            yield from waiting.popleft().result()
    finally:
        wait([future for future in waiting if not future.cancel()])


def with_progress(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """`items` with a bar that appears after two seconds, on a terminal, in the process of rank 0."""
    hidden = None if os.environ.get("RANK", "0") == "0" else True
    return iter(tqdm(items, total=total, desc=description, unit="image", delay=2, leave=False, disable=hidden))


def _thread_count() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, available)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_thread_count(), thread_name_prefix="progdistill-decode")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a child that inherited the pool would wait for it for ever.
    os.register_at_fork(after_in_child=_pool.cache_clear)
