"""What one student step must predict to land where the teacher's steps land."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.names import heads
from progdistill.ops.rotation import domain
from progdistill.ops.triton_kernels.elements import head_offsets, load_state, on_device, place, tiles
from progdistill.ops.triton_kernels.rotation import SAMPLES, sample_block
from progdistill.ops.triton_kernels.teacher import (
    check_steps,
    needs_state,
    rows_of_target,
    store_target_form,
    target_value,
)

_LARGEST_TILE = 1024


def distillation_target(
    target: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    prediction_type: str,
    target_type: str,
    clip: float | None,
    channels: int,
) -> None:
    """Writes the target; the images lie in memory alike, phis (K + 1, B) is contiguous.

    Raises:
        ValueError: more than 16 outputs.
    """
    check_steps(outs)
    if z.numel() == 0:
        return
    quantities = ("x", "eps") if heads(target_type) == 2 else (domain(target_type),)
    rows = rows_of_target(prediction_type, len(outs), clip)
    kind = {"HEADS": heads(prediction_type), "CLIPPED": clip is not None}
    elements = z[0].numel()
    tile, chunks, warps = tiles(elements, _LARGEST_TILE)
    with on_device(z):
        table = z.new_empty(len(quantities) * rows, len(z))
        for head, quantity in enumerate(quantities):
            _coefficients[(triton.cdiv(len(z), SAMPLES),)](
                table[head * rows :],
                phis,
                len(z),
                STEPS=len(outs),
                NATIVE=domain(prediction_type),
                QUANTITY=quantity,
                **kind,
                SAMPLES=SAMPLES,
                num_warps=1,
            )
        _distillation_target[(len(z) * chunks,)](
            target,
            z,
            tuple(outs),
            table,
            clip or 0.0,
            elements,
            chunks,
            len(z),
            rows,
            **kind,
            CHANNELS=channels,
            TARGET_HEADS=len(quantities),
            TILE=tile,
            num_warps=warps,
            WITH_STATE=any(needs_state(prediction_type, quantity, len(outs), clip) for quantity in quantities),
        )


@triton.jit(do_not_specialize=["samples"], do_not_specialize_on_alignment=["table", "phis"])
def _coefficients(
    table,
    phis,
    samples,
    STEPS: tl.constexpr,
    NATIVE: tl.constexpr,
    QUANTITY: tl.constexpr,
    HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    b, inside = sample_block(samples, SAMPLES)
    store_target_form(table, phis, samples, b, inside, STEPS, NATIVE, QUANTITY, HEADS, CLIPPED)


@triton.jit(do_not_specialize=["chunks", "samples", "rows"])
def _distillation_target(
    target,
    z,
    outs,
    table,
    clip: tl.float64,
    elements,
    chunks,
    samples,
    rows,
    HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
    CHANNELS: tl.constexpr,
    TARGET_HEADS: tl.constexpr,
    WITH_STATE: tl.constexpr,
    TILE: tl.constexpr,
):
    sample, e, inside = place(elements, chunks, TILE)
    state = tl.zeros((TILE,), z.dtype.element_ty)
    if WITH_STATE:
        state = load_state(z, sample, e, inside, elements)
    for head in tl.static_range(TARGET_HEADS):
        row = table + head * rows * samples + sample
        value = target_value(
            state, outs, row, samples, sample, e, inside, elements, clip, HEADS, CHANNELS, CLIPPED, WITH_STATE
        )
        offsets = head_offsets(sample, e, elements, head, TARGET_HEADS, CHANNELS)
        tl.store(target + offsets, value, mask=inside)
