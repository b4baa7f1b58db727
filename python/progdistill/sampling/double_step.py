"""The stochastic sampler of Meng et al. 2023 (section 3.4): a DDIM step of twice the length, then half of it back.

From t the deterministic step goes to k = t - 2 / N; fresh noise then brings the state up to s = t - 1 / N, where the
next step starts. The network is called N times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.core.random import Stream
from progdistill.ops import ddim_step, normal
from progdistill.ops.layout import per_sample
from progdistill.sampling.ddim import StepCallback


def renoise_coefficients(phi: Tensor, phi_next: Tensor) -> tuple[Tensor, Tensor]:
    """(c_z, std) of z_s = c_z z_k + std noise, the forward process from phi = k up to phi_next = s.

    c_z = cos s / cos k, std^2 = sin^2 s - cos^2 s tan^2 k = sin(s - k) sin(s + k) / cos^2 k.
    """
    variance = torch.sin(phi_next - phi) * torch.sin(phi_next + phi)
    return torch.cos(phi_next) / torch.cos(phi), torch.sqrt(variance) / torch.cos(phi)


@torch.no_grad()
def double_step(
    denoiser: Denoiser,
    z: Tensor,
    phis: Tensor,
    seeds: Tensor,
    cond: Condition | None = None,
    *,
    clip: float | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sampling along phis; the last step, which cannot be doubled, is an ordinary one.

    Args:
        denoiser, z, phis, cond, clip, callback: as in `ddim`; phis (N + 1,) ends at 0.
        seeds: (B,) int64; the noise added to an image depends on its own seed alone.

    A student distilled for steps of one length knows nothing of steps of twice that length; the paper distils for both.
    """
    angles = phis.to(z.device)
    last = len(phis) - 2
    for step in range(last + 1):
        here, there = (angles[min(i, last + 1)].expand(len(z)) for i in (step, step + 2))
        out = denoiser.raw(z, here, cond)
        z = ddim_step(z, out, here, there, prediction_type=denoiser.prediction_type, clip=clip)
        if step < last:
            c_z, std = (per_sample(c, z) for c in renoise_coefficients(there, angles[step + 1].expand(len(z))))
            z = c_z * z + std * normal(seeds, step, Stream.RENOISE, z.shape[1:]).to(z)
        if callback is not None:
            callback(step, z)
    return z
