"""Which elements of which sample a program works on, and how heads of network outputs are read and written.

A program does one tile of one sample. Tiles depend on a sample's size alone, so neither the batch nor the GPU has a
say in the order of any sum. Element numbers count in the order of memory of the states. Of an output of two heads,
the heads lie one behind the other in a contiguous sample, and side by side within each pixel of a channels_last one;
CHANNELS is the number of channels of a state in the second case, else 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PER_WARP = 256  # 8 elements a thread: 16 bytes of bfloat16, twice 16 of float32


def tiles(elements: int, largest: int) -> tuple[int, int, int]:
    """(elements of a tile, tiles of a sample, warps of a program) for samples of a size.

    Raises:
        ValueError: the sample has 2^31 elements or more, counting those of both heads.
    """
    if 2 * elements >= 2**31:
        raise ValueError(f"the triton backend takes samples of less than 2^30 elements, got {elements}; use another")
    tile = min(max(triton.next_power_of_2(elements), _PER_WARP), largest)
    return tile, max(1, triton.cdiv(elements, tile)), tile // _PER_WARP


def on_device(tensor: Tensor) -> torch.cuda.device_of:
    """Makes a tensor's GPU the current one for the length of a launch; nothing for a CPU tensor (interpreter)."""
    return torch.cuda.device_of(tensor)


@triton.jit
def place(elements, chunks, TILE: tl.constexpr):
    """(sample, element numbers, which of them exist) of this program's tile."""
    program = tl.program_id(0)
    e = (program % chunks) * TILE + tl.arange(0, TILE)
    return (program // chunks).to(tl.int64), e, e < elements


@triton.jit
def head_offsets(sample, e, elements, HEAD: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where the elements of one head of an output lie."""
    start = sample * elements * HEADS
    if HEADS == 1:
        return start + e
    elif CHANNELS == 0:
        return start + HEAD * elements + e
    else:
        return start + e + (e // CHANNELS + HEAD) * CHANNELS


@triton.jit
def load_state(state, sample, e, inside, elements):
    """Elements of a state."""
    return tl.load(state + sample * elements + e, mask=inside, other=0.0)


@triton.jit
def load_head(
    out,
    sample,
    e,
    inside,
    elements,
    DTYPE: tl.constexpr,
    HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Elements of one head of an output, in the computing type."""
    # Nothing is computed in bfloat16: the interpreter cannot.
    return tl.load(out + head_offsets(sample, e, elements, HEAD, HEADS, CHANNELS), mask=inside, other=0.0).to(DTYPE)


@triton.jit
def add_heads(
    value,
    out,
    row,
    samples,
    sample,
    e,
    inside,
    elements,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """value + the heads of an output, each times its coefficient: those of `row` (at this sample) and the next."""
    for head in tl.static_range(HEADS):
        part = load_head(out, sample, e, inside, elements, value.dtype, head, HEADS, CHANNELS)
        value = tl.fma(part, tl.load(row + head * samples), value)
    return value
