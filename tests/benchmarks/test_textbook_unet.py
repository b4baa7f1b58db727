"""benchmarks/textbook_unet.py against diffusers."""

import dataclasses

import pytest
import torch

import textbook_unet
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet
from textbook_unet import TextbookUNet, stock_network

SMALL = {"sample_size": 8, "block_out_channels": (32, 32, 64, 64)}


def network(name, **changes):
    torch.manual_seed(0)
    net = UNet(dataclasses.replace(preset(name), **changes)).eval().requires_grad_(False)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("digits8", {}),
        ("ddpm-cifar10-32", SMALL),
        ("ddpm-cifar10-32", {**SMALL, "attention_head_dim": 16, "mid_block_scale_factor": 2.0}),
        ("ddpm-cifar10-32", {**SMALL, "downsample_padding": 1, "add_attention": False}),
        ("cifar10", {"sample_size": 8, "block_out_channels": (32, 32, 64)}),
        ("imagenet64", {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "attention_head_dim": 16}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_computes_what_diffusers_computes(name, changes, memory_format):
    pytest.importorskip("diffusers")
    net = network(name, **changes)
    stock, said = stock_network(net)
    assert "UNet2DModel of diffusers" in said
    z = torch.randn(2, net.config.in_channels, 8, 8).to(memory_format=memory_format)
    times = torch.tensor([3.0, 1023.0])
    labels = None if net.config.num_class_embeds is None else torch.tensor([999, 0])
    for dtype in (torch.float32, torch.bfloat16):
        given = z.to(dtype)
        (expected,) = stock.to(dtype)(given, times, class_labels=labels, return_dict=False)
        (got,) = TextbookUNet(net).to(dtype)(given, times, labels)
        assert got.dtype == dtype and torch.equal(got, expected)


def test_it_takes_the_place_of_diffusers(monkeypatch):
    monkeypatch.setattr(textbook_unet.importlib.util, "find_spec", lambda package: None)
    net = network("digits8")
    stock, said = stock_network(net)
    assert isinstance(stock, TextbookUNet) and "diffusers is not installed" in said
    assert not stock.training and stock.network is net


@pytest.mark.parametrize(
    "changes", [{"class_embed_type": "timestep"}, {"time_embedding_type": "learned", "num_train_timesteps": 10}]
)
def test_networks_that_it_does_not_know(changes):
    with pytest.raises(ValueError, match="install diffusers for this network"):
        TextbookUNet(network("digits8", **changes))
