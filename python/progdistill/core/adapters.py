"""Denoisers of networks that were trained in another family's terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.core.callable_network import CallableNetwork
from progdistill.core.denoiser import Denoiser
from progdistill.core.preconditioning import EDMDenoised, EDMPreconditioned, FlowVelocity
from progdistill.core.schedules import EDMSchedule, FlowMatchingSchedule, Schedule
from progdistill.core.time_map import TimeMap


def from_edm(
    network: nn.Module | Callable[..., Any],
    *,
    sample_shape: tuple[int, ...],
    preconditioned: bool = True,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    num_classes: int | None = None,
    one_hot_labels: bool = False,
    schedule: Schedule | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Denoiser:
    """The Denoiser of a network in EDM's terms (Karras et al. 2022): state x + sigma eps.

    Args:
        network: with `preconditioned`, D(x; sigma), which returns the denoised x: every `...Precond` of the authors'
            release. Without, the bare F(c_in x; c_noise) inside an `EDMPrecond` (its attribute `model`), called with
            c_noise = log(sigma) / 4: the better choice where it can be had, for it is bounded at both ends as a
            prediction of v, while D becomes a "sample" prediction. Called with (state, (B,) float32[, class_labels]).
        sample_shape: the shape of one sample, (C, H, W) for images in [-1, 1].
        sigma_data: the network's sigma_data, for F only.
        sigma_min, sigma_max: the noise levels that the network knows; beyond them it is told the nearest.
        rho: of the default time grid.
        num_classes: number of class labels, None for an unconditional network.
        one_hot_labels: pass the classes as (B, num_classes) float32 rows of one 1, as the authors' networks take them.
        schedule: the time grid's; default EDMSchedule(sigma_min, sigma_max, rho).
        provenance: as in `Denoiser`.

    Raises:
        ValueError: noise levels or a sigma_data that are no positive numbers; one_hot_labels without num_classes.
    """
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise ValueError(f"sigma_data is {sigma_data}; use the positive number that the network was trained with (0.5)")
    levels = EDMSchedule(sigma_min, sigma_max, rho)
    if one_hot_labels:
        network = _one_hot(network, num_classes)
    if preconditioned:
        adapter: nn.Module = EDMDenoised(network, sigma_min=sigma_min, sigma_max=sigma_max)
    else:
        adapter = EDMPreconditioned(network, sigma_data=sigma_data, sigma_min=sigma_min, sigma_max=sigma_max)
    # With rho = 1 time is linear in sigma: the adapter is told tan(phi) itself, to the last digit of float32.
    sigma_of_angle = TimeMap(EDMSchedule(sigma_min, sigma_max, 1.0), scale=sigma_max - sigma_min, offset=sigma_min)
    return Denoiser(
        adapter,
        sample_shape=sample_shape,
        schedule=schedule or levels,
        prediction_type="sample" if preconditioned else "v_prediction",
        time_map=sigma_of_angle,
        num_classes=num_classes,
        provenance=provenance,
    )


def from_flow_matching(
    network: nn.Module | Callable[..., Any],
    *,
    sample_shape: tuple[int, ...],
    time_scale: float = 1.0,
    noise_at_one: bool = True,
    num_classes: int | None = None,
    schedule: Schedule | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Denoiser:
    """The Denoiser of a flow-matching (rectified flow) velocity on straight paths between x and Gaussian noise.

    Args:
        network: u(z_t, t), called with (state, (B,) float32[, class_labels]).
        sample_shape: the shape of one sample, (C, H, W) for images in [-1, 1].
        time_scale: what the network's time is at its end instead of 1: 1000 for diffusers' networks.
        noise_at_one: z_t = (1 - t) x + t eps and u = eps - x (Stable Diffusion 3, diffusers). False: z_t = t x +
            (1 - t) eps and u = x - eps (Lipman et al. 2023, Liu et al. 2023).
        num_classes: number of class labels, None for an unconditional network.
        schedule: the time grid's; default FlowMatchingSchedule(), equal steps of t.
        provenance: as in `Denoiser`.

    Raises:
        ValueError: a time_scale that is no positive number.
    """
    if not (math.isfinite(time_scale) and time_scale > 0):
        raise ValueError(f"time_scale is {time_scale}; use a positive number (1, or 1000 for diffusers' networks)")
    straight = FlowMatchingSchedule()
    return Denoiser(
        FlowVelocity(network, time_scale=time_scale, noise_at_one=noise_at_one),
        sample_shape=sample_shape,
        schedule=schedule or straight,
        prediction_type="v_prediction",
        time_map=TimeMap(straight, scale=1.0, offset=0.0),
        num_classes=num_classes,
        provenance=provenance,
    )


class _OneHot(nn.Module):
    def __init__(self, network: nn.Module | Callable[..., Any], num_classes: int) -> None:
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else CallableNetwork(network)
        self.num_classes = num_classes

    def forward(self, state: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        return self.network(state, time, F.one_hot(class_labels, self.num_classes).to(state.dtype))


def _one_hot(network: nn.Module | Callable[..., Any], num_classes: int | None) -> nn.Module:
    if num_classes is None:
        raise ValueError("one_hot_labels needs num_classes, the length of a row; give it, or leave one_hot_labels out")
    return _OneHot(network, num_classes)
