"""EDM's and flow matching's networks as networks of a variance-preserving state.

With z = cos(phi) x + sin(phi) eps, EDM's own state is x + sigma eps = z / cos(phi) at sigma = tan(phi), and flow
matching's is (1 - t) x + t eps = z / (cos(phi) + sin(phi)) at t = sin(phi) / (cos(phi) + sin(phi)). What their networks
return is linear in x, eps and the state, so it is a prediction of ours times known coefficients, formed in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from progdistill.core.callable_network import CallableNetwork
from progdistill.core.schedules import as_float64
from progdistill.ops.layout import per_sample


class _Adapter(nn.Module):
    """Around another network, which `inner` calls at its own time and state."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else CallableNetwork(network)

    def inner(self, z: Tensor, scale: Tensor, time: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        """The network's output for the state scale * z; scale and time (B,) float64."""
        return self.network(per_sample(scale, z) * z, time.float(), *labels).to(z.dtype)


class EDMDenoised(_Adapter):
    """EDM's preconditioned D(x; sigma) (Karras et al. 2022, eq. 7), which predicts x: prediction type "sample".

    network(x + sigma eps, sigma[, labels]) is called with sigma held within [sigma_min, sigma_max], and with a state of
    that level's own size, so that it is finite where our angles end at pure noise.
    """

    def __init__(self, network: Any, *, sigma_min: float, sigma_max: float) -> None:
        super().__init__(network)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(self, z: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """z (B, C, ...), sigma = tan(phi) (B,) -> the predicted x."""
        sigma = as_float64(sigma).clamp(self.sigma_min, self.sigma_max)
        return self.inner(z, torch.sqrt(1 + sigma**2), sigma, labels)


class EDMPreconditioned(_Adapter):
    """EDM's bare F(c_in x; c_noise) (Karras et al. 2022, table 1) made to predict v: prediction type "v_prediction".

    With s = sigma_data and r^2 = sin^2(phi) + s^2 cos^2(phi), c_in times EDM's state is z / r and

        v = sin(phi) cos(phi) (1 - s^2) / r^2 z - (s / r) F(z / r; log(sigma) / 4),

    which is bounded from pure data to pure noise; x = cos(phi) z - sin(phi) v is c_skip x + c_out F of the paper. The
    sigma that c_noise tells the network is held within [sigma_min, sigma_max].
    """

    def __init__(self, network: Any, *, sigma_data: float, sigma_min: float, sigma_max: float) -> None:
        super().__init__(network)
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max

    def forward(self, z: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        """z (B, C, ...), sigma = tan(phi) (B,) -> the predicted v."""
        sigma, s = as_float64(sigma), self.sigma_data
        phi = torch.atan(sigma)
        sin, cos = torch.sin(phi), torch.cos(phi)
        r = torch.sqrt(sin**2 + s**2 * cos**2)
        noise = torch.log(sigma.clamp(self.sigma_min, self.sigma_max)) / 4
        out = self.inner(z, 1 / r, noise, labels)
        return per_sample(sin * cos * (1 - s**2) / r**2, z) * z - per_sample(s / r, z) * out


class FlowVelocity(_Adapter):
    """A flow-matching velocity u(z_t, t) made to predict v: prediction type "v_prediction".

    For z_t = (1 - t) x + t eps and u = eps - x,

        v = ((cos(phi) - sin(phi)) z + u) / (cos(phi) + sin(phi)),

    bounded from data to noise. With `noise_at_one` False the network runs the other way (Lipman et al. 2023): it is
    told 1 - t, 0 at noise, and its velocity is x - eps. The network's time is that number times `time_scale`.
    """

    def __init__(self, network: Any, *, time_scale: float, noise_at_one: bool) -> None:
        super().__init__(network)
        self.time_scale, self.noise_at_one = time_scale, noise_at_one

    def forward(self, z: Tensor, time: Tensor, *labels: Tensor) -> Tensor:
        """z (B, C, ...), t (B,) in [0, 1], 1 at noise -> the predicted v."""
        time = as_float64(time)
        phi = torch.atan2(time, 1 - time)
        sin, cos = torch.sin(phi), torch.cos(phi)
        total = cos + sin
        told, sign = (time, 1.0) if self.noise_at_one else (1 - time, -1.0)
        out = self.inner(z, 1 / total, self.time_scale * told, labels)
        return per_sample((cos - sin) / total, z) * z + per_sample(sign / total, z) * out
