"""The solvers by the names that `sample(solver=...)` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.sampling.solvers.adams_bashforth import adams_bashforth, ipndm
from progdistill.sampling.solvers.dpm_multistep import dpm_solver_multistep
from progdistill.sampling.solvers.first_order import ddim, euler, rk4
from progdistill.sampling.solvers.grids import make_grid
from progdistill.sampling.solvers.prediction import Thresholding
from progdistill.sampling.solvers.single_step import dpm_solver_2, dpm_solver_3, dpm_solver_on_nodes, heun
from progdistill.sampling.solvers.stages import Stage, network_calls, solve, with_analytic_first_step
from progdistill.sampling.solvers.unipc import unipc

_FROM_ANGLES: dict[str, Callable[..., list[Stage]]] = {
    "ddim": ddim,
    "euler": euler,
    "rk4": rk4,
    "heun": heun,
    "dpm_2s": dpm_solver_2,
    "dpm_3s": dpm_solver_3,
    "dpmpp_2s": partial(dpm_solver_2, quantity="x"),
    "dpmpp_3s": partial(dpm_solver_3, quantity="x"),
    "dpm_2": partial(dpm_solver_on_nodes, order=2),
    "dpm_3": partial(dpm_solver_on_nodes, order=3),
    "dpmpp_2m": partial(dpm_solver_multistep, order=2),
    "dpmpp_3m": partial(dpm_solver_multistep, order=3),
    "ipndm": ipndm,
    **{f"ipndm_{k}": partial(ipndm, order=k) for k in (1, 2, 3, 4)},
    **{f"ipndm_v_{k}": partial(adams_bashforth, order=k) for k in (1, 2, 3, 4)},
    **{f"unipc_{p}": partial(unipc, order=p) for p in (1, 2, 3)},
}
_DEIS = {f"deis_tab_{r}": r + 1 for r in (1, 2, 3)}
SOLVERS = (*_FROM_ANGLES, *_DEIS)
"""`heun`, `rk4`, `dpm_2s` ... call the network several times a step; `dpm_2` and `dpm_3` once for each grid angle."""


def solver_stages(
    name: str, phis: Tensor, denoiser: Denoiser, *, analytic_first_step: bool = False, **options
) -> list[Stage]:
    """The stages of a named solver on a grid.

    Args:
        name: one of SOLVERS.
        phis: falling angles (N + 1,).
        denoiser: whose time DEIS's polynomials are in.
        analytic_first_step: save the first network call, taking eps to be the noise itself.
        options: keyword arguments of the solver, such as quantity="eps" or corrected=True.

    Raises:
        ValueError: an unknown name, or options that the solver refuses.
        TypeError: options that the solver does not have.
    """
    angles = phis.tolist()
    if name in _DEIS:
        stages = adams_bashforth(angles, _DEIS[name], _model_time(denoiser), **options)
    elif name in _FROM_ANGLES:
        stages = _FROM_ANGLES[name](angles, **options)
    else:
        raise ValueError(f"solver is {name!r}; use one of {', '.join(SOLVERS)}")
    return with_analytic_first_step(stages) if analytic_first_step else stages


@dataclasses.dataclass(frozen=True)
class Solver:
    """A solver with its grid: solver(denoiser, z, cond, clip=...) is the sample for a state z at `stages[0].phi`."""

    stages: list[Stage]
    thresholding: Thresholding | None = None

    @property
    def network_calls(self) -> int:
        """Calls an image (NFE); twice as many where a teacher is guided."""
        return network_calls(self.stages)

    def __call__(
        self, denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, clip: float | None = None
    ) -> Tensor:
        return solve(denoiser, z, self.stages, cond, clip=clip, thresholding=self.thresholding)


def chosen_solver(
    denoiser: Denoiser,
    name: str,
    steps: int,
    grid: str | Sequence[float] | Tensor = "trailing",
    *,
    thresholding: Thresholding | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    **options: Any,
) -> Solver:
    """A named solver in `steps` steps of a grid for a denoiser.

    Args:
        denoiser: a teacher.
        name, options: as in `solver_stages`.
        steps, grid, sigma_min, sigma_max, rho: as in `make_grid`.
        thresholding: dynamic thresholding of x.

    Raises:
        ValueError: an unknown solver or grid; a distilled student, whose predictions are those of DDIM's long steps.
    """
    if denoiser.valid_steps is not None:
        raise ValueError(
            f"solver={name!r} was asked for, but this student was distilled for DDIM in {denoiser.valid_steps} steps: "
            "leave solver out"
        )
    phis = make_grid(denoiser.schedule, steps, grid, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return Solver(solver_stages(name, phis, denoiser, **options), thresholding)


def _model_time(denoiser: Denoiser) -> Callable[[np.ndarray], np.ndarray]:
    return lambda angles: denoiser.schedule.time(torch.as_tensor(angles)).numpy()
