"""The loss of a conversion: a student of another prediction type agrees with its teacher, time by time."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser, Schedule, TableSchedule
from progdistill.core.random import Stream, integers, uniform
from progdistill.ops import diffuse, diffuse_seeded, normal, prediction_loss_and_grad, rotation
from progdistill.ops.layout import per_sample, split_heads
from progdistill.ops.names import heads
from progdistill.training.batches import Batch
from progdistill.training.config import ConvertConfig, DistillConfig
from progdistill.training.guidance import LABEL_DROPOUT, with_drawn_guidance, with_dropped_labels
from progdistill.training.objective import Loss

TEACHER_ERROR = 0.05
"""The error of a network's output that the mixture of teacher and data reckons with, against a spread of about 1."""
_LEVELS = 1024


class AngleRange(NamedTuple):
    """The angles between which a network has been trained and says what its prediction type needs."""

    low: float
    high: float


def known_angles(teacher: Denoiser) -> AngleRange:
    """Where the teacher's outputs mean something: between the first and the last level of its time map.

    A division by zero at an end is left out: SNR 0 for epsilon, the clean end for sample, up to the next of the
    schedule's levels (1024 of a continuous one).
    """
    times, schedule = teacher.time_map, teacher.time_map.schedule
    discrete = isinstance(schedule, TableSchedule)
    level = 1 / (len(schedule.alphas_cumprod) if discrete else _LEVELS)
    first, last = level if discrete else 0.0, 1.0
    if times.minimum is not None:
        first = max(first, (times.minimum - times.offset) / times.scale)
    if times.maximum is not None:
        last = min(last, (times.maximum - times.offset) / times.scale)
    low, high = float(schedule.angle(first)), float(schedule.angle(last))
    if teacher.prediction_type == "epsilon" and math.cos(high) < 1e-9:
        high = float(schedule.angle(last - level))
    if teacher.prediction_type == "sample" and math.sin(low) < 1e-9:
        low = float(schedule.angle(first + level))
    return AngleRange(low, high)


def held_v(prediction_type: str, phi: Tensor, known: AngleRange) -> rotation.Form:
    """v at angle phi (B,) from z and an output that the network gave at the nearest angle it knows.

    There, with that level's alpha and sigma, the output says x and eps; v = cos(phi) eps - sin(phi) x then needs no
    division, so v stays bounded at both ends of the rotation. Within the known angles it is the ordinary conversion.
    """
    held = phi.clamp(*known)
    form = rotation.prediction_form(prediction_type, "v", held)
    cos, sin = torch.cos(phi - held), torch.sin(phi - held)
    return rotation.Form(cos * form.z - sin, tuple(cos * c for c in form.output))


def teacher_share(form: rotation.Form, phi: Tensor, known: AngleRange) -> Tensor:
    """What the teacher's v is worth (B,): its weight in a mixture with the data's; 0 beyond the angles it knows.

    Two estimates of E[v | z]: the data's single v has a spread of about 1 and no error; the teacher's has no spread,
    and the error of its output times that output's coefficients (1 / cos(phi) for epsilon: 157 at the last level of a
    linear schedule). The weights are those of least expected error, inverse to both variances.
    """
    variance = TEACHER_ERROR**2 * torch.stack([c.square() for c in form.output]).sum(0)
    return torch.where((phi < known.low) | (phi > known.high), 0.0, 1 / (1 + variance))


