"""A model's network in several precisions, each a model of its own."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_update import bfloat16_model
from progdistill.core import Denoiser
from progdistill.nets.unet import UNet
from textbook_unet import TextbookUNet

PACKAGE = "bfloat16, as rounds compute"


def precisions(model: Denoiser) -> dict[str, Denoiser]:
    """By name; the first is what rounds compute in float32, the last ones plain PyTorch under autocast."""
    network = model.network
    found = {
        "float32": network,
        "float32, input rounded to bfloat16": RoundedInput(network),
        PACKAGE: bfloat16_model(model).network,
    }
    if isinstance(network, UNet):
        for name, in_two_parts, last_in_float32 in (
            ("bfloat16, autocast", False, False),
            ("bfloat16, input in two parts", True, False),
            ("bfloat16, last convolution in float32", False, True),
            ("bfloat16, both", True, True),
        ):
            found[name] = Autocast(network, in_two_parts=in_two_parts, last_in_float32=last_in_float32)
    return {name: model.with_network(one).eval() for name, one in found.items()}


class RoundedInput(nn.Module):
    """A network that is given its state rounded to bfloat16."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, *rest: Tensor) -> Tensor:
        """As the network."""
        return self.network(z.bfloat16().to(z.dtype), *rest)


class Autocast(nn.Module):
    """A U-Net in plain PyTorch under autocast to bfloat16, which can be trained.

    Args:
        network: with float32 weights; copied.
        in_two_parts: the state is the sum of two bfloat16 numbers and has twice the channels, the first convolution's
            weights twice.
        last_in_float32: the last convolution is not rounded, nor are its weights.
    """

    enabled = True
    """False: it computes in float32."""

    def __init__(self, network: UNet, *, in_two_parts: bool = False, last_in_float32: bool = False) -> None:
        super().__init__()
        network = copy.deepcopy(network)
        if in_two_parts:
            network.conv_in = TwoPartConvolution(network.conv_in)
        if last_in_float32:
            network.conv_out = InFloat32(network.conv_out)
        self.textbook = TextbookUNet(network)

    def forward(self, z: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """As the network."""
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.enabled):
            return self.textbook(z, time, class_labels)[0]


class TwoPartConvolution(nn.Module):
    """Under autocast conv(x) as one convolution of the parts of x that bfloat16 holds and that it loses."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32."""
        if not torch.is_autocast_enabled(x.device.type):
            return self.conv(x)
        high = x.bfloat16()
        low = (x - high.to(x.dtype)).bfloat16()
        weight = torch.cat((self.conv.weight, self.conv.weight), dim=1)
        return F.conv2d(torch.cat((high, low), dim=1), weight, self.conv.bias, padding=self.conv.padding)


class InFloat32(nn.Module):
    """A layer that computes in float32 whatever is around it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())
