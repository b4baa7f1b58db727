"""The gradients of a DDIM step for its state and for the network's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.ops import native, rotation
from progdistill.ops.layout import dense, memory_format, per_sample, split_heads
from progdistill.ops.names import PREDICTION_TYPES, heads

Gradients = tuple[Tensor | None, Tensor | None]


class StepTaken(NamedTuple):
    """A checked call of `ddim_step`, and which gradients of it are asked for."""

    phi: Tensor
    phi_next: Tensor
    inputs: Sequence[Tensor]
    """z and the network's output; only read with a clip."""
    prediction_type: str
    clip: float | None
    out_dtype: torch.dtype
    """Of the network's output."""
    for_z: bool
    for_out: bool


def ddim_step_backward_reference(grad: Tensor, step: StepTaken) -> Gradients:
    """The gradients for z and the output, None for what is not asked for, given that for z at phi_next (B, ...).

    In plain PyTorch, so differentiable again.
    """
    form = rotation.step_form(step.prediction_type, step.phi, step.phi_next)
    through_z = None
    if step.clip is None:
        upstream, factors = grad, form.direct.output
        if step.for_z:
            through_z = per_sample(form.direct.z, grad) * grad
    else:
        z, out = step.inputs
        x = rotation.linear(form.x, z, split_heads(out, heads(step.prediction_type), z.dtype))
        upstream, factors = per_sample(form.x_of_clipped, grad) * grad * (x.abs() <= step.clip), form.x.output
        if step.for_z:
            through_z = per_sample(form.z_of_clipped, grad) * grad + per_sample(form.x.z, grad) * upstream
    if not step.for_out:
        return through_z, None
    return through_z, torch.cat([per_sample(c, grad) * upstream for c in factors], dim=1).to(step.out_dtype)


def ddim_step_backward_native(grad: Tensor, step: StepTaken) -> Gradients:
    """The same by the C++ kernel, for CPU tensors."""
    format = memory_format(grad)
    grad = dense(grad, format)
    shape = (len(grad), heads(step.prediction_type) * grad.shape[1], *grad.shape[2:])
    through_z = torch.empty_like(grad, memory_format=format) if step.for_z else None
    through_out = torch.empty(shape, dtype=step.out_dtype, memory_format=format) if step.for_out else None
    images = [None, None] if step.clip is None else [dense(tensor, format) for tensor in step.inputs]
    native._C.ddim_step_backward(
        *(None if tensor is None else native.view(tensor) for tensor in (through_z, through_out, grad, *images)),
        native.view(step.phi.contiguous()),
        native.view(step.phi_next.contiguous()),
        PREDICTION_TYPES.index(step.prediction_type),
        step.clip,
        native.run(grad),
    )
    return through_z, through_out
