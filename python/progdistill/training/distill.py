"""Progressive distillation: Salimans & Ho 2022, Algorithm 2, round by round."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from progdistill.core import Condition, Denoiser
from progdistill.core.processes import is_main_process, join_processes, on_main_process
from progdistill.core.random import Stream, integers
from progdistill.data import ImageDataset
from progdistill.evaluation import compare_round
from progdistill.interop import save
from progdistill.nets.unet import UNet
from progdistill.ops import ddim_step, diffuse_seeded, distillation_loss_and_grad
from progdistill.sampling.addim import addim_prediction
from progdistill.training.batches import Batch, BatchSource
from progdistill.training.comparison_grid import save_comparison_grid
from progdistill.training.compute_network import computing_teacher
from progdistill.training.config import DistillConfig
from progdistill.training.convert import SAMPLING_STEPS, Conversion, why_convert
from progdistill.training.device import choose_device
from progdistill.training.guidance import with_drawn_guidance
from progdistill.training.guidance_round import GuidanceRound
from progdistill.training.keep import is_kept, keep, recall, with_students
from progdistill.training.loop import Round, RoundResult, run_round
from progdistill.training.objective import Loss
from progdistill.training.precision import round_precision
from progdistill.training.progress import Plan
from progdistill.training.round_state import copy_network
from progdistill.training.run_folder import RunFolder
from progdistill.training.run_report import write_run_report
from progdistill.training.teacher_and_data import opened_data, opened_teacher


class DistillationObjective:
    """Algorithm 2: t = (i + 1) / N with i uniform; the teacher's K DDIM (or aDDIM) steps are the student's one.

    Of networks that take a guidance scale (stage two of Meng et al. 2023) each sample draws one, which both are given;
    neither is guided any further.

    The teacher is a constant: eval mode, no gradient. `angles` (K + 1, N) are those of each step i, from the teacher's
    grid of KN steps by index, so the last one is exactly 0.
    """

    def __init__(self, teacher: Denoiser, steps: int, config: DistillConfig) -> None:
        self.teacher = teacher
        self.steps = steps
        self.substeps = config.substeps_for(steps)
        self.addim = config.teacher_sampler == "addim" and steps >= config.addim_min_steps
        self.addim_eta = config.addim_eta
        self.loss_options = config.loss_options()
        windows = teacher.schedule.grid(self.substeps * steps).unfold(0, self.substeps + 1, self.substeps)
        self.angles = windows.flip(0).T.to(teacher.device)
        teacher.eval().requires_grad_(False)

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss:
        index = integers(batch.seeds, batch.update, Stream.TIME, self.steps)
        phis = self.angles.index_select(1, index)
        z = diffuse_seeded(batch.x, batch.seeds, batch.update, Stream.NOISE, phis[0])
        cond = with_drawn_guidance(batch, student)
        outs, teacher_type = self._teacher_outputs(z, phis, cond, batch.x)
        pred = student.raw(z, phis[0], cond)
        loss, grad = distillation_loss_and_grad(
            pred,
            z,
            outs,
            phis,
            prediction_type=student.prediction_type,
            teacher_prediction_type=teacher_type,
            grad_scale=grad_scale,
            **self.loss_options,
        )
        return Loss(pred, grad, loss, phis[0])

    @torch.no_grad()
    def _teacher_outputs(self, z: Tensor, phis: Tensor, cond: Condition | None, x: Tensor) -> tuple[list[Tensor], str]:
        """The outputs of K steps along phis, and what they predict."""
        outs: list[Tensor] = []
        kind = self.teacher.prediction_type
        for j in range(self.substeps):
            if j > 0:
                z = ddim_step(z, outs[-1], phis[j - 1], phis[j], prediction_type=kind)
            out = self.teacher.raw(z, phis[j], cond)
            if self.addim:
                out, kind = self._addim(z, out, phis[j], phis[j + 1], x)
            outs.append(out)
        return outs, kind

    def _addim(self, z: Tensor, out: Tensor, phi: Tensor, phi_next: Tensor, x: Tensor) -> tuple[Tensor, str]:
        known = {} if self.addim_eta is None else {"x": x, "eta": self.addim_eta}
        return addim_prediction(z, out, phi, phi_next, prediction_type=self.teacher.prediction_type, **known)


def distill(
    teacher: Denoiser | str | None = None,
    *,
    rounds: int | None = None,
    data: Any = None,
    output_dir: str | None = None,
    config: DistillConfig | None = None,
    **settings: Any,
) -> Denoiser:
    """Distils a teacher round by round; the same call again resumes an interrupted run.

    A teacher that predicts epsilon is converted first, in a round of its own (see `convert`). With a `guidance_range` a
    teacher that was trained with label_dropout is then guided, in another one: its students take the scale as an input.
    Without it they are unguided, whatever the teacher can do.

    Args:
        teacher: a Denoiser, or the folder of one.
        rounds: how often the step count is divided by `step_factor` (2); the run starts at
            end_steps * step_factor ** rounds teacher steps.
        data: whatever `progdistill.data.open_dataset` takes; None uses the data set that the teacher's folder
            records.
        output_dir: where everything goes; every student is kept in output_dir/students, as a model folder if its
            network is a `progdistill.nets.unet.UNet`, else as the bare weights of the teacher's own module.
        config: a DistillConfig instead of keyword settings.
        settings: fields of `DistillConfig` (end_steps, updates_per_round, learning_rate, ema_decay, ...).

    Returns:
        The last student with its averaged weights (each round's average is the next round's teacher, unless
        next_teacher="raw"); its `students` hold the others by step count.

    Raises:
        ValueError: settings that contradict each other, the teacher, the data or an earlier run in output_dir.

    Warns:
        UserWarning: teacher_substeps < step_factor, and a teacher that is a student of longer than its own steps.
    """
    if config is None:
        if rounds is not None:
            settings["rounds"] = rounds
        config = DistillConfig(
            teacher=teacher if isinstance(teacher, str) else "",
            data=data if isinstance(data, str) else "",
            output_dir=output_dir or "",
            **settings,
        )
    if not config.output_dir:
        raise ValueError("output_dir is missing; name a folder for students, checkpoints and metrics")
    join_processes()
    device = choose_device(config.device)
    teacher = opened_teacher(teacher if teacher is not None else config.teacher).to(device)
    _check_teacher(teacher, config)
    dataset = opened_data(data if data is not None else config.data, config, teacher)
    conversion = _conversion(teacher, config)
    guidance = _guidance(teacher, config, index=1 if conversion else 0)
    before = [round_ for round_ in (conversion, guidance) if round_]
    plan = Plan([round_.updates for round_ in before] + [config.updates_for(steps) for steps in config.student_steps])
    title = f"Distilling {config.teacher_steps} steps to {config.end_steps}"
    run = RunFolder(config, "distill", {"data": dataset.name, "teacher": teacher.provenance}, plan, title)
    if conversion:
        teacher = _converted(conversion, dataset, device, config, run)
    teacher = _guided(guidance, teacher, dataset, device, config, run) if guidance else _unguided(teacher)
    for index, steps in enumerate(config.student_steps, start=len(before)):
        folder = run.student(steps)
        if on_main_process(partial(is_kept, folder)):
            student = recall(folder, teacher, steps)
        else:
            batches = BatchSource(dataset, config, index, device, teacher.num_classes is not None)
            student = _distill_round(index, steps, teacher, batches, config, run)
        teacher = student if config.next_teacher == "ema" else recall(folder, student, steps, weights="raw")
    others = {n: run.student(n) for n in config.student_steps if n != config.end_steps}
    if isinstance(student.network, UNet):
        siblings = {n: f"../students/{path.name}" for n, path in others.items()}
        on_main_process(lambda: save(student, run.model, students=siblings))
    run.finish()
    on_main_process(lambda: write_run_report(run))
    return with_students(student, others)


def _distill_round(
    index: int, steps: int, teacher: Denoiser, batches: BatchSource, config: DistillConfig, run: RunFolder
) -> Denoiser:
    label = f"{config.step_factor * steps} -> {steps} steps"
    student = teacher.with_network(copy_network(teacher.network).requires_grad_(True), valid_steps=(steps,))

    def on_validation(model: Denoiser, update: int) -> dict[str, float]:
        substeps = config.substeps_for(steps)
        comparison = compare_round(model, teacher, steps, config.validation_images, teacher_substeps=substeps)
        save_comparison_grid(run, comparison, f"steps-{steps:04d}-update-{update:07d}", index, update)
        return comparison.record()

    updates = config.updates_for(steps)
    precision = round_precision(config, batches.device, steps)
    constant = computing_teacher(teacher, precision, compiled=config.compile)
    round_ = Round(
        index=index,
        student=student,
        objective=DistillationObjective(constant, steps, config),
        updates=updates,
        label=label,
        dropout=False,
        on_validation=on_validation,
        precision=precision,
    )
    result: RoundResult = run_round(round_, batches, config.for_round(steps), run)
    comparison = on_main_process(lambda: on_validation(result.student, updates))
    run.write(
        {
            "event": "round_end",
            "round": index,
            "label": label,
            "steps": steps,
            "updates": updates,
            "seconds": round(result.seconds, 3),
            **comparison,
        }
    )
    result.student.provenance = {
        "recipe": "distill",
        "steps": steps,
        "updates": updates,
        "seconds": round(result.seconds, 3),
        "precision": result.precision,
        "loss": result.loss,
        "weighting": config.weighting,
        "loss_type": config.loss_type,
        "data": batches.dataset.name,
        "data_source": config.data or None,
        "data_options": config.reading_options(),
        "teacher": teacher.provenance,
        **comparison,
    }
    # The kept student marks the round as done, so it is written last.
    siblings = {n: f"../{run.student(n).name}" for n in config.student_steps if n != steps}
    on_main_process(lambda: keep(result.student, run.student(steps), result.raw_state_dict, siblings))
    run.clear_checkpoints()
    return result.student


def _conversion(teacher: Denoiser, config: DistillConfig) -> Conversion | None:
    """The round before the others, if the teacher needs one."""
    reason = why_convert(teacher)
    if reason is None:
        return None
    updates = config.updates_per_round if config.conversion_updates is None else config.conversion_updates
    if updates == 0:
        raise ValueError(
            f"{reason}, so it must be converted first, but conversion_updates is 0; give a number of updates, or "
            "distil what `progdistill convert` makes of it (or another v_prediction, sample or sample_epsilon teacher)"
        )
    return Conversion(teacher, "v_prediction", updates, min(config.teacher_steps, SAMPLING_STEPS))


def _converted(
    conversion: Conversion, dataset: ImageDataset, device: torch.device, config: DistillConfig, run: RunFolder
) -> Denoiser:
    teacher = conversion.teacher
    if is_main_process() and not is_kept(run.converted):
        print(
            f"{why_convert(teacher)}: round 0 converts it into a v_prediction network first ({conversion.updates} "
            f"updates, zero_snr = {config.zero_snr!r}), to be kept in {run.converted}",
            flush=True,
        )
    batches = BatchSource(dataset, config, 0, device, teacher.num_classes is not None)
    converted = conversion.result(run.converted, batches, config, run)
    return converted if config.next_teacher == "ema" else recall(run.converted, converted, None, weights="raw")


def _guidance(teacher: Denoiser, config: DistillConfig, index: int) -> GuidanceRound | None:
    """Stage one, if it is asked for."""
    if config.guidance_range is None:
        return None
    updates = config.updates_per_round if config.guidance_updates is None else config.guidance_updates
    steps = min(config.teacher_steps, SAMPLING_STEPS)
    return GuidanceRound(index, teacher, config.guidance_range, updates, steps)


def _guided(
    guidance: GuidanceRound,
    teacher: Denoiser,
    dataset: ImageDataset,
    device: torch.device,
    config: DistillConfig,
    run: RunFolder,
) -> Denoiser:
    batches = BatchSource(dataset, config, guidance.index, device, True)
    guided = dataclasses.replace(guidance, teacher=teacher).result(run.guided, batches, config, run)
    return guided if config.next_teacher == "ema" else recall(run.guided, guided, None, weights="raw")


def _unguided(teacher: Denoiser) -> Denoiser:
    """The teacher without what its students never see."""
    if teacher.unconditional_label is None:
        return teacher
    if is_main_process():
        print("the teacher can be guided, but no guidance_range is given: its students will be unguided", flush=True)
    return teacher.with_network(teacher.network, unconditional_label=None)


def _check_teacher(teacher: Denoiser, config: DistillConfig) -> None:
    if next(teacher.network.parameters(), None) is None:
        raise ValueError(
            "the teacher's network has no parameters, and its students are trained copies of it: a plain function can "
            "only be sampled; make it an nn.Module that holds the network it calls"
        )
    wanted = config.teacher_steps
    if teacher.valid_steps is not None and wanted not in teacher.valid_steps:
        raise ValueError(
            f"the run starts from {wanted} steps, but the teacher was itself distilled for {teacher.valid_steps}; "
            "choose rounds and end_steps so that end_steps * step_factor ** rounds is one of them"
        )
    guided = teacher.guidance_range is not None or config.guidance_range is not None
    if guided and config.teacher_sampler == "addim" and config.addim_eta is not None:
        raise ValueError(
            f"teacher_sampler is addim with addim_eta = {config.addim_eta}, which measures the teacher's error against "
            "the data: a guided prediction is meant to differ from them; use ddim, or addim_eta = None"
        )
    if teacher.valid_steps is not None and config.first_teacher_substeps is not None:
        raise ValueError(
            f"first_teacher_substeps is {config.first_teacher_substeps}, but the teacher was itself distilled for "
            f"{wanted} steps and knows no other times; leave it out"
        )
    if teacher.valid_steps is not None and config.step_factor % config.teacher_substeps:
        raise ValueError(
            f"teacher_substeps is {config.teacher_substeps}, but the teacher was itself distilled for {wanted} steps "
            f"and knows no other times; use a divisor of step_factor = {config.step_factor}"
        )
    if config.teacher_substeps < config.step_factor and (config.rounds > 1 or teacher.valid_steps is not None):
        warnings.warn(
            f"teacher_substeps is {config.teacher_substeps}, step_factor {config.step_factor}: a teacher that is a "
            f"student itself takes steps {config.step_factor // config.teacher_substeps} times as long as those it was "
            "trained for (the paper's appendix I does, to save computation, and found it worse than halving); "
            f"teacher_substeps = {config.step_factor} uses all that it learned",
            stacklevel=3,
        )
