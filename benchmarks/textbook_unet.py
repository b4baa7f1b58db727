"""The network that the contenders from outside run: diffusers' own, or its forward pass in plain PyTorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.attention import Attention
from progdistill.nets.resnet import ConvDownsample, ConvUpsample, ResnetBlock
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
        ValueError: a network whose classes are not rows of a table, or whose times are.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        embedding = network.class_embedding
        if network.config.time_embedding_type == "learned" or not isinstance(embedding, nn.Embedding | None):
            raise ValueError(
                "TextbookUNet has sinusoids for times and num_class_embeds for classes; install diffusers for this "
                "network, or use one of progdistill's presets"
            )
        self.network = network

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """(B, C, H, W) in the weights' dtype, times (B,), classes (B,) -> a tuple of the output (B, C', H, W)."""
        net = self.network
        time = net.time_embedding(net.time_proj(timestep).to(sample.dtype))
        if class_labels is not None:
            time = time + net.class_embedding(class_labels).to(sample.dtype)
        x = net.conv_in(sample)
        skips = [x]
        for block in net.down_blocks:
            for index, resnet in enumerate(block.resnets):
                x = _attended(_residual(resnet, x, time), block, index)
                skips.append(x)
            for resampler in block.downsamplers or ():
                x = _downsampled(resampler, x, time)
                skips.append(x)
        if net.mid_block is not None:
            x = _attended(_residual(net.mid_block.resnets[0], x, time), net.mid_block, 0)
            x = _residual(net.mid_block.resnets[1], x, time)
        for block in net.up_blocks:
            for index, resnet in enumerate(block.resnets):
                x = torch.cat((x, skips.pop()), dim=1)
                x = _attended(_residual(resnet, x, time), block, index)
            for resampler in block.upsamplers or ():
                x = _upsampled(resampler, x, time)
        return (net.conv_out(F.silu(net.conv_norm_out(x))),)


def _residual(
    block: ResnetBlock, x: Tensor, time: Tensor, resample: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    h = F.silu(block.norm1(x))
    if resample is not None:
        x, h = resample(x), resample(h)
    h = block.conv1(h)
    time = block.time_emb_proj(F.silu(time))[:, :, None, None]
    if block.scale_shift:
        scale, shift = time.chunk(2, dim=1)
        h = block.norm2(h) * (1 + scale) + shift
    else:
        h = block.norm2(h + time)
    h = F.dropout(F.silu(h), block.dropout, block.training)
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


def _downsampled(resampler: ResnetBlock | ConvDownsample, x: Tensor, time: Tensor) -> Tensor:
    if isinstance(resampler, ResnetBlock):
        return _residual(resampler, x, time, lambda h: F.avg_pool2d(h, 2))
    conv = resampler.conv
    return conv(x if conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


def _upsampled(resampler: ResnetBlock | ConvUpsample, x: Tensor, time: Tensor) -> Tensor:
    def doubled(h: Tensor) -> Tensor:
        return F.interpolate(h, scale_factor=2.0, mode="nearest")

    return _residual(resampler, x, time, doubled) if isinstance(resampler, ResnetBlock) else resampler.conv(doubled(x))
