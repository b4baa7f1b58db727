"""The sum that stands before a resampling convolution, and its asymmetric padding, in one pass over memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from progdistill.ops import native
from progdistill.ops.backends import choose, declare
from progdistill.ops.images import (
    channels_last,
    check_channel_values,
    check_first_image,
    check_image,
    is_left_to_reference,
    row,
)
from progdistill.ops.layout import dense
from progdistill.ops.registration import register


def padded_sum(
    x: Tensor,
    *,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    padding: int = 0,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """u = (x + residual) + shift, and u with rows and columns of zeros at the bottom and to the right.

    What is left out adds nothing, and where nothing is added u is x itself. The padding is that before a convolution of
    stride 2 in Ho et al. 2020, `F.pad(u, (0, 1, 0, 1))`.

    The compiled kernels work in channels_last order. An x in another order is brought there and the results back: twice
    as many passes over memory.

    Args:
        x: (B, C, H, W), float32, float64 or bfloat16.
        shift: (B, C), (1, C) or (C,): the preceding convolution's bias, say. float32, or the dtype of x.
        residual: (B, C, H, W), in the dtype of x.
        padding: 0, or 1 for a row and a column of zeros.
        backend: force "reference", "cuda" or "triton" (float32 and bfloat16 only); default: the best available.

    Returns:
        u (B, C, H, W); with padding (u, padded), padded (B, C, H + 1, W + 1). Both have the dtype and memory format of
        x (channels_last where it has either). Arithmetic is float32 (float64 for a float64 x), rounded once.
        Differentiable in all tensors, any number of times; the gradient of u alone is handed on without a pass.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or padding, with what is allowed.
    """
    _check(x, shift, residual, padding)
    if is_left_to_reference("padded_sum", x.device.type, x.dtype, backend):
        return padded_sum_reference(x, shift=shift, residual=residual, padding=padding)
    adds = shift is not None or residual is not None
    if not adds and padding == 0:
        return x
    format = _memory_format(x)
    u, padded = _padded_sum(channels_last(x), channels_last(residual), shift, int(padding), backend)
    u = dense(u, format) if adds else x
    return u if padding == 0 else (u, dense(padded, format))


def padded_sum_reference(
    x: Tensor, *, shift: Tensor | None = None, residual: Tensor | None = None, padding: int = 0
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula in plain PyTorch, differentiable by autograd."""
    format = _memory_format(x)
    computing = torch.promote_types(x.dtype, torch.float32)
    u = x
    if residual is not None:
        u = u.to(computing) + residual
    if shift is not None:
        u = u.to(computing) + shift.to(computing).unsqueeze(-1).unsqueeze(-1)
    if u is not x:
        u = dense(u.to(x.dtype), format)
    return u if padding == 0 else (u, dense(F.pad(u, (0, padding, 0, padding)), format))


def _check(x: Tensor, shift: Tensor | None, residual: Tensor | None, padding: int) -> None:
    check_first_image("x", x)
    samples, channels = x.shape[:2]
    if residual is not None:
        check_image("residual", residual, x)
    if shift is not None:
        check_channel_values("shift", shift, ((samples, channels), (1, channels), (channels,)), x)
    if padding not in (0, 1):
        raise ValueError(f"padding is {padding}; use 0, or 1 for a row and a column of zeros, or F.pad for others")


def _memory_format(x: Tensor) -> torch.memory_format:
    """channels_last also where x is contiguous in both orders: padded, it is not, and the kernels write that one."""
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


# The kernels' calls, the same for every compiled backend. All tensors are of one device and dense, images in
# channels_last order; the first ones are results, allocated by the caller; what is None is left out. The batch may be
# empty.
#
# forward(u, padded, x, residual, shift, padding)
#     shift (B, C) or (1, C), float32 or as x.
#
# backward(du, dsum, dpadded, padding)
#     du = dsum + dpadded[:, :, :H, :W], the gradient of x and residual alike.


def _forward_native(*arguments) -> None:
    *tensors, padding = arguments
    native._C.padded_sum(*map(native.view, tensors), padding, native.run(tensors[2]))


