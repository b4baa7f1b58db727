"""One DDIM step in angles: z' = cos(h) z - sin(h) v, h = phi - phi_next (Salimans & Ho 2022, eq. 38)."""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import checks, native, rotation
from progdistill.ops.backends import choose, declare
from progdistill.ops.ddim_step_backward import (
    StepTaken,
    ddim_step_backward_native,
    ddim_step_backward_reference,
)
from progdistill.ops.layout import dense, interleaved_channels, memory_format, per_sample, split_heads
from progdistill.ops.names import PREDICTION_TYPES, canonical_prediction_type, heads
from progdistill.ops.registration import is_plain_call, register


def ddim_step(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    *,
    prediction_type: str = "v_prediction",
    clip: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Moves z from angle phi to phi_next along the network's prediction.

    Args:
        z: (B, ...) float32 or float64 state.
        out: the network's own output at (z, phi), in z's dtype or bfloat16 (beside a float32 state); shape of z, or
            (B, 2C, ...) for "sample_epsilon".
        phi, phi_next: (B,) float64 angles, pi/2 >= phi >= phi_next >= 0.
        prediction_type: "epsilon", "sample", "v_prediction" or "sample_epsilon" (aliases eps, x, v, both).
        clip: None, or the bound of |x|: x is clipped and eps recomputed from it (the paper's sampler uses 1.0).
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        z at phi_next, with z's dtype and layout. Differentiable in z and out.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or angle; an epsilon prediction at SNR 0; a rising angle.
    """
    prediction_type = canonical_prediction_type(prediction_type)
    _check_arguments(z, out, phi, phi_next, prediction_type, clip)
    checks.check_no_gradient("ddim_step", {"phi": phi, "phi_next": phi_next})
    return _ddim_step(z, out, phi, phi_next, prediction_type, clip, backend)


def ddim_step_and_input(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    *,
    prediction_type: str = "v_prediction",
    clip: float | None = None,
    memory_format: torch.memory_format | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`ddim_step`, and what a bfloat16 network takes of its result, in one launch.

    Args:
        z: (B, ...) float32 state.
        out, phi, phi_next, prediction_type, clip, backend: as in `ddim_step`.
        memory_format: how both results lie in memory; default: as z does. A z or out that lies otherwise is copied
            before, so a loop keeps its states in the order of its network.

    Returns:
        (z at phi_next, its bfloat16 copy). Not differentiable.

    Raises:
        TypeError, ValueError: as in `ddim_step`; a state that is not float32; tensors that require a gradient.
    """
    prediction_type = canonical_prediction_type(prediction_type)
    _check_arguments(z, out, phi, phi_next, prediction_type, clip)
    if z.dtype != torch.float32:
        raise TypeError(f"z is {z.dtype}; bfloat16 copies are of float32 states: pass z.float()")
    checks.check_no_gradient("ddim_step_and_input", {"z": z, "out": out, "phi": phi, "phi_next": phi_next})
    if memory_format is not None:
        z = dense(z, memory_format)
    return _ddim_step_and_input(z, out, phi, phi_next, prediction_type, clip, backend)


def _check_arguments(
    z: Tensor, out: Tensor, phi: Tensor, phi_next: Tensor, prediction_type: str, clip: float | None
) -> None:
    checks.check_state("z", z)
    checks.check_output("out", out, prediction_type, z)
    checks.check_angle("phi", phi, z)
    checks.check_angle("phi_next", phi_next, z)
    checks.check_clip(clip)


# Implementations also write the bfloat16 copy of their result, if they are given one that lies in memory as z does.


def ddim_step_reference(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    prediction_type: str,
    clip: float | None,
    copy: Tensor | None = None,
) -> Tensor:
    """The formula in plain PyTorch."""
    parts = split_heads(out, heads(prediction_type), z.dtype)
    form = rotation.step_form(prediction_type, phi, phi_next)
    if clip is None:
        z_next = rotation.linear(form.direct, z, parts)
    else:
        x = rotation.linear(form.x, z, parts).clamp(-clip, clip)
        z_next = per_sample(form.z_of_clipped, z) * z + per_sample(form.x_of_clipped, z) * x
    if copy is not None:
        copy.copy_(z_next)
    return z_next


def _ddim_step_native(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    prediction_type: str,
    clip: float | None,
    copy: Tensor | None = None,
) -> Tensor:
    format = memory_format(z)
    z = dense(z, format)
    z_next = torch.empty_like(z, memory_format=format)
    in_order = native._C.ddim_step(
        native.view(z_next),
        None if copy is None else native.view(copy),
        native.view(z),
        native.view(dense(out, format)),
        native.view(phi.contiguous()),
        native.view(phi_next.contiguous()),
        PREDICTION_TYPES.index(prediction_type),
        clip,
        native.run(z),
    )
    if not in_order:
        _check_values(phi, phi_next, prediction_type, clip)
    return z_next


def _ddim_step_triton(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    prediction_type: str,
    clip: float | None,
    copy: Tensor | None = None,
) -> Tensor:
    from progdistill.ops.triton_kernels.ddim_step import ddim_step

    format = memory_format(z)
    z_next = torch.empty_like(z, memory_format=format)
    images = z_next, copy, dense(z, format), dense(out, format)
    channels = interleaved_channels(z, format)
    ddim_step(*images, phi.contiguous(), phi_next.contiguous(), prediction_type, clip, channels)
    return z_next


declare(
    "ddim_step",
    {
        "reference": ddim_step_reference,
        "cpu": _ddim_step_native,
        "cuda": _ddim_step_native,
        "triton": _ddim_step_triton,
    },
)


def _implementation(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    prediction_type: str,
    clip: float | None,
    backend: str | None,
    copy: Tensor | None = None,
) -> Tensor:
    run = choose("ddim_step", z.device.type, backend)
    if run is _ddim_step_native:  # looks at the values on its way, and writes its result as z lies
        return run(z, out, phi, phi_next, prediction_type, clip, copy)
    _check_values(phi, phi_next, prediction_type, clip)
    return dense(run(z, out, phi, phi_next, prediction_type, clip, copy), memory_format(z))


def _implementation_and_input(z: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    copy = torch.empty_like(z, dtype=torch.bfloat16, memory_format=memory_format(z))
    return _implementation(z, *arguments, copy), copy


def _check_values(phi: Tensor, phi_next: Tensor, prediction_type: str, clip: float | None) -> None:
    checks.check_angle_values("phi", phi)
    checks.check_angle_values("phi_next", phi_next)
    if phi.device.type != "cpu":
        return
    rising = (phi_next > phi).nonzero()
    if len(rising):
        b = int(rising[0])
        raise ValueError(f"a step falls from phi to phi_next, but sample {b} rises from {phi[b]} to {phi_next[b]}")
    form = rotation.step_form(prediction_type, phi, phi_next)
    used = (form.direct.z, *form.direct.output) if clip is None else (form.x.z, *form.x.output, form.z_of_clipped)
    checks.check_finite(used, f"a DDIM step of prediction type {prediction_type!r}", phi)


def _fake(z, out, phi, phi_next, prediction_type, clip, backend) -> Tensor:
    return torch.empty_like(z, memory_format=memory_format(z))


def _setup_context(ctx, inputs, output) -> None:
    z, out, phi, phi_next, ctx.prediction_type, ctx.clip, backend = inputs
    ctx.save_for_backward(phi, phi_next, *(() if ctx.clip is None else (z, out)))
    ctx.out_dtype = out.dtype
    ctx.on_cpu_kernel = z.device.type == "cpu" and choose("ddim_step", "cpu", backend) is _ddim_step_native


def _backward(ctx, grad: Tensor):
    phi, phi_next, *inputs = ctx.saved_tensors
    options = ctx.prediction_type, ctx.clip, ctx.out_dtype
    step = StepTaken(phi, phi_next, inputs, *options, *ctx.needs_input_grad[:2])
    on_kernel = ctx.on_cpu_kernel and is_plain_call(grad)
    gradients = (ddim_step_backward_native if on_kernel else ddim_step_backward_reference)(grad, step)
    return *gradients, None, None, None, None, None


_ddim_step = register(
    "ddim_step(Tensor z, Tensor out, Tensor phi, Tensor phi_next, str prediction_type, float? clip, str? backend)"
    " -> Tensor",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)


def _fake_and_input(z, out, phi, phi_next, prediction_type, clip, backend) -> tuple[Tensor, Tensor]:
    z_next = torch.empty_like(z, memory_format=memory_format(z))
    return z_next, torch.empty_like(z_next, dtype=torch.bfloat16)


_ddim_step_and_input = register(
    "ddim_step_and_input(Tensor z, Tensor out, Tensor phi, Tensor phi_next, str prediction_type, float? clip,"
    " str? backend) -> (Tensor, Tensor)",
    _implementation_and_input,
    _fake_and_input,
)
