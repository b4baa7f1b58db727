"""The description of a U-Net: the fields of ``diffusers.UNet2DModel``, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

DOWN_BLOCK_TYPES = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCK_TYPES = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}
_BOOLEANS = ("center_input_sample", "flip_sin_to_cos", "add_attention")
_POSITIVE_INTEGERS = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
_OPTIONAL_POSITIVE_INTEGERS = (
    "time_embedding_dim",
    "attention_head_dim",
    "attn_norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
    "guidance_embed_dim",
    "step_embed_dim",
)
# Unknown to diffusers 0.24: written only where they say something, so that it loads all others silently.
_LATER_FIELDS = ("time_embedding_dim", "mid_block_type", "guidance_embed_dim", "step_embed_dim")


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class UNetConfig:
    """The architecture of a :class:`progdistill.nets.unet.UNet`, with the field names and defaults of
    ``diffusers.UNet2DModel``.

    A level has channels / ``attention_head_dim`` attention heads; None is one head. With
    ``resnet_time_scale_shift="scale_shift"`` the attention of the mid block is normalised only if
    ``attn_norm_num_groups`` is given, as in diffusers. ``num_class_embeds`` counts classes, whose embedding
    is added to that of the time. ``guidance_embed_dim`` is no field of diffusers': the width of the sinusoids of a
    guidance weight, whose projection is added to the time's embedding too; ``step_embed_dim`` is the same for the
    number of sampling steps. Lists (as JSON gives them) become tuples.

    Raises ValueError on construction, naming the field, its value, what is allowed and what to change.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    guidance_embed_dim: int | None = None
    step_embed_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("sample_size", "down_block_types", "up_block_types", "block_out_channels"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_values()
        self._check_levels()
        self._check_sample_size()
        self._check_divisibility()
        self._check_time()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """The configuration in a ``unet/config.json`` of diffusers.

        ``values``: the parsed JSON; keys with a leading underscore (``_class_name`` and such) are ignored,
        absent fields take their defaults. Raises ValueError for an unknown field or an unsupported value.
        """
        known = [field.name for field in fields(cls)]
        given = {name: value for name, value in values.items() if not name.startswith("_")}
        unknown = {name: value for name, value in given.items() if name not in known}
        if unknown:
            shown = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
            raise ValueError(
                f"unknown U-Net configuration: {shown}; allowed fields: {', '.join(known)}. Remove it if the "
                "network's output does not depend on it; otherwise this network is not a plain UNet2DModel."
            )
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready mapping that ``diffusers.UNet2DModel.from_config`` and :meth:`from_dict` accept."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _LATER_FIELDS or getattr(self, field.name) != field.default
        }
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"_class_name": "UNet2DModel", "_diffusers_version": "0.24.0", **values}

    @property
    def time_embed_dim(self) -> int:
        """Width of the time (and class) embedding that every residual block receives."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def size_divisor(self) -> int:
        """What height and width of a sample must be multiples of: each level but the last halves them."""
        return 2 ** (len(self.block_out_channels) - 1)

    def _require(self, valid: bool, name: str, allowed: str, fix: str) -> None:
        if not valid:
            raise ValueError(f"U-Net configuration: {name}={getattr(self, name)!r}; allowed: {allowed}. {fix}")

    def _check_values(self) -> None:
        self._require(
            self.time_embedding_type != "fourier",
            "time_embedding_type",
            "'positional', 'learned'",
            "A Fourier network divides its output by sigma, for variance-exploding noise: choose one with a "
            "positional embedding.",
        )
        for name, choices in _CHOICES.items():
            allowed = ", ".join(map(repr, choices))
            fix = "Other variants of UNet2DModel are not supported: correct the value."
            self._require(getattr(self, name) in choices, name, allowed, fix)
        for name in _BOOLEANS:
            self._require(isinstance(getattr(self, name), bool), name, "true, false", "Write a boolean.")
        for name in _POSITIVE_INTEGERS + _OPTIONAL_POSITIVE_INTEGERS:
            value, optional = getattr(self, name), name in _OPTIONAL_POSITIVE_INTEGERS
            valid = _is_positive_integer(value) or (optional and value is None)
            self._require(valid, name, "1, 2, 3 ..." + ", None" * optional, "Write an integer.")
        for name in ("mid_block_scale_factor", "norm_eps"):
            value = getattr(self, name)
            self._require(_is_number(value) and value > 0, name, "numbers above 0", "Usual are 1 and 1e-5.")
        valid = _is_number(self.dropout) and 0 <= self.dropout < 1
        self._require(valid, "dropout", "numbers in [0, 1)", "It is the probability of dropping an element.")

    def _check_levels(self) -> None:
        channels = self.block_out_channels
        valid = isinstance(channels, tuple) and channels != () and all(map(_is_positive_integer, channels))
        self._require(valid, "block_out_channels", "a list of positive integers", "Write one for each level.")
        for name, known in (("down_block_types", DOWN_BLOCK_TYPES), ("up_block_types", UP_BLOCK_TYPES)):
            types = getattr(self, name)
            valid = isinstance(types, tuple) and all(kind in known for kind in types)
            self._require(valid, name, f"a list of {', '.join(known)}", "Other blocks are not supported.")
            allowed = f"{len(channels)} entries, one for each of block_out_channels={channels}"
            self._require(len(types) == len(channels), name, allowed, f"It has {len(types)}: make them equal.")

    def _check_sample_size(self) -> None:
        if self.sample_size is None:
            return
        pair = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,) * 2
        valid = len(pair) == 2 and all(map(_is_positive_integer, pair))
        self._require(valid, "sample_size", "None, a positive integer, (height, width)", "Write it in pixels.")
        valid = not any(edge % self.size_divisor for edge in pair)
        fix = f"The {len(self.block_out_channels)} levels halve it in between: resize, or use fewer levels."
        self._require(valid, "sample_size", f"multiples of {self.size_divisor}", fix)

    def _check_divisibility(self) -> None:
        channels = self.block_out_channels
        self._require_divisor("norm_num_groups", channels)
        attention_in_middle = self.mid_block_type is not None and self.add_attention
        if attention_in_middle and self.attn_norm_num_groups is not None:
            self._require_divisor("attn_norm_num_groups", channels[-1:])
        if self.attention_head_dim is not None:
            kinds = self.down_block_types + self.up_block_types[::-1]
            attended = [count for kind, count in zip(kinds, channels * 2, strict=True) if kind.startswith("Attn")]
            attended += channels[-1:] * attention_in_middle
            self._require_divisor("attention_head_dim", attended)

    def _require_divisor(self, name: str, channels: Collection[int]) -> None:
        wrong = sorted({count for count in channels if count % getattr(self, name)})
        allowed = f"divisors of {', '.join(map(str, sorted(set(channels))))}"
        fix = f"It does not divide {', '.join(map(str, wrong))}: change it or block_out_channels."
        self._require(not wrong, name, allowed, fix)

    def _check_time(self) -> None:
        if self.time_embedding_type == "learned":
            valid = self.num_train_timesteps is not None
            self._require(valid, "num_train_timesteps", "1, 2, 3 ...", "A learned time table has so many rows.")
            return
        half, odd = divmod(self.block_out_channels[0], 2)
        fix = "It is also the number of sines and cosines of the time."
        self._require(not odd, "block_out_channels", "an even first entry", fix)
        valid = _is_number(self.freq_shift) and self.freq_shift < half
        allowed = f"numbers below {half}, half of block_out_channels[0]"
        self._require(valid, "freq_shift", allowed, "Usual are 0 and 1.")
