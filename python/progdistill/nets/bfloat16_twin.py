"""The twin of a network that computes in bfloat16."""

from __future__ import annotations

import copy

import torch
from torch import nn

from progdistill.nets.attention import Attention
from progdistill.nets.query_key_value import lay_side_by_side
from progdistill.nets.unet import UNet

# Biases that wait for the operation that follows (`PendingSum`), and that of the network's output.
_ADDED_IN_FLOAT32 = ("conv_in.bias", "conv1.bias", "conv2.bias", "conv_shortcut.bias", "to_out.0.bias")
_ADDED_IN_FLOAT32 += ("samplers.0.conv.bias", "conv_out.bias")


def compute_dtypes(network: UNet) -> dict[str, torch.dtype]:
    """The dtype of each parameter, by name, in a twin of the network that computes in bfloat16.

    bfloat16 are all matrices, and the biases that convolutions and matrix products add themselves. float32 are the
    norms' parameters, the biases that wait for another operation, and that of the output. The network computes
    correctly with any other mixture too, at the price of a cast of a vector here and there.
    """
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
    dtypes = {}
    for name, _ in network.named_parameters():
        wide = name.rpartition(".")[0] in norms or name.endswith(_ADDED_IN_FLOAT32)
        dtypes[name] = torch.float32 if wide else torch.bfloat16
    return dtypes


def bfloat16_twin(network: UNet) -> UNet:
    """A copy of the network with its `compute_dtypes`, in channels_last order: what computes on a GPU.

    It shares no memory with the network. Its outputs are float32.
    """
    twin = copy.deepcopy(network)
    parameters = dict(twin.named_parameters())
    for name, dtype in compute_dtypes(twin).items():
        parameters[name].data = parameters[name].data.to(dtype)
    twin.to(memory_format=torch.channels_last)
    lay_attentions_out(twin)
    return twin


def lay_attentions_out(twin: UNet) -> None:
    """Brings the matrices of queries, keys and values side by side, where one product reads them."""
    for module in twin.modules():
        if isinstance(module, Attention):
            lay_side_by_side((module.to_q, module.to_k, module.to_v))
