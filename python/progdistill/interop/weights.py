"""A U-Net's weights in safetensors files: float32, contiguous, named as in diffusers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from progdistill.core.files import replace_atomic
from progdistill.interop.folders import blaming
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet

Shapes = Mapping[str, tuple[int, ...]]

_FLOATS = ("F64", "F32", "F16", "BF16")
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


def load_unet(config: UNetConfig, file: Path) -> UNet:
    """The network of `config` with the weights in `file`, float32, on the CPU, in evaluation mode.

    Names, shapes and dtypes are compared before anything is allocated, so neither a damaged header nor a damaged
    config.json can claim more memory than the file is long. The weights are copied: they do not depend on the file
    afterwards.

    Raises:
        FileNotFoundError: no such file.
        ValueError: only pickled weights; a damaged file; weights that do not fit the configuration.
    """
    _require_file(file)
    with _opened(file) as stored:
        names = {_current_name(name): name for name in stored.keys()}  # noqa: SIM118 (safe_open is no mapping)
        headers = {name: stored.get_slice(old) for name, old in names.items()}
        shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
        with blaming(file.with_name("config.json"), f"it does not belong to {file.name}, or one of them is damaged"):
            network = _unet_without_memory(config, shapes)
        check_shapes(shapes, shapes_of(network.state_dict()), str(file))
        for name, header in headers.items():
            if header.get_dtype() not in _FLOATS:
                raise ValueError(f"{file}: {name} is {header.get_dtype()}; save it as one of {', '.join(_FLOATS)}")
        state = {name: stored.get_tensor(old).to(torch.float32, copy=True) for name, old in names.items()}
    network.load_state_dict(state, assign=True)
    return network.eval()


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
    listed = [f"{len(names)} {what}: {_shortened(names)}" for what, names in complaints.items() if names]
    if listed:
        raise ValueError(
            f"{where} does not fit the network's configuration: {'; '.join(listed)}. Use the weights and the "
            "config.json of one and the same model"
        )


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _current_name(name: str) -> str:
    return _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_NEW_ATTENTION[match[2]]}.", name)


def _require_file(file: Path) -> None:
    if file.is_file():
        return
    held = sorted(entry.name for entry in file.parent.iterdir()) if file.parent.is_dir() else []
    pickles = [name for name in held if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise ValueError(
            f"{file.parent} holds its weights as {pickles[0]}, a pickle, which can run code when it is read and is "
            "refused; convert it where you trust it: UNet2DModel.from_pretrained(folder).save_pretrained(folder, "
            "safe_serialization=True)"
        )
    raise FileNotFoundError(
        f"no weights {file}; its folder holds {_shortened(held) or 'nothing'}. Save the network as that one file: "
        'save_pretrained(folder, safe_serialization=True, max_shard_size="100GB"), without a variant'
    )


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            yield stored
    except SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is truncated, damaged or not safetensors: {error}; copy or download "
            "it again"
        ) from error


def _unet_without_memory(config: UNetConfig, shapes: Shapes) -> UNet:
    # Every size in a configuration is a dimension of some weight, every layer has weights of its own: with that much
    # made sure, building on the meta device takes time and memory in proportion to the file at most.
    elements = sum(math.prod(shape) for shape in shapes.values())
    sizes: dict[str, int | None] = {
        "block_out_channels": max(config.block_out_channels),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "time_embedding_dim": config.time_embedding_dim,
        "num_class_embeds": config.num_class_embeds,
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
