"""The network that computes for another: in bfloat16, in channels_last order, compiled, as a round wants it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.core import Denoiser
from progdistill.nets.bfloat16_twin import compute_dtypes, lay_attentions_out
from progdistill.nets.constants import keep_constants
from progdistill.nets.unet import UNet


class ComputeNetwork:
    """What an objective calls in place of a network, and how gradients come back from there.

    In bfloat16 a `UNet` has a twin with bfloat16 copies of its matrices and of some vectors (`compute_dtypes`);
    everything else of it, buffers too, is the network's own. The network's parameters stay what is trained, in float32.
    Networks of other kinds compute in bfloat16 under autocast.

    Args:
        network: what is trained, or a teacher.
        dtype: float32 or bfloat16.
        device: where it is. On a GPU, and in bfloat16, a `UNet`'s weights are brought into channels_last order.
        compiled: by `torch.compile`.
    """

    module: nn.Module
    """What computes."""
    twins: dict[nn.Parameter, nn.Parameter]
    """The parameters that compute in bfloat16, by their float32 masters in the network; they receive the gradients."""
    memory_format: torch.memory_format
    """The order that it computes in; of its inputs, too."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, device: torch.device, *, compiled: bool = False) -> None:
        self.dtype = dtype
        self.twins = {}
        low, ours = dtype == torch.bfloat16, isinstance(network, UNet)
        wide = ours and (low or device.type == "cuda")
        self.memory_format = torch.channels_last if wide else torch.contiguous_format
        if wide:
            network.to(memory_format=torch.channels_last)
        if low and ours:
            network, self.twins = _bfloat16_twin(network)
        elif low:
            network = _Autocast(network, device.type)
        self.module = torch.compile(network) if compiled else network

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes in the network's weights as they are now."""
        if self.twins:
            torch._foreach_copy_(list(self.twins.values()), list(self.twins))

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Adds the twins' gradients to those of their masters, in float32, and clears them."""
        for master, twin in self.twins.items():
            if twin.grad is None:
                continue
            if master.grad is None:
                master.grad = twin.grad.to(master.dtype)
            else:
                master.grad.add_(twin.grad)
            twin.grad = None

    def drop_gradients(self) -> None:
        """Clears the twins' gradients."""
        for twin in self.twins.values():
            twin.grad = None


def computing_teacher(teacher: Denoiser, dtype: torch.dtype, *, compiled: bool = False) -> Denoiser:
    """The teacher as a round's objective calls it: a constant that computes in `dtype`.

    Its network is left as it is.
    """
    teacher.eval().requires_grad_(False)
    network = teacher.network
    if isinstance(network, UNet) and (dtype == torch.bfloat16 or teacher.device.type == "cuda"):
        network = copy.deepcopy(network)
    compute = ComputeNetwork(network, dtype, teacher.device, compiled=compiled)
    if network is not teacher.network:
        keep_constants(compute.module)
    return teacher.with_network(compute.module).eval().requires_grad_(False)


def _bfloat16_twin(network: UNet) -> tuple[UNet, dict[nn.Parameter, nn.Parameter]]:
    """A network that shares all but its bfloat16 parameters with the given one, and these by their masters."""
    dtypes = compute_dtypes(network)
    twins = {
        master: nn.Parameter(master.detach().to(dtypes[name]), requires_grad=master.requires_grad)
        for name, master in network.named_parameters()
        if dtypes[name] == torch.bfloat16
    }
    shared: list[Tensor] = [*network.parameters(), *network.buffers()]
    known = {id(tensor): twins.get(tensor, tensor) if isinstance(tensor, nn.Parameter) else tensor for tensor in shared}
    twin = copy.deepcopy(network, known)
    lay_attentions_out(twin)
    return twin, twins


class _Autocast(nn.Module):
    """A network under autocast, wherever it is called from."""

    def __init__(self, network: nn.Module, device_type: str) -> None:
        super().__init__()
        self.network = network
        self.device_type = device_type

    def forward(self, *inputs: Any) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.network(*inputs)
