"""z = cos(phi) x + sin(phi) noise."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.elements import load_state, on_device, place, tiles
from progdistill.ops.triton_kernels.rotation import SAMPLES, sample_block

_LARGEST_TILE = 1024


def diffuse(z: Tensor, x: Tensor, noise: Tensor, phi: Tensor) -> None:
    """Writes z; the three images lie in memory alike, phi is contiguous."""
    if z.numel() == 0:
        return
    elements = z[0].numel()
    tile, chunks, warps = tiles(elements, _LARGEST_TILE)
    with on_device(z):
        table = coefficients(phi, z)
        _diffuse[(len(z) * chunks,)](z, x, noise, table, elements, chunks, len(z), TILE=tile, num_warps=warps)


def coefficients(phi: Tensor, z: Tensor) -> Tensor:
    """The table (2, B) of cos(phi) and sin(phi) in z's precision."""
    table = z.new_empty(2, len(z))
    _coefficients[(triton.cdiv(len(z), SAMPLES),)](table, phi, len(z), SAMPLES=SAMPLES, num_warps=1)
    return table


@triton.jit(do_not_specialize=["samples"], do_not_specialize_on_alignment=["phi"])
def _coefficients(table, phi, samples, SAMPLES: tl.constexpr):
    b, inside = sample_block(samples, SAMPLES)
    angle = tl.load(phi + b)
    tl.store(table + b, tl.cos(angle), mask=inside)
    tl.store(table + samples + b, tl.sin(angle), mask=inside)


@triton.jit
def noised(x, noise, table, sample, samples):
    """cos(phi) x + sin(phi) noise of a sample's elements."""
    return tl.fma(noise, tl.load(table + samples + sample), tl.load(table + sample) * x)


@triton.jit(do_not_specialize=["chunks", "samples"])
def _diffuse(z, x, noise, table, elements, chunks, samples, TILE: tl.constexpr):
    sample, e, inside = place(elements, chunks, TILE)
    clean = load_state(x, sample, e, inside, elements)
    drawn = load_state(noise, sample, e, inside, elements)
    tl.store(z + sample * elements + e, noised(clean, drawn, table, sample, samples), mask=inside)
