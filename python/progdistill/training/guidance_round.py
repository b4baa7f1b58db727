"""Stage one of guidance distillation as a round of `distill`: a guided teacher becomes one network call a step."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from progdistill.core import Denoiser
from progdistill.core.processes import is_main_process, on_main_process
from progdistill.evaluation import compare_conversion
from progdistill.training.batches import BatchSource
from progdistill.training.comparison_grid import save_comparison_grid
from progdistill.training.compute_network import computing_teacher
from progdistill.training.config import DistillConfig
from progdistill.training.guidance import GuidanceObjective, check_can_be_guided, guided_student
from progdistill.training.keep import is_kept, keep, recall
from progdistill.training.loop import Round, run_round
from progdistill.training.precision import round_precision
from progdistill.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class GuidanceRound:
    """The round before the halving ones.

    Raises ValueError if the teacher cannot be guided, or its network be given the input.
    """

    index: int
    teacher: Denoiser
    guidance_range: tuple[float, float]
    updates: int
    sampling_steps: int
    """In so many steps the guided teacher and the network that takes the scale are compared."""

    def __post_init__(self) -> None:
        check_can_be_guided(self.teacher)

    def result(self, folder: Path, batches: BatchSource, config: DistillConfig, run: RunFolder) -> Denoiser:
        """The network that takes a scale: what `folder` holds, else what the round makes, which is then kept there."""
        if on_main_process(partial(is_kept, folder)):
            return recall(folder, self.teacher, None)
        low, high = self.guidance_range
        if is_main_process():
            print(
                f"round {self.index} makes the guidance scale an input of the network first, {low:g} to {high:g} "
                f"({self.updates} updates), to be kept in {folder}",
                flush=True,
            )
        return self._trained(folder, batches, config, run)

    def _trained(self, folder: Path, batches: BatchSource, config: DistillConfig, run: RunFolder) -> Denoiser:
        label, teacher = "guidance {:g} to {:g}".format(*self.guidance_range), self.teacher

        def on_validation(model: Denoiser, update: int) -> dict[str, float]:
            steps, count = self.sampling_steps, config.validation_images
            comparison = compare_conversion(model, teacher, steps, count, round_name="guidance")
            save_comparison_grid(run, comparison, f"guided-update-{update:07d}", self.index, update)
            return comparison.record()

        constant = computing_teacher(teacher, round_precision(config, batches.device), compiled=config.compile)
        round_ = Round(
            index=self.index,
            student=guided_student(teacher, self.guidance_range),
            objective=GuidanceObjective(constant, config),
            updates=self.updates,
            label=label,
            dropout=False,
            on_validation=on_validation,
        )
        result = run_round(round_, batches, config, run)
        comparison = on_main_process(lambda: on_validation(result.student, self.updates))
        facts = {
            "updates": self.updates,
            "seconds": round(result.seconds, 3),
            "precision": result.precision,
            "loss": result.loss,
        }
        run.write({"event": "round_end", "round": self.index, "label": label, **facts, **comparison})
        result.student.provenance = {
            "recipe": "guidance",
            "guidance_range": list(self.guidance_range),
            **facts,
            "weighting": config.weighting,
            "loss_type": config.loss_type,
            "data": batches.dataset.name,
            "data_source": config.data or None,
            "data_options": config.reading_options(),
            "teacher": teacher.provenance,
            **comparison,
        }
        # The kept network marks the round as done, so it is written last.
        on_main_process(lambda: keep(result.student, folder, result.raw_state_dict))
        run.clear_checkpoints()
        return result.student
