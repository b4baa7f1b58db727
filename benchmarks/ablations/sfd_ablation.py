"""The ablations of Zhou et al. 2024 (SFD, figures 3 to 5) on the digits: what the student's quality hangs on.

    python benchmarks/ablations/sfd_ablation.py --seeds 0 1 --output sfd-ablation-digits.json --report sfd-ablation.html

Each cell `student/...` is a student of `--student-steps` network calls with one setting changed: the teacher's solver
and its sub-steps K, the analytic first step, where the grid is and ends, the loss, where a step starts. It has the
Frechet distances (the quickstart's measure, see `ablation.py`) of the student and of the trajectory that it followed,
and its paired distances (of 256 images) from that trajectory, before and after, and from the teacher's ODE in 64 steps.
The cells `timestamp/...` (equal times) and `timestamp-polynomial/...` (the paper's grid, sigma from 80 to 0.002) train
at one step of four only, or at none, or at all: does that help at the others?

Each seed has its own teacher. A cell that is in the output already is not computed again. `sfd_ablation_report.py`
makes the page; --report does it at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import progdistill
from ablation import COMMON, Bench, Results
from progdistill.core import Denoiser
from progdistill.core.files import write_text_atomic
from progdistill.evaluation import compare_trajectory
from progdistill.metrics import mean_and_standard_error, paired_distance
from progdistill.sampling import generate
from progdistill.sampling.ddim import scaled
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import chosen_solver
from progdistill.training import TrajectoryConfig
from progdistill.training.trajectory_grid import FollowedPath, followed_path, teacher_angles
from sfd_ablation_report import page
from sfd_ablation_steps import distances_along, distances_of_one_step, fine_tuned, path_along

EDM_LIKE = {"grid": "polynomial"}
NO_ANALYTIC = {"analytic_first_step": False}
# "calls" adds to the network calls: without the analytic first step as many calls make fewer steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"solver/{name}": {"teacher_solver": name} for name in ("ddim", "heun", "dpmpp_2m", "ipndm")},
    "analytic-first-step/off, as many calls": NO_ANALYTIC,
    "analytic-first-step/off, as many steps": {**NO_ANALYTIC, "calls": 1},
    **{f"loss/{name}": {"loss_type": name} for name in ("l2", "pseudo_huber")},
    **{f"sigma-min/{end}": {**EDM_LIKE, "sigma_min": end} for end in (0.002, 0.006, 0.02, 0.05)},
    "sigma-min/0.006, no analytic first step": {**EDM_LIKE, **NO_ANALYTIC},
    **{f"substeps/{count}": {"teacher_substeps": count} for count in (1, 2, 3, 6, 8)},
}
# Ends of the schedule's own times, t = 2 phi / pi: as much noise as sigma_min 0.006 and 0.05.
TIME_ENDS = (0.004, 0.03)
STUDENT = {"learning_rate": 1e-3, "train_batch_size": 32}
QUIET = {"device": "cpu", "progress": False, "logging_steps": 100}
TIMESTAMPS = 4
GRIDS = {"timestamp": {}, "timestamp-polynomial": {**EDM_LIKE, "sigma_min": 0.002}}
STRIDE = 4
COMPARED = 256


class SeedBench:
    """A teacher of one training seed, and what its students are measured with."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.arguments = bench.arguments
        self.seed = seed
        self.teacher: Denoiser = bench.teacher(seed)
        self.training = {**STUDENT, "iterations": self.arguments.iterations, "seed": seed}

    @cached_property
    def solution(self) -> Tensor:
        """The teacher's images for seeds 0, 1, ...: 64 steps of DPM-Solver++(3M)."""
        solver = chosen_solver(self.teacher, "dpmpp_3m", 64)
        return generate(self.teacher, 64, seeds=torch.arange(COMPARED), solver=solver)

    def student(self, name: str) -> dict[str, Any]:
        """The cell of a student that `finetune_trajectory` makes with changed settings."""
        settings = {**STUDENT, **VARIANTS[name]}
        steps = self.arguments.student_steps + settings.pop("calls", 0)
        student = progdistill.finetune_trajectory(
            self.teacher,
            steps=steps,
            output_dir=str(self.bench.models / f"{name}-{self.seed}".replace("/", "-").replace(", ", "-")),
            iterations=self.arguments.iterations,
            seed=self.seed,
            **settings,
            **QUIET,
        )
        path = followed_path(self.teacher, steps, TrajectoryConfig(output_dir="", steps=steps, **settings))
        return self.quality(student, path)

    def on_teachers_states(self) -> dict[str, Any]:
        """The cell of a student whose every step starts on the teacher's trajectory."""
        path = followed_path(self.teacher, self.arguments.student_steps, TrajectoryConfig(output_dir=""))
        return self.quality(fine_tuned(self.teacher, path, start="teacher", **self.training), path)

    def to_time(self, end: float) -> dict[str, Any]:
        """The cell of a student whose steps are equal times of the schedule, from 1 to `end`."""
        config = TrajectoryConfig(output_dir="")
        steps = config.teacher_substeps * config.plan_steps(self.arguments.student_steps)
        angles = self.teacher.schedule.angle(torch.linspace(1.0, end, steps + 1, dtype=torch.float64))
        path = path_along(self.teacher, angles, config.teacher_substeps, config)
        return self.quality(fine_tuned(self.teacher, path, **self.training), path)

    def quality(self, student: Denoiser, path: FollowedPath) -> dict[str, Any]:
        """The figures of a student."""
        calls, factor = path.plan.network_calls, path.plan.last_factor
        compared = compare_trajectory(student, self.teacher, calls, path.solver, COMPARED)
        to_solution = mean_and_standard_error(paired_distance(compared.student, self.solution))

        def followed(model: Denoiser, *args: Any, **options: Any) -> Tensor:
            return scaled(path.solver(model, *args, **options), factor)

        return {
            "network_calls": calls,
            "teacher_calls": compared.teacher_calls,
            "frechet": self.bench.distance(student, calls),
            "frechet_followed": self.bench.distance(self.teacher, calls, solver=followed),
            "to_followed": _rounded(compared.student_distance),
            "to_followed_before": _rounded(compared.teacher_distance),
            "to_solution": _rounded(to_solution),
        }

    def timestamps(self, grid: dict[str, Any], trained: Sequence[int]) -> dict[str, Any]:
        """Distances of a student trained at these of four steps, each started on the teacher's trajectory.

        `along`: of its own trajectory from the teacher's, after each of the four steps. `one_step`: of one step that
        starts on the teacher's trajectory, at each of the teacher's `times` (of the schedule), and goes on to the
        fourth one after: the trained times are every fourth of them.
        """
        config = TrajectoryConfig(output_dir="", **NO_ANALYTIC, teacher_substeps=STRIDE, **grid)
        path = followed_path(self.teacher, TIMESTAMPS, config)
        student = fine_tuned(self.teacher, path, trained=set(trained), start="teacher", **self.training)
        angles = teacher_angles(self.teacher.schedule, TIMESTAMPS, config)
        fine = path_along(self.teacher, angles, 1, config)
        z = seeded_latents(torch.arange(COMPARED), self.teacher.sample_shape)
        one_step = distances_of_one_step(student, self.teacher, fine, STRIDE, z)
        times = [round(time, 6) for time in self.teacher.schedule.time(angles).tolist()[: len(one_step)]]
        along = distances_along(student, self.teacher, path, z)
        return {"trained": list(trained), "times": times, "one_step": one_step, "along": along}

    def cells(self, results: Results) -> None:
        """Computes what is missing."""
        steps = self.arguments.student_steps
        for count in (steps, 64):
            results.cell(
                f"teacher/{count}/{self.seed}",
                lambda count=count: {"frechet": self.bench.distance(self.teacher, count), "network_calls": count},
            )
        every = range(TIMESTAMPS)
        trained_at = {"none": [], **{str(n): [n] for n in every}, "all": list(every)}
        cells = {
            f"{where}/{name}": partial(self.timestamps, grid, trained)
            for where, grid in GRIDS.items()
            for name, trained in trained_at.items()
        }
        cells |= {f"student/{name}": partial(self.student, name) for name in VARIANTS}
        cells["student/start/teacher"] = self.on_teachers_states
        cells |= {f"student/time-end/{end}": partial(self.to_time, end) for end in TIME_ENDS}
        for name, compute in cells.items():
            if self.arguments.only is None or name.startswith(tuple(self.arguments.only)):
                results.cell(f"{name}/{self.seed}", compute)


