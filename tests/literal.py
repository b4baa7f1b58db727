"""The papers' formulas as written, in float64: the independent truth that the operations are held against.

Nothing here uses progdistill. alpha and sigma are computed from the angle, and then everything is the textbook:
conversions, DDIM as the paper's eq. 8, the inversion of eq. 43 and the weights of section 4.
"""

from __future__ import annotations

import math

import torch


def cosine_grid(steps: int, index: torch.Tensor, substeps: int = 2) -> torch.Tensor:
    """Angles (substeps + 1, B) on phi = pi t / 2 of a student's step i of N: t falls from (i + 1) / N to i / N."""
    parts = torch.arange(substeps, -1, -1, dtype=torch.float64).unsqueeze(1) / substeps
    return (index.double() + parts) / steps * math.pi / 2


def expand(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, *(1,) * (like.dim() - 1))


def diffuse(x, noise, phi):
    """Eq. 1: z = alpha x + sigma noise."""
    alpha, sigma = alpha_and_sigma(phi, x)
    return alpha * x + sigma * noise


def alpha_and_sigma(phi, like):
    """cos(phi) and sin(phi) of each sample, shaped for `like`."""
    return expand(torch.cos(phi), like), expand(torch.sin(phi), like)


def x_of(z, out, alpha, sigma, prediction_type):
    """x from an output, the way the released code converts; two heads are mixed as section 4 says."""
    if prediction_type == "v_prediction":
        return alpha * z - sigma * out
    if prediction_type == "sample":
        return out
    if prediction_type == "epsilon":
        return (z - sigma * out) / alpha
    x_net, eps_net = out.chunk(2, dim=1)
    return sigma**2 * x_net + alpha * (z - sigma * eps_net)


def x_and_eps(z, out, phi, prediction_type, clip=None):
    """(x, eps) from an output."""
    alpha, sigma = alpha_and_sigma(phi, z)
    x = x_of(z, out, alpha, sigma, prediction_type)
    if clip is not None:
        x = x.clamp(-clip, clip)
    return x, (z - alpha * x) / sigma


def ddim(z, out, phi, phi_next, prediction_type, clip=None):
    """Eq. 8: z_s = alpha_s x + sigma_s eps."""
    x, eps = x_and_eps(z, out, phi, prediction_type, clip)
    return expand(torch.cos(phi_next), z) * x + expand(torch.sin(phi_next), z) * eps


def addim(z, out, phi, phi_next, prediction_type, x=None, eta=0.75):
    """Heek et al. 2024: z_s = alpha_s x + sqrt(sigma_s^2 + d / |eps|^2 z_var) eps; x: the true one, if it is known."""
    prediction, eps = x_and_eps(z, out, phi, prediction_type)
    alpha_t, sigma_t, alpha_s, sigma_s = (expand(f(p), z) for p in (phi, phi_next) for f in (torch.cos, torch.sin))
    square_norm = lambda t: expand(t.flatten(1).square().sum(1), z)  # noqa: E731
    d = z[0].numel()
    x_var = 0.1 / (2 + alpha_t**2 / sigma_t**2) if x is None else eta * square_norm(x - prediction) / d
    z_var = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var
    return alpha_s * prediction + torch.sqrt(sigma_s**2 + d / square_norm(eps) * z_var) * eps


def x_target(z, outs, phis, prediction_type, clip=None):
    """Eq. 43: the inversion of one DDIM step onto the state that the teacher's steps reach."""
    state = z
    for out, phi, phi_next in zip(outs, phis[:-1], phis[1:], strict=True):
        state = ddim(state, out, phi, phi_next, prediction_type, clip)
    return one_step_x(z, state, phis[0], phis[-1])


def one_step_x(z, state, phi, phi_next):
    """The x whose DDIM step leads from z to `state`."""
    alpha_t, sigma_t, alpha_s, sigma_s = (expand(f(p), z) for p in (phi, phi_next) for f in (torch.cos, torch.sin))
    ratio = sigma_s / sigma_t
    return (state - ratio * z) / (alpha_s - ratio * alpha_t)


def from_x(z, x, phi, target_type):
    """What a network of `target_type` would have to say for x."""
    alpha, sigma = expand(torch.cos(phi), z), expand(torch.sin(phi), z)
    eps = (z - alpha * x) / sigma
    return {
        "sample": lambda: x,
        "epsilon": lambda: eps,
        "v_prediction": lambda: alpha * eps - sigma * x,
        "sample_epsilon": lambda: torch.cat([x, eps], dim=1),
    }[target_type]()


def weight(phi, weighting, gamma=5.0):
    """The factor on the squared x error: 1, SNR, max(SNR, 1), SNR + 1 (paper section 4), min(SNR, gamma)."""
    snr = torch.cos(phi) ** 2 / torch.sin(phi) ** 2
    return {
        "constant": lambda: torch.ones_like(snr),
        "snr": lambda: snr,
        "truncated_snr": lambda: snr.clamp(min=1),
        "snr_plus_one": lambda: snr + 1,
        "min_snr": lambda: snr.clamp(max=gamma),
    }[weighting]()


def loss(pred, z, x_star, phi, prediction_type, weighting, gamma=5.0):
    """Eq. 9 / 10: weight times the mean squared x error of each sample."""
    x = x_of(z, pred, *alpha_and_sigma(phi, z), prediction_type)
    return weight(phi, weighting, gamma) * (x - x_star).square().mean(dim=tuple(range(1, z.dim())))


def robust_loss(pred, z, x_star, phi, prediction_type, weighting, loss_type, c):
    """Mean |r| or mean (sqrt(r^2 + c^2) - c), as diffusers' LCM scripts write it, of r = sqrt(weight) (x - x*)."""
    x = x_of(z, pred, *alpha_and_sigma(phi, z), prediction_type)
    r = (expand(weight(phi, weighting).sqrt(), z) * (x - x_star)).flatten(1)
    return (r.abs() if loss_type == "l1" else torch.sqrt(r**2 + c**2) - c).mean(1)
