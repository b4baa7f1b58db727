"""The loss of progressive distillation: target, weighting and gradient in one pass (Salimans & Ho 2022, Algorithm 2).

r = s (own(pred) - target), where own(pred) is the student's prediction in its own quantity and s^2 the weighting's
factor on that quantity's squared error (`rotation.squared_factor`). The loss of a sample is the mean over its elements
of r^2 ("l2", the paper's), |r| ("l1") or sqrt(r^2 + c^2) - c ("pseudo_huber", as `--loss_type huber` of diffusers' LCM
scripts). r is the v error times the bounded root of the weighting in v, whatever the network predicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.ops import checks, native, rotation
from progdistill.ops.backends import choose, declare
from progdistill.ops.distillation_target import check_target_values, check_teacher, named_teacher
from progdistill.ops.layout import dense, interleaved_channels, memory_format
from progdistill.ops.loss_options import OPTIONS_SCHEMA, LossOptions, check_scale_values, checked_options
from progdistill.ops.names import PREDICTION_TYPES, canonical_prediction_type
from progdistill.ops.registration import register
from progdistill.ops.residual import fake_loss, save_gradient, scale_gradient, target_reference, weighted_residual


def distillation_loss(
    pred: Tensor,
    z: Tensor,
    outs: Sequence[Tensor],
    phis: Tensor,
    *,
    prediction_type: str = "v_prediction",
    teacher_prediction_type: str | None = None,
    weighting: str = "truncated_snr",
    min_snr_gamma: float = 5.0,
    loss_type: str = "l2",
    huber_c: float = 1e-3,
    clip: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """The weighted error of a student's output against the teacher's K steps, for each sample.

    Args:
        pred: the student's own output at (z, phis[0]); z's dtype or bfloat16; 2C channels if two-headed.
        z, outs, phis, clip: as in `distillation_target`.
        prediction_type: what `pred` is.
        teacher_prediction_type: what `outs` are; default: the same.
        weighting: "constant", "snr", "truncated_snr" (the paper's), "snr_plus_one" or "min_snr". It is the factor on
            the squared error, so "l1" weighs the absolute error by its root.
        min_snr_gamma: the bound of "min_snr" (Hang et al. 2023: 5).
        loss_type: "l2", "l1" or "pseudo_huber" of the weighted residual. The gradient of "l1" is 0 where r is 0.
        huber_c: where "pseudo_huber" turns from r^2 / (2 c) to |r| - c, in units of the weighted v error (diffusers'
            `--huber_c`: 0.001); 1e-9 to 1e9.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        loss (B,) in z's dtype: mean over the sample's elements. Differentiable once, and in `pred` only.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or angles; another argument that requires a gradient; a
            pair that is infinite (an epsilon student at SNR 0 unless weighted by snr or min_snr).
    """
    need_grad = torch.is_grad_enabled() and pred.requires_grad
    options = checked_options(prediction_type, weighting, min_snr_gamma, loss_type, huber_c, 1.0, need_grad)
    return _checked_call(pred, z, list(outs), phis, teacher_prediction_type, clip, options, backend)[0]


def distillation_loss_and_grad(
    pred: Tensor,
    z: Tensor,
    outs: Sequence[Tensor],
    phis: Tensor,
    *,
    prediction_type: str = "v_prediction",
    teacher_prediction_type: str | None = None,
    weighting: str = "truncated_snr",
    min_snr_gamma: float = 5.0,
    loss_type: str = "l2",
    huber_c: float = 1e-3,
    clip: float | None = None,
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`distillation_loss` and grad_scale times its gradient for `pred`, for loops that call `pred.backward(grad)`.

    Returns:
        (loss (B,), grad) with grad in pred's dtype and layout; grad_scale = 1 / B gives the gradient of the mean.
    """
    options = checked_options(prediction_type, weighting, min_snr_gamma, loss_type, huber_c, grad_scale, True)
    return _checked_call(pred.detach(), z, list(outs), phis, teacher_prediction_type, clip, options, backend)


def _checked_call(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    teacher_type: str | None,
    clip: float | None,
    options: LossOptions,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    teacher_type = canonical_prediction_type(teacher_type or options.prediction_type)
    check_teacher(z, outs, phis, teacher_type, clip)
    checks.check_output("pred", pred, options.prediction_type, z)
    checks.check_no_gradient("distillation_loss", named_teacher(z, outs, phis))
    return _distillation_loss(pred, z, outs, phis, teacher_type, clip, *options, backend)


def distillation_loss_reference(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    teacher_type: str,
    clip: float | None,
    options: LossOptions,
) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch."""
    form = rotation.target_form(teacher_type, rotation.domain(options.prediction_type), phis)
    target = target_reference(z, outs, form, phis, teacher_type, clip)
    return weighted_residual(pred, target, phis[0], options)


def _distillation_loss_native(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    teacher_type: str,
    clip: float | None,
    options: LossOptions,
) -> tuple[Tensor, Tensor]:
    format = memory_format(pred)
    loss, grad = fake_loss(pred, z, options.need_grad)
    in_order = native._C.distillation_loss(
        native.view(loss),
        native.view(grad) if options.need_grad else None,
        native.view(dense(pred, format)),
        native.view(dense(z, format)),
        [native.view(dense(out, format)) for out in outs],
        native.view(phis.contiguous()),
        PREDICTION_TYPES.index(teacher_type),
        clip,
        options.for_extension(),
        native.partial_sums(z),
        native.run(z),
    )
    if not in_order:
        _check_values(phis, teacher_type, clip, options)
    return loss, grad


def _distillation_loss_triton(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    teacher_type: str,
    clip: float | None,
    options: LossOptions,
) -> tuple[Tensor, Tensor]:
    from progdistill.ops.triton_kernels.distillation_loss import distillation_loss

    format = memory_format(pred)
    loss, grad = fake_loss(pred, z, options.need_grad)
    images = dense(pred, format), dense(z, format), [dense(out, format) for out in outs]
    channels = interleaved_channels(z, format)
    distillation_loss(loss, grad, *images, phis.contiguous(), teacher_type, clip, options, channels)
    return loss, grad


declare(
    "distillation_loss",
    {
        "reference": distillation_loss_reference,
        "cpu": _distillation_loss_native,
        "cuda": _distillation_loss_native,
        "triton": _distillation_loss_triton,
    },
)


def _implementation(
    pred: Tensor, z: Tensor, outs: list[Tensor], phis: Tensor, teacher_type: str, clip: float | None, *flat
) -> tuple[Tensor, Tensor]:
    *values, backend = flat
    options = LossOptions(*values)
    run = choose("distillation_loss", z.device.type, backend)
    if run is not _distillation_loss_native:  # the C++ kernel looks at the values on its way
        _check_values(phis, teacher_type, clip, options)
    return run(pred, z, outs, phis, teacher_type, clip, options)


def _check_values(phis: Tensor, teacher_type: str, clip: float | None, options: LossOptions) -> None:
    check_target_values(phis, teacher_type, rotation.domain(options.prediction_type), clip)
    check_scale_values(phis[0], options)


def _fake(pred, z, outs, phis, teacher_type, clip, *flat):
    return fake_loss(pred, z, LossOptions(*flat[:-1]).need_grad)


def _setup_context(ctx, inputs, output) -> None:
    ctx.teacher_steps = len(inputs[2])
    ctx.constants = len(inputs) - 3
    save_gradient(ctx, output[1])


def _backward(ctx, grad_loss: Tensor, _) -> tuple:
    return scale_gradient(ctx, grad_loss), None, [None] * ctx.teacher_steps, *(None,) * ctx.constants


_distillation_loss = register(
    f"distillation_loss(Tensor pred, Tensor z, Tensor[] outs, Tensor phis, str teacher_type, float? clip,"
    f" {OPTIONS_SCHEMA}, str? backend) -> (Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
