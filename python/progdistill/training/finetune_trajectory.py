"""SFD: a teacher becomes a few-step student along its own trajectory, without data (Zhou et al. 2024)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from progdistill.core import Denoiser
from progdistill.core.processes import join_processes, on_main_process
from progdistill.data import to_uint8
from progdistill.evaluation import compare_trajectory, rows_by_class
from progdistill.report import labelled_rows
from progdistill.sampling.solvers import Solver, Thresholding, solver_stages
from progdistill.training.compute_network import computing_teacher
from progdistill.training.device import choose_device
from progdistill.training.keep import is_kept, keep, recall
from progdistill.training.loop import Round, RoundResult, run_round
from progdistill.training.noise_batches import NoiseBatches
from progdistill.training.precision import round_precision
from progdistill.training.progress import Plan
from progdistill.training.round_state import copy_network
from progdistill.training.run_folder import RunFolder
from progdistill.training.run_report import write_run_report
from progdistill.training.teacher_and_data import opened_teacher
from progdistill.training.trajectory_config import TrajectoryConfig
from progdistill.training.trajectory_grid import is_schedules_own, student_plan, teacher_angles
from progdistill.training.trajectory_objective import TrajectoryObjective

_GRID_COLUMNS = 12


def finetune_trajectory(
    teacher: Denoiser | str | None = None,
    *,
    steps: int | None = None,
    output_dir: str | None = None,
    config: TrajectoryConfig | None = None,
    **settings: Any,
) -> Denoiser:
    """Fine-tunes a copy of a teacher to sample in `steps` network calls; the same call resumes an interrupted run.

    The teacher follows its probability-flow ODE with a solver of many steps from noise; the student, from the same
    noise, takes its few DDIM steps, each from where its last one led, and learns to be where the teacher is after each.

    Args:
        teacher: a Denoiser, or the folder of one; of a class-conditional one the classes are drawn at random, at
            guidance scale 1, and one that can be guided still can be.
        steps: the student's network calls an image.
        output_dir: where everything goes; the student is kept in output_dir/model.
        config: a TrajectoryConfig instead of keyword settings.
        settings: fields of `TrajectoryConfig` (iterations, teacher_solver, analytic_first_step, learning_rate, ...).

    Returns:
        The student; where its steps are not those of the schedule's grid, they are in its `sampling_plans`, and
        `sample(student, steps)` takes them.

    Raises:
        ValueError: settings that contradict each other, the teacher, or an earlier run in output_dir.
    """
    if config is None:
        if steps is not None:
            settings["steps"] = steps
        config = TrajectoryConfig(
            teacher=teacher if isinstance(teacher, str) else "", output_dir=output_dir or "", **settings
        )
    if not config.output_dir:
        raise ValueError("output_dir is missing; name a folder for the student, checkpoints and metrics")
    join_processes()
    device = choose_device(config.device)
    teacher = opened_teacher(teacher if teacher is not None else config.teacher).to(device)
    _check_teacher(teacher)
    task = _Task(teacher, config)
    title = f"Fine-tuning to {config.steps} steps along the trajectory"
    run = RunFolder(config, "sfd", {"teacher": teacher.provenance}, Plan([config.updates]), title)
    if on_main_process(partial(is_kept, run.model)):
        student = recall(run.model, task.student, config.steps)
    else:
        student = task.trained(run)
    run.finish()
    on_main_process(lambda: write_run_report(run))
    return student


class _Task:
    """What the teacher does and the student is to do."""

    def __init__(self, teacher: Denoiser, config: TrajectoryConfig) -> None:
        self.teacher = teacher
        self.config = config
        angles = teacher_angles(teacher.schedule, config.plan_steps, config)
        _check_start(teacher, float(angles[0]))
        self.plan = student_plan(angles, config)
        thresholding = Thresholding() if config.teacher_thresholding else None
        self.solver = Solver(solver_stages(config.teacher_solver, angles, teacher), thresholding)
        own = is_schedules_own(self.plan, teacher.schedule)
        self.student = teacher.with_network(
            copy_network(teacher.network).requires_grad_(True),
            valid_steps=(config.steps,),
            sampling_plans={} if own else {config.steps: self.plan},
        )

    def trained(self, run: RunFolder) -> Denoiser:
        """The student that the run makes, which is then kept."""
        config, steps = self.config, self.config.steps
        result = self._run(run)
        comparison = on_main_process(lambda: self._compare(run, result.student, config.updates))
        facts = {"steps": steps, "updates": config.updates, "seconds": round(result.seconds, 3)}
        run.write({"event": "round_end", "round": 0, "label": f"{steps} steps", **facts, **comparison})
        result.student.provenance = {
            "recipe": "sfd",
            **facts,
            "precision": result.precision,
            "loss_type": config.loss_type,
            "teacher_solver": config.teacher_solver,
            "teacher_substeps": config.teacher_substeps,
            "teacher": self.teacher.provenance,
            **comparison,
        }
        # The kept student marks the run as done, so it is written last.
        on_main_process(lambda: keep(result.student, run.model, result.raw_state_dict))
        return result.student

    def _run(self, run: RunFolder) -> RoundResult:
        config, steps = self.config, self.config.steps
        precision = round_precision(config, self.teacher.device, steps)
        objective = TrajectoryObjective(
            computing_teacher(self.teacher, precision, compiled=config.compile),
            self.plan,
            self.solver.stages,
            loss_type=config.loss_type,
            huber_c=config.huber_c,
            thresholding=self.solver.thresholding,
        )
        round_ = Round(
            index=0,
            student=self.student,
            objective=objective,
            updates=config.updates,
            label=f"{steps} steps",
            dropout=False,
            on_validation=partial(self._compare, run),
            precision=precision,
            updates_per_iteration=steps,
        )
        classes = self.teacher.num_classes
        batches = NoiseBatches(config, 0, self.teacher.device, updates_per_iteration=steps, num_classes=classes)
        return run_round(round_, batches, config, run)

    def _compare(self, run: RunFolder, model: Denoiser, update: int) -> dict[str, float]:
        count = self.config.validation_images
        comparison = compare_trajectory(model, self.teacher, self.config.steps, self.solver, count)
        rows = [(name, to_uint8(images)) for name, images in comparison.rows()]
        rows = rows_by_class(rows, comparison.labels, _GRID_COLUMNS)
        if self.teacher.sample_shape[0] in (1, 3):
            run.save_grid(labelled_rows(rows), f"steps-{self.config.steps:04d}-update-{update:07d}", 0, update)
        return comparison.record()


def _check_teacher(teacher: Denoiser) -> None:
    if next(teacher.network.parameters(), None) is None:
        raise ValueError(
            "the teacher's network has no parameters, and its student is a trained copy of it: make it an nn.Module "
            "that holds the network it calls"
        )
    if teacher.valid_steps is not None:
        raise ValueError(
            f"the teacher was itself distilled for {teacher.valid_steps} steps and knows no finer trajectory; take the "
            "teacher that it comes from"
        )
    if teacher.guidance_range is not None:
        raise ValueError(
            f"the teacher takes a guidance scale in {teacher.guidance_range} as an input; fine-tune the network that "
            "is called twice instead: its student is trained at scale 1 and can be guided when it samples"
        )


def _check_start(teacher: Denoiser, phi: float) -> None:
    if teacher.prediction_type == "epsilon" and math.cos(phi) < 1e-9:
        raise ValueError(
            "the teacher predicts epsilon, which says nothing about x at SNR 0, where the steps would start: use "
            "grid='polynomial' or 'logsnr', which begin at sigma_max, or a v_prediction or sample teacher"
        )
