"""The loss of SFD: a student's own steps shall end where its teacher's trajectory is (Zhou et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser, SamplingPlan
from progdistill.ops import ddim_step
from progdistill.sampling.ddim import scaled
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import Stage, Thresholding, solve
from progdistill.training.batches import Batch
from progdistill.training.loop import Loss


@dataclasses.dataclass
class _Path:
    """Where a microbatch is between two updates."""

    z: Tensor
    """The student's state, without a gradient."""
    targets: list[Tensor]
    """The teacher's states at the angles after the first network call, the second, ..."""


class TrajectoryObjective:
    """Update u does step n = u mod N of N: an iteration of N updates takes one batch of noise through all the steps.

    The teacher's states are computed at its first update. Each step starts where the one before has led, with the
    weights of then: z_(n+1) is formed before the update that it gives the gradient of. Nothing is propagated through
    more than one step. An analytic first step is taken, and not trained.

    Source: arXiv 2409.19681 and its code. Batches are those of `NoiseBatches`, with the microbatches of an update in
    the same order each time.

    Args:
        teacher: eval mode, without gradients, at guidance scale 1.
        plan: the student's steps.
        stages: the teacher's solver, through all of the plan's angles.
        loss_type, huber_c: what the loss makes of z_(n+1) - target; as in a run's settings.
        thresholding: None, or dynamic thresholding of the teacher's x.
    """

    def __init__(
        self,
        teacher: Denoiser,
        plan: SamplingPlan,
        stages: Sequence[Stage],
        *,
        loss_type: str = "l1",
        huber_c: float = 1e-3,
        thresholding: Thresholding | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.plan = plan
        self.stages = stages
        self.loss_type = loss_type
        self.huber_c = huber_c
        self.thresholding = thresholding
        self.phis = plan.trained_phis.to(teacher.device)
        self._paths: deque[_Path] = deque()

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss:
        number = int(batch.update) % self.plan.network_calls
        path = self._begun(batch) if number == 0 else self._paths.popleft()
        phi, phi_next = (self.phis[n].expand(len(path.z)) for n in (number, number + 1))
        pred = student.raw(path.z, phi, batch.cond)
        moved = ddim_step(path.z, pred, phi, phi_next, prediction_type=student.prediction_type)
        path.z = moved.detach()
        loss, slope = elementwise_loss(path.z - path.targets.pop(0), self.loss_type, self.huber_c)
        if path.targets:
            self._paths.append(path)
        elements = path.z[0].numel()
        return Loss(moved, slope * (grad_scale / elements), loss.flatten(1).mean(1), phi)

    def _begun(self, batch: Batch) -> _Path:
        z = seeded_latents(batch.seeds, self.teacher.sample_shape)
        targets = teacher_path(self.teacher, z, self.plan, self.stages, batch.cond, self.thresholding)
        return _Path(scaled(z, self.plan.first_factor), targets)


def teacher_path(
    teacher: Denoiser,
    z: Tensor,
    plan: SamplingPlan,
    stages: Sequence[Stage],
    cond: Condition | None = None,
    thresholding: Thresholding | None = None,
) -> list[Tensor]:
    """The teacher's states (B, ...) where each of the plan's network calls shall lead; it takes no analytic step."""
    found: dict[float, Tensor] = {}

    def keep(number: int, state: Tensor) -> None:
        found[stages[number].phi_next] = state  # of several stages in a step the last one's

    solve(teacher, z, stages, cond, thresholding=thresholding, callback=keep)
    return [found[phi] for phi in plan.trained_phis[1:].tolist()]


def elementwise_loss(error: Tensor, loss_type: str, huber_c: float) -> tuple[Tensor, Tensor]:
    """(loss, its derivative) of each element: |e|, e^2 or sqrt(e^2 + c^2) - c."""
    if loss_type == "l1":
        return error.abs(), error.sign()
    if loss_type == "l2":
        return error.square(), 2 * error
    root = torch.sqrt(error.square() + huber_c**2)
    return root - huber_c, error / root
