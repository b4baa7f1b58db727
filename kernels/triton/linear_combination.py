"""A sum of tensors, each times a number, in one pass over memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.elements import load_head, on_device, place, tiles

_LARGEST_TILE = 1024
_MOST = 8  # factors; arguments of their own, for Triton takes floats in a tuple for float32


def linear_combination(result: Tensor, read: list[tuple[Tensor, list[float]]], channels: int) -> None:
    """Writes result; the images, each with the factors of its heads, lie in memory alike."""
    if result.numel() == 0:
        return
    terms = [(out, head, len(own), own[head]) for out, own in read for head in range(len(own)) if own[head] != 0.0]
    outs, head, heads, factors = zip(*terms, strict=True) if terms else ((), (), (), ())
    # Where no tensor has two heads samples mean nothing, while elements can be counted in 30 bits.
    flat = max(heads, default=1) == 1 and 2 * result.numel() < 2**31
    samples, elements = (1, result.numel()) if flat else (len(result), result[0].numel())
    tile, chunks, warps = tiles(elements, _LARGEST_TILE)
    with on_device(result):
        _linear_combination[(samples * chunks,)](
            result,
            outs,
            *factors,
            *[0.0] * (_MOST - len(factors)),
            elements,
            chunks,
            TERMS=len(terms),
            HEAD=head,
            HEADS=heads,
            CHANNELS=channels,
            TILE=tile,
            num_warps=warps,
        )


@triton.jit(do_not_specialize=["chunks"])
def _linear_combination(
    result,
    outs,
    f0: tl.float64,
    f1: tl.float64,
    f2: tl.float64,
    f3: tl.float64,
    f4: tl.float64,
    f5: tl.float64,
    f6: tl.float64,
    f7: tl.float64,
    elements,
    chunks,
    TERMS: tl.constexpr,
    HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    sample, e, inside = place(elements, chunks, TILE)
    dtype: tl.constexpr = result.dtype.element_ty
    factors = (f0, f1, f2, f3, f4, f5, f6, f7)
    value = tl.zeros((TILE,), dtype)
    for k in tl.static_range(TERMS):
        part = load_head(outs[k], sample, e, inside, elements, dtype, HEAD[k], HEADS[k], CHANNELS)
        factor = tl.full((TILE,), factors[k], dtype)
        value = factor * part if k == 0 else tl.fma(factor, part, value)
    tl.store(result + sample * elements + e, value, mask=inside)
