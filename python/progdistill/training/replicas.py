"""One network in several processes: each computes gradients for its microbatches, all get their sum."""

# Annotations are evaluated here: DistributedDataParallel looks at those of its hook.
import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from progdistill.core.processes import process_count
from progdistill.training.compute_network import ComputeNetwork

_Masters = dict[Tensor, nn.Parameter]


def replicated(compute: ComputeNetwork, device: torch.device) -> nn.Module:
    """The computing network itself in a single process, else wrapped by DistributedDataParallel.

    Gradients are summed, not averaged: every loss is already divided by the whole batch. So two processes get the bits
    of one process that accumulates two microbatches. The sums are float32: those of bfloat16 parameters become the
    gradients of their masters.
    """
    if process_count() == 1:
        return compute.module
    wrapped = DistributedDataParallel(
        compute.module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook({twin: master for master, twin in compute.twins.items()}, _sum)
    return wrapped


def without_exchange(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager:
    """Within it, gradients stay in this process: for all microbatches but an update's last."""
    if wanted and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def _sum(masters: _Masters, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    buffer = bucket.buffer()
    total = buffer if buffer.dtype != torch.bfloat16 else _float32_gradients(masters, bucket)

    def summed(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        done.value()  # raises what went wrong
        return buffer

    return dist.all_reduce(total, async_op=True).get_future().then(summed)


def _float32_gradients(masters: _Masters, bucket: dist.GradBucket) -> Tensor:
    """The bucket in float32, with what earlier microbatches left in the masters, which get their parts as gradients."""
    buffer = bucket.buffer()
    total = buffer.float()
    for twin, grad in zip(bucket.parameters(), bucket.gradients(), strict=True):
        master = masters[twin]
        # Gradients lie in a bucket in the memory order of their parameters, whatever these views say.
        part = total.as_strided(twin.shape, twin.stride(), grad.storage_offset() - buffer.storage_offset())
        if master.grad is not None:
            part.add_(master.grad)
        master.grad = part
    return total
