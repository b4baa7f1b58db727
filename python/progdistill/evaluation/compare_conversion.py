"""After a conversion or stage one of guidance: the new network beside its teacher, in equal steps on equal noise."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.evaluation.classes import class_labels_in_turn, guidance_scales_in_turn
from progdistill.metrics import mean_and_standard_error, paired_distance
from progdistill.sampling import generate


@dataclasses.dataclass(frozen=True)
class ConversionComparison:
    """Images (n, C, H, W) in [-1, 1] and their paired distance (root-mean-square pixel difference, data range 2)."""

    steps: int
    """Those of both."""
    teacher: Tensor
    converted: Tensor
    distance: tuple[float, float]
    """Mean and standard error of converted against teacher: what the round has lost."""
    labels: Tensor | None = None
    """(n,) int64, for conditional models."""
    scales: Tensor | None = None
    """(n,) float32 guidance scales of both, for networks that take one."""
    round_name: str = "conversion"
    """As the figures are called."""

    def record(self) -> dict:
        """JSON-ready figures."""
        return {
            "sampling_steps": self.steps,
            f"{self.round_name}_distance": self.distance[0],
            f"{self.round_name}_distance_error": self.distance[1],
        }

    def rows(self) -> list[tuple[str, Tensor]]:
        """Labelled images for a grid."""
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        return [(f"teacher, {steps}", self.teacher), (f"after the {self.round_name}, {steps}", self.converted)]


def compare_conversion(
    converted: Denoiser, teacher: Denoiser, steps: int, count: int, *, round_name: str = "conversion"
) -> ConversionComparison:
    """Compares on the noise of seeds 0 ... count - 1 (classes in turn for conditional models).

    If the converted network takes a guidance scale, both get scales spread over its range; a teacher that does not take
    one is guided by its unconditional label.

    Each follows the grid of its own schedule; give a teacher on the schedule of the converted one, else their first
    states are of different noise levels.
    """
    seeds, labels = torch.arange(count), class_labels_in_turn(teacher, count)
    scales = guidance_scales_in_turn(converted, count)
    conditions = {"seeds": seeds, "class_labels": labels, "guidance_scale": scales}
    images, own = (generate(model, steps, **conditions).cpu() for model in (teacher, converted))
    distance = mean_and_standard_error(paired_distance(own, images))
    return ConversionComparison(steps, images, own, distance, labels, scales, round_name)
