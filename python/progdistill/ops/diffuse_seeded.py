"""The forward process with noise drawn on the way: `diffuse` of `normal`, which is never written to memory."""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import checks, native
from progdistill.ops.backends import choose, declare
from progdistill.ops.diffuse import diffuse_reference
from progdistill.ops.layout import dense, interleaved_channels, memory_format, per_sample
from progdistill.ops.normal import check_draw, normal_reference
from progdistill.ops.registration import register


def diffuse_seeded(
    x: Tensor, seeds: Tensor, step: int | Tensor, stream: int, phi: Tensor, *, backend: str | None = None
) -> Tensor:
    """z = cos(phi) x + sin(phi) noise with the noise of `normal(seeds, step, stream, x.shape[1:])`, to the last bit.

    Args:
        x: (B, ...) float32 or float64, data in [-1, 1] by convention.
        seeds, step, stream: as in `normal`; an image's noise does not depend on the memory layout of x.
        phi: (B,) float64 angles in [0, pi/2].
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        z, with the shape, dtype and memory layout of x. Differentiable in x.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, range or angle, with what is allowed.
    """
    checks.check_state("x", x)
    step = check_draw(seeds, step, stream, x.shape[1:])
    if len(seeds) != len(x) or seeds.device != x.device:
        raise ValueError(
            f"seeds has {len(seeds)} elements on {seeds.device}, x {len(x)} samples on {x.device}; pass a seed for each"
        )
    checks.check_angle("phi", phi, x)
    checks.check_no_gradient("diffuse_seeded", {"phi": phi})
    return _diffuse_seeded(x, seeds, step, stream, phi, backend)


def diffuse_seeded_reference(x: Tensor, seeds: Tensor, step: Tensor, stream: int, phi: Tensor) -> Tensor:
    """The formula in plain PyTorch."""
    return diffuse_reference(x, normal_reference(seeds, step, stream, x.shape[1:]).to(x.dtype), phi)


def _diffuse_seeded_native(x: Tensor, seeds: Tensor, step: Tensor, stream: int, phi: Tensor) -> Tensor:
    format = memory_format(x)
    x = dense(x, format)
    z = torch.empty_like(x, memory_format=format)
    in_order = native._C.diffuse_seeded(
        native.view(z),
        native.view(x),
        native.view(seeds.contiguous()),
        native.view(step),
        stream,
        native.view(phi.contiguous()),
        native.run(x),
    )
    if not in_order:
        checks.check_angle_values("phi", phi)
    return z


def _diffuse_seeded_triton(x: Tensor, seeds: Tensor, step: Tensor, stream: int, phi: Tensor) -> Tensor:
    from progdistill.ops.triton_kernels.diffuse_seeded import diffuse_seeded

    format = memory_format(x)
    z = torch.empty_like(x, memory_format=format)
    channels = interleaved_channels(x, format)
    diffuse_seeded(z, dense(x, format), seeds.contiguous(), step, stream, phi.contiguous(), channels)
    return z


declare(
    "diffuse_seeded",
    {
        "reference": diffuse_seeded_reference,
        "cpu": _diffuse_seeded_native,
        "cuda": _diffuse_seeded_native,
        "triton": _diffuse_seeded_triton,
    },
)


def _implementation(x: Tensor, seeds: Tensor, step: Tensor, stream: int, phi: Tensor, backend: str | None) -> Tensor:
    run = choose("diffuse_seeded", x.device.type, backend)
    if run is not _diffuse_seeded_native:  # the C++ kernel looks at the values on its way
        checks.check_angle_values("phi", phi)
    return dense(run(x, seeds, step, stream, phi), memory_format(x))


def _fake(x: Tensor, seeds: Tensor, step: Tensor, stream: int, phi: Tensor, backend: str | None) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[4])


def _backward(ctx, grad: Tensor):
    (phi,) = ctx.saved_tensors
    return per_sample(torch.cos(phi), grad) * grad, None, None, None, None, None


_diffuse_seeded = register(
    "diffuse_seeded(Tensor x, Tensor seeds, Tensor step, int stream, Tensor phi, str? backend) -> Tensor",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
