"""The gradients of group_norm_silu, from its arguments and the saved mean and rstd alone.

With n the normalised value, h = gain n + offset the activation's argument and g = dy silu'(h), a channel of a sample
needs the sums S = sum g and T = sum g n over its pixels. They are the gradients of shift_after and of what n is
multiplied with, and the group's means of gain S and gain T, m and k, give the input's: du = rstd (gain g - m - k n).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.arithmetic import divide, sigmoid
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
    load_tile,
    place_chunk,
    place_whole,
    row_stride,
    spread_groups,
    store_tile,
    sum_groups,
    whole_groups,
)
from progdistill.ops.triton_kernels.elements import on_device

# A program's elements of each tensor and its channels if it does whole groups, and elements for a warp.
_WHOLE = (16384, 32, 1024)
_ROWS = 32  # rows that are summed at a time
_COLUMNS = 32
_MERGED = 2048  # partial sums that are merged at a time


def backward(
    du: Tensor,
    dskip: Tensor | None,
    dweight: Tensor,
    dbias: Tensor,
    dshift: Tensor | None,
    dscale_shift: Tensor | None,
    dy: Tensor,
    du_bypass: Tensor | None,
    dskip_bypass: Tensor | None,
    u: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    silu: bool,
) -> None:
    """Writes all gradients, given that of y and those that reach u and skip past the norm.

    `u` is the sum if one was written (then shift is None, being part of it), else x. du is the gradient of x and of the
    residual alike, du_bypass being part of it, as dskip_bypass is of dskip; dshift (B, C) the sum of du over the
    pixels, before rounding. Images are dense channels_last, the other gradients contiguous float32, dscale_shift
    (B, 2 (C + C')).

    Raises:
        ValueError: a sample has 2^31 elements or more.
    """
    size = extent(u, skip)
    if size.samples == 0:
        dweight.zero_(), dbias.zero_()
        return
    gradients = Gradients(dy, du_bypass, dskip_bypass, du, dskip)
    images = (Sources(u, skip, shift), Affine(weight, bias, scale_shift), gradients)
    images = (*images, row_stride(shift), row_stride(scale_shift), mean, rstd, groups)
    with on_device(u):
        sums = mean.new_empty(size.samples, 2, size.channels)
        whole = whole_groups(size, groups, *_WHOLE)
        if whole is not None:
            arguments = (sums, dshift, dscale_shift, *images, *whole.arguments)
            _whole[whole.grid](*arguments, SILU=silu, **whole.constants)
        else:
            _in_chunks(sums, dshift, dscale_shift, images, size, silu)
        _sum_rows(dbias, sums[:, 0])
        _sum_rows(dweight, sums[:, 1])


class Gradients(NamedTuple):
    """Images of gradients: those given, and those to be written."""

    dy: Tensor
    du_bypass: Tensor | None
    dskip_bypass: Tensor | None
    du: Tensor
    dskip: Tensor | None


def _in_chunks(
    sums: Tensor, dshift: Tensor | None, dscale_shift: Tensor | None, images: tuple, size: Extent, silu: bool
) -> None:
    """Two passes over the images, for groups that do not fit into one program."""
    chunks = Chunks.of(size)
    _, affine, _, _, scale_shift_stride, mean, _, groups = images
    partials = mean.new_empty(size.samples, chunks.count, 2, size.channels)
    _channel_sums[chunks.grid](partials, *images, *chunks.arguments, SILU=silu, **chunks.constants)
    means = mean.new_empty(size.samples, groups, 2)
    group = size.channels // groups
    wide = triton.next_power_of_2(group)
    _merge[(size.samples * groups,)](
        means,
        sums,
        dscale_shift,
        partials,
        affine,
        scale_shift_stride,
        groups,
        group,
        size.pixels,
        chunks.count,
        ROWS=max(1, min(_MERGED // wide, triton.next_power_of_2(chunks.count))),
        CHANNELS=wide,
        num_warps=1,
    )
    summed = None if dshift is None else mean.new_empty(size.samples, chunks.count, size.x_channels)
    _input_gradient[chunks.grid](means, summed, *images, *chunks.arguments, SILU=silu, **chunks.constants)
    if dshift is not None:
        _sum_rows(dshift, summed)


def _sum_rows(total: Tensor, values: Tensor) -> None:
    """total (..., C) = the sum of values (..., R, C) over R."""
    rows, columns = values.shape[-2:]
    blocks = triton.cdiv(columns, _COLUMNS)
    _column_sums[(total.numel() // columns * blocks,)](
        total, values, rows, columns, values.stride(-2), blocks, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4
    )


@triton.jit(do_not_specialize=SIZES)
def _whole(
    sums,
    dshift,
    dscale_shift,
    sources,
    affine,
    gradients,
    shift_stride,
    scale_shift_stride,
    mean,
    rstd,
    groups,
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
    dy = load_tile(gradients.dy, sample, p, c, inside, pixels, channels)
    gain, offset = load_affine(affine, scale_shift_stride, sample, c, exists, channels)
    centre, spread = load_statistics(mean, rstd, sample, c, exists, groups, group)
    inner, normal = _before_activation(gradients, dy, u, gain, offset, centre, spread, SILU)
    plain, weighted = tl.sum(inner, axis=0), tl.sum(inner * normal, axis=0)
    _store_channels(sums, dscale_shift, affine, scale_shift_stride, sample, c, exists, channels, plain, weighted)
    count = (pixels * group).to(tl.float32)
    plain = spread_groups(divide(sum_groups(gain * plain, c, g, group), count), c, g, group)
    weighted = spread_groups(divide(sum_groups(gain * weighted, c, g, group), count), c, g, group)
    du = _through_norm(inner, normal, gain, spread, plain, weighted)
    du = _store_sources(gradients, du, sample, p, c, inside, pixels, x_channels, skip_channels)
    if dshift is not None:
        total = tl.sum(tl.where(inside, du, 0.0), axis=0)
        tl.store(dshift + sample * x_channels + c, total, mask=exists & (c < x_channels))


@triton.jit(do_not_specialize=SIZES)
def _channel_sums(
    partials,
    sources,
    affine,
    gradients,
    shift_stride,
    scale_shift_stride,
    mean,
    rstd,
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
    sample, chunk, p, c = place_chunk(chunks, blocks, PIXELS, CHANNELS, False)
    exists = c < channels
    inside = (p < pixels)[:, None] & exists[None, :]
    u = load_sources(sources, shift_stride, sample, p, c, inside, pixels, x_channels, skip_channels)
    dy = load_tile(gradients.dy, sample, p, c, inside, pixels, channels)
    gain, offset = load_affine(affine, scale_shift_stride, sample, c, exists, channels)
    centre, spread = load_statistics(mean, rstd, sample, c, exists, groups, channels // groups)
    inner, normal = _before_activation(gradients, dy, u, gain, offset, centre, spread, SILU)
    slots = partials + (sample * chunks + chunk) * 2 * channels + c
    tl.store(slots, tl.sum(inner, axis=0), mask=exists)
    tl.store(slots + channels, tl.sum(inner * normal, axis=0), mask=exists)


@triton.jit(do_not_specialize=SIZES)
def _merge(
    means,
    sums,
    dscale_shift,
    partials,
    affine,
    scale_shift_stride,
    groups,
    group,
    pixels,
    chunks,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The sums of a group's channels from those of chunks of pixels, and the means that the input's gradient needs."""
    channels = groups * group
    sample, k, n = (tl.program_id(0) // groups).to(tl.int64), tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    exists, c = n < group, tl.program_id(0) % groups * group + n
    plain, weighted = tl.zeros((ROWS, CHANNELS), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(0, chunks, ROWS):
        slots = partials + (sample * chunks + first + k)[:, None] * 2 * channels + c[None, :]
        inside = (first + k < chunks)[:, None] & exists[None, :]
        plain += tl.load(slots, mask=inside, other=0.0)
        weighted += tl.load(slots + channels, mask=inside, other=0.0)
    plain, weighted = tl.sum(plain, axis=0), tl.sum(weighted, axis=0)
    _store_channels(sums, dscale_shift, affine, scale_shift_stride, sample, c, exists, channels, plain, weighted)
    gain, _ = load_affine(affine, scale_shift_stride, sample, c, exists, channels)
    count = (pixels * group).to(tl.float32)
    tl.store(means + 2 * tl.program_id(0), divide(tl.sum(gain * plain, axis=0), count))
    tl.store(means + 2 * tl.program_id(0) + 1, divide(tl.sum(gain * weighted, axis=0), count))


@triton.jit(do_not_specialize=SIZES)
def _input_gradient(
    means,
    summed,
    sources,
    affine,
    gradients,
    shift_stride,
    scale_shift_stride,
    mean,
    rstd,
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
    sample, chunk, p, c = place_chunk(chunks, blocks, PIXELS, CHANNELS, True)
    exists = c < channels
    inside = (p < pixels)[:, None] & exists[None, :]
    u = load_sources(sources, shift_stride, sample, p, c, inside, pixels, x_channels, skip_channels)
    dy = load_tile(gradients.dy, sample, p, c, inside, pixels, channels)
    gain, offset = load_affine(affine, scale_shift_stride, sample, c, exists, channels)
    group = channels // groups
    centre, spread = load_statistics(mean, rstd, sample, c, exists, groups, group)
    inner, normal = _before_activation(gradients, dy, u, gain, offset, centre, spread, SILU)
    slots = means + 2 * (sample * groups + c // group)
    plain, weighted = tl.load(slots, mask=exists, other=0.0), tl.load(slots + 1, mask=exists, other=0.0)
    du = _through_norm(inner, normal, gain, spread, plain, weighted)
    du = _store_sources(gradients, du, sample, p, c, inside, pixels, x_channels, skip_channels)
    if summed is not None:
        total = tl.sum(tl.where(inside, du, 0.0), axis=0)
        tl.store(summed + (sample * chunks + chunk) * x_channels + c, total, mask=c < x_channels)


@triton.jit(do_not_specialize=["rows", "columns", "stride", "blocks"])
def _column_sums(total, values, rows, columns, stride, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    table, k = (tl.program_id(0) // blocks).to(tl.int64), tl.arange(0, ROWS)
    c = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        inside = (first + k < rows)[:, None] & (c < columns)[None, :]
        slots = values + (table * rows + first + k)[:, None] * stride + c[None, :]
        sums += tl.load(slots, mask=inside, other=0.0)
    tl.store(total + table * columns + c, tl.sum(sums, axis=0), mask=c < columns)


@triton.jit
def _before_activation(gradients, dy, u, gain, offset, mean, rstd, SILU: tl.constexpr):
    # (gradient of the activation's argument, normalised values).
    normal = (u - mean[None, :]) * rstd[None, :]
    if SILU:
        h = normal * gain[None, :] + offset[None, :]
        s = sigmoid(h, gradients.dy.dtype.element_ty)
        dy = dy * s * (1.0 + h * (1.0 - s))
    return dy, normal


@triton.jit
def _through_norm(inner, normal, gain, rstd, plain, weighted):
    # The gradient of what was normalised.
    return rstd[None, :] * (inner * gain[None, :] - plain[None, :] - normal * weighted[None, :])


@triton.jit
def _store_sources(gradients, du, sample, p, c, inside, pixels, x_channels, skip_channels):
    # Adds what comes past the norm and writes a tile of du and dskip; returns it before rounding.
    of_x = inside & (c < x_channels)[None, :]
    of_skip = inside & (c >= x_channels)[None, :]
    if gradients.du_bypass is not None:
        du += load_tile(gradients.du_bypass, sample, p, c, of_x, pixels, x_channels)
    if gradients.dskip_bypass is not None:
        du += load_tile(gradients.dskip_bypass, sample, p, c - x_channels, of_skip, pixels, skip_channels)
    store_tile(gradients.du, du, sample, p, c, of_x, pixels, x_channels)
    if gradients.dskip is not None:
        store_tile(gradients.dskip, du, sample, p, c - x_channels, of_skip, pixels, skip_channels)
    return du


@triton.jit
def _store_channels(sums, dscale_shift, affine, scale_shift_stride, sample, c, exists, channels, plain, weighted):
    # A sample's part of dbias and dweight, and its dscale_shift.
    row = 2 * sample * channels + c
    if dscale_shift is not None:
        weight = tl.load(affine.weight + c, mask=exists, other=0.0).to(tl.float32)
        bias = tl.load(affine.bias + c, mask=exists, other=0.0).to(tl.float32)
        tl.store(dscale_shift + row, weight * weighted + bias * plain, mask=exists)
        tl.store(dscale_shift + row + channels, plain, mask=exists)
        scale = tl.load(affine.scale_shift + sample * scale_shift_stride + c, mask=exists, other=0.0)
        plain *= scale.to(tl.float32) + 1.0
        weighted *= scale.to(tl.float32) + 1.0
    tl.store(sums + row, plain, mask=exists)
    tl.store(sums + row + channels, weighted, mask=exists)
