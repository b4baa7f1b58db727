"""What a precision does to the two teacher's steps that a student learns from, against float64."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.core.random import Stream, integers, sample_seeds
from progdistill.ops import ddim_step, diffuse, distillation_target, normal

SEED = 0


class Samples(NamedTuple):
    """Images float32 (B, ...), their seeds (B,), and what they are conditioned on."""

    x: Tensor
    seeds: Tensor
    cond: Condition | None


class Steps(NamedTuple):
    """At phis (3, B): the teacher's v (B, ...) before and after the half step, float64, and what a student learns."""

    first: Tensor
    second: Tensor
    target: Tensor


class StepError(NamedTuple):
    """How a precision changes what a student learns from.

    Ratios of norms over the batch, weighted as the loss is. "change" is v2 - v1, "signal" is target - v1, which is
    x2 - x1 but for a factor of each sample's angles: a student begins as its teacher in the same precision, so this is
    what it is told to learn.
    """

    output: float
    """|v1 - v1'| / |v1'|."""
    change: float
    """|(v2 - v1) - (v2' - v1')| / |v2' - v1'|."""
    signal: float
    """|(target - v1) - (target' - v1')| / |target' - v1'|."""
    cosine: float
    """Between both signals."""
    loss: float
    """The loss of the first update over its true value: |target - v1|^2 / |target' - v1'|^2."""
    true_signal: float
    """|target' - v1'| / |v1'|: how much there is to learn."""


def draw(teacher: Denoiser, x: Tensor, labels: Tensor | None) -> Samples:
    """With seeds of their own."""
    cond = None if teacher.num_classes is None else Condition(labels)
    return Samples(x, sample_seeds(SEED, 0, torch.arange(len(x))).to(x.device), cond)


def angles(teacher: Denoiser, samples: Samples, teacher_steps: int) -> Tensor:
    """(3, B): a uniformly drawn step of the student of teacher_steps / 2 steps, as in training."""
    students = teacher_steps // 2
    index = integers(samples.seeds, 0, Stream.TIME, students)
    grid = teacher.schedule.grid(teacher_steps).to(samples.x.device)
    first = 2 * (students - 1 - index)
    return grid[torch.stack((first, first + 1, first + 2))]


@torch.no_grad()
def two_steps(teacher: Denoiser, samples: Samples, phis: Tensor, dtype: torch.dtype = torch.float32) -> Steps:
    """The teacher's outputs as v, from states in `dtype`, and their target."""
    noise = normal(samples.seeds, 0, Stream.NOISE, samples.x.shape[1:])
    z = diffuse(samples.x, noise, phis[0]).to(dtype)
    first = teacher.v(z, phis[0], samples.cond)
    halfway = ddim_step(z, first, phis[0], phis[1], backend="reference")
    second = teacher.v(halfway, phis[1], samples.cond)
    target = distillation_target(z.double(), [first.double(), second.double()], phis, backend="reference")
    return Steps(first.double(), second.double(), target)


def exact_steps(teacher: Denoiser, samples: Samples, phis: Tensor) -> Steps:
    """In float64, but for the times that the network is told."""
    return two_steps(teacher.with_network(copy.deepcopy(teacher.network).double()), samples, phis, torch.float64)


def step_error(found: Steps, exact: Steps, weight: Tensor) -> StepError:
    """Compares; `weight` (B,): the loss's, of the squared v error."""

    def norm(values: Tensor) -> float:
        return float((weight * values.flatten(1).square().sum(1)).sum().sqrt())

    def dot(a: Tensor, b: Tensor) -> float:
        return float((weight * (a * b).flatten(1).sum(1)).sum())

    change, exact_change = found.second - found.first, exact.second - exact.first
    signal, exact_signal = found.target - found.first, exact.target - exact.first
    return StepError(
        norm(found.first - exact.first) / norm(exact.first),
        norm(change - exact_change) / norm(exact_change),
        norm(signal - exact_signal) / norm(exact_signal),
        dot(signal, exact_signal) / (norm(signal) * norm(exact_signal)),
        norm(signal) ** 2 / norm(exact_signal) ** 2,
        norm(exact_signal) / norm(exact.first),
    )


def truncated_snr(phi: Tensor) -> Tensor:
    """The weight of the squared v error: max(sin^2, cos^2)."""
    return torch.maximum(phi.sin().square(), phi.cos().square())


def errors(models: dict[str, Denoiser], samples: Samples, teacher_steps: int) -> dict[str, dict[str, Any]]:
    """Name -> the error of that model's two steps."""
    teacher = next(iter(models.values()))
    phis = angles(teacher, samples, teacher_steps)
    exact, weight = exact_steps(teacher, samples, phis), truncated_snr(phis[0])
    return {
        name: step_error(two_steps(model, samples, phis), exact, weight)._asdict() for name, model in models.items()
    }
