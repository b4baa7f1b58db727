"""The residual block, its resampling variants, and resampling by a convolution."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.config import UNetConfig
from progdistill.nets.constants import MadeOfWeights
from progdistill.nets.embeddings import FixedTime
from progdistill.nets.layers import convolve, pointwise, project
from progdistill.nets.pending_sum import PendingSum
from progdistill.nets.upsampling import UpsamplingConv2d, upsample

Resample = Literal["up", "down"]


def downsample(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


class ResnetBlock(MadeOfWeights, nn.Module):
    """norm, SiLU, 3x3 convolution, time, norm, SiLU, dropout, 3x3 convolution, plus a shortcut.

    The time enters as a shift before the second norm (``resnet_time_scale_shift="default"``, Ho et al. 2020)
    or as a scale and shift after it (``"scale_shift"``, Dhariwal & Nichol 2021). With ``resample`` both
    branches change resolution after the first activation (Brock et al. 2019).
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        *,
        resample: Resample | None = None,
        output_scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.dropout = config.dropout
        self.resample = resample
        self.output_scale_factor = output_scale_factor
        self.norm1 = nn.GroupNorm(config.norm_num_groups, in_channels, config.norm_eps)
        if resample == "up":
            self.conv1 = UpsamplingConv2d(in_channels, out_channels)
        else:
            self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_embed_dim, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(config.norm_num_groups, out_channels, config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: PendingSum, time_act: Tensor | FixedTime, skip: Tensor | None = None) -> PendingSum:
        """Returns (B, out_channels, H', W').

        ``x``: (B, C, H, W). ``time_act``: (B, time_embed_dim), the embedding after SiLU, which all blocks
        share; or a `FixedTime`. ``skip``: (B, C', H, W), appended to the channels of ``x``; C + C' = in_channels.
        """
        waits = x.waits
        if skip is not None and not waits:
            x, skip = PendingSum(torch.cat((x.formed(), skip), dim=1), waits=False), None
        h, x, skip = x.normalised_and_formed(self.norm1, skip=skip)
        if self.resample == "up":
            x = upsample(x)  # h by the convolution
        elif self.resample == "down":
            x, h = downsample(x), downsample(h)
        time = time_act[self] if isinstance(time_act, FixedTime) else self.time_terms(time_act)
        h = self._timed(h, time, waits)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return self._added(h, x, skip, waits).divided(self.output_scale_factor)

    def time_terms(self, time_act: Tensor) -> Tensor:
        """What the second norm takes of a time: the shift before it (B, out_channels), in which the bias of the first
        convolution is, or scale and shift after it (B, 2 out_channels)."""
        time = project(self.time_emb_proj, time_act)
        return time if self.scale_shift else time + self.conv1.bias

    def _timed(self, h: Tensor, time: Tensor, waits: bool) -> Tensor:
        """The first convolution and the second norm, to which the time belongs."""
        convolution = self.conv1.of_upsampled if self.resample == "up" else partial(convolve, self.conv1)
        if not self.scale_shift:
            h = convolution(h, bias=False)
            return PendingSum(h, time, waits=waits).normalised(self.norm2)
        h = convolution(h, bias=not waits)
        return PendingSum(h, self.conv1.bias if waits else None, waits=waits).normalised(self.norm2, scale_shift=time)

    def _added(self, h: Tensor, x: Tensor, skip: Tensor | None, waits: bool) -> PendingSum:
        """The last convolution of the branch, and the shortcut."""
        shift = self.conv2.bias if waits else None
        if self.conv_shortcut is not None and waits:
            x = pointwise(self.conv_shortcut.weight, *((x,) if skip is None else (x, skip)))
            shift = self._kept_or_made()
        elif self.conv_shortcut is not None:
            x = convolve(self.conv_shortcut, x)
        return PendingSum(x, shift, convolve(self.conv2, h, bias=not waits), waits=waits)

    def _weights(self) -> tuple[Tensor, ...]:
        return () if self.conv_shortcut is None else (self.conv2.bias, self.conv_shortcut.bias)

    def _made(self) -> Tensor:
        """The bias of the last sum."""
        return self.conv2.bias + self.conv_shortcut.bias


class ConvDownsample(nn.Module):
    """3x3 convolution of stride 2. ``padding`` 0 pads one row and column at the bottom and right only, as the
    TensorFlow networks of Ho et al. 2020 do; 1 pads all sides."""

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: PendingSum, time_act: Tensor) -> PendingSum:
        """(B, C, H, W) -> (B, C, H/2, W/2); the time is not used."""
        h = x.formed() if self.conv.padding[0] else x.padded()
        h = convolve(self.conv, h, bias=not x.waits)
        return PendingSum(h, self.conv.bias if x.waits else None, waits=x.waits)


class ConvUpsample(nn.Module):
    """Nearest neighbour upsampling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConv2d(channels, channels)

    def forward(self, x: PendingSum, time_act: Tensor) -> PendingSum:
        """(B, C, H, W) -> (B, C, 2H, 2W); the time is not used."""
        h = self.conv.of_upsampled(x.formed(), bias=not x.waits)
        return PendingSum(h, self.conv.bias if x.waits else None, waits=x.waits)
