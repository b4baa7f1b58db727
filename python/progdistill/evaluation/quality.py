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
from progdistill.evaluation.classes import class_labels_in_turn, class_metrics, class_reference
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
from progdistill.sampling.arguments import checked_guidance, student_for

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
        per_class: for `measure_classes`: keep the features of the data set (4 N F bytes), whose labels it needs.

    Raises ValueError for unknown metrics, no images or seeds, a file of other features or other data, or a data set
    without labels where they are needed.
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
        per_class: bool = False,
    ) -> None:
        if num_images < 1 or seeds < 1:
            raise ValueError(f"num_images and seeds must be at least 1, got {num_images} and {seeds}")
        self.features = features
        self.num_images = num_images
        self.seeds = seeds
        self.metrics = checked_metrics(metrics)
        self.reference_set: ReferenceStatistics | None = None
        self._labels: Tensor | None = None
        if per_class:
            class_metrics(self.metrics)
            if dataset is None or dataset.labels is None:
                name = "no data set is" if dataset is None else f"{dataset.name} has no labels, but they are"
                raise ValueError(f"{name} there to take the classes' images from; name data with labels")
            self._labels = dataset.labels
        if dataset is not None or needs_reference(self.metrics):
            keep = per_class or needs_features(self.metrics)
            self.reference_set = reference_statistics(features, dataset, reference_file, keep_features=keep)

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
        """Every figure of `metrics`, by the names that `metrics.compare` gives them.

        `options` go to `generate`; guidance_scale is one for all images, or (num_images,), as in `sample`.
        """
        return self._measure(self.metrics, model, steps, options)

    def measure_classes(
        self, model: Denoiser, steps: int, **options
    ) -> tuple[dict[str, Quality], dict[int, dict[str, Quality]]]:
        """What `measure_all` gives, and the same of the images of each class against that class's in the data set.

        A class has num_images / classes of the images. Figures whose bias depends on the count are the higher for it:
        compare them between models, not with those of all images.

        Raises:
            ValueError: the meter was not made with per_class, a model without classes, or too few images of a class.
        """
        if self._labels is None:
            raise ValueError("this meter keeps no classes apart: make it with per_class=True")
        if model.num_classes is None:
            raise ValueError("this model knows no classes; measure it as a whole")
        if self.num_images < 2 * model.num_classes:
            raise ValueError(
                f"num_images is {self.num_images}, fewer than two for each of the model's {model.num_classes} classes; "
                f"use {2 * model.num_classes} or more, for the Frechet distance many more"
            )
        found: dict[int | None, dict[str, list[Measurement]]] = {}
        for labels, batches in self._sets(model, steps, self.metrics, options):
            measured = on_main_process(partial(self._figures_by_class, labels, _of_all_processes(batches)))
            for label, figures in measured.items():
                for name, measurement in figures.items():
                    found.setdefault(label, {}).setdefault(name, []).append(measurement)
        qualities = {label: {name: _over_sets(m) for name, m in own.items()} for label, own in found.items()}
        return qualities.pop(None), qualities

    def distance(self, images: Tensor) -> float:
        """The Frechet distance of given uint8 images (N, C, H, W)."""
        return frechet_distance(self.reference, statistics_of(self.features, images))

    def _measure(self, metrics: Sequence[str], model: Denoiser, steps: int, options: dict) -> dict[str, Quality]:
        found: dict[str, list[Measurement]] = {}
        for _, batches in self._sets(model, steps, metrics, options):
            figures = on_main_process(partial(self._figures, metrics, _of_all_processes(batches)))
            for name, measurement in figures.items():
                found.setdefault(name, []).append(measurement)
        return {name: _over_sets(measurements) for name, measurements in found.items()}

    def _sets(
        self, model: Denoiser, steps: int, metrics: Sequence[str], options: dict
    ) -> Iterator[tuple[Tensor | None, Iterator[tuple[Tensor, Tensor | None]]]]:
        """For each set of seeds: the labels of all its images, and this process's batches of features and logits."""
        scales = checked_guidance(options.get("guidance_scale"), self.num_images, model)
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
                **{**options, "guidance_scale": None if scales is None else scales[mine]},
            )
            yield labels, batches

    def _figures(self, metrics: Sequence[str], batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict:
        bank = bank_for(self.features, self.num_images, metrics)
        for batch in batches:
            bank.add_features(*batch)
        return compare(bank, self.reference_set, metrics, device=arithmetic_device(self.features))

    def _figures_by_class(self, labels: Tensor, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict:
        """The figures by label, and under None those of all images."""
        kept = list(batches)
        features = torch.cat([own for own, _ in kept])
        found: dict[int | None, dict] = {None: self._figures(self.metrics, kept)}
        metrics = class_metrics(self.metrics)
        for label in labels.unique().tolist():
            own = features[labels == label]
            bank = bank_for(self.features, len(own), metrics)
            bank.add_features(own)
            reference = class_reference(self.reference_set, self._labels, label)
            found[label] = compare(bank, reference, metrics, device=arithmetic_device(self.features))
        return found


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
    guidance_scale: Tensor | None = None,
    with_logits: bool = False,
    latents: Tensor | None = None,
    **options,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Seeds -> images -> features, 256 images at a time: (features (B, F), logits (B, K) or None) on the CPU, in order.

    Images of seeds (N,) int64 depend on their own seeds (class labels (N,), guidance scales (N,), latents (N, ...))
    alone, so processes may share the seeds out among them and join what they yield (`FeatureBank.add_features`).
    `options` go to `generate`.
    """
    # A kept student is read from its folder each time it is asked for: once is enough.
    model = student_for(model, steps)
    for first in range(0, len(seeds), _BATCH):
        part = slice(first, first + _BATCH)
        names = {"class_labels": class_labels, "guidance_scale": guidance_scale, "latents": latents}
        own = {name: given[part] for name, given in names.items() if given is not None}
        images = generate(model, steps, seeds=seeds[part], **own, **options)
        yield from feature_batches(features, to_uint8(images.cpu()), batch_size=_BATCH, with_logits=with_logits)


def _over_sets(measurements: list[Measurement]) -> Quality:
    values = tuple(measurement.value for measurement in measurements)
    spread = torch.tensor(values, dtype=torch.float64)
    deviation = float(spread.std()) if len(values) > 1 else 0.0
    errors = tuple(m.standard_error for m in measurements if m.standard_error is not None)
    return Quality(float(spread.mean()), deviation, values, errors)
