"""Tiles of pixels times channels of channels_last images whose channels lie in two tensors, as if in one.

Channels count through x and then through skip, so the seam may lie within a tile. Numbers of channels reach a kernel
in units of UNIT, which divides them all: so the compiler sees how far accesses are aligned, whatever the numbers.

Images are split in one of two ways, by their size alone, so that neither the batch nor the GPU has a say in the order
of any sum. Where all pixels of whole groups fit into one program, it does them at once (`whole_groups`), and reads
every number once. Else a program takes a chunk of the pixels and a block of the channels (`Chunks`), and what a group
needs to know of all its pixels passes through memory: each program writes slots of its own, which later ones add up.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

# Arguments that make no other kernel of a launch, whatever their values.
SIZES = ["pixels", "x_units", "skip_units", "chunks", "blocks", "width_units", "group", "groups", "chunk_pixels"]
SIZES += ["shift_stride", "scale_shift_stride"]

_VECTOR = 8  # elements: 16 bytes of bfloat16, twice 16 of float32
_WIDE = 64  # channels of a tile: a cache line of bfloat16
_CHUNK = 8192  # elements of a tile of a chunk


class Extent(NamedTuple):
    """The sizes of a batch."""

    samples: int
    pixels: int
    x_channels: int
    skip_channels: int

    @property
    def channels(self) -> int:
        return self.x_channels + self.skip_channels

    @property
    def unit(self) -> int:
        return math.gcd(_VECTOR, self.x_channels, self.skip_channels)

    def arguments(self, unit: int) -> tuple[int, int, int]:
        """pixels, x_units, skip_units of a kernel."""
        return self.pixels, self.x_channels // unit, self.skip_channels // unit


def extent(x: Tensor, skip: Tensor | None) -> Extent:
    """The sizes of x and skip.

    Raises:
        ValueError: a sample has 2^31 elements or more.
    """
    samples, channels, height, width = x.shape
    found = Extent(samples, height * width, channels, 0 if skip is None else skip.shape[1])
    if found.channels * found.pixels >= 2**31:
        raise ValueError(
            f"the triton backend takes samples of less than 2^31 elements, got {found.channels} channels of "
            f"{height} x {width}; use another"
        )
    return found


class Sources(NamedTuple):
    """What is normalised, cat(u, skip) with u = x + residual + shift; u is written to `sum`, and rounded as there."""

    x: Tensor
    skip: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    sum: Tensor | None = None


class Affine(NamedTuple):
    """What a normalised channel is multiplied with, and what is added then."""

    weight: Tensor
    bias: Tensor
    scale_shift: Tensor | None


class Chunks(NamedTuple):
    """A batch in chunks of pixels and blocks of channels: what a launch needs to know."""

    count: int
    pixels: int
    grid: tuple[int]
    arguments: tuple[int, int, int, int, int]
    constants: dict

    @classmethod
    def of(cls, size: Extent) -> Chunks:
        wide = min(triton.next_power_of_2(size.channels), _WIDE)
        if wide == _WIDE and -size.channels % _WIDE >= _WIDE // 2:
            wide //= 2  # a half-empty last block costs more
        pixels = min(triton.next_power_of_2(size.pixels), _CHUNK // wide)
        count, blocks = triton.cdiv(size.pixels, pixels), triton.cdiv(size.channels, wide)
        constants = {"UNIT": size.unit, "PIXELS": pixels, "CHANNELS": wide, "num_warps": warps(pixels * wide, 1024)}
        grid = (size.samples * count * blocks,)
        return cls(count, pixels, grid, (*size.arguments(size.unit), count, blocks), constants)


class Whole(NamedTuple):
    """A batch in blocks of whole groups with all their pixels: what a launch needs to know."""

    grid: tuple[int]
    arguments: tuple[int, int, int, int, int, int]
    constants: dict


def whole_groups(size: Extent, groups: int, most: int, wide: int, per_warp: int) -> Whole | None:
    """How programs of at most `most` elements do whole groups, or None if they cannot.

    Several groups of a program have `wide` channels or fewer.
    """
    group, pixels = size.channels // groups, triton.next_power_of_2(size.pixels)
    count = max(1, min(wide, most // pixels) // group)
    aligned = _VECTOR // math.gcd(_VECTOR, group)
    count = min(count - count % aligned if count > aligned else count, groups)
    wide = triton.next_power_of_2(count * group)
    if pixels * wide > most:
        return None
    unit, blocks = math.gcd(size.unit, count * group), triton.cdiv(groups, count)
    constants = {
        "UNIT": unit,
        "PIXELS": pixels,
        "CHANNELS": wide,
        "GROUPS": triton.next_power_of_2(count),
        "num_warps": warps(pixels * wide, per_warp),
    }
    arguments = (*size.arguments(unit), blocks, count * group // unit, group)
    return Whole((size.samples * blocks,), arguments, constants)


def warps(elements: int, per_warp: int) -> int:
    """Warps of a program that works on a tile."""
    return max(1, min(elements // per_warp, 16))


def row_stride(per_sample: Tensor | None) -> int:
    """The stride from sample to sample of a (B, C) or (1, C) tensor, the second for all samples."""
    return 0 if per_sample is None or per_sample.shape[0] == 1 else per_sample.stride(0)


@triton.jit
def place_chunk(chunks, blocks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BACKWARDS: tl.constexpr):
    """(sample, chunk, pixels, channels) of this program. Neighbours in memory are neighbours in time.

    A second pass goes backwards: what the first one read last may still be in the cache.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0) if BACKWARDS else tl.program_id(0)
    chunk = program // blocks % chunks
    p = chunk * PIXELS + tl.arange(0, PIXELS)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return (program // blocks // chunks).to(tl.int64), chunk, p, c


@triton.jit
def place_whole(blocks, width_units, group, UNIT: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr):
    """(sample, channels, behind the last of them, groups) of this program."""
    first = tl.program_id(0) % blocks * (width_units * UNIT)
    c = first + tl.arange(0, CHANNELS)
    return (
        (tl.program_id(0) // blocks).to(tl.int64),
        c,
        first + width_units * UNIT,
        first // group + tl.arange(0, GROUPS),
    )


@triton.jit
def load_tile(image, sample, p, c, inside, pixels, channels):
    """A tile of an image, float32; 0 where it has none."""
    offsets = p[:, None] * channels + c[None, :]
    # Nothing is computed in bfloat16: the interpreter cannot.
    return tl.load(image + sample * pixels * channels + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(image, tile, sample, p, c, inside, pixels, channels):
    """Writes a tile, rounded to nearest even; returns what was written, float32."""
    tile = tile.to(image.dtype.element_ty, fp_downcast_rounding="rtne")
    tl.store(image + sample * pixels * channels + p[:, None] * channels + c[None, :], tile, mask=inside)
    return tile.to(tl.float32)


@triton.jit
def load_sources(sources, shift_stride, sample, p, c, inside, pixels, x_channels, skip_channels):
    """A tile of `Sources`, float32; anything where it has none."""
    of_x = inside & (c < x_channels)[None, :]
    u = load_tile(sources.x, sample, p, c, of_x, pixels, x_channels)
    if sources.residual is not None:
        u += load_tile(sources.residual, sample, p, c, of_x, pixels, x_channels)
    if sources.shift is not None:
        shift = tl.load(sources.shift + sample * shift_stride + c, mask=c < x_channels, other=0.0)
        u += shift.to(tl.float32)[None, :]
    if sources.sum is not None:
        u = store_tile(sources.sum, u, sample, p, c, of_x, pixels, x_channels)
    if sources.skip is not None:
        behind = (c >= x_channels)[None, :]
        other = load_tile(sources.skip, sample, p, c - x_channels, inside & behind, pixels, skip_channels)
        u = tl.where(behind, other, u)
    return u


@triton.jit
def load_affine(affine, scale_shift_stride, sample, c, exists, channels):
    """(gain, offset) of channels: what the norm's weight and bias, and what comes after them, make together."""
    gain = tl.load(affine.weight + c, mask=exists, other=0.0).to(tl.float32)
    offset = tl.load(affine.bias + c, mask=exists, other=0.0).to(tl.float32)
    if affine.scale_shift is not None:
        row = affine.scale_shift + sample * scale_shift_stride + c
        scale = tl.load(row, mask=exists, other=0.0).to(tl.float32) + 1.0
        gain *= scale
        offset = offset * scale + tl.load(row + channels, mask=exists, other=0.0).to(tl.float32)
    return gain, offset


@triton.jit
def load_statistics(mean, rstd, sample, c, exists, groups, group):
    """(mean, rstd) of the groups of channels."""
    slots = sample * groups + c // group
    return tl.load(mean + slots, mask=exists, other=0.0), tl.load(rstd + slots, mask=exists, other=0.0)


@triton.jit
def sum_groups(value, c, g, group):
    """Sums of channels by group: (CHANNELS,) to (GROUPS,)."""
    return tl.sum(tl.where((c // group)[:, None] == g[None, :], value[:, None], 0.0), axis=0)


@triton.jit
def spread_groups(value, c, g, group):
    """What belongs to a group, at each of its channels: (GROUPS,) to (CHANNELS,)."""
    return tl.sum(tl.where((c // group)[:, None] == g[None, :], value[None, :], 0.0), axis=1)
