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
from progdistill.sampling.solvers.terms import Term, evaluated, scaled


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
        if corrections is not None:
            state.correct(corrections[number], change)
        if callback is not None:
            callback(number, state.z)
    return state.z


class SolverState:
    """All that a solver remembers between two network calls."""

    def __init__(self, z: Tensor, stages: Sequence[Stage]) -> None:
        self.z = self.anchor = z
        self.quantities = {stage.quantity for stage in stages}
        self._longest = dict.fromkeys(self.quantities, 0)
        for stage in stages:
            for part in (stage.result, stage.anchor or stage.result):
                self._longest[stage.quantity] = max(self._longest[stage.quantity], len(part.outputs))
        self._outputs: dict[str, list[Sequence[Term]]] = {quantity: [] for quantity in self.quantities}
        # At pure noise eps is the state; of x nothing is known there.
        self._before: Sequence[Term] | None = [Term(z)] if "eps" in self.quantities else None

    def follow(
        self, stage: Stage, found: Mapping[str, Sequence[Term]], *, corrected: bool = False
    ) -> list[Term] | None:
        """Moves on to the stage's result, given the outputs at `z`.

        Returns (with `corrected`) what the result changes by for a correction of 1, None where there is nothing to
        compare the output with.
        """
        for quantity, value in found.items():
            longest = self._longest[quantity]
            value = self._kept(value) if longest > 1 else value
            self._outputs[quantity] = [value, *self._outputs[quantity][: longest - 1]]
        outputs = self._outputs[stage.quantity]
        change = self._change(stage, outputs) if corrected else None
        if stage.anchor is not None:
            self.anchor = combined(stage.anchor, self.z, self.anchor, outputs)
        self.z = combined(stage.result, self.z, self.anchor, outputs)
        return change

    def correct(self, kappa: float, change: Sequence[Term] | None) -> None:
        """Adds kappa times what `follow` returned."""
        if change is not None and kappa != 0.0:
            self.z = evaluated([Term(self.z), *scaled(kappa, change)], self.z)

    def _change(self, stage: Stage, outputs: Sequence[Sequence[Term]]) -> list[Term] | None:
        if stage.quantity == "v":  # a step from noise of a solver of eps, which is the state there
            self._before = self._kept(self._outputs["eps"][0]) if "eps" in self.quantities else None
            return None
        weights = stage.result.outputs if stage.averaged else stage.result.outputs[:1]
        total = sum(weights)
        now = [term for w, output in zip(weights, outputs, strict=False) for term in scaled(w / total, output)]
        if self._longest[stage.quantity] == 1:
            now = self._kept(now)
        before, self._before = self._before, now
        return None if before is None else [*scaled(total, now), *scaled(-total, before)]

    def _kept(self, value: Sequence[Term]) -> list[Term]:
        """The value as it is now: a network may write its next output where this one lies."""
        return [Term(evaluated(value, self.z))]


def combined(combination: Combination, z: Tensor, anchor: Tensor, outputs: Sequence[Sequence[Term] | Tensor]) -> Tensor:
    """The combination's value, in one pass over all that it is made of; outputs as tensors or as sums."""
    terms = [Term(z, (combination.state,)), Term(anchor, (combination.anchor,))]
    for weight, output in zip(combination.outputs, outputs, strict=False):
        terms += scaled(weight, [Term(output)] if isinstance(output, Tensor) else output)
    return evaluated(terms, z)
