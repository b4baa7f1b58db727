"""Arithmetic exact to the last bit in every precision, as kernels/include/arithmetic.h has it on other backends."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def square_root(x):
    """Triton's own of float32 is an approximation."""
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def divide(a, b):
    """As above, for the division."""
    return tl.div_rn(a, b) if b.dtype == tl.float32 else a / b


@triton.jit
def sigmoid(x, dtype: tl.constexpr):
    """1 / (1 + exp(-x)) of float32 numbers. For bfloat16 by a quicker division: what it misses is far below its own."""
    below = 1.0 + tl.exp(-x)
    return 1.0 / below if dtype == tl.bfloat16 else divide(1.0, below)
