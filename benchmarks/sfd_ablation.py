"""The ablations of Zhou et al. 2024 (SFD, figures 3 to 5) on the digits: what the student's quality hangs on.

    python benchmarks/sfd_ablation.py --output sfd-ablation-digits.json

Each cell is a student of `--student-steps` network calls with one setting changed: the teacher's solver and its
sub-steps, the analytic first step, where the grid is and ends, the loss. Beside the Frechet distance (the quickstart's
measure, see `ablation.py`) stands the paired distance to the teacher's own fine trajectory, before and after.
The cells `timestamp/n` train at one step of four only (0: at none), and give the distance from the teacher's trajectory
at each of the four angles: does training at one timestamp help at the others?

A cell that is in the output already is not computed again.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import progdistill
from ablation import COMMON, Bench, Results
from progdistill.core import Denoiser
from progdistill.ops import ddim_step
from progdistill.sampling.latents import seeded_latents
from progdistill.training import TrajectoryConfig
from progdistill.training.few_step_student import few_step_student
from progdistill.training.trajectory_grid import FollowedPath, followed_path
from progdistill.training.trajectory_objective import teacher_states

EDM_LIKE = {"grid": "polynomial"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"teacher/{name}": {"teacher_solver": name} for name in ("ddim", "heun", "dpmpp_2m", "ipndm")},
    **{f"substeps/{count}": {"teacher_substeps": count} for count in (1, 2, 8)},
    "no-analytic-first-step": {"analytic_first_step": False},
    **{f"loss/{name}": {"loss_type": name} for name in ("l2", "pseudo_huber")},
    **{f"polynomial/sigma-min-{end}": {**EDM_LIKE, "sigma_min": end} for end in (0.002, 0.006, 0.02, 0.05)},
}
STUDENT = {"learning_rate": 1e-3, "train_batch_size": 64, "device": "cpu", "progress": False, "logging_steps": 100}


def variant(bench: Bench, teacher: Denoiser, name: str) -> dict[str, Any]:
    """Both distances of a student with these settings."""
    arguments = bench.arguments
    steps = arguments.student_steps
    student = progdistill.finetune_trajectory(
        teacher,
        steps=steps,
        output_dir=str(bench.models / name.replace("/", "-")),
        iterations=arguments.iterations,
        seed=arguments.seed,
        **VARIANTS[name],
        **STUDENT,
    )
    facts = student.provenance
    return {
        "frechet": bench.distance(student, steps),
        "to_teacher": round(facts["student_distance"], 4),
        "to_teacher_before": round(facts["teacher_distance"], 4),
        "teacher_calls": facts["teacher_calls"],
    }


def timestamp(bench: Bench, teacher: Denoiser, trained: int) -> dict[str, Any]:
    """Root-mean-square distance from the teacher's states at each of 4 timestamps; trained at one, or (0) none."""
    config = TrajectoryConfig(output_dir="", steps=4, analytic_first_step=False)
    path = followed_path(teacher, 4, config)
    student = few_step_student(teacher, {4: path.plan})
    optimizer = torch.optim.Adam(student.network.parameters(), lr=STUDENT["learning_rate"])
    phis = path.plan.trained_phis
    for update in range(bench.arguments.iterations if trained else 0):
        first = update * STUDENT["train_batch_size"]
        z = seeded_latents(torch.arange(first, first + STUDENT["train_batch_size"]) + 2**32, teacher.sample_shape)
        states = [z, *teacher_states(teacher, z, path)]
        moved = _step(student, states[trained - 1], phis[trained - 1], phis[trained])
        optimizer.zero_grad()
        (moved - states[trained]).abs().mean().backward()
        optimizer.step()
    return {"distance_at": _distances(student, teacher, path, bench.arguments.images)}


@torch.no_grad()
def _distances(student: Denoiser, teacher: Denoiser, path: FollowedPath, count: int) -> list[float]:
    z, found = seeded_latents(torch.arange(count), teacher.sample_shape), []
    phis = path.plan.trained_phis
    for number, target in enumerate(teacher_states(teacher, z, path)):
        z = _step(student, z, phis[number], phis[number + 1])
        found.append(round(float((z - target).square().mean().sqrt()), 4))
    return found


def _step(student: Denoiser, z: torch.Tensor, phi: torch.Tensor, phi_next: torch.Tensor) -> torch.Tensor:
    angles = phi.expand(len(z)), phi_next.expand(len(z))
    return ddim_step(z, student.raw(z, angles[0]), *angles, prediction_type=student.prediction_type)


def main() -> None:
    """Computes the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sfd-ablation-digits.json"))
    parser.add_argument("--models", type=Path, help="folder that keeps all models; default: a temporary one")
    parser.add_argument("--student-steps", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--teacher-updates", type=int, default=3000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = ("student_steps", "iterations", "teacher_updates", "images", "seed")
    settings = {name: getattr(arguments, name) for name in kept}
    results = Results(arguments.output, {**settings, "student": STUDENT, "teacher": COMMON})
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments, arguments.models or Path(temporary))
        teacher = bench.teacher(arguments.seed)
        for steps in (arguments.student_steps, 64):
            results.cell(f"teacher/ddim/{steps}", lambda steps=steps: {"frechet": bench.distance(teacher, steps)})
        for name in VARIANTS:
            results.cell(f"student/{name}", partial(variant, bench, teacher, name))
        for trained in (0, 1, 2, 3, 4):
            results.cell(f"timestamp/{trained}", partial(timestamp, bench, teacher, trained))


if __name__ == "__main__":
    main()
