"""The weighted residual of both losses, r = s (own(pred) - target), what they make of it, and the gradient, in plain
PyTorch.

Everything in it is linear in the tensors with per-sample coefficients (see `rotation`), so prediction types and
weightings are numbers, not cases. Clipping alone needs the states between the teacher's steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from progdistill.ops import rotation
from progdistill.ops.layout import dense, memory_format, per_sample, split_heads
from progdistill.ops.loss_options import LossOptions
from progdistill.ops.names import heads


def target_reference(
    z: Tensor, outs: list[Tensor], form: rotation.TargetForm, phis: Tensor, prediction_type: str, clip: float | None
) -> Tensor:
    """The target that `form` describes, from the teacher's outputs along phis."""
    parts = [split_heads(out, heads(prediction_type), z.dtype) for out in outs]
    target = per_sample(form.z, z) * z
    for coefficients, part in zip(form.output, parts, strict=True):
        for coefficient, head in zip(coefficients, part, strict=True):
            target = target + per_sample(coefficient, z) * head
    if clip is not None:
        for coefficient, excess in zip(form.excess, _excesses(z, parts, phis, prediction_type, clip), strict=True):
            target = target + per_sample(coefficient, z) * excess
    return target


def _excesses(z: Tensor, parts: list, phis: Tensor, prediction_type: str, clip: float) -> list[Tensor]:
    # x_j - clip(x_j) at each of the teacher's states. An excess is exactly zero where nothing is clipped, so there
    # the unclipped formula stands to the last digit, however small the angle.
    excesses = []
    for j, part in enumerate(parts):
        form = rotation.step_form(prediction_type, phis[j], phis[j + 1])
        x = per_sample(form.x.z, z) * z
        for coefficient, head in zip(form.x.output, part, strict=True):
            x = x + per_sample(coefficient, z) * head
        clipped = x.clamp(-clip, clip)
        excesses.append(x - clipped)
        z = per_sample(form.z_of_clipped, z) * z + per_sample(form.x_of_clipped, z) * clipped
    return excesses


def weighted_residual(pred: Tensor, target: Tensor, phi: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """(loss (B,), its gradient for pred times grad_scale) with `target` in pred's own quantity."""
    scale, coefficients = rotation.loss_scale(options.prediction_type, options.weighting, phi, options.min_snr_gamma)
    own = sum(
        per_sample(c, target) * head
        for c, head in zip(coefficients, split_heads(pred, len(coefficients), target.dtype), strict=True)
    )
    residual = own - target
    value, derivative, factor = _penalty(per_sample(scale, target) * residual, options)
    loss = value.flatten(1).mean(dim=1)
    if not options.need_grad:
        return loss, pred.new_empty(0)
    elements = math.prod(target.shape[1:])
    slope = factor * options.grad_scale / elements * scale
    grad = torch.cat([per_sample(slope * c, target) * derivative for c in coefficients], dim=1)
    return loss, dense(grad.to(pred.dtype), memory_format(pred))


def _penalty(r: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, float]:
    # (f(r), f'(r) but for a factor, the factor).
    if options.loss_type == "l2":
        return r.square(), r, 2.0
    if options.loss_type == "l1":
        return r.abs(), torch.where(r.isnan(), r, r.sign()), 1.0  # torch's sign of NaN is 0, which would hide it
    root = torch.sqrt(r.square() + options.huber_c**2)
    return r.square() / (root + options.huber_c), r / root, 1.0  # root - c without its cancellation


def fake_loss(pred: Tensor, z: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    """Shapes, dtypes and layout of a loss operator's results."""
    grad = torch.empty_like(pred, memory_format=memory_format(pred)) if need_grad else pred.new_empty(0)
    return z.new_empty(z.shape[0]), grad


def save_gradient(ctx, grad: Tensor) -> None:
    """Keeps the gradient that the forward pass has already computed."""
    ctx.mark_non_differentiable(grad)
    ctx.save_for_backward(grad)


def scale_gradient(ctx, grad_loss: Tensor) -> Tensor:
    """The gradient for pred: the saved one times the incoming cotangent of each sample's loss.

    Raises:
        RuntimeError: a second derivative is asked for (`create_graph=True`), which the saved gradient cannot give.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the loss is differentiable once; for second derivatives write it in plain PyTorch with "
            "progdistill.ops.distillation_target"
        )
    (grad,) = ctx.saved_tensors
    return grad * grad_loss.to(grad.dtype).reshape(-1, *(1,) * (grad.dim() - 1))
