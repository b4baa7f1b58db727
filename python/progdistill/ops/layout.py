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


def is_dense(tensor: Tensor) -> bool:
    """Without gaps in memory, whichever dimension runs fastest."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, n) for stride, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def lie_alike(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, and elements in the same order in memory."""
    if a.shape != b.shape:
        return False
    if a.stride() == b.stride() or a.numel() == 0:
        return True
    return all(s == t for s, t, n in zip(a.stride(), b.stride(), a.shape, strict=True) if n != 1)


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor in the memory order of `like`, which is dense; copies only if it is in another."""
    if lie_alike(tensor, like):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, memory_format=torch.preserve_format).copy_(tensor)


def per_sample(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) float64 -> (B, 1, ..., 1) in the dtype of `like`."""
    return coefficient.to(like.dtype).reshape(-1, *(1,) * (like.dim() - 1))


def split_heads(output: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The heads of a network output as separate tensors of the computing dtype."""
    return output.to(dtype).chunk(count, dim=1) if count > 1 else (output.to(dtype),)
