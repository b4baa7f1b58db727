"""One run in several processes: who this process is, and the few things that they tell each other.

Started by torchrun, every process runs the same program; the first (rank 0) writes the files and speaks. All of them
must see the run's folder. Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# A process may wait this long while another writes, or measures what only one of them measures.
_PATIENCE = datetime.timedelta(hours=2)

T = TypeVar("T")


def join_processes() -> None:
    """Joins the processes that torchrun started, once; binds this one to its GPU where there are GPUs.

    Messages between hosts go through gloo, gradients on GPUs through NCCL.
    """
    if not launched_by_torchrun() or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)


def leave_processes() -> None:
    """Undoes `join_processes`: waits for the others, for a process that leaves early can bring down one that talks."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """Leaves the others in order (if all went well) and ends this process without taking the interpreter down.

    A communication thread that asks for the interpreter while it goes aborts the process ("terminate called without
    an active exception"): about one program in thirty died so after its work was done.
    """
    if status == 0:
        leave_processes()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def launched_by_torchrun() -> bool:
    """Whether torchrun (or whoever sets its variables) started this process."""
    return dist.is_available() and "RANK" in os.environ and "WORLD_SIZE" in os.environ


def process_count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes the files and speaks."""
    return process_rank() == 0


def share_of(count: int) -> range:
    """This process's part of 0 ... count - 1: consecutive, the first parts longer by one where it does not divide."""
    size, rank = process_count(), process_rank()
    each, left = divmod(count, size)
    first = rank * each + min(rank, left)
    return range(first, first + each + (rank < left))


def sum_over_processes(values: Tensor) -> Tensor:
    """The element-wise sum of every process's tensor (same shape and dtype everywhere), on the CPU in each of them."""
    total = values.detach().cpu().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return total


def any_process(value: bool) -> bool:
    """Whether any process says yes."""
    return value if process_count() == 1 else bool(sum_over_processes(torch.tensor(int(value))) > 0)


def gather_on_main_process(value: T) -> list[T]:
    """Every process's value, by rank, in the first process; the others get an empty list.

    The processes trust each other: values travel as pickles.
    """
    if process_count() == 1:
        return [value]
    values: list = [None] * process_count() if is_main_process() else []
    dist.gather_object(value, values or None, dst=0)
    return values


def on_main_process(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, in all of them; the others wait, and fail as it fails.

    Raises:
        Exception: whatever `action` raises, in every process.
    """
    if process_count() == 1:
        return action()
    result: list = [None, None]
    if is_main_process():
        try:
            result[0] = action()
        except Exception as error:
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]
