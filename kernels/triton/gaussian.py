"""Counter-based normals on the device: the Triton twin of kernels/include/philox.h, operation by operation.

Box-Muller in float64 with series of our own and every product that meets a sum an explicit fma, so a GPU gives the
bits of the C++ code. (Triton's interpreter has no fused multiply-add, which one rounding to float32 hides but for about
one normal in a million.)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normals(seed, block, stream, step):
    """The four normals of Philox blocks: key = seed, counter = (block, stream, low and high word of step)."""
    zero = block.to(tl.uint32) * 0
    low, high = step.to(tl.uint32), (step >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), zero + stream.to(tl.uint32), zero + low, zero + high)
    n0, n1 = _normal_pair(w0, w1)
    n2, n3 = _normal_pair(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def _normal_pair(radius_word, angle_word):
    radius = tl.sqrt(-2.0 * _log_of_uniform(radius_word))
    cos, sin = _circle_of_uniform(angle_word)
    return (radius * cos).to(tl.float32), (radius * sin).to(tl.float32)


@triton.jit
def _horner(series, x, C: tl.constexpr):
    # A number beside a tensor in tl.fma would be rounded to float32.
    return tl.fma(series, x, tl.full(x.shape, C, tl.float64))


@triton.jit
def _log_of_uniform(word):
    """log((word + 1/2) / 2^32), by word + 1/2 = 2^k m with m in [sqrt(1/2), sqrt(2)), log(m) = 2 atanh((m-1)/(m+1))."""
    ONE: tl.constexpr = 1 << 52  # of an exponent
    SQRT_HALF: tl.constexpr = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
    bits = (word.to(tl.float64) + 0.5).to(tl.int64, bitcast=True)
    exponent = (bits - SQRT_HALF + ONE) >> 52  # k + 1, from 0
    m = (bits - (exponent << 52) + ONE).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    series = tl.full(s.shape, 1.0 / 19.0, tl.float64)
    series = _horner(series, s2, 1.0 / 17.0)
    series = _horner(series, s2, 1.0 / 15.0)
    series = _horner(series, s2, 1.0 / 13.0)
    series = _horner(series, s2, 1.0 / 11.0)
    series = _horner(series, s2, 1.0 / 9.0)
    series = _horner(series, s2, 1.0 / 7.0)
    series = _horner(series, s2, 1.0 / 5.0)
    series = _horner(series, s2, 1.0 / 3.0)
    twice = s + s
    log_m = tl.fma(twice * s2, series, twice)
    return tl.fma(exponent.to(tl.float64) - 33.0, tl.full(s.shape, 0.693147180559945309417, tl.float64), log_m)


@triton.jit
def _circle_of_uniform(word):
    """(cos, sin) of 2 pi (word + 1/2) / 2^32: the quadrant and the angle within it, in [-pi/4, pi/4], are exact."""
    quadrant = (word + 0x20000000) >> 30
    within = (word - (quadrant << 30)).to(tl.int32, bitcast=True)
    y = (within.to(tl.float64) + 0.5) * (1.57079632679489661923 / 1073741824.0)
    y2 = y * y
    s = tl.full(y.shape, -1.0 / 1307674368000.0, tl.float64)
    s = _horner(s, y2, 1.0 / 6227020800.0)
    s = _horner(s, y2, -1.0 / 39916800.0)
    s = _horner(s, y2, 1.0 / 362880.0)
    s = _horner(s, y2, -1.0 / 5040.0)
    s = _horner(s, y2, 1.0 / 120.0)
    s = _horner(s, y2, -1.0 / 6.0)
    s = tl.fma(y * y2, s, y)
    c = tl.full(y.shape, 1.0 / 20922789888000.0, tl.float64)
    c = _horner(c, y2, -1.0 / 87178291200.0)
    c = _horner(c, y2, 1.0 / 479001600.0)
    c = _horner(c, y2, -1.0 / 3628800.0)
    c = _horner(c, y2, 1.0 / 40320.0)
    c = _horner(c, y2, -1.0 / 720.0)
    c = _horner(c, y2, 1.0 / 24.0)
    c = _horner(c, y2, -0.5)
    c = _horner(c, y2, 1.0)
    odd = (quadrant & 1) == 1
    along, across = tl.where(odd, s, c), tl.where(odd, c, s)
    cos = tl.where(((quadrant + 1) & 2) == 2, -along, along)
    return cos, tl.where((quadrant & 2) == 2, -across, across)
