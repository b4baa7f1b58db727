"""The angles of a trajectory fine-tuning: the student's steps, and the teacher's inside each of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from progdistill.core import Denoiser, EDMSchedule, SamplingPlan, Schedule
from progdistill.sampling.solvers import (
    Solver,
    Thresholding,
    make_grid,
    solver_stages,
    with_analytic_first_step,
)
from progdistill.training.trajectory_config import PathConfig, TrajectoryConfig


class FollowedPath(NamedTuple):
    """A student's steps, and how its teacher goes the same way."""

    plan: SamplingPlan
    solver: Solver
    """The teacher's, through all of the plan's angles."""
    teacher_steps: int | None = None
    """The step count that the teacher takes, if it is itself a student."""


def followed_path(teacher: Denoiser, steps: int, config: TrajectoryConfig) -> FollowedPath:
    """The path of a student of so many network calls.

    A teacher that is itself a student knows its own steps only: it takes them, and the student's are every so many of
    them (the second stage of Zhou et al. 2024).

    Raises:
        ValueError: a student whose steps the student's do not divide, or which is to take others than its own.
    """
    if teacher.valid_steps is not None:
        return _path_of_student(teacher, steps, config)
    angles = teacher_angles(teacher.schedule, steps, config)
    thresholding = Thresholding() if config.teacher_thresholding else None
    solver = Solver(solver_stages(config.teacher_solver, angles, teacher), thresholding)
    return FollowedPath(student_plan(angles, config.teacher_substeps, config), solver)


def teacher_angles(schedule: Schedule, student_steps: int, config: TrajectoryConfig) -> Tensor:
    """The teacher's angles (K n + 1,) float64; every K-th is one of the student's n + 1.

    "trailing" (the default but on EDM's schedules) are the schedule's own times, and end at exactly 0. "polynomial"
    (the default there) and "logsnr" run from sigma_max to sigma_min, where they end: what noise is left is not seen
    (Zhou et al. 2024 take 0.006). All are of equal steps in some variable, so that the grids are nested.
    """
    steps = config.teacher_substeps * config.plan_steps(student_steps)
    kind = config.grid
    if kind == "auto":
        kind = "polynomial" if isinstance(schedule, EDMSchedule) else "trailing"
    if kind == "trailing":
        return make_grid(schedule, steps, kind)
    ends = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max, "rho": config.rho}
    return make_grid(schedule, steps + 1, kind, **ends)[:-1]


def student_plan(angles: Tensor, substeps: int, config: TrajectoryConfig) -> SamplingPlan:
    """The student's steps through every so many of the teacher's angles."""
    return SamplingPlan(tuple(angles[::substeps].tolist()), config.analytic_first_step)


def is_schedules_own(plan: SamplingPlan, schedule: Schedule) -> bool:
    """Whether the plan is what plain DDIM does anyway."""
    return not plan.analytic_first_step and list(plan.phis) == schedule.grid(len(plan.phis) - 1).tolist()


def _path_of_student(teacher: Denoiser, steps: int, config: TrajectoryConfig) -> FollowedPath:
    _check_defaults(teacher, config)
    own_steps = config.plan_steps(steps)
    plans = {known: teacher.plan(known) for known in teacher.valid_steps}
    fitting = [known for known, plan in plans.items() if known > steps and (len(plan.phis) - 1) % own_steps == 0]
    if not fitting:
        named = ", ".join(f"{known} calls in {len(plan.phis) - 1} steps" for known, plan in plans.items())
        first = ", with the analytic first one" if config.analytic_first_step else ""
        raise ValueError(
            f"the teacher is itself a student ({named}) and knows no other times; {own_steps} steps of the new "
            f"student{first} do not divide these: change steps or analytic_first_step, or take its own teacher"
        )
    known = max(fitting)
    plan = plans[known]
    stages = solver_stages("ddim", plan.angles, teacher)
    if plan.analytic_first_step:
        stages = with_analytic_first_step(stages)
    substeps = (len(plan.phis) - 1) // own_steps
    return FollowedPath(student_plan(plan.angles, substeps, config), Solver(stages), known)


def _check_defaults(teacher: Denoiser, config: TrajectoryConfig) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(PathConfig)}
    names = ("grid", "sigma_min", "sigma_max", "rho", "teacher_solver", "teacher_substeps", "teacher_thresholding")
    changed = [name for name in names if getattr(config, name) != defaults[name]]
    if changed:
        raise ValueError(
            f"the teacher was itself distilled for {teacher.valid_steps} steps, which it takes as they are: leave "
            f"{', '.join(changed)} out, or take its own teacher"
        )
