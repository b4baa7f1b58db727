"""The loss of progressive distillation and its gradient in one pass (Salimans & Ho 2022, Algorithm 2)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.loss_options import LossOptions
from progdistill.ops.names import heads
from progdistill.ops.rotation import domain
from progdistill.ops.triton_kernels.elements import load_state, on_device, place
from progdistill.ops.triton_kernels.residual import (
    LossLaunch,
    rows_of_weights,
    store_weights,
    weigh,
    weight_arguments,
)
from progdistill.ops.triton_kernels.rotation import SAMPLES, sample_block
from progdistill.ops.triton_kernels.teacher import (
    check_steps,
    needs_state,
    rows_of_target,
    store_target_form,
    target_value,
)


def distillation_loss(
    loss: Tensor,
    grad: Tensor,
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    teacher_type: str,
    clip: float | None,
    options: LossOptions,
    channels: int,
) -> None:
    """Writes loss and, if the options want it, grad; the images lie in memory alike, phis (K + 1, B) is contiguous.

    Raises:
        ValueError: more than 16 outputs.
    """
    check_steps(outs)
    if len(z) == 0:
        return
    launch = LossLaunch(loss, z, options)
    rows = rows_of_target(teacher_type, len(outs), clip)
    kind = {"HEADS": heads(teacher_type), "CLIPPED": clip is not None}
    with on_device(z):
        table = z.new_empty(rows + rows_of_weights(options), len(z))
        _coefficients[(triton.cdiv(len(z), SAMPLES),)](
            table,
            phis,
            len(z),
            rows,
            STEPS=len(outs),
            NATIVE=domain(teacher_type),
            **kind,
            **weight_arguments(options, launch.elements),
            SAMPLES=SAMPLES,
            num_warps=1,
        )
        _distillation_loss[launch.grid](
            launch.sums,
            grad,
            pred,
            z,
            tuple(outs),
            table,
            clip or 0.0,
            options.huber_c,
            launch.elements,
            launch.chunks,
            len(z),
            rows,
            **kind,
            CHANNELS=channels,
            **launch.constants,
            num_warps=launch.warps,
            WITH_STATE=needs_state(teacher_type, domain(options.prediction_type), len(outs), clip),
        )
        launch.finish()


@triton.jit(do_not_specialize=["samples", "rows", "weighting"], do_not_specialize_on_alignment=["phis"])
def _coefficients(
    table,
    phis,
    samples,
    rows,
    weighting,
    gamma: tl.float64,
    grad_scale: tl.float64,
    STEPS: tl.constexpr,
    NATIVE: tl.constexpr,
    OWN: tl.constexpr,
    HEADS: tl.constexpr,
    OWN_HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    b, inside = sample_block(samples, SAMPLES)
    store_target_form(table, phis, samples, b, inside, STEPS, NATIVE, OWN, HEADS, CLIPPED)
    phi = tl.load(phis + b)
    store_weights(table + rows * samples + b, samples, inside, phi, weighting, gamma, grad_scale, OWN, OWN_HEADS)


@triton.jit(do_not_specialize=["chunks", "samples", "rows"])
def _distillation_loss(
    sums,
    grad,
    pred,
    z,
    outs,
    table,
    clip: tl.float64,
    huber_c: tl.float64,
    elements,
    chunks,
    samples,
    rows,
    HEADS: tl.constexpr,
    CLIPPED: tl.constexpr,
    WITH_STATE: tl.constexpr,
    OWN_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOSS_TYPE: tl.constexpr,
    GRADIENT: tl.constexpr,
    WHOLE: tl.constexpr,
    TILE: tl.constexpr,
):
    sample, e, inside = place(elements, chunks, TILE)
    state = tl.zeros((TILE,), z.dtype.element_ty)
    if WITH_STATE:
        state = load_state(z, sample, e, inside, elements)
    row = table + sample
    target = target_value(
        state, outs, row, samples, sample, e, inside, elements, clip, HEADS, CHANNELS, CLIPPED, WITH_STATE
    )
    row += rows * samples
    weigh(
        sums,
        grad,
        pred,
        target,
        row,
        samples,
        sample,
        e,
        inside,
        elements,
        huber_c,
        OWN_HEADS,
        CHANNELS,
        LOSS_TYPE,
        GRADIENT,
        WHOLE,
    )
