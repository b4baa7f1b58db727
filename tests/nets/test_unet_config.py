"""The configuration and the named networks."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from progdistill.nets.config import UNetConfig
from progdistill.nets.presets import PRESETS, preset
from progdistill.nets.unet import UNet

# With attention and a middle block, so that every field has something to contradict.
DIGITS = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 48),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=None,
    norm_num_groups=8,
)

# The counts of Salimans & Ho 2022 follow from their layer list; ImageNet-64 has 295,905,222 there because its
# class embedding, a dense layer over one-hot vectors, has a bias of 768.
PARAMETERS = {
    "cifar10": 60_004_099,
    "imagenet64": 295_905_222 - 768,
    "lsun128": 139_578_502,
    "ddpm-cifar10-32": 35_746_307,
    "digits8": 213_953,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    with torch.device("meta"):
        net = UNet(preset(name))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


def test_unknown_preset_lists_the_known():
    with pytest.raises(KeyError, match=r"'cifar'.*cifar10, imagenet64, lsun128, ddpm-cifar10-32, digits8"):
        preset("cifar")


@pytest.mark.parametrize("config", [UNetConfig(), *PRESETS.values()])
def test_json_round_trip(config):
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_dictionary_is_that_of_diffusers():
    values = UNetConfig().to_dict()
    assert values.pop("_class_name") == "UNet2DModel"
    assert values.pop("_diffusers_version") == "0.24.0"
    # Two are younger than the version that is named, which would warn about them; two are none of diffusers'.
    expected = {field.name for field in fields(UNetConfig)} - {
        "time_embedding_dim",
        "mid_block_type",
        "guidance_embed_dim",
        "step_embed_dim",
    }
    assert set(values) == expected
    assert preset("lsun128").to_dict()["time_embedding_dim"] == 768
    assert replace(DIGITS, mid_block_type=None).to_dict()["mid_block_type"] is None


def test_leading_underscores_are_ignored_and_lists_become_tuples():
    config = UNetConfig.from_dict({"_class_name": "UNet2DModel", "_name_or_path": "x", "sample_size": [8, 16]})
    assert config == UNetConfig(sample_size=(8, 16))
    assert hash(config) == hash(UNetConfig(sample_size=(8, 16)))


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        DIGITS.dropout = 0.5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("time_embedding_type", "fourier", r"'fourier'.*'positional', 'learned'.*sigma.*choose"),
        ("time_embedding_type", "rotary", r"'rotary'.*'positional', 'learned'"),
        ("mid_block_type", "UNetMidBlock2DCrossAttn", r"CrossAttn.*'UNetMidBlock2D', None"),
        ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"], "SkipDownBlock2D.*AttnDownBlock2D"),
        ("down_block_types", ["DownBlock2D"], r"2 entries.*block_out_channels=\(16, 48\).*has 1"),
        ("up_block_types", "UpBlock2D", "'UpBlock2D'.*a list of"),
        ("block_out_channels", [], r"block_out_channels=\(\)"),
        ("block_out_channels", [16, 48.0], r"\(16, 48\.0\).*positive integers"),
        ("block_out_channels", 16, r"block_out_channels=16"),
        ("downsample_padding", 2, "downsample_padding=2; allowed: 0, 1"),
        ("downsample_type", "fir", "'fir'.*'conv', 'resnet'"),
        ("upsample_type", None, "upsample_type=None"),
        ("act_fn", "gelu", "'gelu'.*'silu', 'swish'"),
        ("resnet_time_scale_shift", "ada_group", "'ada_group'.*'default', 'scale_shift'"),
        ("class_embed_type", "projection", "'projection'.*None, 'timestep', 'identity'"),
        ("center_input_sample", 1, "center_input_sample=1; allowed: true, false"),
        ("in_channels", 0, "in_channels=0; allowed: 1, 2, 3"),
        ("layers_per_block", [1, 2], r"layers_per_block=\[1, 2\]"),
        ("num_class_embeds", -1, r"num_class_embeds=-1; allowed: 1, 2, 3 \.\.\., None"),
        ("dropout", 1.0, r"dropout=1\.0.*\[0, 1\)"),
        ("norm_eps", 0, "norm_eps=0; allowed: numbers above 0"),
        ("mid_block_scale_factor", "1", "mid_block_scale_factor='1'"),
        ("sample_size", 9, "sample_size=9; allowed: multiples of 2"),
        ("sample_size", [8, 8, 8], r"sample_size=\(8, 8, 8\)"),
        ("norm_num_groups", 32, "norm_num_groups=32; allowed: divisors of 16, 48. It does not divide 16, 48"),
        ("norm_num_groups", None, "norm_num_groups=None"),
        ("attn_norm_num_groups", 5, "attn_norm_num_groups=5; allowed: divisors of 48"),
        ("attention_head_dim", 32, "attention_head_dim=32; allowed: divisors of 48"),
        ("freq_shift", 8, "freq_shift=8; allowed: numbers below 8"),
    ],
)
def test_refuses(field, value, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict({**DIGITS.to_dict(), field: value})


def test_refuses_odd_sinusoids_and_tables_without_length():
    with pytest.raises(ValueError, match=r"block_out_channels=\(15, 48\); allowed: an even first entry"):
        replace(DIGITS, block_out_channels=(15, 48), norm_num_groups=3)
    with pytest.raises(ValueError, match=r"num_train_timesteps=None.*rows"):
        replace(DIGITS, time_embedding_type="learned")


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"skip_rescale=True; allowed fields: sample_size, in_channels"):
        UNetConfig.from_dict({"skip_rescale": True})


def test_divisibility_is_asked_only_where_it_matters():
    replace(DIGITS, attention_head_dim=48)
    without_attention = replace(
        DIGITS,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    replace(without_attention, attention_head_dim=7, attn_norm_num_groups=7)
