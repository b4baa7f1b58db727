"""SFD: a teacher becomes a few-step student along its own trajectory, without data (Zhou et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from progdistill.core import Denoiser
from progdistill.core.processes import join_processes, on_main_process
from progdistill.evaluation import compare_trajectory
from progdistill.metrics import open_features
from progdistill.training.comparison_grid import save_comparison_grid
from progdistill.training.compute_network import computing_teacher
from progdistill.training.device import choose_device
from progdistill.training.few_step_student import few_step_student
from progdistill.training.keep import is_kept, keep, recall
from progdistill.training.loop import Round, RoundResult, run_round
from progdistill.training.noise_batches import NoiseBatches
from progdistill.training.perceptual_distance import PerceptualDistance
from progdistill.training.precision import round_precision
from progdistill.training.progress import Plan
from progdistill.training.run_folder import RunFolder
from progdistill.training.run_report import write_run_report
from progdistill.training.teacher_and_data import opened_teacher
from progdistill.training.trajectory_config import TrajectoryConfig
from progdistill.training.trajectory_grid import followed_path
from progdistill.training.trajectory_objective import TrajectoryObjective


def finetune_trajectory(
    teacher: Denoiser | str | None = None,
    *,
    steps: int | Sequence[int] | None = None,
    output_dir: str | None = None,
    config: TrajectoryConfig | None = None,
    **settings: Any,
) -> Denoiser:
    """Fine-tunes a copy of a teacher to sample in `steps` network calls; the same call resumes an interrupted run.

    The teacher follows its probability-flow ODE with a solver of many steps from noise; the student, from the same
    noise, takes its few DDIM steps, each from where its last one led, and learns to be where the teacher is after each.

    Args:
        teacher: a Denoiser, or the folder of one. One that is itself a student is followed in its own steps (the second
            stage, which makes one step of few; its LPIPS is a file that `perceptual` may name). Classes are drawn at
            random, at guidance scale 1; where the teacher can be guided the student still can be.
        steps: the student's network calls an image; several make one network for all of them (SFD-v).
        output_dir: where everything goes; the student is kept in output_dir/model.
        config: a TrajectoryConfig instead of keyword settings.
        settings: fields of `TrajectoryConfig` (iterations, teacher_solver, analytic_first_step, learning_rate,
            perceptual, ...).

    Returns:
        The student; where its steps are not those of the schedule's grid, they are in its `sampling_plans`, and
        `sample(student, steps)` takes them.

    Raises:
        ValueError: settings that contradict each other, the teacher, or an earlier run in output_dir.
        FileNotFoundError: no file at `perceptual`.
    """
    if config is None:
        if steps is not None:
            settings["steps"] = steps if isinstance(steps, int) else tuple(steps)
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
    title = f"Fine-tuning to {task.label} along the trajectory"
    run = RunFolder(config, "sfd", task.inputs, Plan([config.updates]), title)
    if on_main_process(partial(is_kept, run.model)):
        student = recall(run.model, task.student, config.steps[0])
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
        self.paths = {steps: followed_path(teacher, steps, config) for steps in config.steps}
        plans = {steps: path.plan for steps, path in self.paths.items()}
        _check_start(teacher, plans[config.steps[0]].phis[0])
        self.student = few_step_student(teacher, plans, config.seed)
        self.inputs = {"teacher": teacher.provenance}
        self.perceptual: PerceptualDistance | None = None
        if config.perceptual:
            features = open_features(config.perceptual, device=teacher.device)
            self.inputs["perceptual"] = features.fingerprint
            self.perceptual = PerceptualDistance(
                features,
                weight=config.perceptual_weight,
                sample_shape=teacher.sample_shape,
                device=teacher.device,
            )
        self.label = f"{', '.join(map(str, config.steps))} steps"

    def trained(self, run: RunFolder) -> Denoiser:
        """The student that the run makes, which is then kept."""
        config = self.config
        result = self._run(run)
        compared = on_main_process(lambda: self._compare(run, result.student, config.updates))
        facts = {"updates": config.updates, "seconds": round(result.seconds, 3), "loss": result.loss}
        for steps, comparison in compared.items():
            label = f"{steps} of {self.label}" if len(compared) > 1 else self.label
            run.write({"event": "round_end", "round": 0, "label": label, "steps": steps, **facts, **comparison})
        only = len(compared) == 1
        result.student.provenance = {
            "recipe": "sfd",
            **({"steps": config.steps[0]} if only else {"step_counts": list(config.steps)}),
            **facts,
            "precision": result.precision,
            "loss_type": config.loss_type,
            **({"perceptual_weight": config.perceptual_weight} if self.perceptual else {}),
            **self._teacher_facts(),
            "teacher": self.teacher.provenance,
            **(compared[config.steps[0]] if only else {"by_steps": {str(n): record for n, record in compared.items()}}),
        }
        # The kept student marks the run as done, so it is written last.
        on_main_process(lambda: keep(result.student, run.model, result.raw_state_dict))
        return result.student

    def _teacher_facts(self) -> dict[str, Any]:
        if self.teacher.valid_steps is not None:
            return {"teacher_solver": "its own steps"}
        return {"teacher_solver": self.config.teacher_solver, "teacher_substeps": self.config.teacher_substeps}

    def _run(self, run: RunFolder) -> RoundResult:
        config, device = self.config, self.teacher.device
        precision = round_precision(config, device, config.steps[0])
        objective = TrajectoryObjective(
            computing_teacher(self.teacher, precision, compiled=config.compile),
            list(self.paths.values()),
            loss_type=config.loss_type,
            huber_c=config.huber_c,
            perceptual=self.perceptual,
        )
        round_ = Round(
            index=0,
            student=self.student,
            objective=objective,
            updates=config.updates,
            label=self.label,
            dropout=False,
            on_validation=partial(self._compare, run),
            precision=precision,
            updates_per_iteration=sum(config.steps),
        )
        batches = NoiseBatches(config, 0, device, iterations=config.steps, num_classes=self.teacher.num_classes)
        return run_round(round_, batches, config, run)

    def _compare(self, run: RunFolder, model: Denoiser, update: int) -> dict[int, dict[str, float]]:
        records = {}
        for steps, path in self.paths.items():
            teacher = self.teacher if path.teacher_steps is None else self.teacher.for_steps(path.teacher_steps)
            comparison = compare_trajectory(model, teacher, steps, path.solver, self.config.validation_images)
            save_comparison_grid(run, comparison, f"steps-{steps:04d}-update-{update:07d}", 0, update)
            records[steps] = comparison.record()
        return records


def _check_teacher(teacher: Denoiser) -> None:
    if next(teacher.network.parameters(), None) is None:
        raise ValueError(
            "the teacher's network has no parameters, and its student is a trained copy of it: make it an nn.Module "
            "that holds the network it calls"
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
