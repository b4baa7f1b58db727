"""The model flags of guided-diffusion's scripts, and the U-Net that they describe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from progdistill.nets.config import UNetConfig

# Their defaults. The last ones say how the model was trained or is sampled, not what it is.
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "in_channels": 3,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "use_checkpoint": False,
    "use_fp16": False,
    "timestep_respacing": "",
    "use_kl": False,
    "rescale_learned_sigmas": False,
    "sigma_small": False,
}
# The last line is improved-diffusion's.
_MULTIPLIERS = {
    512: "0.5,1,1,2,2,4,4",
    256: "1,1,2,2,4,4",
    128: "1,1,2,3,4",
    64: "1,2,3,4",
    32: "1,2,2,2",
}
_BOOLEANS = {"true": True, "1": True, "yes": True, "y": True, "t": True}
_BOOLEANS |= {"false": False, "0": False, "no": False, "n": False, "f": False}
_GROUPS = 32


def parse_flags(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """All flags with their values, from "--name value --name=value" or a mapping.

    Raises ValueError for an unknown flag, a value of another type, and a noise schedule that is not theirs.
    """
    pairs = _pairs(given) if isinstance(given, str) else dict(given)
    unknown = sorted(set(pairs) - set(DEFAULTS))
    if {"large_size", "small_size"} & set(unknown):
        raise ValueError("large_size: an upsampler is conditioned on small images, and progdistill knows class labels")
    if unknown:
        raise ValueError(f"unknown model flags {', '.join(unknown)}; use {', '.join(DEFAULTS)}")
    flags = {name: _typed(name, pairs.get(name, default), default) for name, default in DEFAULTS.items()}
    if flags["noise_schedule"] not in ("linear", "cosine"):
        raise ValueError(f"noise_schedule is {flags['noise_schedule']!r}; use 'linear' or 'cosine'")
    for name in ("image_size", "in_channels", "num_channels", "num_res_blocks", "diffusion_steps"):
        if not 0 < flags[name] <= 1_000_000:
            raise ValueError(f"{name} is {flags[name]}; use a positive number")
    return flags


def unet_config(flags: Mapping[str, Any], num_classes: int) -> UNetConfig:
    """The network that the flags describe, without a learned variance.

    Raises ValueError for what a UNet2DModel cannot be.
    """
    multipliers = _numbers("channel_mult", flags["channel_mult"] or _MULTIPLIERS.get(flags["image_size"], ""))
    if not multipliers:
        raise ValueError(f"channel_mult is missing, and image_size {flags['image_size']} has no default for it")
    if multipliers[0] != 1:
        raise ValueError(
            f"channel_mult starts with {multipliers[0]:g}: its time embedding is then wider than its first layer, "
            "which a UNet2DModel cannot be; build their network and pass it to Denoiser(network, ...)"
        )
    widths = tuple(int(multiplier * flags["num_channels"]) for multiplier in multipliers)
    resolutions = _numbers("attention_resolutions", flags["attention_resolutions"])
    rates = {flags["image_size"] // int(resolution) for resolution in resolutions if resolution >= 1}
    attended = [2**level in rates for level in range(len(widths))]
    down = ["ResnetDownsampleBlock2D" if flags["resblock_updown"] else "DownBlock2D", "AttnDownBlock2D"]
    up = ["ResnetUpsampleBlock2D" if flags["resblock_updown"] else "UpBlock2D", "AttnUpBlock2D"]
    resampling = "resnet" if flags["resblock_updown"] else "conv"
    attended_widths = {width for width, here in zip(widths, attended, strict=True) if here} | {widths[-1]}
    return UNetConfig(
        sample_size=flags["image_size"],
        in_channels=flags["in_channels"],
        out_channels=flags["in_channels"],
        down_block_types=tuple(down[here] for here in attended),
        up_block_types=tuple(up[here] for here in reversed(attended)),
        block_out_channels=widths,
        layers_per_block=flags["num_res_blocks"],
        downsample_type=resampling,
        upsample_type=resampling,
        dropout=flags["dropout"],
        attention_head_dim=_head_dim(flags, attended_widths),
        norm_num_groups=_GROUPS,
        # In diffusers the attention in the middle of a scale_shift network is normalised only if this is given.
        attn_norm_num_groups=_GROUPS,
        resnet_time_scale_shift="scale_shift" if flags["use_scale_shift_norm"] else "default",
        flip_sin_to_cos=True,
        freq_shift=0,
        num_class_embeds=num_classes if flags["class_cond"] else None,
    )


def _head_dim(flags: Mapping[str, Any], widths: set[int]) -> int | None:
    if flags["num_head_channels"] != -1:
        return flags["num_head_channels"]
    heads, above = flags["num_heads"], flags["num_heads_upsample"]
    if above not in (-1, heads):
        raise ValueError(f"num_heads_upsample is {above} and num_heads {heads}; a UNet2DModel has one size of heads")
    if heads == 1:
        return None
    if heads < 1 or len(widths) > 1 or min(widths) % heads:
        raise ValueError(
            f"num_heads is {heads} where attention is {', '.join(map(str, sorted(widths)))} channels wide: heads of "
            "several sizes, which a UNet2DModel cannot have; give num_head_channels if the model has them, or build "
            "their network and pass it to Denoiser(network, ...)"
        )
    return min(widths) // heads


def _pairs(text: str) -> dict[str, str]:
    words = [part for word in shlex.split(text) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(f"model_flags is {text!r}; write --name value --name value ..., every flag with a value")
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


def _typed(name: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if kind is str and isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    if isinstance(value, str) and kind is not str:
        try:
            return _BOOLEANS[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"{name} is {value!r}; use a value like {default!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}; use a value like {default!r}")
    return value


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise ValueError(f"{name} is {text!r}; use numbers with commas between") from None
