"""A function of fixed tensors as a CUDA graph: recorded once, replayed without the cost of its launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_WARMUPS = 3  # cuDNN chooses its algorithms, Triton compiles, libraries make their workspaces


class CudaGraph:
    """`run()`, captured. It reads tensors that stay where they are and returns one that stays where it is.

    Args:
        run: no host synchronisation, no Python value that is to change between replays.
        device: a CUDA device.
        pool: memory that graphs which never replay at the same time share (`torch.cuda.graph_pool_handle()`).

    `memory` is what the capture has added to torch's reserved memory, in bytes.
    """

    def __init__(self, run: Callable[[], Tensor], device: torch.device, pool) -> None:
        before = torch.cuda.memory_reserved(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        # thread_local: other threads (a loader that pins memory, say) may go on calling CUDA meanwhile.
        mode = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(device), _choosing_algorithms():
            with torch.cuda.stream(stream):
                for _ in range(_WARMUPS):
                    run()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, **mode):
                self.result = run()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.memory = torch.cuda.memory_reserved(device) - before

    def replay(self) -> Tensor:
        """Enqueues the work on the current stream; the result is overwritten by the next replay."""
        self._graph.replay()
        return self.result


@contextmanager
def _choosing_algorithms() -> Iterator[None]:
    # Shapes are fixed here, so that cuDNN's search pays. Its other settings are the user's.
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
