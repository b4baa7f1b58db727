"""What one student step must predict to land where the teacher's steps land (Salimans & Ho 2022, eq. 43).

The paper inverts the student's DDIM step, a difference of nearly equal numbers. The state cancels out of it: in x
the two-step target is x1 + kappa (x2 - x1) with kappa = sin(phi_m - phi_s) sin(phi_t) / (sin(phi_t - phi_s)
sin(phi_m)), and eps and v have twins of it (`rotation.target_form`). That keeps float32's last digits at any
number of steps, where the literal form has lost three by 8192.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.ops import checks, native, rotation
from progdistill.ops.backends import choose, declare
from progdistill.ops.layout import dense, interleaved_channels, memory_format
from progdistill.ops.names import PREDICTION_TYPES, canonical_prediction_type, heads
from progdistill.ops.registration import register
from progdistill.ops.residual import target_reference


def distillation_target(
    z: Tensor,
    outs: Sequence[Tensor],
    phis: Tensor,
    *,
    prediction_type: str = "v_prediction",
    target_type: str = "v_prediction",
    clip: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """The prediction at phis[0] whose single DDIM step to phis[K] equals the teacher's K steps.

    Args:
        z: (B, ...) float32 or float64 state at phis[0].
        outs: K teacher outputs (the paper: 2), outs[j] made at phis[j] from the state that j teacher steps lead to;
            z's dtype or bfloat16; two-headed ones have 2C channels.
        phis: (K + 1, B) float64 angles, strictly falling along the first dimension, within [0, pi/2].
        prediction_type: what the teacher's outputs are.
        target_type: what the target shall be; "sample_epsilon" gives x and eps side by side in 2C channels.
        clip: None, or the bound to which each of the teacher's x was clipped (with eps recomputed).
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        The target in z's dtype and layout. Not differentiable: the teacher is a constant.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or angles; epsilon outputs at SNR 0.
    """
    prediction_type = canonical_prediction_type(prediction_type)
    target_type = canonical_prediction_type(target_type)
    outs = list(outs)
    check_teacher(z, outs, phis, prediction_type, clip)
    checks.check_no_gradient("distillation_target", named_teacher(z, outs, phis))
    return _distillation_target(z, outs, phis, prediction_type, target_type, clip, backend)


def check_teacher(z: Tensor, outs: list[Tensor], phis: Tensor, prediction_type: str, clip: float | None) -> None:
    """Shapes, dtypes and devices of a teacher's steps."""
    checks.check_state("z", z)
    checks.check_outputs(outs, prediction_type, z)
    checks.check_angle_grid(phis, len(outs), z)
    checks.check_clip(clip)


def named_teacher(z: Tensor, outs: list[Tensor], phis: Tensor) -> dict[str, Tensor]:
    """A teacher's tensors by the names of the arguments."""
    return {"z": z, "phis": phis, **{f"outs[{j}]": out for j, out in enumerate(outs)}}


def check_target_values(phis: Tensor, prediction_type: str, quantity: str, clip: float | None) -> None:
    """Falling angles and finite coefficients; no-op for tensors that are not on the CPU."""
    checks.check_falling(phis)
    if phis.device.type != "cpu":
        return
    form = rotation.target_form(prediction_type, quantity, phis)
    used = [form.z, *(c for coefficients in form.output for c in coefficients)]
    if clip is not None:
        used += form.excess
    checks.check_finite(tuple(used), f"the {quantity} target of prediction type {prediction_type!r}", phis[0])


def distillation_target_reference(
    z: Tensor, outs: list[Tensor], phis: Tensor, prediction_type: str, target_type: str, clip: float | None
) -> Tensor:
    """The formula in plain PyTorch."""
    forms = [rotation.target_form(prediction_type, quantity, phis) for quantity in _quantities(target_type)]
    return torch.cat([target_reference(z, outs, form, phis, prediction_type, clip) for form in forms], dim=1)


def _distillation_target_native(
    z: Tensor, outs: list[Tensor], phis: Tensor, prediction_type: str, target_type: str, clip: float | None
) -> Tensor:
    format = memory_format(z)
    target = _empty_target(z, target_type)
    in_order = native._C.distillation_target(
        native.view(target),
        native.view(dense(z, format)),
        [native.view(dense(out, format)) for out in outs],
        native.view(phis.contiguous()),
        PREDICTION_TYPES.index(prediction_type),
        PREDICTION_TYPES.index(target_type),
        clip,
        native.run(z),
    )
    if not in_order:
        _check_values(phis, prediction_type, target_type, clip)
    return target


def _distillation_target_triton(
    z: Tensor, outs: list[Tensor], phis: Tensor, prediction_type: str, target_type: str, clip: float | None
) -> Tensor:
    from progdistill.ops.triton_kernels.distillation_target import distillation_target

    format = memory_format(z)
    target = _empty_target(z, target_type)
    images = target, dense(z, format), [dense(out, format) for out in outs]
    channels = interleaved_channels(z, format)
    distillation_target(*images, phis.contiguous(), prediction_type, target_type, clip, channels)
    return target


declare(
    "distillation_target",
    {
        "reference": distillation_target_reference,
        "cpu": _distillation_target_native,
        "cuda": _distillation_target_native,
        "triton": _distillation_target_triton,
    },
)


def _implementation(
    z: Tensor,
    outs: list[Tensor],
    phis: Tensor,
    prediction_type: str,
    target_type: str,
    clip: float | None,
    backend: str | None,
) -> Tensor:
    run = choose("distillation_target", z.device.type, backend)
    if run is not _distillation_target_native:  # the C++ kernel looks at the values on its way
        _check_values(phis, prediction_type, target_type, clip)
    return dense(run(z, outs, phis, prediction_type, target_type, clip), memory_format(z))


def _check_values(phis: Tensor, prediction_type: str, target_type: str, clip: float | None) -> None:
    for quantity in _quantities(target_type):
        check_target_values(phis, prediction_type, quantity, clip)


def _quantities(target_type: str) -> tuple[str, ...]:
    return ("x", "eps") if heads(target_type) == 2 else (rotation.domain(target_type),)


def _empty_target(z: Tensor, target_type: str) -> Tensor:
    shape = (z.shape[0], heads(target_type) * z.shape[1], *z.shape[2:])
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=memory_format(z))


def _fake(z, outs, phis, prediction_type, target_type, clip, backend) -> Tensor:
    return _empty_target(z, target_type)


_distillation_target = register(
    "distillation_target(Tensor z, Tensor[] outs, Tensor phis, str prediction_type, str target_type, float? clip,"
    " str? backend) -> Tensor",
    _implementation,
    _fake,
)
