"""One random number a sample."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.elements import on_device

_BLOCK = 128


def draw(out: Tensor, seeds: Tensor, step: Tensor, stream: int, high: int | None) -> None:
    """Writes out (B,): float64 in [0, 1) without `high`, else int64 below it; seeds (B,), one step, int64 beside it."""
    if len(out) == 0:
        return
    with on_device(out):
        _draw[(triton.cdiv(len(out), _BLOCK),)](
            out, seeds, len(out), step, stream, high or 0, UNIFORM=high is None, BLOCK=_BLOCK, num_warps=4
        )


def random_bits(out: Tensor, numbers: Tensor, key: int, counter_high: int) -> None:
    """Writes out (B,) int64 for numbers (B,) int64."""
    if len(out) == 0:
        return
    with on_device(out):
        _random_bits[(triton.cdiv(len(out), _BLOCK),)](
            out, numbers, len(out), key, counter_high, BLOCK=_BLOCK, num_warps=4
        )


@triton.jit(do_not_specialize=["count", "stream", "high"], do_not_specialize_on_alignment=["out", "seeds", "step"])
def _draw(out, seeds, count, step, stream: tl.int64, high: tl.int64, UNIFORM: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    w0, w1 = _first_words(tl.load(seeds + i, mask=inside, other=0), stream << 32, tl.load(step))
    if UNIFORM:
        # Below 2^53, so exact as a double.
        tl.store(out + i, (((w0 >> 5) << 26) + (w1 >> 6)).to(tl.float64) * 2.0**-53, mask=inside)
    else:
        tl.store(out + i, (w0 * high) >> 32, mask=inside)


@triton.jit(do_not_specialize=["count", "key", "counter_high"], do_not_specialize_on_alignment=["out", "numbers"])
def _random_bits(out, numbers, count, key: tl.int64, counter_high: tl.int64, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    w0, w1 = _first_words(key, tl.load(numbers + i, mask=inside, other=0), counter_high)
    tl.store(out + i, w0 | (w1 << 32), mask=inside)


@triton.jit
def _first_words(key, counter_low, counter_high):
    """The first two words, as int64, of the blocks of 64-bit keys and halves of counters, some of which are scalars."""
    zero = (key + counter_low + counter_high).to(tl.uint32) * 0
    c0, c1 = zero + counter_low.to(tl.uint32), zero + (counter_low >> 32).to(tl.uint32)
    c2, c3 = zero + counter_high.to(tl.uint32), zero + (counter_high >> 32).to(tl.uint32)
    w0, w1, _, _ = tl.philox(key, c0, c1, c2, c3)
    return w0.to(tl.int64), w1.to(tl.int64)
