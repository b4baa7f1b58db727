"""The ablations of Kim et al. 2024 (D-ODE solvers) on the digits: variants, scale, batch size, and their figures.

    python benchmarks/ablations/d_ode_ablation.py --output d-ode-ablation-digits.json --page d-ode-ablation.html

Everything is fitted to the quickstart's teacher. For each solver stand the Frechet distance (the quickstart's measure,
see `ablation.py`), the root-mean-square distance from where DDIM in --fine-steps steps ends, on noises that were not
fitted, and the same on those that were. `d_ode_variants.py` has the variants, `d_ode_paths.py` what the figures show,
`d_ode_report.py` makes tables and plots of the output; a cell that is in it already is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablation import Bench, Results
from d_ode_paths import correlations, path_of, trajectory, varied_pixels
from d_ode_report import write_page
from d_ode_variants import LEAST_SQUARES, fixed, lookahead, variant
from progdistill.core import Denoiser
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import FittedSolver, Solver, chosen_solver
from progdistill.sampling.solvers.first_order import ddim_coefficients

# Apart from the meter's image seeds, which count from 0.
FITTED_SEED, UNSEEN_SEED = 10**6, 2 * 10**6


@dataclasses.dataclass
class Measure:
    """A teacher and what its solvers are measured against."""

    bench: Bench
    teacher: Denoiser
    arguments: argparse.Namespace

    @cached_property
    def unseen(self) -> tuple[Tensor, Tensor]:
        """Noises that nothing is fitted to, and where the fine solver leads them."""
        return self._ends(UNSEEN_SEED, self.arguments.followed)

    @cached_property
    def fitted(self) -> tuple[Tensor, Tensor]:
        """Those of the default batch."""
        return self._ends(FITTED_SEED, self.arguments.batch_size)

    def _ends(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        z = seeded_latents(torch.arange(seed, seed + count), self.teacher.sample_shape)
        return z, chosen_solver(self.teacher, "ddim", self.arguments.fine_steps)(self.teacher, z)

    def error(self, solver: Solver | FittedSolver, which: tuple[Tensor, Tensor]) -> float:
        """Root-mean-square distance at the end of the path."""
        z, ends = which
        return round(float((solver(self.teacher, z) - ends).double().square().mean().sqrt()), 5)

    def facts(self, solver: Solver | FittedSolver, steps: int) -> dict[str, Any]:
        """Frechet distance and error."""
        quality = self.bench.distance(self.teacher, steps, sets=self.arguments.sets, solver=solver)
        return {"frechet": quality, "error": self.error(solver, self.unseen)}

    def fit(self, name: str, steps: int, *, batch_size: int | None = None, seed: int = FITTED_SEED, **settings: Any):
        """A variant, by default of --scale and --batch-size."""
        given = {"scale": self.arguments.scale, "batch_size": batch_size or self.arguments.batch_size, "seed": seed}
        return variant(self.teacher, name, steps, **{**given, **settings})


def variants(measure: Measure, results: Results) -> None:
    """Table 2."""
    for steps in measure.arguments.steps:
        for name in ("ddim", *LEAST_SQUARES):
            results.cell(f"variants/{name}/{steps}", partial(_variant, measure, name, steps))
    steps = measure.arguments.limit_steps
    limit = chosen_solver(measure.teacher, "ddim", steps)
    results.cell(f"limit/ddim/{steps}", partial(measure.facts, limit, steps))


def lagging(measure: Measure, results: Results) -> None:
    """The same, aimed at states that are noisier than the steps' ends, as in the authors' code."""
    steps = measure.arguments.searched_steps
    for name in LEAST_SQUARES:
        results.cell(f"lagging/{name}/{steps}", partial(_variant, measure, name, steps, lag=True))


def _variant(measure: Measure, name: str, steps: int, **settings: Any) -> dict[str, Any]:
    solver = measure.fit(name, steps, **settings)
    facts = {**measure.facts(solver, steps), "fitted_error": measure.error(solver, measure.fitted)}
    return {**facts, "numbers": _numbers(solver)}


def _numbers(solver: Solver | FittedSolver) -> list:
    """D-DDIM's kappas; of other solvers each step's shares of the outputs, newest first."""
    if isinstance(solver, FittedSolver):
        return [round(kappa, 4) for kappa in solver.kappas]
    whole = [ddim_coefficients(stage.phi, stage.phi_next, stage.quantity)[1] for stage in solver.stages]
    return [
        [round(weight / own, 4) for weight in stage.result.outputs]
        for stage, own in zip(solver.stages, whole, strict=True)
    ]


def searched(measure: Measure, results: Results) -> None:
    """Table 4 and figure 8: one number for all steps, the best of several in one step count, taken for all of them."""
    arguments, steps = measure.arguments, measure.arguments.searched_steps
    tried = {"fixed": (fixed, arguments.fixed), "la": (lookahead, arguments.lookahead)}
    for name, (make, strengths) in tried.items():
        found = {}
        for strength in strengths:
            solver = make(measure.teacher, steps, strength)
            cell = results.cell(f"searched/{name}/{strength:g}", partial(measure.facts, solver, steps))
            found[strength] = cell["frechet"]["mean"]
        best = min(found, key=found.get)
        for count in arguments.steps:
            solver = make(measure.teacher, count, best)
            results.cell(f"variants/{name}-{best:g}/{count}", partial(measure.facts, solver, count))


def scales(measure: Measure, results: Results) -> None:
    """Table 3 (a)."""
    for steps in measure.arguments.steps:
        for scale in measure.arguments.scales:
            results.cell(f"scale/{scale}/{steps}", partial(_variant, measure, "d_ddim", steps, scale=scale))


def batch_sizes(measure: Measure, results: Results) -> None:
    """Table 3 (b): mean and deviation over batches that share no noise."""
    arguments, steps = measure.arguments, measure.arguments.searched_steps
    for size in arguments.batch_sizes:
        results.cell(f"batch/{size}/{steps}", partial(_batches, measure, steps, size))


def _batches(measure: Measure, steps: int, size: int) -> dict[str, Any]:
    found = []
    for batch in range(measure.arguments.batches):
        solver = measure.fit("d_ddim", steps, batch_size=size, seed=FITTED_SEED + batch * size)
        facts = measure.facts(solver, steps)
        found.append((facts["frechet"]["mean"], facts["error"]))
    spread = {
        name: {"mean": round(statistics.mean(values), 5), "deviation": round(statistics.pstdev(values), 5)}
        for name, values in zip(("frechet", "error"), zip(*found, strict=True), strict=True)
    }
    return {**spread, "batches": len(found)}


def figures(measure: Measure, results: Results) -> None:
    """Figures 2, 5 and 7."""
    arguments, teacher, steps = measure.arguments, measure.teacher, measure.arguments.searched_steps
    seen = {"count": arguments.shown_images, "seed": UNSEEN_SEED}
    shown = {"steps": arguments.fine_steps, "shown": min(50, arguments.fine_steps)}
    results.cell("figures/correlation", partial(correlations, teacher, **shown, **seen))

    def trajectories() -> dict[str, Any]:
        z = seeded_latents(torch.arange(UNSEEN_SEED, UNSEEN_SEED + arguments.shown_images), teacher.sample_shape)
        fine = path_of(teacher, chosen_solver(teacher, "ddim", arguments.fine_steps), z)
        pixels = varied_pixels(fine[-1])
        found = {"fine": trajectory(fine[:: max(arguments.fine_steps // 100, 1)], pixels)}
        for name in ("ddim", *LEAST_SQUARES):
            for lag in {name in LEAST_SQUARES, False}:
                path = path_of(teacher, measure.fit(name, steps, **({"lag": True} if lag else {})), z)
                found[name + "-lagging" * lag] = trajectory(path, pixels)
        return {"steps": steps, "pixels": pixels, "paths": found}

    results.cell("figures/trajectories", trajectories)


def parser() -> argparse.ArgumentParser:
    """Sizes default to those of the table in the docs."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=Path("d-ode-ablation-digits.json"))
    made.add_argument("--page", type=Path, help="an HTML page of tables and plots")
    made.add_argument("--models", type=Path, help="folder that keeps the teacher; default: a temporary one")
    made.add_argument("--teacher-updates", type=int, default=3000)
    made.add_argument("--images", type=int, default=1000, help="images for one distance")
    made.add_argument("--sets", type=int, default=3, help="sets of image seeds for one distance")
    made.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20])
    made.add_argument("--searched-steps", type=int, default=10, help="steps of what is done in one step count only")
    made.add_argument("--scale", type=int, default=10)
    made.add_argument("--batch-size", type=int, default=100)
    made.add_argument("--scales", type=int, nargs="*", default=[2, 5, 20, 50])
    made.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 5, 10, 50, 100, 200])
    made.add_argument("--batches", type=int, default=4, help="fits for each of --batch-sizes")
    made.add_argument("--fixed", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5])
    made.add_argument("--lookahead", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.3, 0.4])
    made.add_argument("--fine-steps", type=int, default=500)
    made.add_argument("--limit-steps", type=int, default=64, help="of DDIM, for the distance that is to be reached")
    made.add_argument("--followed", type=int, default=200, help="noises that errors are measured on")
    made.add_argument("--shown-images", type=int, default=64, help="images that the figures are of")
    made.add_argument("--seed", type=int, default=0, help="the teacher's")
    return made


def main(given: list[str] | None = None) -> None:
    """Computes the cells that are missing."""
    arguments = parser().parse_args(given)
    torch.set_num_threads(1)
    results = Results(arguments.output, {k: v for k, v in vars(arguments).items() if not isinstance(v, Path | None)})
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments, arguments.models or Path(temporary))
        measure = Measure(bench, bench.teacher(arguments.seed), arguments)
        for part in (variants, searched, lagging, figures, scales, batch_sizes):
            part(measure, results)
    if arguments.page:
        write_page(json.loads(arguments.output.read_text()), arguments.page)


if __name__ == "__main__":
    main()
