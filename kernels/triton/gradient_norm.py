"""The 2-norm of many tensors: squares added up in float64, chunk by chunk, and the chunks by one program in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels import tensor_table
from progdistill.ops.triton_kernels.elements import on_device
from progdistill.ops.triton_kernels.tensor_table import CHUNK, TILE, address, in_vectors, place

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float64: tl.float64}
_SUMMED = 1024


def gradient_norm(norm: Tensor, grads: list[Tensor]) -> None:
    """Writes norm (), float32 or float64; each of the gradients, float32, bfloat16 or float64, is dense."""
    groups, slots = {}, 0
    for grad in grads:
        if grad.numel() > 0:
            kind = grad.dtype, tensor_table.vector([grad])
            groups.setdefault(kind, []).append((grad.numel(), slots, grad.data_ptr()))
            slots += tensor_table.chunks_of(grad.numel())
    with on_device(norm):
        partials = norm.new_empty(slots, dtype=torch.float64)
        for (dtype, vector), members in groups.items():
            elements, *rows = zip(*members, strict=True)
            for table in tensor_table.tables(elements, rows, norm.device):
                _sums_of_squares[(table.chunks,)](
                    partials,
                    *table.arguments,
                    DTYPE=_TYPES[dtype],
                    VECTOR=vector,
                    CHUNK=CHUNK,
                    TILE=TILE,
                    **table.constants,
                )
        _root_of_sum[(1,)](norm, partials, slots, BLOCK=_SUMMED, num_warps=4)


@triton.jit(do_not_specialize=["tensors"])
def _sums_of_squares(
    partials,
    table,
    tensors,
    DTYPE: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    TENSORS: tl.constexpr,
):
    tensor, chunk, left = place(table, tensors, TENSORS, CHUNK)
    grad = address(table, tensors, tensor, 1, DTYPE) + chunk.to(tl.int64) * CHUNK
    if VECTOR > 1:
        grad = tl.multiple_of(grad, 16)
    whole = in_vectors(left, CHUNK, VECTOR)
    total = tl.zeros((TILE,), tl.float64)
    for start in range(0, whole, TILE):
        e = start + tl.arange(0, TILE)
        total = _add_squares(total, grad + e, e < whole)
    total = tl.sum(total, axis=0)
    if VECTOR > 1:
        e = whole + tl.arange(0, VECTOR)
        rest = _add_squares(tl.zeros((VECTOR,), tl.float64), grad + e, (e < left) & (e < CHUNK))
        total += tl.sum(rest, axis=0)
    tl.store(partials + tl.load(table + 2 * tensors + tensor) + chunk, total)


@triton.jit
def _add_squares(total, pointers, inside):
    value = tl.load(pointers, mask=inside, other=0.0)
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    value = value.to(tl.float64)
    return tl.fma(value, value, total)


@triton.jit(do_not_specialize=["count"])
def _root_of_sum(norm, partials, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        total += tl.load(partials + slot, mask=slot < count, other=0.0)
    tl.store(norm, tl.sqrt(tl.sum(total, axis=0)).to(norm.dtype.element_ty))
