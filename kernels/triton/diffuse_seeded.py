"""z = cos(phi) x + sin(phi) noise with noise drawn in the kernel: `diffuse` of `normal` to the last bit."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.diffuse import coefficients, noised
from progdistill.ops.triton_kernels.elements import on_device, tiles
from progdistill.ops.triton_kernels.normal import in_order

_LARGEST_TILE = 1024


def diffuse_seeded(z: Tensor, x: Tensor, seeds: Tensor, step: Tensor, stream: int, phi: Tensor, channels: int) -> None:
    """Writes z; z and x lie in memory alike.

    seeds and phi (B,) are contiguous, step has one element. `channels` is x's number of channels if it is
    channels_last, else 0: noise is numbered in contiguous order whatever the layout.
    """
    if z.numel() == 0:
        return
    elements = z[0].numel()
    tile, chunks, warps = tiles(elements, _LARGEST_TILE)
    with on_device(z):
        table = coefficients(phi, z)
        _diffuse_seeded[(len(z) * chunks,)](
            z,
            x,
            table,
            seeds,
            step,
            stream,
            elements,
            elements // max(channels, 1),
            chunks,
            len(z),
            CHANNELS=channels,
            TILE=tile,
            num_warps=warps,
        )


@triton.jit(
    do_not_specialize=["stream", "pixels", "chunks", "samples"], do_not_specialize_on_alignment=["seeds", "step"]
)
def _diffuse_seeded(
    z,
    x,
    table,
    seeds,
    step,
    stream: tl.int64,
    elements,
    pixels,
    chunks,
    samples,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * TILE
    e = first + tl.arange(0, TILE)
    inside = e < elements
    # Tiles follow the contiguous order, so that a Philox block is computed once. Where channels run fastest, the tiles
    # of a sample touch the same lines of memory; they run at about the same time and meet in the cache.
    offsets = sample * elements + (e if CHANNELS == 0 else e % pixels * CHANNELS + e // pixels)
    clean = tl.load(x + offsets, mask=inside, other=0.0)
    block = first // 4 + tl.arange(0, TILE // 4)
    noise = in_order(tl.load(seeds + sample), block, stream, tl.load(step)).to(clean.dtype)
    tl.store(z + offsets, noised(clean, noise, table, sample, samples), mask=inside)
