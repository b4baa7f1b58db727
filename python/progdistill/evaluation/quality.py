"""Frechet distance against step count, with its spread over sampling seeds."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from progdistill.core import Denoiser
from progdistill.data import ImageDataset, to_uint8
from progdistill.evaluation.compare_round import class_labels_in_turn
from progdistill.metrics import GaussianStatistics, frechet_distance, statistics_of
from progdistill.sampling import generate


@dataclasses.dataclass(frozen=True)
class Quality:
    """A Frechet distance: mean over sampling seeds, standard deviation between them, and the values."""

    mean: float
    deviation: float
    values: tuple[float, ...]

    def record(self) -> dict:
        """JSON-ready."""
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}


class QualityMeter:
    """Measures models against a data set in the features of a module.

    Args:
        features: a module that maps uint8 images (B, C, H, W) to features (B, F). A distance is called by the name
            of these features; only Inception's give an FID.
        dataset: the reference images.
        num_images: images that a model generates for one distance.
        seeds: how many disjoint ranges of image seeds are measured; their spread is the error bar.
    """

    def __init__(self, features: nn.Module, dataset: ImageDataset, *, num_images: int, seeds: int = 3) -> None:
        self.features = features
        self.num_images = num_images
        self.seeds = seeds
        self.reference: GaussianStatistics = statistics_of(features, dataset.images())

    def measure(self, model: Denoiser, steps: int, **options) -> Quality:
        """The distance of the images that `model` makes in `steps` steps; options go to `generate`."""
        values = []
        for k in range(self.seeds):
            seeds = torch.arange(k * self.num_images, (k + 1) * self.num_images)
            labels = class_labels_in_turn(model, self.num_images)
            images = generate(model, steps, seeds=seeds, class_labels=labels, **options)
            values.append(self.distance(to_uint8(images.cpu())))
        spread = torch.tensor(values, dtype=torch.float64)
        deviation = float(spread.std()) if len(values) > 1 else 0.0
        return Quality(float(spread.mean()), deviation, tuple(values))

    def distance(self, images: Tensor) -> float:
        """The distance of given uint8 images (N, C, H, W)."""
        return frechet_distance(self.reference, statistics_of(self.features, images))
