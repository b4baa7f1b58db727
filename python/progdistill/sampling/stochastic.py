"""The paper's stochastic sampler: ancestral steps whose noise level interpolates between the two bounds.

Ho et al. 2020 bound the variance of the reverse step between (1 - r) sigma_s^2 and (1 - r) sigma_t^2 with
r = SNR_t / SNR_s; Salimans & Ho (appendix F, released code's "medium") interpolate the logarithm with gamma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.core.random import Stream
from progdistill.ops import normal
from progdistill.ops.layout import per_sample
from progdistill.sampling.ddim import StepCallback


def ancestral_coefficients(phi: Tensor, phi_next: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """(c_z, c_x, std) of z_s = c_z z + c_x x + std noise for a step from phi to phi_next < phi.

    With alpha_s r / alpha_t = sin^2 s cos t / (sin^2 t cos s) and 1 - r = sin(t - s) sin(t + s) / (sin^2 t cos^2 s)
    nothing cancels and t = pi/2 is an ordinary angle.
    """
    sin_t, sin_s, cos_s = torch.sin(phi), torch.sin(phi_next), torch.cos(phi_next)
    one_minus_r = torch.sin(phi - phi_next) * torch.sin(phi + phi_next) / (sin_t * cos_s) ** 2
    std = torch.sqrt(one_minus_r) * sin_t**gamma * sin_s ** (1.0 - gamma)
    return sin_s**2 * torch.cos(phi) / (sin_t**2 * cos_s), one_minus_r * cos_s, std


@torch.no_grad()
def stochastic(
    denoiser: Denoiser,
    z: Tensor,
    phis: Tensor,
    seeds: Tensor,
    cond: Condition | None = None,
    *,
    gamma: float = 0.5,
    clip: float | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Ancestral sampling along phis; the last step returns the predicted x without noise.

    Args:
        denoiser, z, phis, cond, clip, callback: as in `ddim`; phis ends at 0.
        seeds: (B,) int64; the noise added to an image depends on its own seed alone.
        gamma: 0 = the lower bound of the variance, 1 = the upper bound (geometric between).

    Raises:
        ValueError: gamma outside [0, 1].
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}; it interpolates between the variance bounds and lies in [0, 1]")
    angles = phis.to(z.device)
    last = len(phis) - 2
    for step in range(last + 1):
        phi, phi_next = (angles[i].expand(len(z)) for i in (step, step + 1))
        x = denoiser.x(z, phi, cond)
        if clip is not None:
            x = x.clamp(-clip, clip)
        if step == last:
            z = x
        else:
            c_z, c_x, std = (per_sample(c, z) for c in ancestral_coefficients(phi, phi_next, gamma))
            noise = normal(seeds, step, Stream.RENOISE, z.shape[1:]).to(z)
            z = c_z * z + c_x * x + std * noise
        if callback is not None:
            callback(step, z)
    return z
