"""The forward process: z = cos(phi) x + sin(phi) noise (Salimans & Ho 2022, eq. 1 with alpha = cos, sigma = sin)."""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import checks, native
from progdistill.ops.backends import choose, declare
from progdistill.ops.layout import dense, memory_format, per_sample
from progdistill.ops.registration import is_plain_call, register


def diffuse(x: Tensor, noise: Tensor, phi: Tensor, *, backend: str | None = None) -> Tensor:
    """Noises clean data to the angle phi: z = cos(phi) x + sin(phi) noise.

    Args:
        x: (B, ...) float32 or float64, data in [-1, 1] by convention.
        noise: like x, standard normal.
        phi: (B,) float64 angles in [0, pi/2].
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        z, with the shape, dtype and memory layout of x. Differentiable in x and noise.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or angle, with what is allowed.
    """
    checks.check_state("x", x)
    checks.check_same("noise", noise, "x", x)
    checks.check_angle("phi", phi, x)
    checks.check_no_gradient("diffuse", {"phi": phi})
    return _diffuse(x, noise, phi, backend)


def diffuse_reference(x: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
    """The formula in plain PyTorch."""
    return per_sample(torch.cos(phi), x) * x + per_sample(torch.sin(phi), x) * noise


def _diffuse_native(x: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
    format = memory_format(x)
    x, noise = dense(x, format), dense(noise, format)
    z = torch.empty_like(x, memory_format=format)
    in_order = native._C.diffuse(
        native.view(z), native.view(x), native.view(noise), native.view(phi.contiguous()), native.run(x)
    )
    if not in_order:
        checks.check_angle_values("phi", phi)
    return z


def _diffuse_triton(x: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
    from progdistill.ops.triton_kernels.diffuse import diffuse

    format = memory_format(x)
    z = torch.empty_like(x, memory_format=format)
    diffuse(z, dense(x, format), dense(noise, format), phi.contiguous())
    return z


declare(
    "diffuse",
    {
        "reference": diffuse_reference,
        "cpu": _diffuse_native,
        "cuda": _diffuse_native,
        "triton": _diffuse_triton,
    },
)


def _implementation(x: Tensor, noise: Tensor, phi: Tensor, backend: str | None) -> Tensor:
    run = choose("diffuse", x.device.type, backend)
    if run is _diffuse_native:  # looks at the values on its way, and writes z as x lies
        return run(x, noise, phi)
    checks.check_angle_values("phi", phi)
    return dense(run(x, noise, phi), memory_format(x))


def _fake(x: Tensor, noise: Tensor, phi: Tensor, backend: str | None) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _setup_context(ctx, inputs, output) -> None:
    x, _, phi, backend = inputs
    ctx.save_for_backward(phi)
    ctx.on_cpu_kernel = x.device.type == "cpu" and choose("diffuse", "cpu", backend) is _diffuse_native


def _backward(ctx, grad: Tensor):
    (phi,) = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    if ctx.on_cpu_kernel and is_plain_call(grad):
        return *_backward_native(grad, phi, needed), None, None
    factors = torch.cos(phi), torch.sin(phi)
    found = (per_sample(c, grad) * grad if wanted else None for c, wanted in zip(factors, needed, strict=True))
    return *found, None, None


def _backward_native(grad: Tensor, phi: Tensor, needed: tuple[bool, bool]) -> list[Tensor | None]:
    format = memory_format(grad)
    grad = dense(grad, format)
    found = [torch.empty_like(grad, memory_format=format) if wanted else None for wanted in needed]
    views = (None if one is None else native.view(one) for one in found)
    native._C.diffuse_backward(*views, native.view(grad), native.view(phi.contiguous()), native.run(grad))
    return found


_diffuse = register(
    "diffuse(Tensor x, Tensor noise, Tensor phi, str? backend) -> Tensor",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
