"""Weights of OpenAI's guided-diffusion (ADM, Dhariwal & Nichol 2021) and improved-diffusion.

Their U-Net is a UNet2DModel with other names: L residual blocks a level make input_blocks 1 + level (L + 1) + block,
the downsampler follows; output_blocks count the same way up, the upsampler last in the level's last one.

    time_embed.0, .2                 time_embedding.linear_1, linear_2
    label_emb                        class_embedding
    input_blocks.0.0                 conv_in
    in_layers.0, in_layers.2         norm1, conv1
    emb_layers.1                     time_emb_proj
    out_layers.0, out_layers.3       norm2, conv2
    skip_connection                  conv_shortcut
    norm, proj_out                   attention's group_norm, to_out.0 (a 1x1 convolution there)
    qkv                              to_q, to_k, to_v: by heads first, or in three with use_new_attention_order
    op, conv                         a downsampler's, an upsampler's convolution
    out.0, out.2                     conv_norm_out, conv_out (with learn_sigma its first half)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from progdistill.core.denoiser import Denoiser
from progdistill.core.schedules import TableSchedule
from progdistill.core.time_map import TimeMap
from progdistill.interop.foreign_names import Source, place_of, replaced_prefix, translated
from progdistill.interop.guided_diffusion_flags import parse_flags, unet_config
from progdistill.interop.stored_tensors import Stored, open_tensors
from progdistill.interop.weights import unet_of, without_variance
from progdistill.nets.config import UNetConfig

_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}


def load_guided_diffusion(
    path: str | os.PathLike[str],
    model_flags: str | Mapping[str, Any] = "",
    *,
    device: torch.device | str | None = None,
) -> Denoiser:
    """The model of a guided-diffusion or improved-diffusion checkpoint, in evaluation mode, float32.

    Args:
        path: a state dict: .safetensors, or .pt (read by torch.load(weights_only=True)). Theirs hold averaged weights
            where their names begin with ema_.
        model_flags: the flags that the model was trained with, as their README writes them ("--image_size 64
            --class_cond True ...") or as a dictionary by the same names. What is left out has guided-diffusion's
            default; improved-diffusion's rescale_timesteps is True instead. `in_channels` (3) may be given too.
        device: where to put the network, default the CPU.

    With learn_sigma the half of the output that is the variance is left out; the mean is as it was. An epsilon model
    has no SNR 0: see docs/bring-your-own-teacher.md.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file or one that does not fit the flags (in their names); a flag that is unknown or asks
            for what a UNet2DModel cannot be, with the reason.
    """
    flags = parse_flags(model_flags)
    path = Path(path).expanduser()
    with open_tensors([path]) as stored:
        labels = stored.get("label_emb.weight")
        config = unet_config(flags, labels.shape[0] if labels is not None and labels.shape else 1000)
        tensors = translated(config, stored, _source_of(config, flags), str(path), "the model flags")
        tensors = without_variance(tensors, config.out_channels) if flags["learn_sigma"] else tensors
        network = unet_of(config, tensors, str(path), "the model flags")
    provenance: dict[str, Any] = {"source": str(path), "format": "guided-diffusion"}
    if flags["learn_sigma"]:
        provenance["learned_variance"] = "left out"
    schedule, count = _schedule(flags), flags["diffusion_steps"]
    # Level i is told as i, or as 1000 i / T.
    scale = 1000.0 if flags["rescale_timesteps"] else float(count)
    step = scale / count
    return (
        Denoiser(
            network,
            sample_shape=(config.in_channels, flags["image_size"], flags["image_size"]),
            schedule=schedule,
            prediction_type="sample" if flags["predict_xstart"] else "epsilon",
            time_map=TimeMap(schedule, scale=scale, offset=-step, minimum=0.0, maximum=scale - step),
            num_classes=config.num_class_embeds,
            provenance=provenance,
        )
        .to(device)
        .eval()
    )


def _schedule(flags: Mapping[str, Any]) -> TableSchedule:
    count = flags["diffusion_steps"]
    if flags["noise_schedule"] == "cosine":
        return TableSchedule.from_diffusers({"num_train_timesteps": count, "beta_schedule": "squaredcos_cap_v2"})
    # The betas of Ho et al. 2020, scaled so that any number of levels ends at the same noise.
    scale = 1000 / count
    return TableSchedule.from_betas(torch.linspace(scale * 1e-4, scale * 0.02, count, dtype=torch.float64))


def _source_of(config: UNetConfig, flags: Mapping[str, Any]) -> Callable[[str], Source]:
    per_level = config.layers_per_block + 1

    def source_of(name: str) -> Source:
        place = place_of(name)
        if place is None:
            return Source((replaced_prefix(name, _OUTSIDE),), lambda tensor: tensor)
        block = place.number * per_level + (place.index if "samplers" not in place.kind else config.layers_per_block)
        second = "1" if place.kind == "attentions" else "0"
        if place.side == "mid":
            where = f"middle_block.{1 if place.kind == 'attentions' else 2 * place.index}"
        elif place.side == "down":
            where = f"input_blocks.{1 + block}.{second}"
        else:
            if place.kind == "upsamplers":
                second = "2" if config.up_block_types[place.number].startswith("Attn") else "1"
            where = f"output_blocks.{block}.{second}"
        if place.leaf.startswith("conv."):
            leaf = place.leaf.replace("conv.", "op.") if place.side == "down" else place.leaf
            return Source((f"{where}.{leaf}",), lambda tensor: tensor)
        their_name = f"{where}.{replaced_prefix(place.leaf, _LEAVES)}"
        part = re.match(r"to_([qkv])\.", place.leaf)
        if part is None:
            return Source((their_name,), _linear if place.leaf.startswith("to_out") else lambda tensor: tensor)
        which, head_dim = "qkv".index(part[1]), config.attention_head_dim
        return Source((their_name,), lambda tensor: _third(tensor, which, head_dim, flags["use_new_attention_order"]))

    return source_of


def _linear(stored: Stored) -> Stored:
    """A convolution of size 1 as a linear layer."""
    if stored.shape[2:] not in ((1,), (1, 1)):
        return stored
    shape = stored.shape[:2]
    return stored.changed(shape, lambda value: value.reshape(shape))


def _third(stored: Stored, which: int, head_dim: int | None, new_order: bool) -> Stored:
    """The queries', keys' or values' rows of a qkv layer, head after head as they come there."""
    width, rest = divmod(stored.shape[0], 3)
    heads = 1 if new_order else width // (head_dim or width or 1)
    if rest or heads == 0 or width % heads:
        return stored
    flat = _linear(stored)
    shape = (width, *flat.shape[1:])
    by_heads = (heads, 3, width // heads, *shape[1:])
    return flat.changed(shape, lambda value: value.reshape(by_heads)[:, which].reshape(shape))
