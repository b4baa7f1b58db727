"""A solver as data: for each network call, what the state and the outputs so far are combined to.

Once the angles are known, every solver of the probability-flow ODE is a list of numbers, formed in float64. The state
is always the variance-preserving one; a solver that is written for EDM's x + sigma eps is the same up to a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.sampling.ddim import StepCallback
from progdistill.sampling.solvers.prediction import Thresholding, analytic_predictions, predictions


class Combination(NamedTuple):
    """state z + anchor a + sum_j outputs[j] D_j: z the state of the call, a the anchor, D_0 the newest output."""

    state: float = 0.0
    anchor: float = 0.0
    outputs: tuple[float, ...] = ()


class Stage(NamedTuple):
    """One network call and the state that follows from it."""

    phi: float
    """The angle of the state that the network is called at."""
    phi_next: float
    """The angle of the state that follows."""
    quantity: str
    """What the outputs D_j are: "x", "eps" or "v"."""
    result: Combination
    """The state that follows."""
    anchor: Combination | None = Combination(state=1.0)
    """What becomes the anchor before `result` is formed: at the start of a step its state. None: it stays."""
    averaged: bool = False
    """What a learned correction (`corrections` of `solve`) changes: the weighted mean of the outputs, as in multistep
    solvers, or else the newest output alone."""
    analytic: bool = False
    """No network call: eps is taken to be the state itself, which is right where there is nothing but noise."""


def network_calls(stages: Sequence[Stage]) -> int:
    """The number of function evaluations (NFE): network calls an image."""
    return sum(not stage.analytic for stage in stages)


def with_analytic_first_step(stages: Sequence[Stage]) -> list[Stage]:
    """The same without the first network call (AFS, Dockhorn et al. 2022; Zhou et al. 2024)."""
    return [stages[0]._replace(analytic=True), *stages[1:]]


@torch.no_grad()
def solve(
    denoiser: Denoiser,
    z: Tensor,
    stages: Sequence[Stage],
    cond: Condition | None = None,
    *,
    clip: float | None = None,
    corrections: Sequence[float] | None = None,
    thresholding: Thresholding | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Follows a solver's stages.

    Args:
        denoiser: called once for each stage that is not analytic.
        z: (B, ...) float32 or float64 variance-preserving state at the first stage's angle.
        stages: what a solver of this package makes of a grid of angles.
        cond: what the samples are conditioned on.
        clip: None, or the bound of |x| in every call, with eps and v recomputed.
        corrections: a number kappa for each stage: its output O counts as O + kappa (O - O of the stage before) (D-ODE
            solvers, Kim et al. 2024, eq. 10; before the first stage O is z for solvers of eps). 0 changes nothing.
        thresholding: None, or dynamic thresholding of x in every call (pixels only).
        callback: called as callback(number of the stage, z) after each.

    Returns:
        z at the last stage's `phi_next`; at angle 0 the clean sample, not yet clamped to the data's range.
    """
    state = SolverState(z, stages)
    for number, stage in enumerate(stages):
        if stage.analytic:
            found = analytic_predictions(state.z, stage.phi, state.quantities)
        else:
            found = predictions(denoiser, state.z, stage.phi, cond, state.quantities, clip, thresholding)
        change = state.follow(stage, found, corrected=corrections is not None)
        if corrections is not None and corrections[number] != 0.0:
            state.z = torch.add(state.z, change, alpha=corrections[number])
        if callback is not None:
            callback(number, state.z)
    return state.z


class SolverState:
    """All that a solver remembers between two network calls."""

    def __init__(self, z: Tensor, stages: Sequence[Stage]) -> None:
        self.z = self.anchor = z
        self.quantities = {stage.quantity for stage in stages}
        combinations = [part for stage in stages for part in (stage.result, stage.anchor) if part is not None]
        self._longest = max((len(part.outputs) for part in combinations), default=0)
        self._outputs: dict[str, list[Tensor]] = {quantity: [] for quantity in self.quantities}
        # At pure noise eps is the state; of x nothing is known there.
        self._before = z if "eps" in self.quantities else None

    def follow(self, stage: Stage, found: Mapping[str, Tensor], *, corrected: bool = False) -> Tensor | None:
        """Moves on to the stage's result, given the outputs at `z`.

        Returns (with `corrected`) what the result changes by for a correction of 1, None where there is nothing to
        compare the output with.
        """
        for quantity, value in found.items():
            self._outputs[quantity] = [value, *self._outputs[quantity][: self._longest - 1]]
        outputs = self._outputs[stage.quantity]
        if stage.anchor is not None:
            self.anchor = combined(stage.anchor, self.z, self.anchor, outputs)
        self.z = combined(stage.result, self.z, self.anchor, outputs)
        return self._change(stage, outputs) if corrected else None

    def _change(self, stage: Stage, outputs: Sequence[Tensor]) -> Tensor | None:
        if stage.quantity == "v":  # a step from noise of a solver of eps, which is the state there
            self._before = self._outputs["eps"][0] if "eps" in self.quantities else None
            return None
        weights = stage.result.outputs if stage.averaged else stage.result.outputs[:1]
        total = sum(weights)
        now = combined(Combination(outputs=tuple(weight / total for weight in weights)), self.z, self.z, outputs)
        before, self._before = self._before, now
        return None if before is None else total * (now - before)


def combined(combination: Combination, z: Tensor, anchor: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The combination's value."""
    if combination == Combination(state=1.0):
        return z
    factors = (combination.state, combination.anchor, *combination.outputs)
    terms = [(c, tensor) for c, tensor in zip(factors, (z, anchor, *outputs), strict=False) if c != 0.0]
    if not terms:
        return torch.zeros_like(z)
    total = terms[0][0] * terms[0][1]
    for factor, tensor in terms[1:]:
        total = torch.add(total, tensor, alpha=factor)
    return total
