"""Group normalisation with all that a residual block puts before and after it, in one operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from progdistill.ops.layout import dense, memory_format


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    scale_shift: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = True,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = silu((1 + scale) norm(cat(u, skip)) + shift_after) with u = x + residual + shift; Wu & He 2018.

    Whatever is left out counts as 0. With a `residual`, u is a result too: the sum that a residual block ends with is
    formed on the way to the norm that follows it. It is then rounded to the dtype of x before it is normalised.

    Args:
        x: (B, C, H, W), float32, float64 or bfloat16. C + C' channels are normalised in all.
        weight, bias: (C + C',), of the norm; float32, or the dtype of x.
        groups: number of groups, a divisor of C + C'. A group may lie partly in x and partly in skip.
        eps: added to the variance, which is that of the group (not Bessel's).
        skip: (B, C', H, W), further channels.
        shift: (B, C), (1, C) or (C,), for the channels of x alone: the preceding convolution's bias and the time's
            projection. float32, or the dtype of x.
        scale_shift: (B, 2 (C + C')), the scales first, or (1, ...): adaptive group normalisation (Dhariwal & Nichol
            2021). float32, or the dtype of x.
        residual: (B, C, H, W).
        silu: no: without the activation.
        backend: force "reference", "cuda" or "triton"; default: the best available.

    Returns:
        y (B, C + C', H, W); with a residual (y, u). Both have the dtype and memory format of x. Arithmetic is float32
        (float64 for a float64 x). Differentiable in all tensors.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or number of groups, with what is allowed.
    """
    return group_norm_silu_reference(
        x, weight, bias, groups, eps, skip=skip, shift=shift, scale_shift=scale_shift, residual=residual, silu=silu
    )


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    scale_shift: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, differentiable by autograd."""
    format = memory_format(x)
    computing = torch.promote_types(x.dtype, torch.float32)
    u = x.to(computing)
    if residual is not None:
        u = u + residual
    if shift is not None:
        u = u + shift.to(computing).unsqueeze(-1).unsqueeze(-1)
    if residual is not None:
        sum = u.to(x.dtype)
        u = sum.to(computing)
    if skip is not None:
        u = torch.cat((u, skip.to(computing)), dim=1)
    y = F.group_norm(u, groups, weight.to(computing), bias.to(computing), eps)
    if scale_shift is not None:
        scale, shift_after = scale_shift.to(computing)[..., None, None].chunk(2, dim=1)
        y = torch.addcmul(shift_after, y, scale + 1)
    y = dense((F.silu(y) if silu else y).to(x.dtype), format)
    return y if residual is None else (y, dense(sum, format))
