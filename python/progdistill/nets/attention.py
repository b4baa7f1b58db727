"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from progdistill.nets.layers import project
from progdistill.nets.pending_sum import PendingSum
from progdistill.nets.query_key_value import projections


class Attention(nn.Module):
    """``(x + to_out(attention(norm(x)))) / output_scale_factor``, pixels being the tokens.

    ``head_dim``: channels of a head; None is one head. ``norm_num_groups``: None is no normalisation.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int | None,
        norm_num_groups: int | None,
        eps: float,
        output_scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads = channels // (head_dim or channels)
        self.output_scale_factor = output_scale_factor
        self.group_norm = None if norm_num_groups is None else nn.GroupNorm(norm_num_groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: PendingSum) -> PendingSum:
        """(B, C, H, W) -> (B, C, H, W) in ``x``'s memory format; channels_last costs no copy."""
        if self.group_norm is None:
            h = summed = x.formed()
        else:
            h, summed, _ = x.normalised_and_formed(self.group_norm, silu=False)
        height_width = h.shape[2:]
        # One copy for an NCHW tensor, instead of one in each product that reads it.
        tokens = h.flatten(2).transpose(1, 2).contiguous()
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in projections((self.to_q, self.to_k, self.to_v), tokens)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        to_out = self.to_out[0]
        h = project(to_out, h, bias=not x.waits).transpose(1, 2).unflatten(2, height_width)
        # The sum takes the memory format of its first term.
        total = PendingSum(summed, to_out.bias if x.waits else None, h, waits=x.waits)
        return total.divided(self.output_scale_factor)
