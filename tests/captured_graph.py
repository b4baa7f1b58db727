"""Operations in a CUDA graph, for the tests that wait for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from progdistill.ops import backends


def need_backend(name: str) -> None:
    """Skips the test where a backend is not to be had."""
    if backends.unavailable(name) is not None:
        pytest.skip(f"backend {name}: {backends.unavailable(name)}")


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the call, made once before on another stream, and the results that each replay overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results
