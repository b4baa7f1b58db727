"""After a trajectory fine-tuning: the student beside its teacher's fine trajectory and the teacher in as many calls."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.evaluation.classes import class_labels_in_turn
from progdistill.metrics import mean_and_standard_error, paired_distance
from progdistill.sampling import generate
from progdistill.sampling.ddim import scaled
from progdistill.sampling.solvers import Solver


@dataclasses.dataclass(frozen=True)
class TrajectoryComparison:
    """Images (n, C, H, W) in [-1, 1] and paired distances (root-mean-square pixel difference, data range 2)."""

    steps: int
    teacher_calls: int
    """Network calls of the teacher's fine trajectory."""
    teacher_fine: Tensor
    teacher_same: Tensor
    """The teacher along the student's own steps."""
    student: Tensor
    student_distance: tuple[float, float]
    """Mean and standard error of the student against the fine trajectory."""
    teacher_distance: tuple[float, float]
    """The same of the teacher in the student's steps: what had to be learned."""
    labels: Tensor | None = None
    """(n,) int64, for conditional models."""

    def record(self) -> dict:
        """JSON-ready figures."""
        return {
            "teacher_calls": self.teacher_calls,
            "student_distance": self.student_distance[0],
            "student_distance_error": self.student_distance[1],
            "teacher_distance": self.teacher_distance[0],
            "teacher_distance_error": self.teacher_distance[1],
        }

    def rows(self) -> list[tuple[str, Tensor]]:
        """Labelled images for a grid."""
        calls = f"{self.steps} call{'s' * (self.steps > 1)}"
        return [
            (f"teacher, {self.teacher_calls} calls", self.teacher_fine),
            (f"student, {calls}", self.student),
            (f"teacher, {calls}", self.teacher_same),
        ]


def compare_trajectory(
    student: Denoiser, teacher: Denoiser, steps: int, solver: Solver, count: int
) -> TrajectoryComparison:
    """Compares on the noise of seeds 0 ... count - 1 (classes in turn for conditional models).

    `solver`: the teacher's, on its fine grid, which ends where the student's steps do.
    """
    seeds = torch.arange(count)
    labels = class_labels_in_turn(teacher, count)
    # A teacher that is itself a student is told its own step count, and not that of the student's plan.
    unbound = teacher.with_network(teacher.network, valid_steps=None, sampling_plans=student.sampling_plans)

    def finely(_: Denoiser, z: Tensor, cond: Condition | None, clip: float | None) -> Tensor:
        return scaled(solver(teacher, z, cond, clip=clip), student.plan(steps).last_factor)

    fine = generate(unbound, steps, seeds=seeds, class_labels=labels, solver=finely).cpu()
    own, same = (generate(m, steps, seeds=seeds, class_labels=labels).cpu() for m in (student, unbound))
    return TrajectoryComparison(
        steps,
        solver.network_calls,
        fine,
        same,
        own,
        mean_and_standard_error(paired_distance(own, fine)),
        mean_and_standard_error(paired_distance(same, fine)),
        labels,
    )
