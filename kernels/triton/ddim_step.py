"""One DDIM step in angles: z' = cos(h) z - sin(h) v, h = phi - phi_next (Salimans & Ho 2022, eq. 38)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.names import heads
from progdistill.ops.rotation import domain
from progdistill.ops.triton_kernels.elements import add_heads, load_state, on_device, place, tiles
from progdistill.ops.triton_kernels.rotation import SAMPLES, convert, sample_block, store_form
from progdistill.ops.triton_kernels.teacher import clamp

_LARGEST_TILE = 1024


def ddim_step(
    z_next: Tensor,
    copy: Tensor | None,
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    prediction_type: str,
    clip: float | None,
    channels: int,
) -> None:
    """Writes z_next and its bfloat16 copy; the images lie in memory alike, the angles are contiguous."""
    if z.numel() == 0:
        return
    kind = {"HEADS": heads(prediction_type), "CLIPPED": clip is not None}
    elements = z[0].numel()
    tile, chunks, warps = tiles(elements, _LARGEST_TILE)
    with on_device(z):
        table = z.new_empty((1 + kind["HEADS"]) + 2 * kind["CLIPPED"], len(z))
        _coefficients[(triton.cdiv(len(z), SAMPLES),)](
            table, phi, phi_next, len(z), NATIVE=domain(prediction_type), **kind, SAMPLES=SAMPLES, num_warps=1
        )
        _ddim_step[(len(z) * chunks,)](
            z_next,
            copy,
            z,
            out,
            table,
            clip or 0.0,
            elements,
            chunks,
            len(z),
            **kind,
            COPIED=copy is not None,
            CHANNELS=channels,
            TILE=tile,
            num_warps=warps,
        )


@triton.jit(do_not_specialize=["samples"], do_not_specialize_on_alignment=["phis", "phis_next"])
def _coefficients(
    table,
    phis,
    phis_next,
    samples,
    NATIVE: tl.constexpr,
    HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Rows: z and the heads of z', or of x with those of z and clip(x) behind them."""
    b, inside = sample_block(samples, SAMPLES)
    phi = tl.load(phis + b)
    phi_next = tl.load(phis_next + b)
    sin, cos, sin_h = tl.sin(phi), tl.cos(phi), tl.sin(phi - phi_next)
    if CLIPPED:
        c_z, c = convert(NATIVE, "x", sin, cos)
        by_clipped = table + (1 + HEADS) * samples + b
        tl.store(by_clipped, tl.sin(phi_next) / sin, mask=inside)
        tl.store(by_clipped + samples, sin_h / sin, mask=inside)
    elif NATIVE == "x":
        c_z, c = tl.sin(phi_next) / sin, sin_h / sin
    elif NATIVE == "eps":
        c_z, c = tl.cos(phi_next) / cos, -sin_h / cos
    else:
        c_z, c = tl.cos(phi - phi_next), -sin_h
    store_form(table + b, samples, inside, c_z, c, sin, cos, HEADS)


@triton.jit(do_not_specialize=["chunks", "samples"])
def _ddim_step(
    z_next,
    copy,
    z,
    out,
    table,
    clip: tl.float64,
    elements,
    chunks,
    samples,
    HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
    COPIED: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    sample, e, inside = place(elements, chunks, TILE)
    state = load_state(z, sample, e, inside, elements)
    row = table + sample
    value = tl.load(row) * state
    value = add_heads(value, out, row + samples, samples, sample, e, inside, elements, HEADS, CHANNELS)
    if CLIPPED:
        row += (1 + HEADS) * samples
        value = tl.fma(clamp(value, clip), tl.load(row + samples), tl.load(row) * state)
    tl.store(z_next + sample * elements + e, value, mask=inside)
    if COPIED:
        tl.store(copy + sample * elements + e, value.to(tl.bfloat16), mask=inside)
