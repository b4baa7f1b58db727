"""Weights of the release of Salimans & Ho 2022 (google-research/diffusion_distillation), written out flat.

Their networks are the presets "cifar10", "imagenet64" and "lsun128" with Flax's names. A flat file names an array by
its path in the parameter tree, "down_0.block_0/conv1/kernel". Levels count from the highest resolution on both sides.

    dense0, dense1                       time_embedding.linear_1, linear_2
    class_emb                            class_embedding: a dense layer over one-hot rows, its bias added to each row
    conv_in, norm_out, conv_out          conv_in, conv_norm_out, conv_out
    down_L.block_B, up_L.block_B         resnets, with norm1, conv1, temb_proj, norm2, conv2, nin_shortcut
    down_L.attn_B, up_L.attn_B           attentions, with norm, q, k, v, proj_out
    down_L.downsample, up_L.upsample     downsamplers, upsamplers
    mid.block_1, mid.attn_1, mid.block_2 the middle

Kernels of convolutions are (height, width, in, out), of dense layers (in, out), of q, k, v (in, heads, width) and of
proj_out (heads, width, out).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from progdistill.core.denoiser import Denoiser
from progdistill.core.schedules import CosineSchedule
from progdistill.core.time_map import TimeMap
from progdistill.interop.foreign_names import Source, place_of, replaced_prefix, translated
from progdistill.interop.manifest import check_fits
from progdistill.interop.stored_tensors import Stored, StoredTensors, open_tensors
from progdistill.interop.weights import unet_of
from progdistill.nets.config import UNetConfig
from progdistill.nets.presets import preset

LOGSNR_LIMIT = 20.0

_OUTSIDE = {
    "time_embedding.linear_1": "dense0",
    "time_embedding.linear_2": "dense1",
    "class_embedding": "class_emb",
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}
_LEAVES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "temb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_KINDS = {"resnets": "block", "attentions": "attn", "downsamplers": "downsample", "upsamplers": "upsample"}
_TREES = ("ema_params/", "params/")


def load_salimans_ho(
    path: str | os.PathLike[str],
    network: str | UNetConfig = "cifar10",
    *,
    prediction_type: str | None = None,
    valid_steps: tuple[int, ...] | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """The model of a checkpoint of the paper's release, in evaluation mode, float32.

    Args:
        path: .npz or .safetensors of the parameter tree, flat. Names may begin with "ema_params/" (taken where they are
            there) or "params/".
        network: a preset ("cifar10", "imagenet64", "lsun128") or the UNetConfig of a network of theirs.
        prediction_type: default what the release trained: "sample" for as many outputs as inputs, "sample_epsilon" for
            twice as many.
        valid_steps: the step counts of a distilled network, None for a teacher.
        device: where to put the network, default the CPU.

    The schedule is their cosine with logSNR within +-20, the time input 1000 atan(exp(-logSNR / 2)) / (pi / 2), their
    logsnr_input_type "inv_cos".

    Raises:
        FileNotFoundError: no such file.
        KeyError: an unknown preset.
        ValueError: a damaged file or one that does not fit the network, in their names.
    """
    path = Path(path).expanduser()
    config = preset(network) if isinstance(network, str) else network
    described_by = f"the network {network!r}" if isinstance(network, str) else "the UNetConfig"
    if config.sample_size is None:
        raise ValueError("sample_size of the UNetConfig is missing; give the image size that it was trained for")
    size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    kind = prediction_type or ("sample" if config.out_channels == config.in_channels else "sample_epsilon")
    with open_tensors([path]) as stored:
        tensors = translated(config, _one_tree(stored), _source_of(config), str(path), described_by)
        unet = unet_of(config, tensors, str(path), described_by)
    low = 1000.0 * CosineSchedule(logsnr_max=LOGSNR_LIMIT).offset / (torch.pi / 2)
    denoiser = Denoiser(
        unet,
        sample_shape=(config.in_channels, *size),
        schedule=CosineSchedule(-LOGSNR_LIMIT, LOGSNR_LIMIT),
        prediction_type=kind,
        time_map=TimeMap(CosineSchedule(), scale=1000.0, offset=0.0, minimum=low, maximum=1000.0 - low),
        num_classes=config.num_class_embeds,
        valid_steps=valid_steps,
        provenance={"source": str(path), "format": "google-research/diffusion_distillation"},
    )
    check_fits(config, denoiser.sample_shape, denoiser.prediction_type, denoiser.num_classes)
    return denoiser.to(device).eval()


def _one_tree(stored: StoredTensors) -> dict[str, Stored]:
    for tree in _TREES:
        inside = {name[len(tree) :]: tensor for name, tensor in stored.items() if name.startswith(tree)}
        if inside:
            return inside
    return dict(stored)


def _source_of(config: UNetConfig) -> Callable[[str], Source]:
    def source_of(name: str) -> Source:
        if name == "class_embedding.weight":
            return Source(("class_emb/kernel", "class_emb/bias"), _rows)
        place = place_of(name)
        if place is None:
            path, _, parameter = replaced_prefix(name, _OUTSIDE).rpartition(".")
            return _named(path, parameter, path == "norm_out")
        if place.side == "mid":
            where = "mid.attn_1" if place.kind == "attentions" else f"mid.block_{place.index + 1}"
        else:
            level = place.number if place.side == "down" else len(config.block_out_channels) - 1 - place.number
            index = "" if place.kind.endswith("samplers") else f"_{place.index}"
            where = f"{place.side}_{level}.{_KINDS[place.kind]}{index}"
        if place.leaf.startswith("conv."):
            return _named(where, place.leaf.removeprefix("conv."), False)
        leaf, _, parameter = replaced_prefix(place.leaf, _LEAVES).rpartition(".")
        return _named(f"{where}/{leaf}", parameter, leaf.startswith("norm"))

    return source_of


def _named(path: str, parameter: str, is_norm: bool) -> Source:
    if parameter == "bias":
        return Source((f"{path}/bias",), _flat)
    if is_norm:
        return Source((f"{path}/scale",), lambda tensor: tensor)
    if path.endswith("/nin_shortcut"):
        return Source((f"{path}/kernel",), lambda tensor: _dense(tensor, 1, (1, 1)))
    inputs = 2 if path.endswith("/proj_out") else 1
    return Source((f"{path}/kernel",), lambda tensor: _convolution(tensor) or _dense(tensor, inputs))


def _convolution(stored: Stored) -> Stored | None:
    """(height, width, in, out) as (out, in, height, width)."""
    if len(stored.shape) != 4:
        return None
    height, width, inputs, outputs = stored.shape
    return stored.changed((outputs, inputs, height, width), lambda value: value.permute(3, 2, 0, 1))


def _dense(stored: Stored, input_dims: int, behind: tuple[int, ...] = ()) -> Stored:
    """A kernel whose first `input_dims` dimensions are inputs as (out, in), with dimensions of size 1 behind."""
    inputs = _product(stored.shape[:input_dims])
    outputs = _product(stored.shape[input_dims:])

    def change(value: Tensor) -> Tensor:
        return value.reshape(inputs, outputs).T.reshape(outputs, inputs, *behind)

    return stored.changed((outputs, inputs, *behind), change)


def _flat(stored: Stored) -> Stored:
    return stored.changed((_product(stored.shape),), lambda value: value.reshape(-1))


def _rows(kernel: Stored, bias: Stored) -> Stored:
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"{kernel.file}: class_emb/bias has shape {bias.shape}, class_emb/kernel {kernel.shape}")
    return kernel.changed(kernel.shape, lambda value: value + bias.read())


def _product(sizes: tuple[int, ...]) -> int:
    return int(torch.Size(sizes).numel())
