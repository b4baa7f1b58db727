"""A method of sampling in few network calls: which step counts it can do, and what samples in them."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

from progdistill.core import Denoiser
from progdistill.core.fingerprint import model_fingerprint
from progdistill.sampling.solvers import FittedSolver, Solver, chosen_solver, make_grid


@dataclasses.dataclass(frozen=True)
class Contender:
    """What a method samples with in one step count."""

    model: Denoiser
    """The teacher, or a student of it."""
    steps: int
    """What `generate` is asked for."""
    network_calls: int
    """Calls an image (NFE), counted on the stages that are followed."""
    training_seconds: float = 0.0
    """What it took to get from the teacher to this step count; 0 if nothing is trained."""
    solver: Solver | FittedSolver | None = None
    """None: DDIM along the model's own steps."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        return {} if self.solver is None else {"solver": self.solver}

    def description(self) -> dict[str, Any]:
        """JSON-ready: all that samples of given noise and classes follow from."""
        if self.solver is None:
            stages, corrections = None, None
        elif isinstance(self.solver, FittedSolver):
            stages, corrections = self.solver.stages(self.model), self.solver.kappas
        else:
            stages, corrections = self.solver.stages, None
        model = model_fingerprint(self.model)
        return {"model": model, "steps": self.steps, "stages": stages, "corrections": corrections}


class Method(abc.ABC):
    """One entry of a comparison."""

    trains = False
    """Whether there is anything to train."""

    def __init__(self, name: str) -> None:
        self.name = name

    def why_not(self, steps: int) -> str | None:
        """Why the method cannot do so many steps, or None if it can; nothing is trained to answer."""
        return None

    @abc.abstractmethod
    def contender(self, steps: int) -> Contender:
        """What samples in so many steps; trains it, or finds what was trained before."""


class SolverMethod(Method):
    """A solver of the teacher's probability-flow ODE, on a grid of `make_grid`."""

    def __init__(self, name: str, teacher: Denoiser, solver: str, grid: str) -> None:
        super().__init__(name)
        self.teacher = teacher
        self.solver = solver
        self.grid = grid

    def why_not(self, steps: int) -> str | None:
        if self.solver == "ddim":
            return blind_start(self.teacher, float(make_grid(self.teacher.schedule, steps, self.grid)[0]))
        return None

    def contender(self, steps: int) -> Contender:
        if self.solver == "ddim" and self.grid == "trailing":  # what `evaluate` measures, to the last bit
            return Contender(self.teacher, steps, self.teacher.plan(steps).network_calls)
        solver = chosen_solver(self.teacher, self.solver, steps, self.grid)
        return Contender(self.teacher, steps, solver.network_calls, solver=solver)


def blind_start(teacher: Denoiser, phi: float) -> str | None:
    """Why no step of DDIM can start at angle phi with this teacher, or None if one can."""
    if teacher.prediction_type == "epsilon" and math.cos(phi) < 1e-9:
        return "the teacher predicts epsilon, which says nothing about x at SNR 0, where the steps start"
    return None
