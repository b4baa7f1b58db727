"""The U-Net inside a teacher's network: where a conversion starts from to end at a model that folders can hold."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from progdistill.core import (
    CallableNetwork,
    Denoiser,
    ExponentialSchedule,
    FlowMatchingSchedule,
    Schedule,
    TimeMap,
)
from progdistill.core.preconditioning import EDMDenoised, EDMPreconditioned, FlowVelocity
from progdistill.interop.diffusers_module import is_diffusers_unet, unet_of_diffusers
from progdistill.nets.unet import UNet
from progdistill.ops import rotation

TIMES = 1024
_FAMILY = (EDMDenoised, EDMPreconditioned, FlowVelocity)


class Beginning(NamedTuple):
    """A plain U-Net that knows what the teacher's network knows, before it has learned to say it.

    network: a U-Net, shared with the teacher. time_map: what it is told about time. state: the multiple of our state
    that it was trained on, on the mean. outputs: the multiple of each of its heads that comes nearest to what is
    wanted.
    """

    network: UNet
    time_map: TimeMap
    state: float
    outputs: tuple[float, ...]


def beginning(teacher: Denoiser, wanted: str, schedule: Schedule) -> Beginning | None:
    """What a `wanted` prediction on a schedule is begun with; None: the teacher's network is no U-Net.

    Raises ValueError for EDM and flow-matching networks around anything but a U-Net, and for the preconditioned D of
    EDM whatever is inside.
    """
    phi = schedule.angle((torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES)
    network = teacher.network
    if not isinstance(network, _FAMILY):
        unet = inner_unet(network)
        return unet and Beginning(unet, teacher.time_map, 1.0, _factors(teacher.prediction_type, wanted, phi))
    unet = None if isinstance(network, EDMDenoised) else inner_unet(network.network)
    if unet is None:
        raise ValueError(_refusal(network))
    return (
        _of_edm(network, unet, wanted, phi)
        if isinstance(network, EDMPreconditioned)
        else _of_flow(network, unet, wanted, phi)
    )


def inner_unet(network: nn.Module) -> UNet | None:
    """The U-Net that a network is, or calls as it is; one of diffusers as one of ours with copied weights."""
    while isinstance(network, CallableNetwork):
        network = network.function
    if is_diffusers_unet(network):
        return unet_of_diffusers(network)
    return network if isinstance(network, UNet) else None


def output_factors(source: str, wanted: str, schedule: Schedule) -> tuple[float, ...]:
    """The multiples of the heads of a `source` network whose sum is nearest to a `wanted` prediction.

    x and eps are taken as uncorrelated and of equal size, so each prediction is a unit vector in their plane, and least
    squares over the schedule's times give the mean scalar products: eps -> v is the mean of cos(phi), 2 / pi on the
    pure cosine; {x, eps} -> v has -2 / pi and 2 / pi.
    """
    return _factors(source, wanted, schedule.angle((torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES))


def _factors(source: str, wanted: str, phi: Tensor) -> tuple[float, ...]:
    (target,) = _directions(wanted, phi)
    return tuple(float((target * head).sum(0).mean()) for head in _directions(source, phi))


def _directions(prediction_type: str, phi: Tensor) -> tuple[Tensor, ...]:
    """Each head as (2, times): its components along x and eps."""
    zero, one = torch.zeros_like(phi), torch.ones_like(phi)
    x, eps = torch.stack([one, zero]), torch.stack([zero, one])
    if prediction_type == "sample_epsilon":
        return x, eps
    v = torch.stack([-torch.sin(phi), torch.cos(phi)])
    return ({"x": x, "eps": eps, "v": v}[rotation.domain(prediction_type)],)


def _of_edm(network: EDMPreconditioned, unet: UNet, wanted: str, phi: Tensor) -> Beginning:
    """F(z / r; log(sigma) / 4) has unit size and no correlation with z: v = ... z - (s / r) F, x = cos z - sin v."""
    s, low, high = network.sigma_data, math.log(network.sigma_min) / 4, math.log(network.sigma_max) / 4
    sin, cos = torch.sin(phi), torch.cos(phi)
    r = torch.sqrt(sin**2 + s**2 * cos**2)
    of_v = -s / r
    times = ExponentialSchedule(network.sigma_min, network.sigma_max)
    time_map = TimeMap(times, scale=high - low, offset=low, minimum=low, maximum=high)
    output = of_v if wanted == "v_prediction" else -sin * of_v
    return Beginning(unet, time_map, float((1 / r).mean()), (float(output.mean()),))


def _of_flow(network: FlowVelocity, unet: UNet, wanted: str, phi: Tensor) -> Beginning:
    """u = +-(eps - x), of size sqrt(2) for x and eps of unit size."""
    sign, scale = (1.0, network.time_scale) if network.noise_at_one else (-1.0, -network.time_scale)
    total = torch.sin(phi) + torch.cos(phi)
    time_map = TimeMap(FlowMatchingSchedule(), scale=scale, offset=0.0 if network.noise_at_one else network.time_scale)
    output = sign * float(total.mean()) / 2 if wanted == "v_prediction" else -sign / 2
    return Beginning(unet, time_map, float((1 / total).mean()), (output,))


def _refusal(network: nn.Module) -> str:
    if isinstance(network, EDMDenoised):
        return (
            "the teacher is EDM's preconditioned D(x; sigma), whose scaling of state and output no U-Net does; give "
            "the network inside it: from_edm(net.model, preconditioned=False, ...)"
        )
    inner = network.network
    while isinstance(inner, CallableNetwork):
        inner = inner.function
    return (
        f"what the teacher's {type(network).__name__} calls is a {type(inner).__name__}; only a "
        "progdistill.nets.unet.UNet or a UNet2DModel of diffusers can go on without it as a plain network (such a "
        "teacher can be distilled as it is; its students leave by ONNX or torch.export)"
    )