class HeldTeacher(Denoiser):
    """A teacher as a v network that can be asked at any angle, on a schedule that need not be its own.

    Beyond the angles it knows it is asked at the nearest one (see `held_v`).
    """

    def __init__(self, teacher: Denoiser, schedule: Schedule) -> None:
        super().__init__(
            teacher.network,
            sample_shape=teacher.sample_shape,
            schedule=schedule,
            prediction_type="v_prediction",
            time_map=teacher.time_map,
            num_classes=teacher.num_classes,
            valid_steps=teacher.valid_steps,
            unconditional_label=teacher.unconditional_label,
            guidance_range=teacher.guidance_range,
        )
        self.teacher = teacher
        self.known = known_angles(teacher)

    def raw(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        out = in_full_precision(self.teacher, z, phi.clamp(*self.known), cond)
        kind = self.teacher.prediction_type
        return _combined(held_v(kind, phi, self.known), z, out, kind)


def in_full_precision(teacher: Denoiser, z: Tensor, phi: Tensor, cond: Condition | None) -> Tensor:
    """The teacher's output in the precision of its weights, whatever autocast says.

    A bfloat16 output is rounded by up to 0.4 %, which the conversion of epsilon multiplies by 1 / cos(phi): by 157 at
    the last level of a linear schedule.
    """
    with torch.autocast(z.device.type, enabled=False):
        return teacher.raw(z, phi, cond)


class ConversionObjective:
    """t uniform on [0, 1] of the student's schedule; the target is the teacher's prediction in the student's quantity.

    The loss of a sample is multiplied by `teacher_share`. Where an epsilon's error is magnified by 1 / cos(phi) it
    would else outweigh all other noise levels, with errors of the teacher that no student can or should repeat.

    With zero_snr="finetune" the target is instead mixed with the data's own v, that of Algorithm 1, by that share: the
    data alone where the teacher says nothing, almost the teacher alone where it says more than a single image does.
    A teacher that was itself distilled knows the times of its own steps only: t is one of them. One that can be guided
    is asked without labels too, a share `LABEL_DROPOUT` of the time; one that takes a guidance scale, at scales drawn
    from its range.
    """

    def __init__(self, teacher: Denoiser, config: ConvertConfig | DistillConfig) -> None:
        self.teacher = teacher
        self.steps = _steps_of(teacher)
        self.known = known_angles(teacher)
        self.with_data = config.zero_snr == "finetune"
        self.loss_options = config.loss_options()
        teacher.eval().requires_grad_(False)

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss:
        phi = student.schedule.angle(self._times(batch))
        batch = dataclasses.replace(batch, cond=self._condition(batch))
        z, target, target_type, worth = self._mixed(batch, phi) if self.with_data else self._given(batch, phi)
        pred = student.raw(z, phi, batch.cond)
        loss, grad = prediction_loss_and_grad(
            pred,
            z,
            target,
            phi,
            prediction_type=student.prediction_type,
            target_type=target_type,
            grad_scale=grad_scale,
            **self.loss_options,
        )
        if worth is not None:
            loss, grad = worth.to(loss.dtype) * loss, per_sample(worth, grad) * grad
        return Loss(pred, grad, loss, phi)

    def _condition(self, batch: Batch) -> Condition | None:
        if self.teacher.guidance_range is not None:
            return with_drawn_guidance(batch, self.teacher)
        return with_dropped_labels(batch, self.teacher.unconditional_label, LABEL_DROPOUT)

    def _times(self, batch: Batch) -> Tensor:
        if self.steps is None:
            return uniform(batch.seeds, batch.update, Stream.TIME)
        return (integers(batch.seeds, batch.update, Stream.TIME, self.steps) + 1).double() / self.steps

    @torch.no_grad()
    def _given(self, batch: Batch, phi: Tensor) -> tuple[Tensor, Tensor, str, Tensor | None]:
        # The student's schedule ends where the teacher's knowledge does, so the fused loss converts the output itself.
        z = diffuse_seeded(batch.x, batch.seeds, batch.update, Stream.NOISE, phi)
        kind = self.teacher.prediction_type
        worth = teacher_share(held_v(kind, phi, self.known), phi.clamp(*self.known), self.known)
        return z, in_full_precision(self.teacher, z, phi, batch.cond), kind, worth

    @torch.no_grad()
    def _mixed(self, batch: Batch, phi: Tensor) -> tuple[Tensor, Tensor, str, Tensor | None]:
        noise = normal(batch.seeds, batch.update, Stream.NOISE, batch.x.shape[1:])
        z = diffuse(batch.x, noise, phi)
        out = in_full_precision(self.teacher, z, phi.clamp(*self.known), batch.cond)
        kind = self.teacher.prediction_type
        form = held_v(kind, phi, self.known)
        share = teacher_share(form, phi, self.known)
        # The share goes into the coefficients, in float64, before anything large is multiplied.
        part = _combined(rotation.Form(share * form.z, tuple(share * c for c in form.output)), z, out, kind)
        own = diffuse(noise, -batch.x, phi)
        return z, part + per_sample(1 - share, z) * own, "v_prediction", None


def _steps_of(teacher: Denoiser) -> int | None:
    """The step count whose times a distilled teacher knows; None: it knows all times."""
    if teacher.valid_steps is None:
        return None
    most = teacher.valid_steps[0]
    if any(most % steps for steps in teacher.valid_steps):
        raise ValueError(
            f"the teacher was distilled for {teacher.valid_steps} steps, whose times are no part of those of {most} "
            "steps; convert a model of one of them alone"
        )
    return most


def _combined(form: rotation.Form, z: Tensor, out: Tensor, prediction_type: str) -> Tensor:
    value = per_sample(form.z, z) * z
    for coefficient, head in zip(form.output, split_heads(out, heads(prediction_type), z.dtype), strict=True):
        value = value + per_sample(coefficient, z) * head
    return value
