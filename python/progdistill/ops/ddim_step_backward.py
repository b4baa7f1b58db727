"""The gradients of a DDIM step for its state and for the network's output."""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import native, rotation
from progdistill.ops.layout import dense, memory_format, per_sample, split_heads
from progdistill.ops.names import PREDICTION_TYPES, heads

Gradients = tuple[Tensor | None, Tensor | None]


def ddim_step_backward_reference(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor] | None,
    phis: tuple[Tensor, Tensor],
    prediction_type: str,
    clip: float | None,
    out_dtype: torch.dtype,
    needed: tuple[bool, bool],
) -> Gradients:
    """In plain PyTorch, differentiable again.

    Args:
        grad: (B, ...), the gradient for z at phi_next.
        inputs: z and the network's output; only read with a `clip`.
        phis: phi and phi_next of a call that has been checked.
        prediction_type, clip: of that call.
        out_dtype: of the network's output.
        needed: whether the gradient for z is asked for, and that for the output.

    Returns:
        Both gradients, None for what is not needed.
    """
    form = rotation.step_form(prediction_type, *phis)
    through_z = None
    if clip is None:
        upstream, factors = grad, form.direct.output
        if needed[0]:
            through_z = per_sample(form.direct.z, grad) * grad
    else:
        z, out = inputs
        x = rotation.linear(form.x, z, split_heads(out, heads(prediction_type), z.dtype))
        upstream, factors = per_sample(form.x_of_clipped, grad) * grad * (x.abs() <= clip), form.x.output
        if needed[0]:
            through_z = per_sample(form.z_of_clipped, grad) * grad + per_sample(form.x.z, grad) * upstream
    if not needed[1]:
        return through_z, None
    return through_z, torch.cat([per_sample(c, grad) * upstream for c in factors], dim=1).to(out_dtype)


def ddim_step_backward_native(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor] | None,
    phis: tuple[Tensor, Tensor],
    prediction_type: str,
    clip: float | None,
    out_dtype: torch.dtype,
    needed: tuple[bool, bool],
) -> Gradients:
    """The same by the C++ kernel, for CPU tensors."""
    format = memory_format(grad)
    grad = dense(grad, format)
    shape = (len(grad), heads(prediction_type) * grad.shape[1], *grad.shape[2:])
    through_z = torch.empty_like(grad, memory_format=format) if needed[0] else None
    through_out = torch.empty(shape, dtype=out_dtype, memory_format=format) if needed[1] else None
    z, out = (None, None) if clip is None else (native.view(dense(tensor, format)) for tensor in inputs)
    native._C.ddim_step_backward(
        None if through_z is None else native.view(through_z),
        None if through_out is None else native.view(through_out),
        native.view(grad),
        z,
        out,
        *(native.view(phi.contiguous()) for phi in phis),
        PREDICTION_TYPES.index(prediction_type),
        clip,
        native.run(grad),
    )
    return through_z, through_out
