"""Who does the updates of benchmarks/train_step.py: progdistill, and what one would write without it.

All begin with the same weights, do the same mathematics, and draw their data on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from own_update import OwnUpdate
from sampling_contenders import compile_cache
from stock_update import GraphedUpdate, StockUpdate
from update_task import UpdateTask


class Update(Protocol):
    """Called, it does one update; `curve(updates)` gives losses and gradient norms on the data that all are given."""

    def __call__(self) -> object: ...

    def curve(self, updates: int) -> dict[str, list[float]]: ...


class Contender(NamedTuple):
    """`start(task, steps, prepared)` makes the update from what `prepare(task)` made.

    Contenders with the same `prepare` share it. `needs` lists what may be missing.
    """

    start: Callable[[UpdateTask, int, Any], Update]
    dtype: torch.dtype
    prepare: Callable[[UpdateTask], Any]
    needs: tuple[str, ...] = ()
    ours: bool = False


def contenders(device: str, caches: Any) -> dict[str, Contender]:
    """All of them by name; `caches` is a folder for what torch.compile keeps."""
    gpu = device == "cuda"
    low = torch.bfloat16 if gpu else torch.float32
    nchw = partial(_compiled, dtype=low, channels_last=False, caches=caches)
    nhwc = partial(_compiled, dtype=low, channels_last=True, caches=caches)
    found = {
        "progdistill": Contender(partial(_own, cuda_graph="require" if gpu else False), low, _nothing, ours=True),
        "progdistill without a graph": Contender(partial(_own, cuda_graph=False), low, _nothing, ("gpu",), ours=True),
        "eager": Contender(partial(_eager, dtype=low), low, _nothing),
        "torch.compile, NCHW": Contender(_as_it_is, low, nchw, ("compile",)),
        "torch.compile in a CUDA graph, NCHW": Contender(_in_a_graph, low, nchw, ("compile", "gpu")),
        "torch.compile in a CUDA graph, channels_last": Contender(_in_a_graph, low, nhwc, ("compile", "gpu")),
    }
    if not gpu:
        own = partial(_own, mixed_precision="bf16")
        found["progdistill, bfloat16"] = Contender(own, torch.bfloat16, _nothing, ours=True)
        found["eager, bfloat16"] = Contender(partial(_eager, dtype=torch.bfloat16), torch.bfloat16, _nothing)
    return found


def _own(task: UpdateTask, steps: int, prepared: None, **settings: Any) -> OwnUpdate:
    return OwnUpdate(task, **settings).warm_up()


def _eager(task: UpdateTask, steps: int, prepared: None, dtype: torch.dtype) -> StockUpdate:
    return StockUpdate(task, dtype)


def _nothing(task: UpdateTask) -> None:
    return None


def _compiled(task: UpdateTask, dtype: torch.dtype, channels_last: bool, caches: Any) -> StockUpdate:
    update = StockUpdate(task, dtype, channels_last, compiled=True)
    with compile_cache(caches):
        update()  # compiles
    return update


def _as_it_is(task: UpdateTask, steps: int, prepared: StockUpdate) -> StockUpdate:
    return prepared


def _in_a_graph(task: UpdateTask, steps: int, prepared: StockUpdate) -> GraphedUpdate:
    return GraphedUpdate(prepared)
