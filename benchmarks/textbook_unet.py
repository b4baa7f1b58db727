"""The network that the contenders from outside run: diffusers' own, or its forward pass in plain PyTorch."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.attention import Attention
from progdistill.nets.resnet import ConvDownsample, ResnetBlock
from progdistill.nets.unet import UNet


def stock_network(network: UNet) -> tuple[nn.Module, str]:
    """A network with these weights, called as `UNet2DModel(sample, timestep, return_dict=False)`, and its name.

    That of diffusers if it is installed, else a `TextbookUNet`.
    """
    if importlib.util.find_spec("diffusers") is None:
        return TextbookUNet(network).eval(), "its forward pass in plain PyTorch (diffusers is not installed)"
    import diffusers

    stock = diffusers.UNet2DModel.from_config(network.config.to_dict())
    stock.load_state_dict(network.state_dict())
    device = network.conv_in.weight.device
    return stock.to(device).eval().requires_grad_(False), f"UNet2DModel of diffusers {diffusers.__version__}"


class TextbookUNet(nn.Module):
    """What `diffusers.UNet2DModel` computes, operation by operation in plain PyTorch, with the parameters of `network`.

    It has none of the fused operations that progdistill's own forward pass may have, so that it can be compiled and
    timed in the place of diffusers' network.

    Raises:
        ValueError: a network with classes, or whose blocks resample by residual blocks or scale by the time.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        resnets = [module for module in network.modules() if isinstance(module, ResnetBlock)]
        if network.class_embedding is not None or any(r.scale_shift or r.resample for r in resnets):
            raise ValueError(
                "TextbookUNet has no classes, no resampling residual blocks and no scale_shift; install diffusers for "
                "this network, or use ddpm-cifar10-32"
            )
        self.network = network

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """(B, C, H, W) in the weights' dtype, times (B,) -> a tuple of the output (B, C', H, W)."""
        net = self.network
        time = net.time_embedding(net.time_proj(timestep).to(sample.dtype))
        x = net.conv_in(sample)
        skips = [x]
        for block in net.down_blocks:
            for index, resnet in enumerate(block.resnets):
                x = _attended(_residual(resnet, x, time), block, index)
                skips.append(x)
            for resampler in block.downsamplers or ():
                x = _downsampled(resampler, x)
                skips.append(x)
        if net.mid_block is not None:
            x = _attended(_residual(net.mid_block.resnets[0], x, time), net.mid_block, 0)
            x = _residual(net.mid_block.resnets[1], x, time)
        for block in net.up_blocks:
            for index, resnet in enumerate(block.resnets):
                x = torch.cat((x, skips.pop()), dim=1)
                x = _attended(_residual(resnet, x, time), block, index)
            for resampler in block.upsamplers or ():
                x = resampler.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return (net.conv_out(F.silu(net.conv_norm_out(x))),)


def _residual(block: ResnetBlock, x: Tensor, time: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.time_emb_proj(F.silu(time))[:, :, None, None]
    h = F.dropout(F.silu(block.norm2(h)), block.dropout, block.training)
    h = block.conv2(h)
    return ((x if block.conv_shortcut is None else block.conv_shortcut(x)) + h) / block.output_scale_factor


def _attended(x: Tensor, block: nn.Module, index: int) -> Tensor:
    if block.attentions is None:
        return x
    attention: Attention = block.attentions[index]
    batch, channels, height, width = x.shape
    tokens = x.flatten(2)
    if attention.group_norm is not None:
        tokens = attention.group_norm(tokens)
    tokens = tokens.transpose(1, 2)
    q, k, v = (
        project(tokens).view(batch, -1, attention.heads, channels // attention.heads).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
    h = attention.to_out[0](h).transpose(-1, -2).reshape(batch, channels, height, width)
    return (h + x) / attention.output_scale_factor


def _downsampled(resampler: ConvDownsample, x: Tensor) -> Tensor:
    conv = resampler.conv
    return conv(x if conv.padding[0] else F.pad(x, (0, 1, 0, 1)))
