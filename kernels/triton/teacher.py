"""What a student must predict to land where its teacher's steps land, on the device (Salimans & Ho 2022, eq. 43).

The coefficients of one target fill consecutive rows of a table: that of z, then for each of the teacher's steps those
of its heads and, if x is clipped, that of the excess x - clip(x), those of z and the heads in x, and those of z and
clip(x) in the step's end.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.names import heads
from progdistill.ops.rotation import domain
from progdistill.ops.triton_kernels.elements import add_heads
from progdistill.ops.triton_kernels.rotation import convert, store_form, store_heads

MAX_STEPS = 16


def check_steps(outs: list[Tensor]) -> None:
    """A teacher's steps are unrolled in the kernels, so there is a bound.

    Raises:
        ValueError: more than 16 outputs.
    """
    if len(outs) > MAX_STEPS:
        raise ValueError(
            f"outs holds {len(outs)} teacher outputs; the Triton kernels take 1 to {MAX_STEPS}, "
            "backend='reference' any number"
        )


def rows_of_target(prediction_type: str, steps: int, clip: float | None) -> int:
    """Rows that a target's coefficients fill."""
    return 1 + steps * (heads(prediction_type) if clip is None else 2 * heads(prediction_type) + 4)


def needs_state(prediction_type: str, quantity: str, steps: int, clip: float | None) -> bool:
    """Whether z has a say in the target, or its coefficients are zero by type."""
    native = domain(prediction_type)
    return native != quantity or (native == "v" and steps > 1) or (clip is not None and native != "x")


@triton.jit
def store_target_form(
    table,
    phis,
    samples,
    b,
    inside,
    STEPS: tl.constexpr,
    NATIVE: tl.constexpr,
    QUANTITY: tl.constexpr,
    HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """Writes the target's coefficients for a block of samples; phis (STEPS + 1, samples)."""
    PER_STEP: tl.constexpr = 2 * HEADS + 4 if CLIPPED else HEADS
    first = tl.load(phis + b)
    last = tl.load(phis + STEPS * samples + b)
    total = tl.sin(first - last)
    c_z, factor = convert(NATIVE, QUANTITY, tl.sin(first), tl.cos(first))
    if NATIVE == "v":
        c_z += factor * _state_in_v(phis, samples, b, STEPS, first) / total
    tl.store(table + b, c_z, mask=inside)

    # From the last step to the first, for `later` is the product of the cosines of the steps behind one.
    later = tl.zeros_like(first) + 1.0
    for back in range(STEPS):
        j = STEPS - 1 - back
        phi = tl.load(phis + j * samples + b)
        phi_next = tl.load(phis + (j + 1) * samples + b)
        sin, cos, weight = tl.sin(phi), tl.cos(phi), tl.sin(phi - phi_next) / total
        if NATIVE == "v":
            weight *= later
            later *= tl.cos(phi - phi_next)
            moved = 1.0 / sin
        else:
            # The quotients that are 1 even where both ends are 0 are left out.
            weight *= tl.where(j > 0, _end(first, NATIVE) / _end(phi, NATIVE), 1.0)
            weight *= tl.where(back > 0, _end(last, NATIVE) / _end(phi_next, NATIVE), 1.0)
            moved = tl.zeros_like(sin) - 1.0 if NATIVE == "x" else cos / sin
        row = table + (1 + j * PER_STEP) * samples + b
        store_heads(row, samples, inside, factor * weight, sin, cos, HEADS)
        if CLIPPED:
            # Clipping replaces x by x - d; at fixed z that moves v by d / sin and eps by d cos / sin.
            tl.store(row + HEADS * samples, factor * weight * moved, mask=inside)
            x_z, x = convert(NATIVE, "x", sin, cos)
            store_form(row + (HEADS + 1) * samples, samples, inside, x_z, x, sin, cos, HEADS)
            row += (2 * HEADS + 2) * samples
            tl.store(row, tl.sin(phi_next) / sin, mask=inside)
            tl.store(row + samples, tl.sin(phi - phi_next) / sin, mask=inside)


@triton.jit
def _end(phi, NATIVE: tl.constexpr):
    return tl.sin(phi) if NATIVE == "x" else tl.cos(phi)


@triton.jit
def _state_in_v(phis, samples, b, STEPS: tl.constexpr, first):
    # prod cos(h_j) - cos H of z_K = prod cos(h_j) z - sum_j sin(h_j) prod_{l>j} cos(h_l) v_j, negated and formed
    # without cancellation: every term has the same sign.
    excess = tl.zeros_like(first)
    for j in range(1, STEPS):
        phi = tl.load(phis + j * samples + b)
        step = phi - tl.load(phis + (j + 1) * samples + b)
        excess = excess * tl.cos(step) - tl.sin(first - phi) * tl.sin(step)
    return excess


@triton.jit
def target_value(
    state,
    outs,
    row,
    samples,
    sample,
    e,
    inside,
    elements,
    clip,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CLIPPED: tl.constexpr,
    WITH_STATE: tl.constexpr,
):
    """The target of a tile; `row` is the first of its coefficients at this sample, `state` is read if it counts."""
    STEPS: tl.constexpr = len(outs)
    value = tl.load(row) * state if WITH_STATE else tl.zeros_like(state)
    row += samples
    for j in tl.static_range(STEPS):
        value = add_heads(value, outs[j], row, samples, sample, e, inside, elements, HEADS, CHANNELS)
        row += HEADS * samples
        if CLIPPED:
            x = tl.load(row + samples) * state if WITH_STATE else tl.zeros_like(state)
            x = add_heads(x, outs[j], row + 2 * samples, samples, sample, e, inside, elements, HEADS, CHANNELS)
            clipped = clamp(x, clip)
            # Exactly zero where nothing is clipped: there the unclipped formula stands to the last digit.
            value = tl.fma(x - clipped, tl.load(row), value)
            row += (HEADS + 2) * samples
            state = tl.fma(clipped, tl.load(row + samples), tl.load(row) * state)
            row += 2 * samples
    return value


@triton.jit
def clamp(x, bound):
    """x within [-bound, bound]; NaN stays NaN."""
    high = tl.full((), bound, tl.float64).to(x.dtype)
    return tl.where(x > high, high, tl.where(x < -high, -high, x))
