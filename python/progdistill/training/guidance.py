"""Guidance distillation, Meng et al. 2023: the guidance scale becomes an input of the network.

Stage one, here: a network that takes the scale imitates the guided teacher at every noise level. Stage two is ordinary
progressive distillation in which teacher and student are given the same scale, and nothing is guided any more.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from progdistill.core import Condition, Denoiser
from progdistill.core.random import Stream, uniform
from progdistill.nets.unet import UNet
from progdistill.ops import diffuse_seeded, prediction_loss_and_grad
from progdistill.sampling.arguments import checked_guidance_range
from progdistill.training.batches import Batch
from progdistill.training.config import LoopConfig
from progdistill.training.objective import Loss

SINUSOIDS = 256
LABEL_DROPOUT = 0.1
"""The share of labels that a conversion drops, so that a teacher that can be guided still can be."""


class GuidanceObjective:
    """Stage one: t uniform on [0, 1], scales uniform on the range; the weighted error against the guided prediction."""

    def __init__(self, teacher: Denoiser, config: LoopConfig) -> None:
        self.teacher = teacher
        self.loss_options = config.loss_options()
        teacher.eval().requires_grad_(False)

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss:
        phi = student.schedule.angle(uniform(batch.seeds, batch.update, Stream.TIME))
        z = diffuse_seeded(batch.x, batch.seeds, batch.update, Stream.NOISE, phi)
        cond = with_drawn_guidance(batch, student)
        target, target_type = self._target(z, phi, cond)
        pred = student.raw(z, phi, cond)
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
        return Loss(pred, grad, loss, phi)

    @torch.no_grad()
    def _target(self, z: Tensor, phi: Tensor, cond: Condition) -> tuple[Tensor, str]:
        kind = self.teacher.prediction_type
        if kind == "sample_epsilon":  # v, which two heads give without a division
            return self.teacher.v(z, phi, cond), "v_prediction"
        return self.teacher.raw(z, phi, cond).to(z.dtype), kind


def with_drawn_guidance(batch: Batch, student: Denoiser) -> Condition | None:
    """The batch's condition with a guidance scale for each sample, where the student takes one."""
    if student.guidance_range is None:
        return batch.cond
    low, high = student.guidance_range
    scales = low + (high - low) * uniform(batch.seeds, batch.update, Stream.GUIDANCE)
    return dataclasses.replace(batch.cond, guidance_scale=scales.float())


def with_dropped_labels(batch: Batch, unconditional_label: int | None, share: float) -> Condition | None:
    """The batch's condition with a share of its labels replaced by the unconditional one (Ho & Salimans 2022)."""
    if unconditional_label is None or not share:
        return batch.cond
    dropped = uniform(batch.seeds, batch.update, Stream.LABEL_DROPOUT) < share
    return dataclasses.replace(
        batch.cond, class_labels=batch.cond.class_labels.masked_fill(dropped, unconditional_label)
    )


def check_can_be_guided(teacher: Denoiser) -> None:
    """Raises ValueError for a teacher that stage one cannot start from, with the reason."""
    if teacher.guidance_range is not None:
        low, high = teacher.guidance_range
        raise ValueError(
            f"there is a guidance_range, but the teacher takes a guidance scale ({low:g} to {high:g}) already, and its "
            "students will; leave guidance_range out"
        )
    if teacher.unconditional_label is None:
        raise ValueError(
            "there is a guidance_range, but the teacher cannot be guided; train it with class_conditional and "
            "label_dropout"
        )
    if teacher.valid_steps is not None:
        raise ValueError(
            f"there is a guidance_range, but the teacher was distilled for {teacher.valid_steps} steps and knows no "
            "other times; start from the teacher that it was distilled from"
        )
    if not isinstance(teacher.network, UNet):
        raise ValueError(
            f"guidance_range was given for a {type(teacher.network).__name__}; only a progdistill.nets.unet.UNet can "
            "be given an input for it"
        )


def guided_student(teacher: Denoiser, guidance_range: tuple[float, float]) -> Denoiser:
    """A student that starts as its conditional teacher and takes a guidance scale.

    Raises:
        ValueError: a teacher that cannot be guided, or is not a U-Net of ours; a range that is none.
    """
    low, high = checked_guidance_range(guidance_range)
    check_can_be_guided(teacher)
    network = _with_guidance_input(teacher.network).requires_grad_(True)
    return teacher.with_network(network, guidance_range=(low, high), unconditional_label=None)


def _with_guidance_input(network: UNet) -> nn.Module:
    guided = UNet(dataclasses.replace(network.config, guidance_embed_dim=SINUSOIDS))
    new = guided.guidance_embedding.state_dict(prefix="guidance_embedding.")
    guided.load_state_dict({**network.state_dict(), **new})
    return guided.to(network.conv_in.weight.device)