def _backward_native(*arguments) -> None:
    *tensors, padding = arguments
    native._C.padded_sum_backward(*map(native.view, tensors), padding, native.run(tensors[0]))


def _forward_triton(*arguments) -> None:
    from progdistill.ops.triton_kernels import padded_sum

    padded_sum.forward(*arguments)


def _backward_triton(*arguments) -> None:
    from progdistill.ops.triton_kernels import padded_sum

    padded_sum.backward(*arguments)


declare("padded_sum", {"reference": padded_sum_reference, "cuda": _forward_native, "triton": _forward_triton})
_BACKWARD = {_forward_native: _backward_native, _forward_triton: _backward_triton}


def _implementation(
    x: Tensor, residual: Tensor | None, shift: Tensor | None, padding: int, backend: str | None
) -> tuple[Tensor, Tensor]:
    u, padded = _fake(x, residual, shift, padding, backend)
    forward = choose("padded_sum", x.device.type, backend)
    results = u if _has_sum(residual, shift, padding) else None, padded if padding else None
    forward(*results, channels_last(x), channels_last(residual), row(shift), padding)
    return u, padded


def _has_sum(residual: Tensor | None, shift: Tensor | None, padding: int) -> bool:
    """Whether the operator forms u: not where it would be x, which an operator must not return, beside its padding."""
    return residual is not None or shift is not None or padding == 0


def _fake(x, residual, shift, padding, backend):
    """What is left out is empty."""
    u = _image(x, 0) if _has_sum(residual, shift, padding) else x.new_empty(0)
    return u, _image(x, padding) if padding else x.new_empty(0)


def _image(like: Tensor, padding: int) -> Tensor:
    """Room for an image that has so many more rows and columns."""
    shape = (*like.shape[:2], like.shape[2] + padding, like.shape[3] + padding)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _setup_context(ctx, inputs, output) -> None:
    _, residual, shift, ctx.padding, ctx.backend = inputs
    kept = _has_sum(residual, shift, ctx.padding), ctx.padding > 0
    ctx.mark_non_differentiable(*(value for value, is_result in zip(output, kept, strict=True) if not is_result))
    ctx.set_materialize_grads(False)
    ctx.has_residual = residual is not None
    ctx.shift_like = None if shift is None else (shift.shape, shift.dtype)


def _backward(ctx, dsum: Tensor | None, dpadded: Tensor | None) -> tuple:
    du = dsum if dpadded is None else _padded_sum_backward(dsum, dpadded, ctx.padding, ctx.backend)
    dshift = None
    if du is not None and ctx.shift_like is not None and ctx.needs_input_grad[2]:
        shape, dtype = ctx.shift_like
        own = len(shape) == 2 and shape[0] == len(du)
        dshift = du.sum((2, 3) if own else (0, 2, 3), dtype=torch.float32).reshape(shape).to(dtype)
    return du, du if ctx.has_residual else None, dshift, None, None


_padded_sum = register(
    "padded_sum(Tensor x, Tensor? residual, Tensor? shift, int padding, str? backend) -> (Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)


def _backward_implementation(dsum: Tensor | None, dpadded: Tensor, padding: int, backend: str | None) -> Tensor:
    du = _backward_fake(dsum, dpadded, padding, backend)
    backward = _BACKWARD[choose("padded_sum", dpadded.device.type, backend)]
    backward(du, channels_last(dsum), channels_last(dpadded), padding)
    return du


def _backward_fake(dsum, dpadded, padding, backend):
    return _image(dpadded, -padding)


def _setup_backward_context(ctx, inputs, output) -> None:
    dsum, _, ctx.padding, _ = inputs
    ctx.has_sum = dsum is not None


def _backward_of_backward(ctx, grad: Tensor) -> tuple:
    padding = ctx.padding
    return grad if ctx.has_sum else None, F.pad(grad, (0, padding, 0, padding)), None, None


_padded_sum_backward = register(
    "padded_sum_backward(Tensor? dsum, Tensor dpadded, int padding, str? backend) -> Tensor",
    _backward_implementation,
    _backward_fake,
    setup_context=_setup_backward_context,
    backward=_backward_of_backward,
)
