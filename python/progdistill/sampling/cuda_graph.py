"""A function of fixed tensors as a CUDA graph: recorded once, replayed without the cost of its launches."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_WARMUPS = 3  # cuDNN chooses its algorithms, Triton compiles, libraries make their handles
# A capture begins with a wait for the device, as cuDNN's choice does; both would spoil that of another thread.
_one_at_a_time = threading.RLock()
_failed: list[torch.cuda.CUDAGraph] = []


class GraphPool:
    """Memory that graphs which never replay at the same time share, and the stream that they are recorded on.

    The stream belongs to it: torch gives freed memory of a pool to the stream again that it was made on, to no other.
    """

    def __init__(self, device: torch.device) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)


class CudaGraph:
    """`run()`, captured. It reads tensors that stay where they are and returns one that stays where it is.

    Args:
        run: no host synchronisation, no Python value that is to change between replays.
        device: a CUDA device.
        pool: where its memory is. After a failed capture it is not to be used again.

    `memory` is what the capture has added to the pool, in bytes.

    Raises:
        RuntimeError: what `run` does cannot be captured. Stream and random numbers are as they were.
    """

    def __init__(self, run: Callable[[], Tensor], device: torch.device, pool: GraphPool) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with _one_at_a_time, torch.cuda.device(device), _choosing_algorithms():
            _warm_up(run, device)
            with recording(self._graph, device, pool):
                before = torch.cuda.memory_reserved(device)
                self.result = run()
                self.memory = torch.cuda.memory_reserved(device) - before
            torch.cuda.current_stream(device).wait_stream(pool.stream)

    def replay(self) -> Tensor:
        """Enqueues the work on the current stream; the result is overwritten by the next replay."""
        self._graph.replay()
        return self.result


def _warm_up(run: Callable[[], Tensor], device: torch.device) -> None:
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARMUPS):
            run()
    current.wait_stream(side)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # Not the one that is recorded on: cuBLAS keeps a workspace for each stream, and whoever has torch free them all
    # (torch.compile does) would take it from the graph, unless it was first needed while the graph was recorded and so
    # lies in its pool.
    return torch.cuda.Stream(device)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, device: torch.device, pool: GraphPool) -> Iterator[None]:
    """Captures what the block does, on the pool's stream.

    After a failure torch leaves that stream current, its generator in a state of capture, and the allocator recording
    to the pool; here all are put back.
    """
    current = torch.cuda.current_stream(device)
    generator = torch.cuda.default_generators[current.device.index]
    fresh = torch.Generator(device)
    fresh.set_state(generator.get_state())
    # thread_local: other threads (a loader that pins memory, say) may go on calling CUDA meanwhile.
    mode = {"pool": pool.handle, "stream": pool.stream, "capture_error_mode": "thread_local"}
    cause = None
    try:
        with _one_at_a_time, _no_garbage_collection(), torch.cuda.graph(graph, **mode):
            try:
                yield
            except BaseException as error:
                cause = error
                raise
    except BaseException as error:
        torch.cuda.set_stream(current)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        _stop_allocating(graph, current.device.index, pool)
        raise cause or error from None  # that the capture's end fails, too, says nothing


def _stop_allocating(graph: torch.cuda.CUDAGraph, device_index: int, pool: GraphPool) -> None:
    try:
        torch._C._cuda_endAllocateToPool(device_index, pool.handle)
    except RuntimeError:  # it had not begun, or the capture itself was in order (out of memory, say)
        return
    torch._C._cuda_releasePool(device_index, pool.handle)
    # The allocator of page-locked memory cannot be told. It goes on asking this graph, which therefore has to stay.
    _failed.append(graph)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # A collection might free another graph, or memory of another stream, in the middle of a capture.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _choosing_algorithms() -> Iterator[None]:
    # Shapes are fixed here, so that cuDNN's search pays. Its other settings are the user's.
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
