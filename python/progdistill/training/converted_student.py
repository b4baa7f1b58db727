"""What a conversion starts from: the teacher's network with another last layer, on another schedule."""

from __future__ import annotations

import dataclasses

from progdistill.core import CosineSchedule, Denoiser, Schedule
from progdistill.core.schedules import logsnr_of
from progdistill.interop.manifest import FITTED, check_fits
from progdistill.nets.unet import UNet
from progdistill.ops.names import heads
from progdistill.training.conversion_objective import AngleRange, known_angles
from progdistill.training.plain_unet import Beginning, beginning
from progdistill.training.round_state import copy_network


def converted_student(teacher: Denoiser, prediction_type: str, zero_snr: str) -> Denoiser:
    """A network like the teacher's, to be trained to say `prediction_type`; it is told the same about time.

    The weights are copied. The last layer of a `UNet` becomes that combination of the teacher's heads which is nearest
    to the new prediction on the whole (see `output_factors`); so does that of a `UNet`, or a UNet2DModel of diffusers,
    inside EDM's preconditioning or a flow-matching velocity, which is left behind. Any other network keeps its own.

    Raises:
        ValueError: a network that cannot be copied and trained, or whose number of outputs would have to change.
    """
    _check_trainable(teacher)
    schedule = student_schedule(teacher, zero_snr)
    begun = beginning(teacher, prediction_type, schedule)
    if begun is not None:
        network = _with_ends(begun, teacher.sample_shape[0])
        facts = {name: getattr(teacher, name) for name in FITTED}
        check_fits(network.config, **{**facts, "prediction_type": prediction_type})
    elif heads(teacher.prediction_type) == heads(prediction_type):
        network = copy_network(teacher.network)
    else:
        raise ValueError(
            f"the teacher's network is a {type(teacher.network).__name__} of {heads(teacher.prediction_type)} heads, "
            f"whose last layer only its author can replace by that of a {prediction_type!r} network; only a "
            "progdistill.nets.unet.UNet can be converted so (a two-headed teacher can be distilled as it is)"
        )
    return teacher.with_network(
        network.requires_grad_(True),
        schedule=schedule,
        prediction_type=prediction_type,
        time_map=teacher.time_map if begun is None else begun.time_map,
    )


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


def _with_ends(begun: Beginning, channels: int) -> UNet:
    """A copy of the U-Net whose first and last layers are multiplied by what the beginning says."""
    network = begun.network
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name in ("conv_out.weight", "conv_out.bias"):
        parts = state[name].split(channels)
        state[name] = sum(factor * part for factor, part in zip(begun.outputs, parts, strict=True))
    state["conv_in.weight"] *= begun.state
    converted = UNet.of_weights(dataclasses.replace(network.config, out_channels=channels), state)
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
