"""What every operation asks of its arguments, and the errors that say so.

Shapes, dtypes and devices are checked for every call. Values are checked for CPU tensors only: looking at them on
CUDA would make the host wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from progdistill.ops.names import heads

# Beyond this a coefficient is a division by (nearly) zero: the paper's schedule stops at 1 / cos = 2.2e4.
_LARGEST_COEFFICIENT = 1e8


def check_state(name: str, state: Tensor) -> None:
    """A state (z, x, noise) is float32 or float64 of shape (B, ...)."""
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} is {state.dtype}; states are float32 (or float64), only network outputs may be bfloat16: "
            f"pass {name}.float()"
        )
    if state.dim() < 2:
        raise ValueError(
            f"{name} has shape {tuple(state.shape)}; expected (B, ...) with at least one dimension after B"
        )


def check_same(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """`tensor` has the shape, dtype and device of `like`."""
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, {like_name} has {tuple(like.shape)}; they must agree"
        )
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, {like_name} is {like.dtype}; convert one of them")
    check_device(name, tensor, like_name, like)


def check_output(name: str, output: Tensor, prediction_type: str, state: Tensor) -> None:
    """A network output for `state`: its shape (twice the channels if two-headed), its dtype or bfloat16."""
    if output.shape == state.shape and output.dtype == state.dtype and heads(prediction_type) == 1:  # as nearly always
        return check_device(name, output, "the state", state)
    expected = (state.shape[0], heads(prediction_type) * state.shape[1], *state.shape[2:])
    if tuple(output.shape) != expected:
        two = " (two heads: x in the first half of the channels)" if heads(prediction_type) == 2 else ""
        raise ValueError(
            f"{name} has shape {tuple(output.shape)}; prediction type {prediction_type!r} on a state of shape "
            f"{tuple(state.shape)} needs {expected}{two}"
        )
    allowed = (torch.float32, torch.bfloat16) if state.dtype == torch.float32 else (state.dtype,)
    if output.dtype not in allowed:
        raise TypeError(
            f"{name} is {output.dtype}; with a {state.dtype} state it may be {' or '.join(map(str, allowed))}"
        )
    check_device(name, output, "the state", state)


def check_outputs(outs: list[Tensor], prediction_type: str, state: Tensor) -> None:
    """K >= 1 teacher outputs, alike in dtype."""
    if not outs:
        raise ValueError("outs is empty; pass the teacher's outputs along phis, one for each step")
    for j, out in enumerate(outs):
        check_output(f"outs[{j}]", out, prediction_type, state)
        if out.dtype != outs[0].dtype:
            raise TypeError(f"outs[{j}] is {out.dtype}, outs[0] is {outs[0].dtype}; convert one of them")


def check_angle(name: str, phi: Tensor, state: Tensor) -> None:
    """Angles are float64 of shape (B,) on the state's device."""
    _check_angles(name, phi, (state.shape[0],), state)


def check_angle_grid(phis: Tensor, steps: int, state: Tensor) -> None:
    """A grid of K steps is float64 of shape (K + 1, B)."""
    _check_angles("phis", phis, (steps + 1, state.shape[0]), state)


def check_angle_values(name: str, phi: Tensor) -> None:
    """Angles lie in [0, pi/2]; no-op for tensors that are not on the CPU."""
    if phi.device.type != "cpu" or phi.numel() == 0:
        return
    low, high = float(phi.min()), float(phi.max())
    if not (low >= 0.0 and high <= math.pi / 2):
        bad = phi[~((phi >= 0) & (phi <= math.pi / 2))][0].item()
        raise ValueError(
            f"{name} holds the angle {bad}; angles lie in [0, pi/2], 0 = clean and pi/2 = noise, in radians "
            "(progdistill.core.schedules turns times into angles)"
        )


def check_falling(phis: Tensor) -> None:
    """Each step of a grid goes to a strictly smaller angle; no-op for tensors that are not on the CPU."""
    check_angle_values("phis", phis)
    if phis.device.type != "cpu":
        return
    rising = (phis[:-1] <= phis[1:]).nonzero()
    if len(rising):
        step, sample = rising[0].tolist()
        raise ValueError(
            f"phis must fall strictly along its first dimension, but sample {sample} goes from "
            f"{phis[step, sample].item()} to {phis[step + 1, sample].item()} at step {step}"
        )


def check_finite(coefficients: tuple[Tensor, ...], what: str, phi: Tensor) -> None:
    """Refuses pairs of prediction type and angle (or weighting) that divide by zero; CPU only."""
    if phi.device.type != "cpu":
        return
    for coefficient in coefficients:
        bad = ~(coefficient.abs() <= _LARGEST_COEFFICIENT)
        if bad.any():
            raise ValueError(
                f"{what} is infinite at phi = {phi[bad][0].item()}: an epsilon prediction says nothing about x at "
                "SNR 0 (phi = pi/2), a sample prediction nothing about eps at phi = 0; use v_prediction (or "
                "sample_epsilon), another weighting, or a schedule that stops short of that end"
            )


def check_clip(clip: float | None) -> None:
    """`clip` is None or a positive finite bound of |x|."""
    if clip is not None and not 0.0 < clip < math.inf:
        raise ValueError(f"clip is {clip}; use None or a positive bound of |x| such as 1.0")


def check_min_snr_gamma(gamma: float) -> None:
    """gamma of the min-SNR weighting is positive and finite."""
    if not 0.0 < gamma < math.inf:
        raise ValueError(f"min_snr_gamma is {gamma}; use a positive number such as 5.0")


def check_huber_c(huber_c: float) -> None:
    """c of the pseudo-Huber loss: c^2 and r / c stay within float32."""
    if not 1e-9 <= huber_c <= 1e9:
        raise ValueError(f"huber_c is {huber_c}; use a number between 1e-9 and 1e9 such as 0.001")


def check_no_gradient(operation: str, tensors: dict[str, Tensor]) -> None:
    """Raises where a gradient would be asked for that the operation does not compute."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient, which {operation} does not compute; pass {name}.detach()")


def _check_angles(name: str, phi: Tensor, shape: tuple[int, ...], state: Tensor) -> None:
    if not isinstance(phi, Tensor) or phi.dtype != torch.float64:
        kind = phi.dtype if isinstance(phi, Tensor) else type(phi).__name__
        raise TypeError(f"{name} is {kind}; angles are float64 tensors (float32 angles cost 2e-4 at 8192 steps)")
    if phi.shape != shape:
        raise ValueError(f"{name} has shape {tuple(phi.shape)}; expected {shape}, an angle for each sample")
    check_device(name, phi, "the state", state)


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """`tensor` is on the device of `like`."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, {like_name} on {like.device}; move one of them")
