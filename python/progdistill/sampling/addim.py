"""aDDIM, a DDIM step that makes up for lost variance (Heek, Hoogeboom & Salimans 2024, arXiv 2403.06807).

x given z varies around its prediction. DDIM leaves that out, so its states have too little variance; aDDIM lengthens
the noise instead, by as much as the variance x_var of an element of x would add to the d elements on average:

    z_s = alpha_s x + sqrt(sigma_s^2 + (d / |eps|^2) z_var) eps
    z_var = (alpha_s - alpha_t sigma_s / sigma_t)^2 x_var

In angles, with h = phi - phi_next, that is the DDIM step of a corrected prediction:

    v' = v - gamma eps,    x' = x + gamma sin(phi) eps,    eps' = (1 - gamma cos(phi)) eps
    gamma = sin(h) q / (sin(phi_next) + sqrt(sin^2(phi_next) + sin^2(h) q)),    q = d x_var / (sin^2(phi) |eps|^2)

so `ddim_step` and the distillation target serve it as they are: gamma is formed in float64 without cancellation, and no
state is subtracted from another. In float32 the error of a two-step target against float64 is 3e-7 up to 256 steps and
3e-6 at 1024 (v), where the formula as written has lost 5e-4 (tests/sampling/test_addim.py).

Taken as written, the last step (phi_next = 0) adds the missing variance to the image as noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from progdistill.ops import rotation
from progdistill.ops.layout import per_sample, split_heads
from progdistill.ops.names import canonical_prediction_type, heads
from progdistill.ops.rotation import linear


@torch.no_grad()
def addim_prediction(
    z: Tensor,
    out: Tensor,
    phi: Tensor,
    phi_next: Tensor,
    *,
    prediction_type: str,
    x: Tensor | None = None,
    eta: float = 0.75,
) -> tuple[Tensor, str]:
    """The prediction whose DDIM step from phi to phi_next is the aDDIM step of a network's output.

    Args:
        z: (B, ...) float32 or float64 state at phi.
        out: the network's own output at (z, phi), also bfloat16; 2C channels for "sample_epsilon".
        phi, phi_next: (B,) float64 angles, pi/2 >= phi > phi_next >= 0.
        prediction_type: what `out` is.
        x: the clean data that z was made of: x_var = eta |x - prediction|^2 / d for each sample. None: x_var =
            0.1 / (2 + SNR), the paper's rule where x is not known.
        eta: share of the measured error that counts as variance (the paper: 0.75); 0 gives DDIM to the last bit.

    Returns:
        (prediction, its prediction type): `prediction_type` itself, or "v_prediction" for two heads; in z's dtype.

    Raises:
        ValueError: an unknown prediction type, a negative or infinite eta.
    """
    check_addim_eta(eta)
    prediction_type = canonical_prediction_type(prediction_type)
    sin, cos, sin_next, sin_h = torch.sin(phi), torch.cos(phi), torch.sin(phi_next), torch.sin(phi - phi_next)
    parts = split_heads(out, heads(prediction_type), z.dtype)
    own_type = "v_prediction" if len(parts) == 2 else prediction_type
    own = linear(rotation.prediction_form(prediction_type, rotation.domain(prediction_type), phi), z, parts)
    # Float64, because at small angles x and its prediction nearly agree.
    wide = z.double(), (own.double(),)
    eps_square = _square_norm(linear(rotation.prediction_form(own_type, "eps", phi), *wide))
    if x is None:
        spread = 0.1 * z[0].numel() / (1 + sin**2)  # d x_var / sin^2
    else:
        error = linear(rotation.prediction_form(own_type, "x", phi), *wide) - x
        spread = eta * _square_norm(error) / sin**2
    q = torch.where(eps_square > 0, spread / eps_square, 0.0)
    length = sin_next + torch.sqrt(sin_next**2 + sin_h**2 * q)
    gamma = torch.where(length > 0, sin_h * q / length, 0.0)
    of_z = {"x": gamma, "eps": torch.zeros_like(gamma), "v": -gamma * sin}[rotation.domain(own_type)]
    return per_sample(1 - gamma * cos, z) * own + per_sample(of_z, z) * z, own_type


def check_addim_eta(eta: float) -> None:
    """eta is a share of a variance."""
    if not 0.0 <= eta < math.inf:
        raise ValueError(f"addim_eta is {eta}; use a number from 0 (plain DDIM) up, the paper's is 0.75")


def _square_norm(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).square().sum(dim=1)
