"""Where a coarse solver's stages are to land: states of a finer solver that starts from the same noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.sampling.solvers.named import solver_stages
from progdistill.sampling.solvers.stages import Stage, solve


def nested_targets(
    model: Denoiser, z: Tensor, stages: Sequence[Stage], finer: str, scale: int, cond: Condition | None = None
) -> list[Tensor]:
    """The finer solver's state (B, ...) at each stage's `phi_next`; its grid divides each interval in angles.

    Args:
        model: a teacher.
        z: (B, ...) states at the first stage's angle.
        stages: of the coarse solver.
        finer: the name of a solver with one stage a step.
        scale: its steps in an interval.
        cond: what the samples are conditioned on.
    """
    nodes = sorted({stages[0].phi, *(stage.phi_next for stage in stages)}, reverse=True)
    parts = torch.arange(scale, dtype=torch.float64) / scale
    fine = [low + (high - low) * parts for low, high in zip(nodes[:-1], nodes[1:], strict=True)]
    phis = torch.cat([*fine, torch.tensor(nodes[-1:], dtype=torch.float64)])
    path = _path(model, z, solver_stages(finer, phis, model), cond, every=scale)
    at = dict(zip(nodes, [z, *path], strict=True))
    return [at[stage.phi_next] for stage in stages]


def official_targets(
    model: Denoiser,
    z: Tensor,
    stages: Sequence[Stage],
    finer: Sequence[Stage],
    scale: int,
    cond: Condition | None = None,
) -> list[Tensor]:
    """The finer solver's state (B, ...) after as many of its steps; within a step of several stages, part of the way.

    As in the authors' code; the noise level there need not be the coarse stage's.
    """
    path, targets = _path(model, z, finer, cond, every=1), []
    first = [number for number, stage in enumerate(stages) if stage.anchor is not None] + [len(stages)]
    for step, (begin, end) in enumerate(zip(first[:-1], first[1:], strict=True)):
        for number in range(begin, end):
            done = step * scale + round(scale * (number - begin + 1) / (end - begin))
            targets.append(path[done - 1])
    return targets


def _path(model: Denoiser, z: Tensor, stages: Sequence[Stage], cond: Condition | None, every: int) -> list[Tensor]:
    """The states after every so many stages of a solver with one stage a step."""
    states: list[Tensor] = []
    keep = lambda number, state: states.append(state) if (number + 1) % every == 0 else None  # noqa: E731
    solve(model, z, stages, cond, callback=keep)
    return states
