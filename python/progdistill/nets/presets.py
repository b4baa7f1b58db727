"""Named architectures."""

from __future__ import annotations

from typing import Any

from progdistill.nets.config import UNetConfig

# What the networks of Salimans & Ho 2022 have in common (their appendix B and released configurations).
_SALIMANS_HO: dict[str, Any] = {
    "layers_per_block": 3,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attn_norm_num_groups": 32,
}

PRESETS: dict[str, UNetConfig] = {
    # Salimans & Ho 2022: 60,004,099 parameters.
    "cifar10": UNetConfig(
        sample_size=32,
        block_out_channels=(256, 256, 256),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=None,
        dropout=0.2,
        **_SALIMANS_HO,
    ),
    # Salimans & Ho 2022, two-headed: 295,904,454 parameters. Theirs has 768 more, the bias of a dense layer
    # over one-hot classes: it adds to the bias of the time embedding and so can express nothing of its own.
    "imagenet64": UNetConfig(
        sample_size=64,
        out_channels=6,
        block_out_channels=(192, 384, 576, 768),
        down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        attention_head_dim=64,
        num_class_embeds=1000,
        dropout=0.1,
        **_SALIMANS_HO,
    ),
    # Salimans & Ho 2022, two-headed: 139,578,502 parameters. `time_embedding_dim` needs a recent diffusers.
    "lsun128": UNetConfig(
        sample_size=128,
        out_channels=6,
        block_out_channels=(64, 128, 256, 384, 512),
        time_embedding_dim=768,
        down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 2,
        attention_head_dim=64,
        dropout=0.1,
        **_SALIMANS_HO,
    ),
    # google/ddpm-cifar10-32, the CIFAR-10 network of Ho et al. 2020: 35,746,307 parameters.
    "ddpm-cifar10-32": UNetConfig(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ),
    # Grey 8x8 digits, small enough to train on a CPU: 213,953 parameters. A middle
    # block and attention bought nothing here for a third more time.
    "digits8": UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 48),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=8,
    ),
}


def preset(name: str) -> UNetConfig:
    """The named configuration, to vary with ``dataclasses.replace``. Raises KeyError listing the names."""
    if name not in PRESETS:
        raise KeyError(f"unknown network {name!r}; allowed: {', '.join(PRESETS)}. Or build a UNetConfig yourself.")
    return PRESETS[name]
