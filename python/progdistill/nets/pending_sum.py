"""Sums that the norm which follows forms on its way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.ops.backends import choose
from progdistill.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference


def sums_wait(x: Tensor) -> bool:
    """Whether sums with such an image, biases too, and concatenations are left to the norm that follows.

    A kernel forms them on its way, in channels_last order. Plain PyTorch takes a pass for each, while its convolutions
    add their bias for nothing on a CPU; and exported graphs are to be plain PyTorch.
    """
    if torch.compiler.is_exporting() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return _has_kernel(x.device.type, x.dtype)


def _has_kernel(device: str, dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        return choose("group_norm_silu", device, None) is not group_norm_silu_reference
    except ValueError:  # PROGDISTILL_BACKEND forces one that has no such kernel, "cpu" say: a network needs none
        return False


# What torch.compiler.assume_constant_result sets, but without importing the compiler: it cannot trace the extension.
_has_kernel._dynamo_marked_constant = True


class PendingSum:
    """x + shift + residual: what a block hands to the next one, which normalises it before all else.

    Whoever asks first forms the sum, all others get the same tensor: `normalised` as part of the norm, `formed` by
    itself. So it may be kept as a skip before it exists.

    Args:
        x: (B, C, H, W), whose dtype and memory format the sum has.
        shift: (C,) or (B, C), in any dtype: a bias that the convolution before left out, a time's projection.
        residual: (B, C, H, W).
        waits: whether the norm forms it (`sums_wait`), and is given biases and skips to add.
    """

    def __init__(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None, *, waits: bool) -> None:
        self._x, self._shift, self._residual = x, shift, residual
        self.waits = waits

    def formed(self) -> Tensor:
        """The sum, (B, C, H, W)."""
        x = self._x
        if self._residual is not None:
            x = x + self._residual
        if self._shift is not None:
            x = x + self._shift.to(x.dtype)[..., None, None]
        return self._keep(x)

    def divided(self, factor: float) -> PendingSum:
        """The sum over a number."""
        return self if factor == 1 else PendingSum(self.formed() / factor, waits=self.waits)

    def normalised(
        self,
        norm: nn.GroupNorm,
        *,
        skip: Tensor | None = None,
        scale_shift: Tensor | None = None,
        silu: bool = True,
    ) -> Tensor:
        """`norm` of the sum and of a `skip` (B, C', H, W) behind its channels, then SiLU: (B, C + C', H, W).

        `scale_shift`: (B, 2 (C + C')), between norm and SiLU; see `progdistill.ops.group_norm_silu`.
        """
        if not self.waits:
            x = self.formed() if skip is None else torch.cat((self.formed(), skip), dim=1)
            return _plain(x, norm, scale_shift, silu)
        operands = (self._x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        given = {"skip": skip, "shift": self._shift, "scale_shift": scale_shift, "silu": silu}
        if self._residual is None:
            return group_norm_silu(*operands, **given)
        y, x = group_norm_silu(*operands, **given, residual=self._residual)
        self._keep(x)
        return y

    def _keep(self, x: Tensor) -> Tensor:
        self._x, self._shift, self._residual = x, None, None
        return x


def _plain(x: Tensor, norm: nn.GroupNorm, scale_shift: Tensor | None, silu: bool) -> Tensor:
    """Operation by operation in the dtype of x, for all that has no kernel."""
    x = torch.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
    if scale_shift is not None:
        scale, shift = scale_shift.to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift, x, scale + 1)
    return F.silu(x) if silu else x
