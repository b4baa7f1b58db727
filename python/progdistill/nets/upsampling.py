"""Nearest-neighbour upsampling, and the convolution that follows it without the upsampled image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.constants import MadeOfWeights
from progdistill.nets.layers import convolve
from progdistill.ops.layout import dense, memory_format

# Below, the transposed kernel costs more than it saves, or next to nothing is there to be saved.
LEAST_CHANNELS = 64
LEAST_PIXELS = 512


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def transposed_kernel(weight: Tensor) -> Tensor:
    """What a transposed convolution of stride 2 and padding 1 takes to be the 3x3 convolution of an upsampled image.

    Upsampling puts zeros between the pixels and spreads each over 2x2 (its box kernel); with the convolution that
    makes one kernel of 4x4, w * box, of which each output sees 2x2 numbers where the 3x3 kernel multiplies the same
    pixels up to four times: 4/9 of the arithmetic (Shi et al. 2016, arXiv:1609.07009).

    ``weight``: (C', C, 3, 3). Returns (C, C', 4, 4) in its memory format, each number a sum of up to four, rounded
    once.
    """
    turned = dense(weight.flip(2, 3).transpose(0, 1), torch.channels_last)  # the order in which pooling is fast
    spread = F.avg_pool2d(turned, 2, stride=1, padding=1, divisor_override=1)
    return dense(spread, memory_format(weight))


def transposed_convolution(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of `upsample(x)` with the weight of a `transposed_kernel`: (B, C, H, W) -> (B, C', 2H, 2W)."""
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


class UpsamplingConv2d(MadeOfWeights, nn.Conv2d):
    """A 3x3 convolution that can have its image upsampled before: `of_upsampled`. Called, it is `nn.Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def of_upsampled(self, x: Tensor, *, bias: bool = True) -> Tensor:
        """What it makes of `upsample(x)`, with its bias or without: (B, C, H, W) -> (B, C', 2H, 2W)."""
        if not self._is_transposed(x):
            return convolve(self, upsample(x), bias=bias)
        kernel = self._kept_or_made()
        return transposed_convolution(x, kernel, self.bias.to(kernel.dtype) if bias else None)

    def _is_transposed(self, x: Tensor) -> bool:
        """A matter of speed; and an exported graph is to say what it does as others would."""
        if torch.compiler.is_exporting() or min(self.weight.shape[:2]) < LEAST_CHANNELS:
            return False
        return x.shape[0] * x.shape[2] * x.shape[3] >= LEAST_PIXELS or not self._is_made_anew()

    def _weights(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def _made(self) -> Tensor:
        return transposed_kernel(self.weight)
