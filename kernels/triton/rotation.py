"""The rotation algebra on the device, in float64: the Triton twin of ops/rotation.py.

A prediction type is a pair here: the quantity in which the network's error is measured, "x", "eps" or "v", and its
number of heads (two only for v: v = cos eps - sin x of the heads x, eps). Small kernels work on a block of samples at
a time and leave tables of coefficients in the precision of the states, (coefficient, sample), for the kernels that
read images: in those, every thread would repeat the float64 arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Samples that one program of a coefficient kernel works on: one warp.
SAMPLES = 32


@triton.jit
def sample_block(samples, SAMPLES: tl.constexpr):
    """(sample numbers, which of them count) of this program; beyond the last sample it is repeated."""
    b = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    return tl.minimum(b, samples - 1), b < samples


@triton.jit
def convert(SOURCE: tl.constexpr, QUANTITY: tl.constexpr, sin, cos):
    """(c_z, c) with quantity = c_z z + c source."""
    c_z, c = tl.zeros_like(sin), tl.zeros_like(sin) + 1.0
    if SOURCE == "v":
        if QUANTITY == "x":
            c_z, c = cos, -sin
        elif QUANTITY == "eps":
            c_z, c = sin, cos
    elif SOURCE == "x":
        if QUANTITY == "v":
            c_z, c = cos / sin, -1.0 / sin
        elif QUANTITY == "eps":
            c_z, c = 1.0 / sin, -cos / sin
    else:
        if QUANTITY == "v":
            c_z, c = -sin / cos, 1.0 / cos
        elif QUANTITY == "x":
            c_z, c = 1.0 / cos, -sin / cos
    return c_z, c


@triton.jit
def store_form(row, samples, inside, c_z, c, sin, cos, HEADS: tl.constexpr):
    """Writes the coefficients of z and of the heads, given that of z and that of the network's own quantity."""
    tl.store(row, c_z, mask=inside)
    store_heads(row + samples, samples, inside, c, sin, cos, HEADS)


@triton.jit
def store_heads(row, samples, inside, c, sin, cos, HEADS: tl.constexpr):
    """Writes the coefficients of the heads, given that of the network's own quantity."""
    if HEADS == 1:
        tl.store(row, c, mask=inside)
    else:
        tl.store(row, c * -sin, mask=inside)
        tl.store(row + samples, c * cos, mask=inside)


@triton.jit
def squared_factor(weighting, QUANTITY: tl.constexpr, phi, gamma):
    """What multiplies the squared error of a quantity (paper eq. 10); weightings are numbered as in ops/names.py."""
    sin, cos = tl.sin(phi), tl.cos(phi)
    sin2, cos2 = sin * sin, cos * cos
    one = tl.zeros_like(phi) + 1.0
    if QUANTITY == "v":
        constant, snr, snr_plus_one = sin2, cos2, one
        truncated, capped = tl.maximum(sin2, cos2), tl.minimum(cos2, gamma * sin2)
    elif QUANTITY == "x":
        constant, snr, snr_plus_one = one, cos2 / sin2, 1.0 / sin2
        truncated, capped = tl.maximum(snr, one), tl.minimum(snr, one * gamma)
    else:
        constant, snr, snr_plus_one = sin2 / cos2, one, 1.0 / cos2
        truncated, capped = tl.maximum(constant, one), tl.minimum(gamma * constant, one)
    factor = tl.where(weighting == 0, constant, tl.where(weighting == 1, snr, truncated))
    return tl.where(weighting == 3, snr_plus_one, tl.where(weighting == 4, capped, factor))