def _rounded(pair: tuple[float, float]) -> list[float]:
    return [round(number, 5) for number in pair]


def checked_results(path: Path, settings: dict[str, Any]) -> Results:
    """The output; SystemExit if its cells are of other settings."""
    if path.exists() and (found := json.loads(path.read_text())["settings"]) != settings:
        changed = [name for name in settings if found.get(name) != settings[name]]
        sys.exit(f"{path} has cells of other settings ({', '.join(changed)}); use them again, or another --output")
    return Results(path, settings)


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sfd-ablation-digits.json"))
    parser.add_argument("--report", type=Path, help="an HTML page of what is in the output then")
    parser.add_argument("--models", type=Path, help="folder that keeps all models; default: a temporary one")
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="cells that begin so, such as student/loss")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds, of teacher and students")
    parser.add_argument("--student-steps", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--teacher-updates", type=int, default=3000)
    parser.add_argument("--images", type=int, default=1000, help="images for one Frechet distance")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Computes the cells that are missing."""
    arguments = arguments_of(words)
    torch.set_num_threads(1)
    kept = ("student_steps", "iterations", "teacher_updates", "images")
    settings = {name: getattr(arguments, name) for name in kept}
    settings |= {"student": STUDENT, "teacher": COMMON, "compared": COMPARED}
    results = checked_results(arguments.output, settings)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments, arguments.models or Path(temporary))
        for seed in arguments.seeds:
            SeedBench(bench, seed).cells(results)
    if arguments.report:
        write_text_atomic(arguments.report, page(json.loads(arguments.output.read_text())))


if __name__ == "__main__":
    main()
