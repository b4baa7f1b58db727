"""Group normalisation of channels_last images with what a residual block puts before and after it (Wu & He 2018).

Deviations are taken from a mean that is already known; their own mean, which its rounding leaves, corrects it and the
variance (Chan, Golub & LeVeque 1983, the corrected two-pass algorithm). Where a group does not fit into one program,
each does so for its own pixels, channel by channel, and the group's mean and variance follow from those.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.arithmetic import divide, sigmoid, square_root
from progdistill.ops.triton_kernels.channel_tiles import (
    SIZES,
    Affine,
    Chunks,
    Extent,
    Sources,
    extent,
    load_affine,
    load_sources,
    load_statistics,
    place_chunk,
    place_whole,
    row_stride,
    spread_groups,
    store_tile,
    sum_groups,
    whole_groups,
)
from progdistill.ops.triton_kernels.elements import on_device
from progdistill.ops.triton_kernels.group_norm_silu_backward import backward

__all__ = ["backward", "forward"]

# A program's elements and channels if it does whole groups, and elements for a warp.
_WHOLE = (16384, 64, 2048)
_MERGED = 2048  # partial results that are merged at a time


def forward(
    y: Tensor,
    sum: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    skip: Tensor | None,
    residual: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> None:
    """Writes y = silu((1 + scale) norm(cat(u, skip)) + shift_after), u = x + residual + shift, mean and rstd.

    Images are dense channels_last, float32 or bfloat16; mean and rstd (B, groups) are float32. u is written to `sum`,
    if that is given, and then normalised as rounded there; a residual needs it. shift is (B, C), scale_shift
    (B, 2 (C + C')), both contiguous but for a first dimension that may be 1 or have any stride.

    Raises:
        ValueError: a sample has 2^31 elements or more.
    """
    size = extent(x, skip)
    if size.samples == 0:
        return
    sources, affine = Sources(x, skip, shift, residual, sum), Affine(weight, bias, scale_shift)
    strides = row_stride(shift), row_stride(scale_shift)
    with on_device(x):
        whole = whole_groups(size, groups, *_WHOLE)
        if whole is not None:
            arguments = (y, mean, rstd, sources, affine, *strides, groups, eps, *whole.arguments)
            _whole[whole.grid](*arguments, SILU=silu, **whole.constants)
            return
        chunks = Chunks.of(size)
        partials = mean.new_empty(size.samples, chunks.count, 2, size.channels)
        _statistics[chunks.grid](partials, sources, strides[0], *chunks.arguments, **chunks.constants)
        _merge_statistics(mean, rstd, partials, size, chunks, groups, eps)
        if sum is not None:
            sources = Sources(sum, skip)
        arguments = (y, mean, rstd, sources, affine, *strides, groups, *chunks.arguments)
        _normalise[chunks.grid](*arguments, SILU=silu, **chunks.constants)


def _merge_statistics(
    mean: Tensor, rstd: Tensor, partials: Tensor, size: Extent, chunks: Chunks, groups: int, eps: float
) -> None:
    group = size.channels // groups
    wide = triton.next_power_of_2(group)
    _merge[(size.samples * groups,)](
        mean,
        rstd,
        partials,
        eps,
        groups,
        group,
        size.pixels,
        chunks.pixels,
        chunks.count,
        ROWS=max(1, min(_MERGED // wide, triton.next_power_of_2(chunks.count))),
        CHANNELS=wide,
        num_warps=1,
    )


@triton.jit(do_not_specialize=SIZES)
def _whole(
    y,
    mean,
    rstd,
    sources,
    affine,
    shift_stride,
    scale_shift_stride,
    groups,
    eps,
    pixels,
    x_units,
    skip_units,
    blocks,
    width_units,
    group,
    SILU: tl.constexpr,
    UNIT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    x_channels, skip_channels = x_units * UNIT, skip_units * UNIT
    channels = x_channels + skip_channels
    sample, c, end, g = place_whole(blocks, width_units, group, UNIT, CHANNELS, GROUPS)
    p, exists = tl.arange(0, PIXELS), (c < channels) & (c < end)
    inside = (p < pixels)[:, None] & exists[None, :]
    u = load_sources(sources, shift_stride, sample, p, c, inside, pixels, x_channels, skip_channels)
    count = (pixels * group).to(tl.float32)
    centre = divide(sum_groups(tl.sum(tl.where(inside, u, 0.0), axis=0), c, g, group), count)
    u = tl.where(inside, u - spread_groups(centre, c, g, group)[None, :], 0.0)
    rest = divide(sum_groups(tl.sum(u, axis=0), c, g, group), count)
    variance = divide(sum_groups(tl.sum(u * u, axis=0), c, g, group), count) - rest * rest
    spread = divide(1.0, square_root(variance + eps))
    own = (g < groups) & (g * group < end)
    tl.store(mean + sample * groups + g, centre + rest, mask=own)
    tl.store(rstd + sample * groups + g, spread, mask=own)
    gain, offset = load_affine(affine, scale_shift_stride, sample, c, exists, channels)
    gain *= spread_groups(spread, c, g, group)
    offset -= gain * spread_groups(rest, c, g, group)
    _store_result(y, u, gain, offset, sample, p, c, inside, pixels, channels, SILU)


@triton.jit(do_not_specialize=SIZES)
def _statistics(
    partials,
    sources,
    shift_stride,
    pixels,
    x_units,
    skip_units,
    chunks,
    blocks,
    UNIT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    x_channels, skip_channels = x_units * UNIT, skip_units * UNIT
    channels = x_channels + skip_channels
    sample, chunk, p, c = place_chunk(chunks, blocks, PIXELS, CHANNELS, False)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    u = load_sources(sources, shift_stride, sample, p, c, inside, pixels, x_channels, skip_channels)
    count = tl.minimum(pixels - chunk * PIXELS, PIXELS).to(tl.float32)
    mean = divide(tl.sum(tl.where(inside, u, 0.0), axis=0), count)
    u = tl.where(inside, u - mean[None, :], 0.0)
    rest = tl.sum(u, axis=0)
    slots = partials + (sample * chunks + chunk) * 2 * channels + c
    tl.store(slots, mean + divide(rest, count), mask=c < channels)
    tl.store(slots + channels, tl.sum(u * u, axis=0) - rest * divide(rest, count), mask=c < channels)


@triton.jit(do_not_specialize=SIZES)
def _merge(
    mean, rstd, partials, eps, groups, group, pixels, chunk_pixels, chunks, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """The statistics of a group from those of its channels in each chunk of pixels."""
    channels = groups * group
    sample, k, n = (tl.program_id(0) // groups).to(tl.int64), tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    slots = partials + sample * chunks * 2 * channels + tl.program_id(0) % groups * group
    count = pixels.to(tl.float32) * group
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(0, chunks, ROWS):
        part, inside, weight = _part(slots, first + k, n, channels, group, pixels, chunk_pixels, chunks)
        total += weight * tl.load(part, mask=inside, other=0.0)
    centre = divide(tl.sum(tl.sum(total, axis=0), axis=0), count)
    total, squares = tl.zeros((ROWS, CHANNELS), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(0, chunks, ROWS):
        part, inside, weight = _part(slots, first + k, n, channels, group, pixels, chunk_pixels, chunks)
        away = tl.where(inside, tl.load(part, mask=inside, other=0.0) - centre, 0.0)
        total += weight * away
        squares += weight * away * away + tl.load(part + channels, mask=inside, other=0.0)
    rest = divide(tl.sum(tl.sum(total, axis=0), axis=0), count)
    variance = divide(tl.sum(tl.sum(squares, axis=0), axis=0), count) - rest * rest
    tl.store(mean + tl.program_id(0), centre + rest)
    tl.store(rstd + tl.program_id(0), divide(1.0, square_root(variance + eps)))


@triton.jit
def _part(slots, k, n, channels, group, pixels, chunk_pixels, chunks):
    # (where the means of chunks k lie, which exist, their numbers of pixels); squared deviations follow a row later.
    inside = (k < chunks)[:, None] & (n < group)[None, :]
    weight = tl.minimum(pixels - k * chunk_pixels, chunk_pixels).to(tl.float32)
    return slots + k[:, None] * 2 * channels + n[None, :], inside, weight[:, None]


@triton.jit(do_not_specialize=SIZES)
def _normalise(
    y,
    mean,
    rstd,
    sources,
    affine,
    shift_stride,
    scale_shift_stride,
    groups,
    pixels,
    x_units,
    skip_units,
    chunks,
    blocks,
    SILU: tl.constexpr,
    UNIT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    x_channels, skip_channels = x_units * UNIT, skip_units * UNIT
    channels = x_channels + skip_channels
    sample, _, p, c = place_chunk(chunks, blocks, PIXELS, CHANNELS, True)
    exists = c < channels
    inside = (p < pixels)[:, None] & exists[None, :]
    u = load_sources(sources, shift_stride, sample, p, c, inside, pixels, x_channels, skip_channels)
    gain, offset = load_affine(affine, scale_shift_stride, sample, c, exists, channels)
    centre, spread = load_statistics(mean, rstd, sample, c, exists, groups, channels // groups)
    _store_result(y, u - centre[None, :], gain * spread, offset, sample, p, c, inside, pixels, channels, SILU)


@triton.jit
def _store_result(y, centred, gain, offset, sample, p, c, inside, pixels, channels, SILU: tl.constexpr):
    value = centred * gain[None, :] + offset[None, :]
    if SILU:
        value *= sigmoid(value, y.dtype.element_ty)
    store_tile(y, value, sample, p, c, inside, pixels, channels)
