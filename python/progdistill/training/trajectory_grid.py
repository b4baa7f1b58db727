"""The angles of a trajectory fine-tuning: the student's steps, and the teacher's inside each of them."""

from __future__ import annotations

from torch import Tensor

from progdistill.core import EDMSchedule, SamplingPlan, Schedule
from progdistill.sampling.solvers import make_grid
from progdistill.training.trajectory_config import TrajectoryConfig


def teacher_angles(schedule: Schedule, plan_steps: int, config: TrajectoryConfig) -> Tensor:
    """The teacher's angles (K n + 1,) float64; every K-th is one of the student's n + 1.

    "trailing" (the default but on EDM's schedules) are the schedule's own times, and end at exactly 0. "polynomial"
    (the default there) and "logsnr" run from sigma_max to sigma_min, where they end: what noise is left is not seen
    (Zhou et al. 2024 take 0.006). All are of equal steps in some variable, so that the grids are nested.
    """
    steps = config.teacher_substeps * plan_steps
    kind = config.grid
    if kind == "auto":
        kind = "polynomial" if isinstance(schedule, EDMSchedule) else "trailing"
    if kind == "trailing":
        return make_grid(schedule, steps, kind)
    ends = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max, "rho": config.rho}
    return make_grid(schedule, steps + 1, kind, **ends)[:-1]


def student_plan(angles: Tensor, config: TrajectoryConfig) -> SamplingPlan:
    """The student's steps through every K-th of the teacher's angles."""
    return SamplingPlan(tuple(angles[:: config.teacher_substeps].tolist()), config.analytic_first_step)


def is_schedules_own(plan: SamplingPlan, schedule: Schedule) -> bool:
    """Whether the plan is what plain DDIM does anyway."""
    return not plan.analytic_first_step and list(plan.phis) == schedule.grid(len(plan.phis) - 1).tolist()
