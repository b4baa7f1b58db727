"""One network in several processes: each computes gradients for its microbatches, all get their sum."""

# Annotations are evaluated here: DistributedDataParallel looks at those of its hook.
import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from progdistill.core.processes import process_count


def replicated(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself in a single process, else wrapped by DistributedDataParallel.

    Gradients are summed, not averaged: every loss is already divided by the whole batch. So two processes get the bits
    of one process that accumulates two microbatches.
    """
    if process_count() == 1:
        return network
    wrapped = DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(None, _sum)
    return wrapped


def without_exchange(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager:
    """Within it, gradients stay in this process: for all microbatches but an update's last."""
    if wanted and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def _sum(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
