"""What the figures of Kim et al. 2024 show: how outputs resemble one another along a path, and where paths lead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.core.modes import evaluating
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import FittedSolver, Solver, chosen_solver, make_grid, solve
from progdistill.sampling.solvers.prediction import predictions
from progdistill.sampling.solvers.terms import evaluated


@torch.no_grad()
def correlations(model: Denoiser, *, steps: int, shown: int, count: int, seed: int) -> dict[str, Any]:
    """Figure 2: cosine similarity of the outputs at each two of `shown` times of DDIM in `steps` steps.

    Returns "times" (shown,), falling from 1, and for "eps" and "x" a matrix (shown, shown): means over `count` images.
    """
    phis, outputs = make_grid(model.schedule, steps), {"eps": [], "x": []}
    kept = torch.linspace(0, steps - 1, shown).round().long().tolist()

    def keep(number: int, state: Tensor) -> None:
        if number + 1 in kept:
            record(state, number + 1)

    def record(z: Tensor, number: int) -> None:
        for name, value in predictions(model, z, float(phis[number]), None, tuple(outputs)).items():
            outputs[name].append(torch.nn.functional.normalize(evaluated(value, z).double().flatten(1), dim=1))

    z = seeded_latents(torch.arange(seed, seed + count), model.sample_shape)
    with evaluating(model):
        record(z, 0)
        solve(model, z, chosen_solver(model, "ddim", steps).stages, callback=keep)
    found: dict[str, Any] = {"times": _rounded(1 - torch.tensor(kept, dtype=torch.float64) / steps)}
    for name, values in outputs.items():
        units = torch.stack(values)
        found[name] = _rounded(torch.einsum("sbd,tbd->st", units, units) / count)
    return found


def path_of(model: Denoiser, solver: Solver | FittedSolver, z: Tensor) -> Tensor:
    """(N + 1, B, ...): the states from z (B, ...) on, for a solver with one stage a step."""
    states = [z]
    stages, kappas = (
        (solver.stages(model), solver.kappas) if isinstance(solver, FittedSolver) else (solver.stages, None)
    )
    with evaluating(model):
        solve(model, z, stages, corrections=kappas, callback=lambda _, state: states.append(state))
    return torch.stack(states)


def trajectory(path: Tensor, pixels: list[int]) -> dict[str, Any]:
    """Figure 5: the norm, as root-mean-square over pixels and images, and two pixels of the first image, at each time.

    Args:
        path: (N + 1, B, ...) states at times 1, (N - 1) / N ... 0.
        pixels: numbers of the pixels.
    """
    states = path.double().flatten(2)
    times = torch.linspace(1, 0, len(path), dtype=torch.float64)
    norms = states.square().mean(dim=(1, 2)).sqrt()
    return {"times": _rounded(times), "norm": _rounded(norms), "pixels": _rounded(states[:, 0, pixels].T)}


def varied_pixels(images: Tensor, count: int = 2) -> list[int]:
    """The pixels (of C H W) that differ most between images (B, ...): others show nothing."""
    return images.double().flatten(1).var(dim=0).topk(count).indices.tolist()


def _rounded(values: Tensor) -> list:
    return (values.double() * 1e4).round().div(1e4).tolist()
