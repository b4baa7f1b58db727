"""The levels of a U-Net: residual blocks at one resolution, with attention where the type says so."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from progdistill.nets.attention import Attention
from progdistill.nets.config import UNetConfig
from progdistill.nets.embeddings import FixedTime
from progdistill.nets.pending_sum import PendingSum
from progdistill.nets.resnet import ConvDownsample, ConvUpsample, ResnetBlock


def _attentions(config: UNetConfig, block_type: str, channels: int, count: int) -> nn.ModuleList | None:
    if not block_type.startswith("Attn"):
        return None
    return nn.ModuleList(
        Attention(
            channels,
            head_dim=config.attention_head_dim,
            norm_num_groups=config.norm_num_groups,
            eps=config.norm_eps,
        )
        for _ in range(count)
    )


def _resamples_by_resnet(block_type: str, attn_resample_type: str) -> bool:
    """Only the attention blocks of diffusers read `downsample_type` and `upsample_type`."""
    resample_type = attn_resample_type if block_type.startswith("Attn") else "conv"
    return block_type.startswith("Resnet") or resample_type == "resnet"


class DownBlock(nn.Module):
    """``layers_per_block`` residual blocks, each followed by attention in an ``AttnDownBlock2D``, then a
    downsampler unless this is the lowest level."""

    def __init__(
        self,
        config: UNetConfig,
        block_type: str,
        in_channels: int,
        out_channels: int,
        *,
        add_downsample: bool,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (config.layers_per_block - 1)
        self.attentions = _attentions(config, block_type, out_channels, len(inputs))
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, out_channels) for channels in inputs)
        self.downsamplers = None
        if add_downsample:
            self.downsamplers = nn.ModuleList(
                [
                    ResnetBlock(config, out_channels, out_channels, resample="down")
                    if _resamples_by_resnet(block_type, config.downsample_type)
                    else ConvDownsample(out_channels, padding=config.downsample_padding)
                ]
            )

    def forward(self, x: PendingSum, time_act: Tensor | FixedTime, skips: list[PendingSum]) -> PendingSum:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2); all intermediate results go to ``skips``."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time_act)
            if self.attentions is not None:
                x = self.attentions[index](x)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x, time_act)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """Two residual blocks around an attention, at the lowest resolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        groups = config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        self.attentions = None
        if config.add_attention:
            attention = Attention(
                channels,
                head_dim=config.attention_head_dim,
                norm_num_groups=groups,
                eps=config.norm_eps,
                output_scale_factor=scale,
            )
            self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(
            ResnetBlock(config, channels, channels, output_scale_factor=scale) for _ in range(2)
        )

    def forward(self, x: PendingSum, time_act: Tensor | FixedTime) -> PendingSum:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x, time_act)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, time_act)


class UpBlock(nn.Module):
    """``len(skip_channels)`` residual blocks, each taking one skip of the way down and followed by attention
    in an ``AttnUpBlock2D``, then an upsampler unless this is the highest level."""

    def __init__(
        self,
        config: UNetConfig,
        block_type: str,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: Iterable[int],
        add_upsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        for skip in skip_channels:
            self.resnets.append(ResnetBlock(config, in_channels + skip, out_channels))
            in_channels = out_channels
        self.attentions = _attentions(config, block_type, out_channels, len(self.resnets))
        self.upsamplers = None
        if add_upsample:
            self.upsamplers = nn.ModuleList(
                [
                    ResnetBlock(config, out_channels, out_channels, resample="up")
                    if _resamples_by_resnet(block_type, config.upsample_type)
                    else ConvUpsample(out_channels)
                ]
            )

    def forward(self, x: PendingSum, time_act: Tensor | FixedTime, skips: list[PendingSum]) -> PendingSum:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W); each residual block pops one of ``skips``."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time_act, skips.pop().formed())
            if self.attentions is not None:
                x = self.attentions[index](x)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, time_act)
        return x
