"""What a conversion starts from: the teacher's network with another last layer, on another schedule."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from progdistill.core import CosineSchedule, Denoiser, Schedule
from progdistill.core.schedules import logsnr_of
from progdistill.nets.unet import UNet
from progdistill.ops import rotation
from progdistill.ops.names import heads
from progdistill.training.conversion_objective import AngleRange, known_angles
from progdistill.training.round_state import copy_network

_TIMES = 1024


def converted_student(teacher: Denoiser, prediction_type: str, zero_snr: str) -> Denoiser:
    """A network like the teacher's, to be trained to say `prediction_type`; its time map is the teacher's.

    The weights are copied. The last layer of a `UNet` becomes that combination of the teacher's heads which is nearest
    to the new prediction on the whole (see `output_factors`); any other network keeps its own.

    Raises:
        ValueError: a network that cannot be copied and trained, or whose number of outputs would have to change.
    """
    _check_trainable(teacher)
    schedule = student_schedule(teacher, zero_snr)
    network = teacher.network
    if isinstance(network, UNet):
        factors = output_factors(teacher.prediction_type, prediction_type, schedule)
        network = _with_output(network, teacher.sample_shape[0], factors)
    elif heads(teacher.prediction_type) == heads(prediction_type):
        network = copy_network(network)
    else:
        raise ValueError(
            f"the teacher's network is a {type(network).__name__} of {heads(teacher.prediction_type)} heads, whose "
            f"last layer only its author can replace by that of a {prediction_type!r} network; only a "
            "progdistill.nets.unet.UNet can be converted so (a two-headed teacher can be distilled as it is)"
        )
    return teacher.with_network(network.requires_grad_(True), schedule=schedule, prediction_type=prediction_type)


def student_schedule(teacher: Denoiser, zero_snr: str) -> Schedule:
    """The cosine schedule of a converted network: cut off where the teacher knows no more, or to SNR 0 ("finetune").

    A teacher whose schedule is such a one keeps it, and so does one that knows the times of its own steps only.
    """
    known = known_angles(teacher)
    if teacher.valid_steps is not None:
        return teacher.schedule
    if zero_snr == "finetune":
        return CosineSchedule()
    if isinstance(teacher.schedule, CosineSchedule) and _ends(teacher.schedule) == known:
        return teacher.schedule
    low, high = (float(logsnr_of(angle)) for angle in known)
    pure = CosineSchedule()
    return CosineSchedule(
        logsnr_min=None if known.high == float(pure.angle(1.0)) else high,
        logsnr_max=None if known.low == 0.0 else low,
    )


def output_factors(source: str, wanted: str, schedule: Schedule) -> tuple[float, ...]:
    """The multiples of the heads of a `source` network whose sum is nearest to a `wanted` prediction.

    x and eps are taken as uncorrelated and of equal size, so each prediction is a unit vector in their plane, and least
    squares over the schedule's times give the mean scalar products: eps -> v is the mean of cos(phi), 2 / pi on the
    pure cosine; {x, eps} -> v has -2 / pi and 2 / pi.
    """
    phi = schedule.angle((torch.arange(_TIMES, dtype=torch.float64) + 0.5) / _TIMES)
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


def _with_output(network: UNet, channels: int, factors: tuple[float, ...]) -> UNet:
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name in ("conv_out.weight", "conv_out.bias"):
        parts = state[name].split(channels)
        state[name] = sum(factor * part for factor, part in zip(factors, parts, strict=True))
    with torch.device("meta"):
        converted = UNet(dataclasses.replace(network.config, out_channels=channels))
    converted.load_state_dict(state, assign=True)
    return converted.train(network.training)


def _ends(schedule: Schedule) -> AngleRange:
    return AngleRange(float(schedule.angle(0.0)), float(schedule.angle(1.0)))


def _check_trainable(teacher: Denoiser) -> None:
    if type(teacher).raw is not Denoiser.raw:
        raise ValueError(
            f"the teacher is a {type(teacher).__name__}, which does not call its network as a Denoiser does, so a "
            "network alone cannot learn to be it; put what it does into a module: Denoiser(module, ...)"
        )
    if next(teacher.network.parameters(), None) is None:
        raise ValueError(
            f"the teacher's network is a {type(teacher.network).__name__} without parameters; a conversion trains a "
            "copy of it. Register its weights as parameters (torch.nn.Module)"
        )
