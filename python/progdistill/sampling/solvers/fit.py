"""D-ODE solvers (Kim et al. 2024): one number for each network call of a solver, so that it follows a finer one.

A stage's result is affine in its number, x(kappa) = base + kappa change, so the best one for a batch is
<target - base, change> / <change, change>, the sums being over pixels and samples. Stages are fitted one after the
other along the corrected path. The network is frozen; it takes a batch through the finer solver and once through this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.core.fingerprint import model_fingerprint
from progdistill.core.modes import evaluating
from progdistill.core.processes import process_count, share_of, sum_over_processes
from progdistill.sampling.arguments import checked_guidance
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers.fitted import FittedSolver
from progdistill.sampling.solvers.grids import make_grid
from progdistill.sampling.solvers.named import solver_stages
from progdistill.sampling.solvers.prediction import predictions
from progdistill.sampling.solvers.stages import SolverState, Stage
from progdistill.sampling.solvers.targets import nested_targets, official_targets
from progdistill.sampling.solvers.terms import evaluated

Alignment = Literal["nested", "official"]
_OWN_TEACHERS = ("ipndm", "deis")


def fit_solver(
    model: Denoiser,
    solver: str = "ddim",
    steps: int = 10,
    *,
    scale: int = 10,
    batch_size: int = 100,
    grid: str | Sequence[float] | Tensor = "trailing",
    seed: int = 0,
    class_labels: Tensor | None = None,
    guidance_scale: float | None = None,
    teacher_solver: str | None = None,
    alignment: Alignment = "nested",
    grid_options: Mapping[str, float] | None = None,
    **options: Any,
) -> FittedSolver:
    """Fits a solver to a teacher network; minutes at most, and no network call more when sampling.

    Args:
        model: a teacher. Under torchrun each process takes its share of the batch.
        solver: one of `SOLVERS` that combines eps or x.
        steps, grid, grid_options: as `steps`, `grid` and sigma_min, sigma_max, rho in `make_grid`.
        scale: how many steps of the finer solver are in one of this solver's.
        batch_size: noises that are followed (seeds `seed` ...).
        class_labels: (batch_size,) int64 for class-conditional models; default: classes in turn.
        guidance_scale: of classifier-free guidance, as `sample` takes it; the fitted solver then samples at this scale
            and no other, for the numbers are those of the guided path. Default: no guidance.
        teacher_solver: the finer solver; default: the same one for iPNDM and DEIS, else "ddim".
        alignment: "nested", the finer grid divides each interval of this solver's, so that both meet at equal noise; or
            "official", as the authors' code has it: the same kind of grid with `scale` times as many steps, whose nodes
            need not be this solver's.
        options: keyword arguments of the solver; quantity="eps" is the default for DDIM.

    Raises:
        ValueError: a student; a solver that has nothing to correct; a scale below 2; a guidance scale for a model
            that takes none, or none for one that must be told.
    """
    if model.valid_steps is not None:
        raise ValueError("the model is a distilled student, which knows no finer steps; fit a solver to its teacher")
    if scale < 2 or batch_size < 1:
        raise ValueError(f"scale is {scale}, batch_size {batch_size}; at least 2 and 1 are needed")
    phis = make_grid(model.schedule, steps, grid, **(grid_options or {}))
    stages, options = correctable_stages(model, solver, phis, **options)
    finer = teacher_solver or (solver if solver.startswith(_OWN_TEACHERS) else "ddim")
    own = share_of(batch_size)
    with evaluating(model), torch.no_grad():
        seeds = torch.arange(seed + own.start, seed + own.stop, device=model.device)
        z = seeded_latents(seeds, model.sample_shape)
        cond = _condition(model, class_labels, guidance_scale, batch_size, own)
        if alignment == "nested":
            targets = nested_targets(model, z, stages, finer, scale, cond)
        else:
            teacher_phis = make_grid(model.schedule, scale * steps, grid, **(grid_options or {}))
            targets = official_targets(model, z, stages, solver_stages(finer, teacher_phis, model), scale, cond)
        kappas = _fitted(model, z, stages, targets, cond)
    facts = {"teacher_solver": finer, "scale": scale, "batch_size": batch_size, "seed": seed, "alignment": alignment}
    facts |= {"model": model_fingerprint(model), "processes": process_count()}
    given = None if guidance_scale is None else float(guidance_scale)
    return FittedSolver(solver, tuple(phis.tolist()), tuple(kappas), options, facts, given)


def correctable_stages(model: Denoiser, solver: str, phis: Tensor, **options: Any) -> tuple[list[Stage], dict]:
    """The stages that `fit_solver` corrects on a grid of angles (N + 1,), and the options of the solver they are of.

    Raises:
        ValueError: there is nothing to correct, as in one DDIM step from pure noise; an unknown solver.
    """
    if solver == "ddim":
        options = {"quantity": "x" if model.prediction_type == "sample" else "eps", **options}
    stages = solver_stages(solver, phis, model, **options)
    if all(stage.quantity == "v" for stage in stages):
        raise ValueError(f"{solver} combines v alone, in which there is nothing to correct; fit a solver of eps or x")
    return stages, options


def _fitted(
    model: Denoiser, z: Tensor, stages: Sequence[Stage], targets: Sequence[Tensor], cond: Condition | None
) -> list[float]:
    """A number for each stage: least squares in float64 (eq. 13), along the path that those before lead to."""
    state, kappas = SolverState(z, stages), []
    for stage, target in zip(stages, targets, strict=True):
        found = predictions(model, state.z, stage.phi, cond, state.quantities)
        change = state.follow(stage, found, corrected=True)
        sums = torch.zeros(2, dtype=torch.float64)
        if change is not None:
            wide, missing = evaluated(change, state.z).double(), target.double() - state.z.double()
            sums = torch.stack([(missing * wide).sum(), (wide * wide).sum()])
        product, square = sum_over_processes(sums).tolist()
        kappas.append(product / square if square > 0.0 else 0.0)
        state.correct(kappas[-1], change)
    return kappas


def _condition(
    model: Denoiser, class_labels: Tensor | None, guidance_scale: float | None, count: int, own: range
) -> Condition | None:
    scales = checked_guidance(guidance_scale, len(own), model)
    if model.num_classes is None:
        return None
    labels = torch.arange(count) % model.num_classes if class_labels is None else class_labels
    return Condition(labels[own.start : own.stop].to(model.device), None if scales is None else scales.to(model.device))
