"""The 2-norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` measures it, in one pass over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.ops import checks, native
from progdistill.ops.backends import choose, declare
from progdistill.ops.layout import is_dense
from progdistill.ops.registration import register

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def gradient_norm(grads: Sequence[Tensor], *, backend: str | None = None) -> Tensor:
    """sqrt of the sum of all elements squared, accumulated in float64 and rounded once.

    So it is finite where the squares leave float32's range, and within half a unit in the last place. The kernels add
    up fixed chunks in a fixed order: equal gradients give equal bits, whatever the threads, the device's size and the
    split into tensors' launches. Nothing waits for the device.

    Args:
        grads: float32, bfloat16 or float64 tensors on one device, of any shapes and strides; none is changed.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        A tensor of shape () on the gradients' device: float64 if any of them is, else float32, which is what the
        optimizer and the logs take. 0 for no gradients. Not differentiable.

    Raises:
        TypeError, ValueError: another dtype, several devices, gradients that require gradients.
    """
    grads = list(grads)
    if not grads:
        return torch.zeros(())
    device = grads[0].device
    for i, grad in enumerate(grads):
        if grad.dtype not in _DTYPES or grad.layout != torch.strided:
            raise TypeError(
                f"grads[{i}] is {grad.dtype}, {grad.layout}; expected dense float32, bfloat16 or float64 tensors"
            )
        if grad.device != device:
            raise ValueError(f"grads[{i}] is on {grad.device}, grads[0] on {device}; move one of them")
        if grad.requires_grad:
            checks.check_no_gradient("gradient_norm", {f"grads[{i}]": grad})
    return _gradient_norm(grads, backend)


def gradient_norm_reference(grads: list[Tensor]) -> Tensor:
    """The formula in plain PyTorch."""
    squares = torch.stack([grad.double().square().sum() for grad in grads])
    return squares.sum().sqrt().to(_result_dtype(grads))


def _gradient_norm_native(grads: list[Tensor]) -> Tensor:
    norm = _fake(grads, None)
    in_a_row = [grad if is_dense(grad) else grad.contiguous() for grad in grads]
    where = native.run(norm)
    partials = None
    if not isinstance(where, int):
        chunk = native._C.gradient_norm_chunk
        count = sum(-(-grad.numel() // chunk) for grad in grads)
        partials = native.view(norm.new_empty(count, dtype=torch.float64))
    native._C.gradient_norm(native.view(norm), [native.view(grad) for grad in in_a_row], partials, where)
    return norm


def _gradient_norm_triton(grads: list[Tensor]) -> Tensor:
    from progdistill.ops.triton_kernels.gradient_norm import gradient_norm

    norm = _fake(grads, None)
    gradient_norm(norm, [grad if is_dense(grad) else grad.contiguous() for grad in grads])
    return norm


declare(
    "gradient_norm",
    {
        "reference": gradient_norm_reference,
        "cpu": _gradient_norm_native,
        "cuda": _gradient_norm_native,
        "triton": _gradient_norm_triton,
    },
)


def _implementation(grads: list[Tensor], backend: str | None) -> Tensor:
    return choose("gradient_norm", grads[0].device.type, backend)(grads)


def _fake(grads: list[Tensor], backend: str | None) -> Tensor:
    return grads[0].new_empty((), dtype=_result_dtype(grads))


def _result_dtype(grads: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32


_gradient_norm = register("gradient_norm(Tensor[] grads, str? backend) -> Tensor", _implementation, _fake)
