"""Memory layout and broadcasting shared by the operations."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last (or channels_last_3d) if the tensor is dense in that order only, else contiguous."""
    if not tensor.is_contiguous():
        for dims, candidate in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if tensor.dim() == dims and tensor.is_contiguous(memory_format=candidate):
                return candidate
    return torch.contiguous_format


def dense(tensor: Tensor, format: torch.memory_format) -> Tensor:
    """The tensor in one dense order; copies only if it is in another."""
    return tensor.contiguous(memory_format=format)


def interleaved_channels(state: Tensor, format: torch.memory_format) -> int:
    """The channels of a state if they run fastest in `format`, else 0."""
    return 0 if format == torch.contiguous_format else state.shape[1]


def per_sample(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) float64 -> (B, 1, ..., 1) in the dtype of `like`."""
    return coefficient.to(like.dtype).reshape(-1, *(1,) * (like.dim() - 1))


def split_heads(output: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The heads of a network output as separate tensors of the computing dtype."""
    return output.to(dtype).chunk(count, dim=1) if count > 1 else (output.to(dtype),)
