"""The loss of SFD: a student's own steps shall end where its teacher's trajectory is (Zhou et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.ops import ddim_step
from progdistill.sampling.ddim import scaled
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import solve
from progdistill.training.batches import Batch
from progdistill.training.objective import Loss
from progdistill.training.perceptual_distance import PerceptualDistance
from progdistill.training.trajectory_grid import FollowedPath


@dataclasses.dataclass
class _InProgress:
    """Where a microbatch is between two updates."""

    z: Tensor
    """The student's state, without a gradient."""
    targets: list[Tensor]
    """The teacher's states at the angles after the first network call, the second, ..."""


class TrajectoryObjective:
    """Update u does step n = u mod N of N: an iteration of N updates takes one batch of noise through all the steps.

    With several paths iterations of each take turns, and a network that is told the number of steps is told it (SFD-v;
    the paper draws the path of each iteration at random).

    The teacher's states are computed at its first update. Each step starts where the one before has led, with the
    weights of then: z_(n+1) is formed before the update that it gives the gradient of. Nothing is propagated through
    more than one step. An analytic first step is taken, and not trained.

    Source: arXiv 2409.19681 and its code. Batches are those of `NoiseBatches`, with the microbatches of an update in
    the same order each time.

    Args:
        teacher: eval mode, without gradients, at guidance scale 1.
        paths: the student's steps and the teacher's way, for each of the student's step counts.
        loss_type, huber_c: what the loss makes of z_(n+1) - target; as in a run's settings.
        perceptual: a distance that is added where the last step ends.
    """

    def __init__(
        self,
        teacher: Denoiser,
        paths: Sequence[FollowedPath],
        *,
        loss_type: str = "l1",
        huber_c: float = 1e-3,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.loss_type = loss_type
        self.huber_c = huber_c
        self.perceptual = perceptual
        self._turns = [(path, number) for path in paths for number in range(path.plan.network_calls)]
        self._phis = [path.plan.trained_phis.to(teacher.device) for path in paths for _ in path.plan.trained_phis[1:]]
        self._begun: deque[_InProgress] = deque()

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss:
        turn = int(batch.update) % len(self._turns)
        (path, number), phis = self._turns[turn], self._phis[turn]
        now = self._begin(path, batch) if number == 0 else self._begun.popleft()
        phi, phi_next = (phis[n].expand(len(now.z)) for n in (number, number + 1))
        pred = student.for_steps(path.plan.network_calls).raw(now.z, phi, batch.cond)
        moved = ddim_step(now.z, pred, phi, phi_next, prediction_type=student.prediction_type)
        now.z = moved.detach()
        target = now.targets.pop(0)
        loss, slope = elementwise_loss(now.z - target, self.loss_type, self.huber_c)
        loss, grad = loss.flatten(1).mean(1), slope * (grad_scale / now.z[0].numel())
        if now.targets:
            self._begun.append(now)
        elif self.perceptual is not None:
            distance, slope = self.perceptual(now.z, target, path.plan.last_factor)
            loss, grad = loss + distance, grad + grad_scale * slope
        return Loss(moved, grad, loss, phi)

    def _begin(self, path: FollowedPath, batch: Batch) -> _InProgress:
        z = seeded_latents(batch.seeds, self.teacher.sample_shape)
        return _InProgress(scaled(z, path.plan.first_factor), teacher_states(self.teacher, z, path, batch.cond))


def teacher_states(teacher: Denoiser, z: Tensor, path: FollowedPath, cond: Condition | None = None) -> list[Tensor]:
    """The teacher's states (B, ...) where each of the plan's network calls shall lead.

    The way there has an analytic step only if the teacher is a student with one.
    """
    found: dict[float, Tensor] = {}
    stages = path.solver.stages

    def keep(number: int, state: Tensor) -> None:
        found[stages[number].phi_next] = state  # of several stages in a step the last one's

    told = teacher if path.teacher_steps is None else teacher.for_steps(path.teacher_steps)
    solve(told, z, stages, cond, thresholding=path.solver.thresholding, callback=keep)
    return [found[phi] for phi in path.plan.trained_phis[1:].tolist()]


def elementwise_loss(error: Tensor, loss_type: str, huber_c: float) -> tuple[Tensor, Tensor]:
    """(loss, its derivative) of each element: |e|, e^2 or sqrt(e^2 + c^2) - c."""
    if loss_type == "l1":
        return error.abs(), error.sign()
    if loss_type == "l2":
        return error.square(), 2 * error
    root = torch.sqrt(error.square() + huber_c**2)
    return root - huber_c, error / root
