"""The rotation algebra: every operation as per-sample coefficients of a few tensors.

A variance-preserving state is a rotation, z = cos(phi) x + sin(phi) eps, and v = cos(phi) eps - sin(phi) x is its
derivative by the angle (Salimans & Ho 2022, appendix D). Conversions, DDIM steps, the two-step target and the
weighted losses are then linear in z and the network outputs, with coefficients that depend on the angles alone.
This module is the one Python home of those coefficients (`kernels/include/rotation.h` is its C++ twin). All of it
is float64: differences of angles are formed before anything is rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.ops.layout import per_sample

_DOMAIN = {"epsilon": "eps", "sample": "x", "v_prediction": "v", "sample_epsilon": "v"}


class Form(NamedTuple):
    """value = z * state + sum over heads of output[head] * (that head's tensor); each entry (B,) float64."""

    z: Tensor
    output: tuple[Tensor, ...]


class StepForm(NamedTuple):
    """One DDIM step: unclipped, and by way of a clipped x (z * state + x * clip(x))."""

    direct: Form
    x: Form
    z_of_clipped: Tensor
    x_of_clipped: Tensor


class TargetForm(NamedTuple):
    """target = z * state + sum_j (output[j][head] * outs[j][head] + excess[j] * (x_j - clip(x_j)))."""

    z: Tensor
    output: tuple[tuple[Tensor, ...], ...]
    excess: tuple[Tensor, ...]


def domain(prediction_type: str) -> str:
    """The quantity in which a network's error is measured: "x", "eps" or "v" (two-headed networks: v)."""
    return _DOMAIN[prediction_type]


def prediction_form(prediction_type: str, quantity: str, phi: Tensor) -> Form:
    """How `quantity` ("x", "eps" or "v") follows from z and an output of `prediction_type` at angle phi."""
    sin, cos = torch.sin(phi), torch.cos(phi)
    if prediction_type == "sample_epsilon":
        # v = cos eps - sin x needs no division at either end; the mix of section 4 of the paper is the same x.
        native: tuple[Tensor, ...] = (-sin, cos)
    else:
        native = (torch.ones_like(phi),)
    z, factor = convert(domain(prediction_type), quantity, sin, cos)
    return Form(z, tuple(factor * c for c in native))


def convert(source: str, quantity: str, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """(c_z, c) with quantity = c_z z + c source, for source and quantity among x, eps, v."""
    if source == quantity:
        return torch.zeros_like(sin), torch.ones_like(sin)
    return {
        ("v", "x"): lambda: (cos, -sin),
        ("v", "eps"): lambda: (sin, cos),
        ("x", "v"): lambda: (cos / sin, -1 / sin),
        ("x", "eps"): lambda: (1 / sin, -cos / sin),
        ("eps", "v"): lambda: (-sin / cos, 1 / cos),
        ("eps", "x"): lambda: (1 / cos, -sin / cos),
    }[source, quantity]()


def step_form(prediction_type: str, phi: Tensor, phi_next: Tensor) -> StepForm:
    """DDIM from phi to phi_next: z' = cos(h) z - sin(h) v with h = phi - phi_next (paper eq. 38).

    For x and eps outputs the conversion is cancelled by hand: z' = (sin(phi_next) z + sin(h) x) / sin(phi) and
    z' = (cos(phi_next) z - sin(h) eps) / cos(phi). The way through a clipped x, with eps recomputed from it, is
    the first of these for every prediction type.
    """
    h = phi - phi_next
    sin, sin_h = torch.sin(phi), torch.sin(h)
    z_of_clipped, x_of_clipped = torch.sin(phi_next) / sin, sin_h / sin
    if prediction_type == "sample":
        direct = Form(z_of_clipped, (x_of_clipped,))
    elif prediction_type == "epsilon":
        cos = torch.cos(phi)
        direct = Form(torch.cos(phi_next) / cos, (-sin_h / cos,))
    else:
        v = prediction_form(prediction_type, "v", phi)
        direct = Form(torch.cos(h), tuple(-sin_h * c for c in v.output))
    return StepForm(direct, prediction_form(prediction_type, "x", phi), z_of_clipped, x_of_clipped)


def linear(form: Form, z: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """A form's value: its coefficients applied to the state and to the heads of an output."""
    value = per_sample(form.z, z) * z
    for coefficient, part in zip(form.output, parts, strict=True):
        value = value + per_sample(coefficient, z) * part
    return value


def target_form(prediction_type: str, quantity: str, phis: Tensor) -> TargetForm:
    """The one-step prediction at phis[0] that lands where K teacher steps through phis (K + 1, B) land.

    This is the paper's eq. 43 with the state cancelled out (K = 2: x1 + kappa (x2 - x1) and its twins for eps
    and v), composed in the teacher's own quantity and then converted at phis[0].
    """
    native = domain(prediction_type)
    native_z, weights = {"v": _compose_v, "x": _compose_x, "eps": _compose_eps}[native](phis)
    sin, cos = torch.sin(phis[0]), torch.cos(phis[0])
    c_z, factor = convert(native, quantity, sin, cos)
    output, excess = [], []
    for phi, weight in zip(phis[:-1], weights, strict=True):
        form = prediction_form(prediction_type, native, phi)
        output.append(tuple(factor * weight * c for c in form.output))
        # Clipping replaces x by x - d; at fixed z that moves v by d / sin and eps by d cos / sin.
        moved = {"x": lambda p: -torch.ones_like(p), "v": lambda p: 1 / torch.sin(p), "eps": lambda p: 1 / torch.tan(p)}
        excess.append(factor * weight * moved[native](phi))
    return TargetForm(c_z + factor * native_z, tuple(output), tuple(excess))


def _compose_v(phis: Tensor) -> tuple[Tensor, list[Tensor]]:
    # z_K = prod cos(h_j) z - sum_j sin(h_j) prod_{l>j} cos(h_l) v_j, solved for the v of one step of sum(h_j).
    # The coefficient of z is (cos H - prod cos h_j) / sin H; the recursion below forms that difference without
    # cancellation (each term has the same sign; K = 2 gives -sin h1 sin h2 / sin(h1 + h2)).
    steps = phis[:-1] - phis[1:]
    total = phis[0] - phis[-1]
    excess = torch.zeros_like(total)
    for j in range(1, len(steps)):
        excess = excess * torch.cos(steps[j]) - torch.sin(phis[0] - phis[j]) * torch.sin(steps[j])
    weights, later = [], torch.ones_like(total)
    for step in reversed(steps):
        weights.append(torch.sin(step) * later / torch.sin(total))
        later = later * torch.cos(step)
    return excess / torch.sin(total), weights[::-1]


def _compose_x(phis: Tensor) -> tuple[Tensor, list[Tensor]]:
    return torch.zeros_like(phis[0]), _telescope(phis, torch.sin(phis))


def _compose_eps(phis: Tensor) -> tuple[Tensor, list[Tensor]]:
    return torch.zeros_like(phis[0]), _telescope(phis, torch.cos(phis))


def _telescope(phis: Tensor, end: Tensor) -> list[Tensor]:
    # sin(phi_j - phi_{j+1}) e_0 e_K / (sin(phi_0 - phi_K) e_j e_{j+1}) with e = sin (x) or cos (eps). e_0 / e_j of
    # the first and e_K / e_{j+1} of the last term are 1 even where e is 0, which makes phi_K = 0 (x) and
    # phi_0 = pi/2 (eps) exact instead of special cases.
    last = len(phis) - 2
    total = torch.sin(phis[0] - phis[-1])
    weights = []
    for j in range(last + 1):
        weight = torch.sin(phis[j] - phis[j + 1]) / total
        if j > 0:
            weight = weight * end[0] / end[j]
        if j < last:
            weight = weight * end[-1] / end[j + 1]
        weights.append(weight)
    return weights


def squared_factor(weighting: str, quantity: str, phi: Tensor, min_snr_gamma: float) -> Tensor:
    """What multiplies the squared error of `quantity` under a weighting: the paper's eq. 10 and its relatives.

    One table, cancelled symbolically: in v the weightings are sin^2, cos^2, max, 1 and min(cos^2, gamma sin^2);
    x divides them by sin^2, eps by cos^2.
    """
    sin2, cos2 = torch.sin(phi) ** 2, torch.cos(phi) ** 2
    one = torch.ones_like(phi)
    snr, inverse_snr = cos2 / sin2, sin2 / cos2
    return {
        ("constant", "v"): lambda: sin2,
        ("constant", "x"): lambda: one,
        ("constant", "eps"): lambda: inverse_snr,
        ("snr", "v"): lambda: cos2,
        ("snr", "x"): lambda: snr,
        ("snr", "eps"): lambda: one,
        ("truncated_snr", "v"): lambda: torch.maximum(sin2, cos2),
        ("truncated_snr", "x"): lambda: snr.clamp(min=1),
        ("truncated_snr", "eps"): lambda: inverse_snr.clamp(min=1),
        ("snr_plus_one", "v"): lambda: one,
        ("snr_plus_one", "x"): lambda: 1 / sin2,
        ("snr_plus_one", "eps"): lambda: 1 / cos2,
        ("min_snr", "v"): lambda: torch.minimum(cos2, min_snr_gamma * sin2),
        ("min_snr", "x"): lambda: snr.clamp(max=min_snr_gamma),
        ("min_snr", "eps"): lambda: (min_snr_gamma * inverse_snr).clamp(max=1),
    }[weighting, quantity]()


def loss_scale(
    prediction_type: str, weighting: str, phi: Tensor, min_snr_gamma: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(s, the coefficients of the network's heads in its own quantity): residual = s (own quantity - target)."""
    quantity = domain(prediction_type)
    scale = torch.sqrt(squared_factor(weighting, quantity, phi, min_snr_gamma))
    return scale, prediction_form(prediction_type, quantity, phi).output
