"""Sums that the norm which follows forms on its way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from progdistill.ops import backends
from progdistill.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference


def sums_wait(device: torch.device) -> bool:
    """Whether sums, biases and concatenations are left to the norm that follows, on this device.

    A kernel forms them on its way. Plain PyTorch takes a pass for each, while its convolutions add their bias for
    nothing on a CPU; and exported graphs are to be plain PyTorch.
    """
    return not torch.compiler.is_exporting() and _has_kernel(device.type)


@torch.compiler.assume_constant_result
def _has_kernel(device: str) -> bool:
    declared = "group_norm_silu" in backends.declared()
    return declared and backends.best("group_norm_silu", device) != "reference"


class PendingSum:
    """x + shift + residual: what a block hands to the next one, which normalises it before all else.

    Whoever asks first forms the sum, all others get the same tensor: `normalised` as part of the norm, `formed` by
    itself. So it may be kept as a skip before it exists.

    Args:
        x: (B, C, H, W), whose dtype and memory format the sum has.
        shift: (C,) or (B, C), in any dtype: a bias that the convolution before left out, a time's projection.
        residual: (B, C, H, W).
    """

    def __init__(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> None:
        self._x, self._shift, self._residual = x, shift, residual

    def formed(self) -> Tensor:
        """The sum, (B, C, H, W)."""
        x = self._x if self._residual is None else self._x + self._residual
        if self._shift is not None:
            x = x + self._shift.to(x.dtype)[..., None, None]
        return self._keep(x)

    def divided(self, factor: float) -> PendingSum:
        return self if factor == 1 else PendingSum(self.formed() / factor)

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
        parameters = (norm.weight, norm.bias, norm.num_groups, norm.eps)
        if not sums_wait(self._x.device):
            return group_norm_silu_reference(
                self.formed(), *parameters, skip=skip, scale_shift=scale_shift, silu=silu
            )
        given = {"skip": skip, "shift": self._shift, "scale_shift": scale_shift, "silu": silu}
        if self._residual is None:
            return group_norm_silu(self._x, *parameters, **given)
        y, x = group_norm_silu(self._x, *parameters, residual=self._residual, **given)
        self._keep(x)
        return y

    def _keep(self, x: Tensor) -> Tensor:
        self._x, self._shift, self._residual = x, None, None
        return x
