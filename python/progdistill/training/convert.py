"""Round 0: a teacher that cannot be distilled as it is becomes one that can, at an unchanged step count."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch

from progdistill.core import Denoiser
from progdistill.core.processes import join_processes, on_main_process
from progdistill.evaluation import compare_conversion
from progdistill.training.batches import BatchSource
from progdistill.training.comparison_grid import save_comparison_grid
from progdistill.training.compute_network import computing_teacher
from progdistill.training.config import ConvertConfig, DistillConfig
from progdistill.training.conversion_objective import ConversionObjective, HeldTeacher
from progdistill.training.converted_student import converted_student
from progdistill.training.device import choose_device
from progdistill.training.keep import is_kept, keep, recall
from progdistill.training.loop import Round, run_round
from progdistill.training.progress import Plan
from progdistill.training.run_folder import RunFolder
from progdistill.training.run_report import write_run_report
from progdistill.training.teacher_and_data import opened_data, opened_teacher

SAMPLING_STEPS = 64


def why_convert(teacher: Denoiser) -> str | None:
    """Why a teacher cannot be distilled as it is, or None if it can."""
    if teacher.prediction_type == "epsilon":
        return "the teacher predicts epsilon, which says next to nothing about x at the noise where few steps start"
    return None


def convert(
    teacher: Denoiser | str | None = None,
    *,
    data: Any = None,
    output_dir: str | None = None,
    config: ConvertConfig | None = None,
    **settings: Any,
) -> Denoiser:
    """Teaches a copy of the teacher's network another prediction type; the same call resumes an interrupted run.

    What `distill` does by itself when it meets an epsilon teacher, for those who want the result for its own sake or
    for several distillations.

    Args:
        teacher: a Denoiser, or the folder of one.
        data: whatever `progdistill.data.open_dataset` takes; None uses the data set that the teacher's folder
            records.
        output_dir: where everything goes; the result is kept in output_dir/model.
        config: a ConvertConfig instead of keyword settings.
        settings: fields of `ConvertConfig` (updates, prediction_type, zero_snr, learning_rate, ...).

    Returns:
        The converted network with its averaged weights, on a cosine schedule (see `zero_snr`) and with the teacher's
        time map; a student that was distilled for certain steps keeps its schedule and its steps.

    Raises:
        ValueError: settings that contradict each other, a network that cannot be converted, the data or an earlier run
            in output_dir.
    """
    if config is None:
        config = ConvertConfig(
            teacher=teacher if isinstance(teacher, str) else "",
            data=data if isinstance(data, str) else "",
            output_dir=output_dir or "",
            **settings,
        )
    if not config.output_dir:
        raise ValueError("output_dir is missing; name a folder for the model, checkpoints and metrics")
    join_processes()
    device = choose_device(config.device)
    teacher = opened_teacher(teacher if teacher is not None else config.teacher).to(device)
    dataset = opened_data(data if data is not None else config.data, config, teacher)
    inputs = {"data": dataset.name, "teacher": teacher.provenance}
    title = f"Converting {teacher.prediction_type} to {config.prediction_type}"
    conversion = Conversion(teacher, config.prediction_type, config.updates)
    run = RunFolder(config, "convert", inputs, Plan([config.updates]), title)
    batches = BatchSource(dataset, config, 0, device, teacher.num_classes is not None)
    converted = conversion.result(run.model, batches, config, run)
    run.finish()
    on_main_process(lambda: write_run_report(run))
    return converted


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Round 0 of a run.

    Raises ValueError if a student cannot be made of the teacher's network.
    """

    teacher: Denoiser
    prediction_type: str
    updates: int
    sampling_steps: int = SAMPLING_STEPS
    """In so many steps teacher and converted network are compared, unless the teacher was distilled for its own."""

    def result(
        self, folder: Path, batches: BatchSource, config: ConvertConfig | DistillConfig, run: RunFolder
    ) -> Denoiser:
        """The converted network: what `folder` holds, else what the round makes, which is then kept there."""
        student = converted_student(self.teacher, self.prediction_type, config.zero_snr)
        if on_main_process(partial(is_kept, folder)):
            return recall(folder, student, None if student.valid_steps is None else student.valid_steps[0])
        return self._trained(student, folder, batches, config, run)

    def _trained(
        self,
        student: Denoiser,
        folder: Path,
        batches: BatchSource,
        config: ConvertConfig | DistillConfig,
        run: RunFolder,
    ) -> Denoiser:
        label = f"{self.teacher.prediction_type} -> {self.prediction_type}"
        teacher = HeldTeacher(self.teacher, student.schedule)
        steps = teacher.valid_steps[0] if teacher.valid_steps else self.sampling_steps

        def on_validation(model: Denoiser, update: int) -> dict[str, float]:
            comparison = compare_conversion(model, teacher, steps, config.validation_images)
            save_comparison_grid(run, comparison, f"converted-update-{update:07d}", 0, update)
            return comparison.record()

        # In float32 whatever the student computes in: it is what all that follows is measured by.
        constant = computing_teacher(self.teacher, torch.float32, compiled=config.compile)
        round_ = Round(
            index=0,
            student=student,
            objective=ConversionObjective(constant, config),
            updates=self.updates,
            label=label,
            dropout=False,
            on_validation=on_validation,
        )
        result = run_round(round_, batches, config, run)
        comparison = on_main_process(lambda: on_validation(result.student, self.updates))
        facts = {"updates": self.updates, "seconds": round(result.seconds, 3), "loss": result.loss}
        run.write({"event": "round_end", "round": 0, "label": label, **facts, **comparison})
        result.student.provenance = {
            "recipe": "convert",
            "from": self.teacher.prediction_type,
            "to": self.prediction_type,
            "precision": result.precision,
            "zero_snr": config.zero_snr,
            **facts,
            "data": batches.dataset.name,
            "data_source": config.data or None,
            "data_options": config.reading_options(),
            "teacher": self.teacher.provenance,
            **comparison,
        }
        # The kept network marks the round as done, so it is written last.
        on_main_process(lambda: keep(result.student, folder, result.raw_state_dict))
        run.clear_checkpoints()
        return result.student
