"""Counter-based Gaussian noise."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.elements import on_device, tiles
from progdistill.ops.triton_kernels.gaussian import normals

_LARGEST_TILE = 1024


def normal(out: Tensor, seeds: Tensor, step: Tensor, stream: int) -> None:
    """Writes out (B, ...), contiguous float32; seeds (B,) and the one element of step are int64 on its device."""
    if out.numel() == 0:
        return
    elements = out[0].numel()
    tile, chunks, warps = tiles(elements, _LARGEST_TILE)
    with on_device(out):
        _normal[(len(out) * chunks,)](out, seeds, step, stream, elements, chunks, TILE=tile, num_warps=warps)


@triton.jit(do_not_specialize=["stream", "chunks"], do_not_specialize_on_alignment=["seeds", "step"])
def _normal(out, seeds, step, stream: tl.int64, elements, chunks, TILE: tl.constexpr):
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * TILE
    e = first + tl.arange(0, TILE)
    block = first // 4 + tl.arange(0, TILE // 4)
    noise = in_order(tl.load(seeds + sample), block, stream, tl.load(step))
    tl.store(out + sample * elements + e, noise, mask=e < elements)


@triton.jit
def in_order(seed, block, stream, step):
    """The normals of consecutive Philox blocks, four a block, in the order of their elements."""
    n0, n1, n2, n3 = normals(seed, block, stream, step)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
