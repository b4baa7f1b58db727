"""A U-Net's weights in files: float32, contiguous, named as in diffusers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from progdistill.core.files import replace_atomic
from progdistill.interop.folders import blaming
from progdistill.interop.stored_tensors import FLOATS, Stored, StoredTensors
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet

Shapes = Mapping[str, tuple[int, ...]]

# Attention weights as diffusers named them before 0.15; google/ddpm-cifar10-32 is stored that way.
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SHOWN = 5


def write_weights(state: Mapping[str, Tensor], file: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a state dict as contiguous tensors of `dtype`, flushed to the disk.

    A table of times stays float32: in 16 bits neighbouring levels would look alike.
    """
    dtypes = {"time_proj.weight": torch.float32}
    tensors = {name: tensor.detach().to("cpu", dtypes.get(name, dtype)).contiguous() for name, tensor in state.items()}
    with replace_atomic(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def unet_of(config: UNetConfig, stored: StoredTensors, where: str, described_by: str) -> UNet:
    """The network of `config` with the weights `stored` by diffusers' names, float32, on the CPU, in evaluation mode.

    Names, shapes and dtypes are compared before anything is allocated, so neither a damaged header nor a damaged
    configuration can claim more memory than the weights take. They are copied: the network does not depend on their
    files afterwards. `where` names the weights and `described_by` the configuration in messages.

    Raises ValueError for weights that do not fit the configuration.
    """
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    with blaming(described_by, f"it does not belong to {where}, or one of them is damaged"):
        network = unet_without_memory(config, shapes)
    check_shapes(shapes, shapes_of(network.state_dict()), where)
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: {name} is {tensor.dtype}; save it as one of {', '.join(FLOATS)}")
    network.load_state_dict({name: tensor.float32() for name, tensor in stored.items()}, assign=True)
    return network.eval()


def with_current_names(stored: StoredTensors) -> dict[str, Stored]:
    """The tensors of a diffusers network by the names of today."""
    return {
        _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_NEW_ATTENTION[match[2]]}.", name): tensor
        for name, tensor in stored.items()
    }


def without_variance(stored: StoredTensors, channels: int) -> dict[str, Stored]:
    """The tensors of a network with a learned variance, without the half of its last layer that predicts it.

    The mean has the first `channels` channels, exactly as they were; tensors of another shape are left for the
    comparison with the configuration to refuse.
    """
    changed = dict(stored)
    for name in ("conv_out.weight", "conv_out.bias"):
        tensor = stored.get(name)
        if tensor is not None and tensor.shape[:1] == (2 * channels,):
            changed[name] = tensor.changed((channels, *tensor.shape[1:]), lambda value: value[:channels])
    return changed


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_shapes(found: Shapes, expected: Shapes, where: str) -> None:
    """Raises ValueError listing missing and unexpected names and wrong shapes, at most five of each."""
    both = [name for name in expected if name in found]
    complaints = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} (found {found[name]}, expected {expected[name]})" for name in both if found[name] != expected[name]
        ],
    }
    listed = [f"{len(names)} {what}: {shortened(names)}" for what, names in complaints.items() if names]
    if listed:
        raise ValueError(
            f"{where} does not fit the network's configuration: {'; '.join(listed)}. Use the weights and the "
            "config.json of one and the same model"
        )


def shortened(names: list[str]) -> str:
    """A list of names for a message, at most five of them."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def unet_without_memory(config: UNetConfig, shapes: Shapes) -> UNet:
    """The network of a configuration without weights, if weights of these shapes can be its. Raises ValueError."""
    # Every size in a configuration is a dimension of some weight, every layer has weights of its own: with that much
    # made sure, building on the meta device takes time and memory in proportion to the file at most.
    elements = sum(math.prod(shape) for shape in shapes.values())
    sizes: dict[str, int | None] = {
        "block_out_channels": max(config.block_out_channels),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "time_embedding_dim": config.time_embedding_dim,
        "num_class_embeds": config.num_class_embeds,
        "guidance_embed_dim": config.guidance_embed_dim,
        "num_train_timesteps": config.num_train_timesteps if config.time_embedding_type == "learned" else None,
    }
    for name, size in sizes.items():
        if size is not None and size > elements:
            raise ValueError(f"{name} says {size}, but the weights have {elements} elements in all")
    if config.layers_per_block * len(config.block_out_channels) > len(shapes):
        raise ValueError(
            f"layers_per_block says {config.layers_per_block}, but there are only {len(shapes)} tensors in all"
        )
    with torch.device("meta"):
        return UNet(config)
