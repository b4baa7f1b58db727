"""What nn.Conv2d and nn.Linear hold, applied: with or without the bias, in mixed dtypes, as matrix products."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def convolve(conv: nn.Conv2d, x: Tensor, *, bias: bool = True) -> Tensor:
    """conv(x), its bias brought to the dtype of its matrix; or without the bias."""
    weight = conv.weight
    return F.conv2d(x, weight, _like(conv.bias, weight) if bias else None, conv.stride, conv.padding)


def project(linear: nn.Linear, x: Tensor, *, bias: bool = True) -> Tensor:
    """linear(x), its bias brought to the dtype of its matrix; or without the bias."""
    weight = linear.weight
    return F.linear(x, weight, _like(linear.bias, weight) if bias else None)


def _like(bias: Tensor, weight: Tensor) -> Tensor:
    return bias if bias.dtype == weight.dtype else bias.to(weight.dtype)


def pointwise(weight: Tensor, *parts: Tensor) -> Tensor:
    """The 1x1 convolution of the concatenated channels of `parts`, which are not concatenated: (B, C', H, W).

    `weight`: (C', C, 1, 1). `parts`: (B, C_i, H, W) of one dtype, sum C_i = C; channels_last ones are read where they
    lie. Each product is added to those before as it is written. The result is channels_last.
    """
    # Autocast knows no products that are added in place.
    matrices = weight.to(parts[0].dtype).split([part.shape[1] for part in parts], dim=1)
    batch, _, height, width = parts[0].shape
    product = None
    for part, matrix in zip(parts, matrices, strict=True):
        pixels, columns = part.permute(0, 2, 3, 1).flatten(0, 2), matrix.flatten(1).t()
        product = pixels @ columns if product is None else product.addmm_(pixels, columns)
    return product.view(batch, height, width, -1).permute(0, 3, 1, 2)
