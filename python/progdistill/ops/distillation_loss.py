"""The loss of progressive distillation: target, weighting and gradient in one pass (Salimans & Ho 2022, Algorithm 2).

loss_b = mean over the sample of r^2, r = s (own(pred) - target), where own(pred) is the student's prediction in its
own quantity and s^2 the weighting's factor on that quantity's squared error (`rotation.squared_factor`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.ops import checks, native, rotation
from progdistill.ops.backends import choose, declare
from progdistill.ops.distillation_target import check_target_values, check_teacher, named_teacher
from progdistill.ops.layout import dense, memory_format
from progdistill.ops.names import PREDICTION_TYPES, WEIGHTINGS, canonical_prediction_type, canonical_weighting
from progdistill.ops.registration import register
from progdistill.ops.residual import fake_loss, save_gradient, scale_gradient, squared_residual, target_reference


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
    clip: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """The weighted squared error of a student's output against the teacher's K steps, for each sample.

    Args:
        pred: the student's own output at (z, phis[0]); z's dtype or bfloat16; 2C channels if two-headed.
        z, outs, phis, clip: as in `distillation_target`.
        prediction_type: what `pred` is.
        teacher_prediction_type: what `outs` are; default: the same.
        weighting: "constant", "snr", "truncated_snr" (the paper's), "snr_plus_one" or "min_snr".
        min_snr_gamma: the bound of "min_snr".
        backend: force "reference" or "cpu"; default: the best available.

    Returns:
        loss (B,) in z's dtype: mean over the sample's elements. Differentiable once, and in `pred` only.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or angles; another argument that requires a gradient; a
            pair that is infinite (an epsilon student at SNR 0 unless weighted by snr or min_snr).
    """
    arguments = _checked(pred, z, outs, phis, prediction_type, teacher_prediction_type, weighting, min_snr_gamma, clip)
    need_grad = torch.is_grad_enabled() and pred.requires_grad
    return _distillation_loss(*arguments, 1.0, need_grad, backend)[0]


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
    clip: float | None = None,
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`distillation_loss` and grad_scale times its gradient for `pred`, for loops that call `pred.backward(grad)`.

    Returns:
        (loss (B,), grad) with grad in pred's dtype and layout; grad_scale = 1 / B gives the gradient of the mean.
    """
    arguments = _checked(
        pred.detach(), z, outs, phis, prediction_type, teacher_prediction_type, weighting, min_snr_gamma, clip
    )
    return _distillation_loss(*arguments, grad_scale, True, backend)


def _checked(pred, z, outs, phis, prediction_type, teacher_prediction_type, weighting, min_snr_gamma, clip) -> tuple:
    prediction_type = canonical_prediction_type(prediction_type)
    teacher_type = canonical_prediction_type(teacher_prediction_type or prediction_type)
    weighting = canonical_weighting(weighting)
    outs = list(outs)
    check_teacher(z, outs, phis, teacher_type, clip)
    checks.check_output("pred", pred, prediction_type, z)
    checks.check_min_snr_gamma(min_snr_gamma)
    checks.check_no_gradient("distillation_loss", named_teacher(z, outs, phis))
    return pred, z, outs, phis, prediction_type, teacher_type, weighting, min_snr_gamma, clip


def distillation_loss_reference(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    prediction_type: str,
    teacher_type: str,
    weighting: str,
    min_snr_gamma: float,
    clip: float | None,
    grad_scale: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch."""
    form = rotation.target_form(teacher_type, rotation.domain(prediction_type), phis)
    target = target_reference(z, outs, form, phis, teacher_type, clip)
    return squared_residual(pred, target, phis[0], prediction_type, weighting, min_snr_gamma, grad_scale, need_grad)


def _distillation_loss_cpu(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    prediction_type: str,
    teacher_type: str,
    weighting: str,
    min_snr_gamma: float,
    clip: float | None,
    grad_scale: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    format = memory_format(pred)
    loss, grad = fake_loss(pred, z, need_grad)
    in_order = native._C.distillation_loss(
        native.view(loss),
        native.view(grad) if need_grad else None,
        native.view(dense(pred, format)),
        native.view(dense(z, format)),
        [native.view(dense(out, format)) for out in outs],
        native.view(phis.contiguous()),
        PREDICTION_TYPES.index(prediction_type),
        PREDICTION_TYPES.index(teacher_type),
        WEIGHTINGS.index(weighting),
        min_snr_gamma,
        clip,
        grad_scale,
        native.threads(),
    )
    if not in_order:
        _check_values(phis, prediction_type, teacher_type, weighting, min_snr_gamma, clip)
    return loss, grad


declare("distillation_loss", {"reference": distillation_loss_reference, "cpu": _distillation_loss_cpu})


def _implementation(
    pred: Tensor,
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    prediction_type: str,
    teacher_type: str,
    weighting: str,
    min_snr_gamma: float,
    clip: float | None,
    grad_scale: float,
    need_grad: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    run = choose("distillation_loss", z.device.type, backend)
    if run is not _distillation_loss_cpu:  # the C++ kernel looks at the values on its way
        _check_values(phis, prediction_type, teacher_type, weighting, min_snr_gamma, clip)
    return run(
        pred, z, outs, phis, prediction_type, teacher_type, weighting, min_snr_gamma, clip, grad_scale, need_grad
    )


def _check_values(
    phis: Tensor,
    prediction_type: str,
    teacher_type: str,
    weighting: str,
    min_snr_gamma: float,
    clip: float | None,
) -> None:
    check_target_values(phis, teacher_type, rotation.domain(prediction_type), clip)
    check_scale_values(phis[0], prediction_type, weighting, min_snr_gamma)


def check_scale_values(phi: Tensor, prediction_type: str, weighting: str, min_snr_gamma: float) -> None:
    """Refuses an infinite weight; no-op for tensors that are not on the CPU."""
    if phi.device.type != "cpu":
        return
    scale, _ = rotation.loss_scale(prediction_type, weighting, phi, min_snr_gamma)
    checks.check_finite((scale,), f"weighting {weighting!r} of a {prediction_type!r} prediction", phi)


def _fake(
    pred, z, outs, phis, prediction_type, teacher_type, weighting, min_snr_gamma, clip, grad_scale, need_grad, backend
):
    return fake_loss(pred, z, need_grad)


def _setup_context(ctx, inputs, output) -> None:
    ctx.teacher_steps = len(inputs[2])
    save_gradient(ctx, output[1])


def _backward(ctx, grad_loss: Tensor, _) -> tuple:
    return scale_gradient(ctx, grad_loss), None, [None] * ctx.teacher_steps, *(None,) * 9


_distillation_loss = register(
    "distillation_loss(Tensor pred, Tensor z, Tensor[] outs, Tensor phis, str prediction_type, str teacher_type,"
    " str weighting, float min_snr_gamma, float? clip, float grad_scale, bool need_grad, str? backend)"
    " -> (Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
