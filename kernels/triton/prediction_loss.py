"""The weighted loss against a target that is given, and its gradient in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from progdistill.ops.loss_options import LossOptions
from progdistill.ops.names import heads
from progdistill.ops.rotation import domain
from progdistill.ops.triton_kernels.elements import add_heads, load_state, on_device, place
from progdistill.ops.triton_kernels.residual import (
    LossLaunch,
    rows_of_weights,
    store_weights,
    weigh,
    weight_arguments,
)
from progdistill.ops.triton_kernels.rotation import SAMPLES, convert, sample_block, store_form


def prediction_loss(
    loss: Tensor,
    grad: Tensor,
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    target_type: str,
    options: LossOptions,
    channels: int,
) -> None:
    """Writes loss and, if the options want it, grad; the images lie in memory alike, phi is contiguous."""
    if len(z) == 0:
        return
    launch = LossLaunch(loss, z, options)
    given = {"NATIVE": domain(target_type), "HEADS": heads(target_type)}
    with on_device(z):
        table = z.new_empty(1 + given["HEADS"] + rows_of_weights(options), len(z))
        _coefficients[(triton.cdiv(len(z), SAMPLES),)](
            table, phi, len(z), **given, **weight_arguments(options, launch.elements), SAMPLES=SAMPLES, num_warps=1
        )
        _prediction_loss[launch.grid](
            launch.sums,
            grad,
            pred,
            z,
            target,
            table,
            options.huber_c,
            launch.elements,
            launch.chunks,
            len(z),
            HEADS=given["HEADS"],
            WITH_STATE=given["NATIVE"] != domain(options.prediction_type),
            CHANNELS=channels,
            **launch.constants,
            num_warps=launch.warps,
        )
        launch.finish()


@triton.jit(do_not_specialize=["samples", "weighting"], do_not_specialize_on_alignment=["phis"])
def _coefficients(
    table,
    phis,
    samples,
    weighting,
    gamma: tl.float64,
    grad_scale: tl.float64,
    NATIVE: tl.constexpr,
    OWN: tl.constexpr,
    HEADS: tl.constexpr,
    OWN_HEADS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    b, inside = sample_block(samples, SAMPLES)
    phi = tl.load(phis + b)
    sin, cos = tl.sin(phi), tl.cos(phi)
    c_z, c = convert(NATIVE, OWN, sin, cos)
    row = table + b
    store_form(row, samples, inside, c_z, c, sin, cos, HEADS)
    row += (1 + HEADS) * samples
    store_weights(row, samples, inside, phi, weighting, gamma, grad_scale, OWN, OWN_HEADS)


@triton.jit(do_not_specialize=["chunks", "samples"])
def _prediction_loss(
    sums,
    grad,
    pred,
    z,
    target,
    table,
    huber_c: tl.float64,
    elements,
    chunks,
    samples,
    HEADS: tl.constexpr,
    WITH_STATE: tl.constexpr,
    OWN_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LOSS_TYPE: tl.constexpr,
    GRADIENT: tl.constexpr,
    WHOLE: tl.constexpr,
    TILE: tl.constexpr,
):
    sample, e, inside = place(elements, chunks, TILE)
    row = table + sample
    own_target = tl.zeros((TILE,), z.dtype.element_ty)
    if WITH_STATE:
        own_target = tl.load(row) * load_state(z, sample, e, inside, elements)
    row += samples
    own_target = add_heads(own_target, target, row, samples, sample, e, inside, elements, HEADS, CHANNELS)
    row += HEADS * samples
    weigh(
        sums,
        grad,
        pred,
        own_target,
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
