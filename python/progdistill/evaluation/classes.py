"""Class by class: rows of pictures, and what figures of one class's images are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.metrics import GaussianStatistics, ReferenceStatistics

MOST_ROWS_OF_CLASSES = 10


def class_labels_in_turn(model: Denoiser, count: int) -> Tensor | None:
    """Labels 0, 1, ..., 0, 1, ... for a conditional model, None for an unconditional one."""
    return None if model.num_classes is None else torch.arange(count) % model.num_classes


def guidance_scales_in_turn(model: Denoiser, count: int) -> Tensor | None:
    """Scales (count,) float32 spread over the range of a model that takes one, None for any other.

    Multiples of the golden ratio modulo 1: evenly spread, and so they are over the images of each class.
    """
    if model.guidance_range is None:
        return None
    low, high = model.guidance_range
    parts = torch.arange(1, count + 1, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1
    return (low + (high - low) * parts).float().clamp(low, high)


def rows_by_class(rows: Sequence[tuple[str, Tensor]], labels: Tensor | None, columns: int) -> list[tuple[str, Tensor]]:
    """Labelled rows of at most `columns` images (n, C, H, W) for a grid; with labels (n,), those of each class apart.

    A class's rows stand together, in the order of `rows`; of many classes the first ten are shown.
    """
    if labels is None:
        return [(name, images[:columns]) for name, images in rows]
    return [
        (f"class {label}" + (f": {name}" if name else ""), images[labels == label][:columns])
        for label in labels.unique().tolist()[:MOST_ROWS_OF_CLASSES]
        for name, images in rows
    ]


def class_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of `metrics` that say something of the images of one class.

    Raises:
        ValueError: none of them does; the class score compares classes.
    """
    left = tuple(metric for metric in metrics if metric != "inception_score")
    if not left:
        raise ValueError("inception_score compares classes and says nothing of a single one; add another metric")
    return left


def class_reference(reference: ReferenceStatistics, labels: Tensor, label: int) -> ReferenceStatistics:
    """The part of a data set's reference, made with feature vectors, that has this label; labels (N,) in its order.

    Raises:
        ValueError: fewer than two images have it.
    """
    features = reference.features[labels == label]
    if len(features) < 2:
        raise ValueError(
            f"{reference.data_name} has {len(features)} images of class {label}; figures of a class need two at least"
        )
    statistics = GaussianStatistics(features.shape[1])
    statistics.update(features)
    return dataclasses.replace(
        reference, statistics=statistics, features=features, data_name=f"{reference.data_name}, class {label}"
    )
