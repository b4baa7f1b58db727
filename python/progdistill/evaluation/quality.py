"""Distances to a data set against step count, with their spread over sampling seeds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from progdistill.core import Denoiser
from progdistill.core.processes import gather_on_main_process, on_main_process, process_count, share_of
from progdistill.data import ImageDataset, to_uint8
from progdistill.evaluation.compare_round import class_labels_in_turn
from progdistill.evaluation.reference import reference_statistics
from progdistill.metrics import (
    GaussianStatistics,
    Measurement,
    ReferenceStatistics,
    compare,
    frechet_distance,
    statistics_of,
)
from progdistill.metrics.compare import arithmetic_device, bank_for, checked_metrics, needs_features, needs_reference
from progdistill.metrics.features import feature_batches
from progdistill.sampling import generate
from progdistill.sampling.sample import student_for

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Quality:
    """A figure: mean over sampling seeds, standard deviation between them, and the values."""

    mean: float
    deviation: float
    values: tuple[float, ...]
    standard_errors: tuple[float, ...] = ()
    """Of each value, estimated within its set of images; empty where there is no such estimate."""

    def record(self) -> dict:
        """JSON-ready."""
        record = {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}
        return {**record, "standard_errors": list(self.standard_errors)} if self.standard_errors else record


class QualityMeter:
    """Measures models against a data set in the features of a module.

    Each set of `num_images` seeds is generated once, batch by batch, and its features serve all metrics; neither the
    images of a set nor those of the data set are held. The sets are disjoint and drawn alike, so the deviation between
    their figures is the sampling error of one figure, and deviation / sqrt(seeds) that of their mean. The bias of a
    count (see each metric) is in every set alike. Several processes share the seeds of a set; all get the figures.

    Args:
        features: a module that maps uint8 images (B, C, H, W) to features (B, F). A distance is called by the name
            of these features; only Inception's give an FID.
        dataset: the reference images; None if `reference_file` holds their statistics, or no metric needs any.
        num_images: images that a model generates for one figure.
        seeds: how many disjoint ranges of image seeds are measured; their spread is the error bar.
        metrics: names from `progdistill.metrics.METRICS`.
        reference_file: where the statistics of `dataset` are kept: written if missing, else checked and read.

    Raises ValueError for unknown metrics, no images or seeds, or a file of other features or other data.
    """

    def __init__(
        self,
        features: nn.Module,
        dataset: ImageDataset | None,
        *,
        num_images: int,
        seeds: int = 3,
        metrics: Sequence[str] = ("frechet",),
        reference_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if num_images < 1 or seeds < 1:
            raise ValueError(f"num_images and seeds must be at least 1, got {num_images} and {seeds}")
        self.features = features
        self.num_images = num_images
        self.seeds = seeds
        self.metrics = checked_metrics(metrics)
        self.reference_set: ReferenceStatistics | None = None
        if dataset is not None or needs_reference(self.metrics):
            self.reference_set = reference_statistics(
                features, dataset, reference_file, keep_features=needs_features(self.metrics)
            )

    @property
    def reference(self) -> GaussianStatistics:
        """Mean and covariance of the data set's features. ValueError if there is no data set."""
        if self.reference_set is None:
            raise ValueError("this meter has no reference: make it with a data set")
        return self.reference_set.statistics

    def measure(self, model: Denoiser, steps: int, **options) -> Quality:
        """The Frechet distance of the images that `model` makes in `steps` steps; options go to `generate`."""
        return self._measure(("frechet",), model, steps, options)["frechet"]

    def measure_all(self, model: Denoiser, steps: int, **options) -> dict[str, Quality]:
        """Every figure of `metrics`, by the names that `metrics.compare` gives them; options go to `generate`."""
        return self._measure(self.metrics, model, steps, options)

    def distance(self, images: Tensor) -> float:
        """The Frechet distance of given uint8 images (N, C, H, W)."""
        return frechet_distance(self.reference, statistics_of(self.features, images))

    def _measure(self, metrics: Sequence[str], model: Denoiser, steps: int, options: dict) -> dict[str, Quality]:
        found: dict[str, list[Measurement]] = {}
        mine = share_of(self.num_images)
        mine = slice(mine.start, mine.stop)
        for k in range(self.seeds):
            seeds = torch.arange(k * self.num_images, (k + 1) * self.num_images)
            labels = class_labels_in_turn(model, self.num_images)
            batches = features_of_seeds(
                model,
                steps,
                seeds[mine],
                self.features,
                class_labels=None if labels is None else labels[mine],
                with_logits="inception_score" in metrics,
                **options,
            )
            figures = on_main_process(partial(self._figures, metrics, _of_all_processes(batches)))
            for name, measurement in figures.items():
                found.setdefault(name, []).append(measurement)
        return {name: _over_sets(measurements) for name, measurements in found.items()}

    def _figures(self, metrics: Sequence[str], batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict:
        bank = bank_for(self.features, self.num_images, metrics)
        for batch in batches:
            bank.add_features(*batch)
        return compare(bank, self.reference_set, metrics, device=arithmetic_device(self.features))


def _of_all_processes(batches: Iterator[tuple[Tensor, Tensor | None]]) -> Iterable[tuple[Tensor, Tensor | None]]:
    """The batches of all processes, in the order of their seeds, in the first one; alone, as they come."""
    if process_count() == 1:
        return batches
    return chain.from_iterable(gather_on_main_process(list(batches)))


def features_of_seeds(
    model: Denoiser,
    steps: int,
    seeds: Tensor,
    features: nn.Module,
    *,
    class_labels: Tensor | None = None,
    with_logits: bool = False,
    latents: Tensor | None = None,
    **options,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Seeds -> images -> features, 256 images at a time: (features (B, F), logits (B, K) or None) on the CPU, in order.

    Images of seeds (N,) int64 depend on their own seeds (class labels (N,), latents (N, ...)) alone, so processes may
    share the seeds out among them and join what they yield (`FeatureBank.add_features`). `options` go to `generate`.
    """
    # A kept student is read from its folder each time it is asked for: once is enough.
    model = student_for(model, steps)
    for first in range(0, len(seeds), _BATCH):
        part = slice(first, first + _BATCH)
        labels, start = (None if given is None else given[part] for given in (class_labels, latents))
        images = generate(model, steps, seeds=seeds[part], class_labels=labels, latents=start, **options)
        yield from feature_batches(features, to_uint8(images.cpu()), batch_size=_BATCH, with_logits=with_logits)


def _over_sets(measurements: list[Measurement]) -> Quality:
    values = tuple(measurement.value for measurement in measurements)
    spread = torch.tensor(values, dtype=torch.float64)
    deviation = float(spread.std()) if len(values) > 1 else 0.0
    errors = tuple(m.standard_error for m in measurements if m.standard_error is not None)
    return Quality(float(spread.mean()), deviation, values, errors)
