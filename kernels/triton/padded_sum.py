"""Sums of channels_last images, and zeros below and to the right of them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.triton_kernels.channel_tiles import (
    SIZES,
    Chunks,
    extent,
    load_tile,
    place_chunk,
    row_stride,
    store_tile,
)
from progdistill.ops.triton_kernels.elements import on_device

_SIZES = [*SIZES, "height", "width"]


def forward(
    u: Tensor | None,
    padded: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    shift: Tensor | None,
    padding: int,
) -> None:
    """Writes u = (x + residual) + shift, and to `padded` u and zeros in `padding` more rows and columns.

    Images are dense channels_last, float32 or bfloat16; shift is (B, C) or (1, C), contiguous.

    Raises:
        ValueError: a sample has 2^31 elements or more.
    """
    size = extent(x if padded is None else padded, None)
    if size.samples == 0:
        return
    chunks = Chunks.of(size)
    arguments = (u, padded, x, residual, shift, row_stride(shift), *x.shape[2:], *chunks.arguments)
    with on_device(x):
        _padded_sum[chunks.grid](*arguments, PADDING=padding, **chunks.constants)


def backward(du: Tensor, dsum: Tensor | None, dpadded: Tensor, padding: int) -> None:
    """Writes du = dsum + dpadded without its `padding` last rows and columns; images as for `forward`."""
    extent(dpadded, None)
    size = extent(du, None)
    if size.samples == 0:
        return
    chunks = Chunks.of(size)
    arguments = (du, dsum, dpadded, *du.shape[2:], *chunks.arguments)
    with on_device(du):
        _padded_sum_gradient[chunks.grid](*arguments, PADDING=padding, **chunks.constants)


@triton.jit(do_not_specialize=_SIZES)
def _padded_sum(
    u,
    padded,
    x,
    residual,
    shift,
    shift_stride,
    height,
    width,
    pixels,
    x_units,
    skip_units,
    chunks,
    blocks,
    PADDING: tl.constexpr,
    UNIT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels, own_pixels = x_units * UNIT, height * width
    sample, _, p, c = place_chunk(chunks, blocks, PIXELS, CHANNELS, False)
    exists = (c < channels)[None, :]
    inside = (p < pixels)[:, None] & exists
    row = p // (width + PADDING)
    own = p - row * PADDING
    of_x = inside & ((row < height) & (own - row * width < width))[:, None]
    sum = load_tile(x, sample, own, c, of_x, own_pixels, channels)
    if residual is not None:
        sum += load_tile(residual, sample, own, c, of_x, own_pixels, channels)
    if shift is not None:
        sum += tl.load(shift + sample * shift_stride + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    if u is not None:
        store_tile(u, sum, sample, own, c, of_x, own_pixels, channels)
    if padded is not None:
        store_tile(padded, tl.where(of_x, sum, 0.0), sample, p, c, inside, pixels, channels)


@triton.jit(do_not_specialize=_SIZES)
def _padded_sum_gradient(
    du,
    dsum,
    dpadded,
    height,
    width,
    pixels,
    x_units,
    skip_units,
    chunks,
    blocks,
    PADDING: tl.constexpr,
    UNIT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels, padded_pixels = x_units * UNIT, (height + PADDING) * (width + PADDING)
    sample, _, p, c = place_chunk(chunks, blocks, PIXELS, CHANNELS, False)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    value = load_tile(dpadded, sample, p + p // width * PADDING, c, inside, padded_pixels, channels)
    if dsum is not None:
        value += load_tile(dsum, sample, p, c, inside, pixels, channels)
    store_tile(du, value, sample, p, c, inside, pixels, channels)
