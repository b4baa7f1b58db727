"""After a conversion: the new network beside its teacher, in the same steps, on the same noise."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.evaluation.classes import class_labels_in_turn
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
    """Mean and standard error of converted against teacher: what the conversion has lost."""
    labels: Tensor | None = None
    """(n,) int64, for conditional models."""

    def record(self) -> dict:
        """JSON-ready figures."""
        return {
            "sampling_steps": self.steps,
            "conversion_distance": self.distance[0],
            "conversion_distance_error": self.distance[1],
        }

    def rows(self) -> list[tuple[str, Tensor]]:
        """Labelled images for a grid."""
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        return [(f"teacher, {steps}", self.teacher), (f"converted, {steps}", self.converted)]


def compare_conversion(converted: Denoiser, teacher: Denoiser, steps: int, count: int) -> ConversionComparison:
    """Compares on the noise of seeds 0 ... count - 1 (classes in turn for conditional models).

    Each follows the grid of its own schedule; give a teacher on the schedule of the converted one, else their first
    states are of different noise levels.
    """
    seeds, labels = torch.arange(count), class_labels_in_turn(teacher, count)
    draw = lambda model: generate(model, steps, seeds=seeds, class_labels=labels).cpu()  # noqa: E731
    images, own = draw(teacher), draw(converted)
    return ConversionComparison(steps, images, own, mean_and_standard_error(paired_distance(own, images)), labels)
