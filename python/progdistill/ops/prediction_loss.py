"""The same weighted loss against a target that is given: Algorithm 1 (target = clean data), conversions, guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import checks, native, rotation
from progdistill.ops.backends import choose, declare
from progdistill.ops.layout import dense, interleaved_channels, memory_format, per_sample, split_heads
from progdistill.ops.loss_options import OPTIONS_SCHEMA, LossOptions, check_scale_values, checked_options
from progdistill.ops.names import PREDICTION_TYPES, canonical_prediction_type, heads
from progdistill.ops.registration import register
from progdistill.ops.residual import fake_loss, save_gradient, scale_gradient, weighted_residual


def prediction_loss(
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    *,
    prediction_type: str,
    target_type: str,
    weighting: str,
    min_snr_gamma: float = 5.0,
    loss_type: str = "l2",
    huber_c: float = 1e-3,
    backend: str | None = None,
) -> Tensor:
    """The weighted error of a network's output against a target, for each sample.

    Args:
        pred: the network's own output at (z, phi); z's dtype or bfloat16; 2C channels if two-headed.
        z: (B, ...) float32 or float64 state.
        target: what the prediction should be: "sample" = clean data, "epsilon" = the noise, and so on.
        phi: (B,) float64 angles in [0, pi/2].
        prediction_type, target_type: what `pred` and `target` are.
        weighting, min_snr_gamma, loss_type, huber_c: as in `distillation_loss`.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        loss (B,) in z's dtype: mean over the sample's elements. Differentiable once, and in `pred` only.

    Raises:
        TypeError, ValueError: as `distillation_loss`.
    """
    need_grad = torch.is_grad_enabled() and pred.requires_grad
    options = checked_options(prediction_type, weighting, min_snr_gamma, loss_type, huber_c, 1.0, need_grad)
    return _checked_call(pred, z, target, phi, target_type, options, backend)[0]


def prediction_loss_and_grad(
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    *,
    prediction_type: str,
    target_type: str,
    weighting: str,
    min_snr_gamma: float = 5.0,
    loss_type: str = "l2",
    huber_c: float = 1e-3,
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`prediction_loss` and grad_scale times its gradient for `pred`, for loops that call `pred.backward(grad)`."""
    options = checked_options(prediction_type, weighting, min_snr_gamma, loss_type, huber_c, grad_scale, True)
    return _checked_call(pred.detach(), z, target, phi, target_type, options, backend)


def _checked_call(
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    target_type: str,
    options: LossOptions,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    target_type = canonical_prediction_type(target_type)
    checks.check_state("z", z)
    checks.check_output("pred", pred, options.prediction_type, z)
    checks.check_output("target", target, target_type, z)
    checks.check_angle("phi", phi, z)
    checks.check_no_gradient("prediction_loss", {"z": z, "target": target, "phi": phi})
    return _prediction_loss(pred, z, target, phi, target_type, *options, backend)


def prediction_loss_reference(
    pred: Tensor, z: Tensor, target: Tensor, phi: Tensor, target_type: str, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch."""
    form = rotation.prediction_form(target_type, rotation.domain(options.prediction_type), phi)
    own_target = per_sample(form.z, z) * z
    for coefficient, head in zip(form.output, split_heads(target, heads(target_type), z.dtype), strict=True):
        own_target = own_target + per_sample(coefficient, z) * head
    return weighted_residual(pred, own_target, phi, options)


def _prediction_loss_native(
    pred: Tensor, z: Tensor, target: Tensor, phi: Tensor, target_type: str, options: LossOptions
) -> tuple[Tensor, Tensor]:
    format = memory_format(pred)
    loss, grad = fake_loss(pred, z, options.need_grad)
    in_order = native._C.prediction_loss(
        native.view(loss),
        native.view(grad) if options.need_grad else None,
        native.view(dense(pred, format)),
        native.view(dense(z, format)),
        native.view(dense(target, format)),
        native.view(phi.contiguous()),
        PREDICTION_TYPES.index(target_type),
        options.for_extension(),
        native.partial_sums(z),
        native.run(z),
    )
    if not in_order:
        _check_values(phi, target_type, options)
    return loss, grad


def _prediction_loss_triton(
    pred: Tensor, z: Tensor, target: Tensor, phi: Tensor, target_type: str, options: LossOptions
) -> tuple[Tensor, Tensor]:
    from progdistill.ops.triton_kernels.prediction_loss import prediction_loss

    format = memory_format(pred)
    loss, grad = fake_loss(pred, z, options.need_grad)
    images = dense(pred, format), dense(z, format), dense(target, format)
    channels = interleaved_channels(z, format)
    prediction_loss(loss, grad, *images, phi.contiguous(), target_type, options, channels)
    return loss, grad


declare(
    "prediction_loss",
    {
        "reference": prediction_loss_reference,
        "cpu": _prediction_loss_native,
        "cuda": _prediction_loss_native,
        "triton": _prediction_loss_triton,
    },
)


def _implementation(
    pred: Tensor, z: Tensor, target: Tensor, phi: Tensor, target_type: str, *flat
) -> tuple[Tensor, Tensor]:
    *values, backend = flat
    options = LossOptions(*values)
    run = choose("prediction_loss", z.device.type, backend)
    if run is not _prediction_loss_native:  # the C++ kernel looks at the values on its way
        _check_values(phi, target_type, options)
    return run(pred, z, target, phi, target_type, options)


def _check_values(phi: Tensor, target_type: str, options: LossOptions) -> None:
    checks.check_angle_values("phi", phi)
    if phi.device.type != "cpu":
        return
    form = rotation.prediction_form(target_type, rotation.domain(options.prediction_type), phi)
    what = f"a {target_type!r} target for a {options.prediction_type!r} prediction"
    checks.check_finite((form.z, *form.output), what, phi)
    check_scale_values(phi, options)


def _fake(pred, z, target, phi, target_type, *flat):
    return fake_loss(pred, z, LossOptions(*flat[:-1]).need_grad)


def _setup_context(ctx, inputs, output) -> None:
    ctx.constants = len(inputs) - 1
    save_gradient(ctx, output[1])


def _backward(ctx, grad_loss: Tensor, _) -> tuple:
    return scale_gradient(ctx, grad_loss), *(None,) * ctx.constants


_prediction_loss = register(
    f"prediction_loss(Tensor pred, Tensor z, Tensor target, Tensor phi, str target_type, {OPTIONS_SCHEMA},"
    " str? backend) -> (Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
