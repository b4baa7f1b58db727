"""Data whose ideal denoiser is known in closed form: Gaussians and mixtures of them, coordinate by coordinate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from progdistill.core import CosineSchedule, Denoiser, TableSchedule, TimeMap


class MixtureDenoiser(Denoiser):
    """E[v | z] for x ~ sum_k w_k N(mean_k, std_k^2), independently in every coordinate, in the state's precision."""

    def __init__(self, means, stds, weights=None, *, sample_shape=(1, 2, 2), schedule=None):
        super().__init__(nn.Identity(), sample_shape=sample_shape, schedule=schedule or CosineSchedule())
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        weights = torch.ones(len(means), dtype=torch.float64) if weights is None else torch.tensor(weights)
        self.log_weights = torch.log(weights / weights.sum())

    def raw(self, z: Tensor, phi: Tensor, cond=None) -> Tensor:
        alpha, sigma = (f(phi).reshape(-1, *(1,) * z.dim()) for f in (torch.cos, torch.sin))
        state = z.double().unsqueeze(-1)
        variance = alpha**2 * self.stds**2 + sigma**2
        centred = state - alpha * self.means
        weight = torch.softmax(self.log_weights - 0.5 * centred**2 / variance - 0.5 * torch.log(variance), dim=-1)
        # E[eps | z] = sigma (z - alpha m) / variance and E[x | z] = m + alpha s^2 (z - alpha m) / variance.
        eps = (weight * sigma * centred / variance).sum(-1)
        x = (weight * (self.means + alpha * self.stds**2 * centred / variance)).sum(-1)
        return (alpha.squeeze(-1) * eps - sigma.squeeze(-1) * x).to(z.dtype)


LINEAR = TableSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
"""google/ddpm-cifar10-32's schedule, logSNR from 9.21 to -10.12."""


class EpsilonMixture(nn.Module):
    """E[eps | z] of a `MixtureDenoiser` as a foreign network says it: all that it is told is a level's number."""

    def __init__(self, means, stds, weights=None, *, schedule=LINEAR):
        super().__init__()
        self.ideal = MixtureDenoiser(means, stds, weights)
        self.schedule = schedule
        self.gain = nn.Parameter(torch.ones(()))  # so that there is something to train

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        phi = self.schedule.angle((level.double() + 1) / len(self.schedule.alphas_cumprod))
        state, shape = z.double(), (-1, *(1,) * (z.dim() - 1))
        v = self.ideal.raw(state, phi)
        eps = torch.sin(phi).reshape(shape) * state + torch.cos(phi).reshape(shape) * v
        return self.gain.to(z.dtype) * eps.to(z.dtype)


def foreign_teacher(network, *, schedule=LINEAR, prediction_type="epsilon", **description) -> Denoiser:
    """A Denoiser as `load` makes one of a diffusers folder."""
    last = len(schedule.alphas_cumprod) - 1
    time_map = TimeMap(schedule, scale=last + 1.0, offset=-1.0, minimum=0.0, maximum=float(last))
    return Denoiser(
        network,
        **{"sample_shape": (1, 2, 2), **description},
        schedule=schedule,
        prediction_type=prediction_type,
        time_map=time_map,
    )


def gaussian_slope(phi: Tensor, std: float) -> Tensor:
    """g with E[v | z] = g z for x ~ N(0, std^2)."""
    alpha, sigma = torch.cos(phi), torch.sin(phi)
    return alpha * sigma * (1 - std**2) / (alpha**2 * std**2 + sigma**2)


def gaussian_steps(phis: Tensor, std: float) -> Tensor:
    """The factor by which DDIM with the ideal denoiser of N(0, std^2) multiplies z along phis."""
    factor = torch.ones((), dtype=torch.float64)
    for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
        factor = factor * (torch.cos(phi - phi_next) - torch.sin(phi - phi_next) * gaussian_slope(phi, std))
    return factor


def distilled_slope(phis: Tensor, std: float) -> Tensor:
    """The v / z of the student whose single step equals the ideal teacher's steps along phis (eq. 43 in v)."""
    h = phis[0] - phis[-1]
    return (torch.cos(h) - gaussian_steps(phis, std)) / torch.sin(h)


def cosine_angles(steps: int) -> Tensor:
    """pi / 2 (N, N - 1, ..., 0) / N."""
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps * math.pi / 2
