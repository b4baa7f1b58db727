"""GroupNorm followed by SiLU, with what a residual block puts between and before them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm_silu(
    x: Tensor, norm: nn.GroupNorm, *, shift_before: Tensor | None = None, scale_shift: Tensor | None = None
) -> Tensor:
    """``silu(norm(x + shift_before) * (1 + scale) + shift)``, each of the additions where it is given.

    ``x``: (B, C, H, W), in either memory format, which the result keeps. ``norm`` holds the group count, eps
    and the affine parameters. ``shift_before``: (B, C). ``scale_shift``: (B, 2C), the scales first (the
    adaptive group normalisation of Dhariwal & Nichol 2021).
    """
    if shift_before is not None:
        x = x + shift_before[:, :, None, None]
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if scale_shift is not None:
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift, x, scale + 1)
    return F.silu(x)
