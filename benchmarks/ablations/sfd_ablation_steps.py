"""SFD written out step by step: students trained at some steps of a path only, and how well each step fits.

Zhou et al. 2024 (SFD), figure 3: a network that is trained at one time stamp is better at the others, too. Their
figure 4 sets SFD, whose steps start where the student's own last one led, against steps that start on the teacher's
trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.core.random import sample_seeds
from progdistill.ops import ddim_step
from progdistill.sampling.ddim import scaled
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import Solver, solver_stages
from progdistill.training import TrajectoryConfig
from progdistill.training.few_step_student import few_step_student
from progdistill.training.trajectory_grid import FollowedPath, student_plan
from progdistill.training.trajectory_objective import teacher_states

STARTS = ("own", "teacher")


def path_along(teacher: Denoiser, angles: Tensor, substeps: int, config: TrajectoryConfig) -> FollowedPath:
    """A student's steps through every `substeps`-th of the teacher's angles, whatever grid they are of."""
    solver = Solver(solver_stages(config.teacher_solver, angles, teacher))
    return FollowedPath(student_plan(angles, substeps, config), solver)


def fine_tuned(
    teacher: Denoiser,
    path: FollowedPath,
    *,
    iterations: int,
    learning_rate: float,
    train_batch_size: int,
    seed: int,
    trained: set[int] | None = None,
    start: str = "own",
) -> Denoiser:
    """A student of the L1 loss, updated at the steps `trained` (from 0; None: all of those that call the network).

    With start="own" and all steps this is what `progdistill.finetune_trajectory` does; with "teacher" each step starts
    on the teacher's trajectory.
    """
    if start not in STARTS:
        raise ValueError(f"start is {start!r}; use one of {', '.join(STARTS)}")
    calls = path.plan.network_calls
    trained = set(range(calls)) if trained is None else trained
    student = few_step_student(teacher, {calls: path.plan})
    optimizer = torch.optim.AdamW(student.network.parameters(), lr=learning_rate, weight_decay=0.0)
    updates = 0
    for iteration in range(iterations if trained else 0):
        samples = torch.arange(iteration * train_batch_size, (iteration + 1) * train_batch_size)
        z = seeded_latents(sample_seeds(seed, 0, samples), teacher.sample_shape)
        for number, moved, target in _steps(student, teacher, z, path, start):
            if number not in trained:
                continue
            for group in optimizer.param_groups:  # a tenth from half of the run on
                group["lr"] = learning_rate / (10 if 2 * updates >= iterations * len(trained) else 1)
            optimizer.zero_grad()
            (moved - target).abs().mean().backward()
            optimizer.step()
            updates += 1
    return student


def _steps(
    student: Denoiser, teacher: Denoiser, z: Tensor, path: FollowedPath, start: str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number, where the step led, where the teacher is then); each formed with the weights of when it is asked for."""
    phis, targets = path.plan.trained_phis, teacher_states(teacher, z, path)
    state = scaled(z, path.plan.first_factor)
    for number, target in enumerate(targets):
        moved = _step(student, state, phis[number], phis[number + 1])
        yield number, moved, target
        state = target if start == "teacher" else moved.detach()


@torch.no_grad()
def distances_along(student: Denoiser, teacher: Denoiser, path: FollowedPath, z: Tensor) -> list[float]:
    """Root-mean-square distance of the student's own trajectory from the teacher's, after each network call."""
    return [_rms(moved - target) for _, moved, target in _steps(student, teacher, z, path, "own")]


@torch.no_grad()
def distances_of_one_step(
    student: Denoiser, teacher: Denoiser, path: FollowedPath, stride: int, z: Tensor
) -> list[float]:
    """Root-mean-square distance from the teacher's state after one DDIM step that starts on its trajectory.

    One for each angle of the path but the last `stride`: the step is that long, so that it leads to another of them.
    """
    phis, states = path.plan.angles, [z, *teacher_states(teacher, z, path)]
    pairs = zip(range(len(states)), range(stride, len(states)), strict=False)
    return [_rms(_step(student, states[n], phis[n], phis[m]) - states[m]) for n, m in pairs]


def _step(student: Denoiser, z: Tensor, phi: Tensor, phi_next: Tensor) -> Tensor:
    angles = phi.expand(len(z)), phi_next.expand(len(z))
    return ddim_step(z, student.raw(z, angles[0]), *angles, prediction_type=student.prediction_type)


def _rms(error: Tensor) -> float:
    return round(float(error.square().mean().sqrt()), 5)
