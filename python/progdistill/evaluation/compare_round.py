"""After a distillation round: the student at N steps beside its teacher at N and at K N, on the same noise."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.evaluation.classes import class_labels_in_turn, guidance_scales_in_turn
from progdistill.metrics import mean_and_standard_error, paired_distance
from progdistill.sampling import generate


@dataclasses.dataclass(frozen=True)
class RoundComparison:
    """Images (n, C, H, W) in [-1, 1] and paired distances (root-mean-square pixel difference, data range 2)."""

    steps: int
    teacher_steps: int
    """The teacher's steps that the student imitates: K times its own."""
    teacher_imitated: Tensor
    teacher_same: Tensor
    student: Tensor
    student_distance: tuple[float, float]
    """Mean and standard error of student (N) against teacher (K N): what the round has lost."""
    teacher_distance: tuple[float, float]
    """Teacher (N) against teacher (K N): what simply taking fewer steps would have lost."""
    labels: Tensor | None = None
    """(n,) int64, for conditional models."""
    scales: Tensor | None = None
    """(n,) float32 guidance scales, the same for both networks, if they take one."""

    def record(self) -> dict:
        """JSON-ready figures."""
        return {
            "teacher_steps": self.teacher_steps,
            "student_distance": self.student_distance[0],
            "student_distance_error": self.student_distance[1],
            "teacher_distance": self.teacher_distance[0],
            "teacher_distance_error": self.teacher_distance[1],
        }

    def rows(self) -> list[tuple[str, Tensor]]:
        """Labelled images for a grid."""
        n = self.steps
        return [
            (f"teacher, {self.teacher_steps} steps", self.teacher_imitated),
            (f"student, {n} step{'s' * (n > 1)}", self.student),
            (f"teacher, {n} step{'s' * (n > 1)}", self.teacher_same),
        ]


def compare_round(
    student: Denoiser, teacher: Denoiser, steps: int, count: int, *, teacher_substeps: int = 2
) -> RoundComparison:
    """Compares on the noise of seeds 0 ... count - 1 (classes in turn for conditional models).

    Models that take a guidance scale get scales spread over the student's range.

    `teacher_substeps`: K, the teacher's steps inside one of the student's `steps`.
    """
    teacher_steps = teacher_substeps * steps
    seeds = torch.arange(count)
    labels = class_labels_in_turn(teacher, count)
    scales = guidance_scales_in_turn(student, count)
    conditions = {"seeds": seeds, "class_labels": labels, "guidance_scale": scales}
    draw = lambda model, n: generate(any_steps(model), n, **conditions).cpu()  # noqa: E731
    imitated, same, own = draw(teacher, teacher_steps), draw(teacher, steps), draw(student, steps)
    return RoundComparison(
        steps,
        teacher_steps,
        imitated,
        same,
        own,
        mean_and_standard_error(paired_distance(own, imitated)),
        mean_and_standard_error(paired_distance(same, imitated)),
        labels,
        scales,
    )


def any_steps(model: Denoiser) -> Denoiser:
    """The same model without its list of valid step counts, to show what happens elsewhere."""
    return model.with_network(model.network, valid_steps=None)
