"""The same weighted loss against a target that is given: Algorithm 1 (target = clean data), conversions, guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import checks, native, rotation
from progdistill.ops.backends import choose, declare
from progdistill.ops.distillation_loss import check_scale_values
from progdistill.ops.layout import dense, memory_format, per_sample, split_heads
from progdistill.ops.names import PREDICTION_TYPES, WEIGHTINGS, canonical_prediction_type, canonical_weighting, heads
from progdistill.ops.registration import register
from progdistill.ops.residual import fake_loss, save_gradient, scale_gradient, squared_residual


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
    backend: str | None = None,
) -> Tensor:
    """The weighted squared error of a network's output against a target, for each sample.

    Args:
        pred: the network's own output at (z, phi); z's dtype or bfloat16; 2C channels if two-headed.
        z: (B, ...) float32 or float64 state.
        target: what the prediction should be: "sample" = clean data, "epsilon" = the noise, and so on.
        phi: (B,) float64 angles in [0, pi/2].
        prediction_type, target_type: what `pred` and `target` are.
        weighting, min_snr_gamma: as in `distillation_loss`.
        backend: force "reference" or "cpu"; default: the best available.

    Returns:
        loss (B,) in z's dtype: mean over the sample's elements. Differentiable once, and in `pred` only.

    Raises:
        TypeError, ValueError: as `distillation_loss`.
    """
    arguments = _checked(pred, z, target, phi, prediction_type, target_type, weighting, min_snr_gamma)
    need_grad = torch.is_grad_enabled() and pred.requires_grad
    return _prediction_loss(*arguments, 1.0, need_grad, backend)[0]


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
    grad_scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`prediction_loss` and grad_scale times its gradient for `pred`, for loops that call `pred.backward(grad)`."""
    arguments = _checked(pred.detach(), z, target, phi, prediction_type, target_type, weighting, min_snr_gamma)
    return _prediction_loss(*arguments, grad_scale, True, backend)


def _checked(pred, z, target, phi, prediction_type, target_type, weighting, min_snr_gamma) -> tuple:
    prediction_type = canonical_prediction_type(prediction_type)
    target_type = canonical_prediction_type(target_type)
    weighting = canonical_weighting(weighting)
    checks.check_state("z", z)
    checks.check_output("pred", pred, prediction_type, z)
    checks.check_output("target", target, target_type, z)
    checks.check_angle("phi", phi, z)
    checks.check_min_snr_gamma(min_snr_gamma)
    checks.check_no_gradient("prediction_loss", {"z": z, "target": target, "phi": phi})
    return pred, z, target, phi, prediction_type, target_type, weighting, min_snr_gamma


def prediction_loss_reference(
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    prediction_type: str,
    target_type: str,
    weighting: str,
    min_snr_gamma: float,
    grad_scale: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The formula in plain PyTorch."""
    form = rotation.prediction_form(target_type, rotation.domain(prediction_type), phi)
    own_target = per_sample(form.z, z) * z
    for coefficient, head in zip(form.output, split_heads(target, heads(target_type), z.dtype), strict=True):
        own_target = own_target + per_sample(coefficient, z) * head
    return squared_residual(pred, own_target, phi, prediction_type, weighting, min_snr_gamma, grad_scale, need_grad)


def _prediction_loss_cpu(
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    prediction_type: str,
    target_type: str,
    weighting: str,
    min_snr_gamma: float,
    grad_scale: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    format = memory_format(pred)
    loss, grad = fake_loss(pred, z, need_grad)
    in_order = native._C.prediction_loss(
        native.view(loss),
        native.view(grad) if need_grad else None,
        native.view(dense(pred, format)),
        native.view(dense(z, format)),
        native.view(dense(target, format)),
        native.view(phi.contiguous()),
        PREDICTION_TYPES.index(prediction_type),
        PREDICTION_TYPES.index(target_type),
        WEIGHTINGS.index(weighting),
        min_snr_gamma,
        grad_scale,
        native.threads(),
    )
    if not in_order:
        _check_values(phi, prediction_type, target_type, weighting, min_snr_gamma)
    return loss, grad


declare("prediction_loss", {"reference": prediction_loss_reference, "cpu": _prediction_loss_cpu})


def _implementation(
    pred: Tensor,
    z: Tensor,
    target: Tensor,
    phi: Tensor,
    prediction_type: str,
    target_type: str,
    weighting: str,
    min_snr_gamma: float,
    grad_scale: float,
    need_grad: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    run = choose("prediction_loss", z.device.type, backend)
    if run is not _prediction_loss_cpu:  # the C++ kernel looks at the values on its way
        _check_values(phi, prediction_type, target_type, weighting, min_snr_gamma)
    return run(pred, z, target, phi, prediction_type, target_type, weighting, min_snr_gamma, grad_scale, need_grad)


def _check_values(phi: Tensor, prediction_type: str, target_type: str, weighting: str, min_snr_gamma: float) -> None:
    checks.check_angle_values("phi", phi)
    if phi.device.type != "cpu":
        return
    form = rotation.prediction_form(target_type, rotation.domain(prediction_type), phi)
    checks.check_finite((form.z, *form.output), f"a {target_type!r} target for a {prediction_type!r} prediction", phi)
    check_scale_values(phi, prediction_type, weighting, min_snr_gamma)


def _fake(pred, z, target, phi, prediction_type, target_type, weighting, min_snr_gamma, grad_scale, need_grad, backend):
    return fake_loss(pred, z, need_grad)


def _setup_context(ctx, inputs, output) -> None:
    save_gradient(ctx, output[1])


def _backward(ctx, grad_loss: Tensor, _) -> tuple:
    return scale_gradient(ctx, grad_loss), *(None,) * 10


_prediction_loss = register(
    "prediction_loss(Tensor pred, Tensor z, Tensor target, Tensor phi, str prediction_type, str target_type,"
    " str weighting, float min_snr_gamma, float grad_scale, bool need_grad, str? backend) -> (Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
