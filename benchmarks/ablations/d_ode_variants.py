"""The formulations of D-DDIM that Kim et al. 2024 compare (eq. 53 to 57, Tables 2 and 4), as ordinary solvers.

In a step of DDIM from t, some combination O_t of the network's outputs so far counts in place of the last one, D_t:

    d_ddim       D_t + k (D_t - D_{t+1})                                      eq. 10, 56: what `fit_solver` fits
    two          D_t + k_1 (D_t - D_{t+1}) + k_2 (D_t - D_{t+2})              eq. 57
    differences  D_t + the sum of k_j (D_t - D_{t+j}) over all before         eq. 9
    sep          k_0 D_t + k_1 D_{t+1}                                        eq. 54
    all          the sum of k_j D_{t+j} over all                              eq. 8, 55
    fixed        d_ddim with one k for all steps, found by trial              Table 4
    la           x's part of the step made of x_t + k (x_t - x_{t+1})         Zhang et al. 2023, Table 4

The last two fit nothing. A grid that starts below pure noise has no D_{T+1}; the paper takes x_T, here the first step
is DDIM's. Unconditional models only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.core.modes import evaluating
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import FittedSolver, Solver, correctable_stages, fit_solver, make_grid, solver_stages
from progdistill.sampling.solvers.prediction import predictions
from progdistill.sampling.solvers.stages import Stage, solve
from progdistill.sampling.solvers.targets import nested_targets
from progdistill.sampling.solvers.terms import evaluated

LEAST_SQUARES = ("d_ddim", "two", "differences", "sep", "all")


def freedom(name: str, outputs: int) -> tuple[Tensor, Tensor]:
    """(fixed (n,), free (m, n)): the outputs, newest first, get the weights fixed + k free for any k (m,). float64."""
    eye = torch.eye(outputs, dtype=torch.float64)
    if name in ("sep", "all"):
        return torch.zeros(outputs, dtype=torch.float64), eye[:2] if name == "sep" else eye
    before = {"d_ddim": 1, "two": 2, "differences": outputs}[name]
    return eye[0], eye[0] - eye[1 : 1 + before]


@torch.no_grad()
def fitted_variant(
    model: Denoiser, name: str, steps: int, *, scale: int = 10, batch_size: int = 100, seed: int = 0, lag: bool = False
) -> Solver:
    """One of LEAST_SQUARES, fitted stage by stage along its own path as `fit_solver` does.

    Args:
        model: an unconditional teacher.
        name: which.
        steps, scale, batch_size, seed: as in `fit_solver`.
        lag: aim at states that are (scale - 1) / scale of a step noisier than the step's end, but for the last one; so
            the authors' grids for noise prediction have it, 990, 980 ... for the teacher of 900, 800 ... .
    """
    plain, _ = correctable_stages(model, "ddim", make_grid(model.schedule, steps), quantity="eps")
    z, stages, outputs = seeded_latents(torch.arange(seed, seed + batch_size), model.sample_shape), [], []
    with evaluating(model):
        targets = (lagging_targets if lag else nested_targets)(model, z, plain, "ddim", scale)
        for stage, target in zip(plain, targets, strict=True):
            sums = predictions(model, z, stage.phi, None, {"eps", stage.quantity})
            found = {quantity: evaluated(terms, z) for quantity, terms in sums.items()}
            outputs = [found["eps"], *outputs]
            (weight,) = stage.result.outputs
            moved = stage.result.anchor * z
            if stage.quantity != "eps":  # from pure noise, where eps is the state and there is nothing to combine
                stages.append(stage)
                z = moved + weight * found[stage.quantity]
                continue
            terms = weight * torch.stack(outputs)
            shares = _least_squares(terms, target - moved, *freedom(name, len(outputs)))
            stages.append(_combining(stage, shares))
            z = moved + torch.tensordot(shares.to(z.dtype), terms, dims=1)
    return Solver(stages)


def _least_squares(terms: Tensor, missing: Tensor, fixed: Tensor, free: Tensor) -> Tensor:
    """The weights (n,) of the terms (n, B, ...) with the least distance to what is missing (B, ...), in float64."""
    columns, wanted = terms.double().flatten(1).T, missing.double().flatten()
    if not len(free):
        return fixed
    found = torch.linalg.lstsq(columns @ free.T, (wanted - columns @ fixed)[:, None], driver="gelsd").solution[:, 0]
    return fixed + found @ free


def _combining(stage: Stage, shares: Tensor) -> Stage:
    (weight,) = stage.result.outputs
    return stage._replace(result=stage.result._replace(outputs=tuple((weight * shares).tolist())))


def lagging_targets(model: Denoiser, z: Tensor, stages: list[Stage], finer: str, scale: int) -> list[Tensor]:
    """The finer solver's state after its first step in each interval, and at the end of the last."""
    parts = torch.arange(scale, dtype=torch.float64) / scale
    fine = [stage.phi + (stage.phi_next - stage.phi) * parts for stage in stages]
    phis, path = torch.cat([*fine, torch.tensor([stages[-1].phi_next], dtype=torch.float64)]), []
    solve(model, z, solver_stages(finer, phis, model), callback=lambda _, state: path.append(state))
    return [*path[: -scale or None : scale], path[-1]]


def fixed(model: Denoiser, steps: int, kappa: float) -> FittedSolver:
    """Eq. 10 with one number for all steps."""
    phis = tuple(make_grid(model.schedule, steps).tolist())
    return FittedSolver("ddim", phis, (0.0,) + (kappa,) * (steps - 1), {"quantity": "eps"})


def lookahead(model: Denoiser, steps: int, strength: float) -> FittedSolver:
    """LA-DDIM: z_next = cos(phi_next) (x + strength (x - x of the step before)) + sin(phi_next) eps, eps unchanged.

    Eq. 10 for x with a number for each step: there x's weight is sin(phi - phi_next) / sin(phi), for eps moves with x.
    """
    phis = make_grid(model.schedule, steps).tolist()
    numbers = [strength * math.cos(t) * math.sin(s) / math.sin(s - t) for s, t in zip(phis[:-1], phis[1:], strict=True)]
    return FittedSolver("ddim", tuple(phis), (0.0, *numbers[1:]), {"quantity": "x"})


def variant(model: Denoiser, name: str, steps: int, *, lag: bool = False, **settings: Any) -> Solver | FittedSolver:
    """DDIM itself, or one of LEAST_SQUARES; `settings` are `fit_solver`'s."""
    if name == "ddim":
        return Solver(correctable_stages(model, "ddim", make_grid(model.schedule, steps), quantity="eps")[0])
    if name == "d_ddim" and not lag:
        return fit_solver(model, "ddim", steps, **settings)
    return fitted_variant(model, name, steps, lag=lag, **settings)
