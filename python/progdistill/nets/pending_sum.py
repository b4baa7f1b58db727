"""Sums that the operation which follows forms on its way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.layers import convolve
from progdistill.ops.backends import choose
from progdistill.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference
from progdistill.ops.padded_sum import padded_sum


def sums_wait(x: Tensor) -> bool:
    """Whether sums with such an image, biases too, and concatenations are left to the operation that follows.

    Kernels form them on their way, in channels_last order. Plain PyTorch takes a pass for each, while its convolutions
    add their bias for nothing on a CPU; and exported graphs are to be plain PyTorch.
    """
    return _may_wait(x) and x.is_contiguous(memory_format=torch.channels_last)


def _may_wait(x: Tensor) -> bool:
    return not torch.compiler.is_exporting() and _has_kernel(x.device.type, x.dtype)


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

    Whoever asks first forms the sum, all others get the same tensor: with a norm of it, with its padding, or by itself.
    So it may be kept as a skip before it exists.

    Args:
        x: (B, C, H, W), whose dtype and memory format the sum has.
        shift: (C,) or (B, C), in any dtype: a bias that the convolution before left out, a time's projection.
        residual: (B, C, H, W).
        waits: whether kernels form it (`sums_wait`), and are given biases and skips to add.
    """

    def __init__(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None, *, waits: bool) -> None:
        self._x, self._shift, self._residual = x, shift, residual
        self.waits = waits

    def formed(self) -> Tensor:
        """The sum, (B, C, H, W)."""
        x = self._x
        if self.waits:
            return self._keep(padded_sum(x, shift=self._shift, residual=self._residual))
        if self._residual is not None:
            x = x + self._residual
        if self._shift is not None:
            x = x + self._shift.to(x.dtype)[..., None, None]
        return self._keep(x)

    def padded(self) -> Tensor:
        """The sum with a row of zeros at the bottom and a column to the right, (B, C, H + 1, W + 1)."""
        if not self.waits:
            return F.pad(self.formed(), (0, 1, 0, 1))
        x, padded = padded_sum(self._x, shift=self._shift, residual=self._residual, padding=1)
        self._keep(x)
        return padded

    def divided(self, factor: float) -> PendingSum:
        """The sum over a number."""
        return self if factor == 1 else PendingSum(self.formed() / factor, waits=self.waits)

    def normalised(self, norm: nn.GroupNorm, *, scale_shift: Tensor | None = None, silu: bool = True) -> Tensor:
        """`norm` of the sum, which nobody else needs, then SiLU: (B, C, H, W).

        `scale_shift`: (B, 2 C), between norm and SiLU; see `progdistill.ops.group_norm_silu`.
        """
        if not self.waits:
            return _plain(self.formed(), norm, scale_shift, silu)
        terms = {"shift": self._shift, "residual": self._residual}
        y = group_norm_silu(self._x, *_of(norm), **terms, scale_shift=scale_shift, silu=silu)
        return y if self._residual is None else y[0]

    def normalised_and_formed(
        self, norm: nn.GroupNorm, *, skip: Tensor | None = None, silu: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(`norm` of the sum and of a `skip` (B, C', H, W) behind its channels, then SiLU; the sum; the skip).

        Who goes on with this sum and this skip spares their gradients a pass.
        """
        if not self.waits:
            x = self.formed()
            return _plain(x if skip is None else torch.cat((x, skip), dim=1), norm, None, silu), x, skip
        terms = {"skip": skip, "shift": self._shift, "residual": self._residual}
        y, x, skip = group_norm_silu(self._x, *_of(norm), **terms, silu=silu, return_sources=True)
        return y, self._keep(x), skip

    def _keep(self, x: Tensor) -> Tensor:
        self._x, self._shift, self._residual = x, None, None
        return x


def first_sum(conv: nn.Conv2d, image: Tensor) -> PendingSum:
    """What a network begins with: conv(image), whose bias waits if sums do."""
    if not _may_wait(image):
        return PendingSum(convolve(conv, image), waits=False)
    x = convolve(conv, image, bias=False)
    return PendingSum(x, conv.bias, waits=sums_wait(x))


def _of(norm: nn.GroupNorm) -> tuple[Tensor, Tensor, int, float]:
    return norm.weight, norm.bias, norm.num_groups, norm.eps


def _plain(x: Tensor, norm: nn.GroupNorm, scale_shift: Tensor | None, silu: bool) -> Tensor:
    """Operation by operation in the dtype of x, for all that has no kernel."""
    x = torch.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
    if scale_shift is not None:
        scale, shift = scale_shift.to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift, x, scale + 1)
    return F.silu(x) if silu else x
