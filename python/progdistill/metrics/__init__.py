"""How good the images are: Frechet distances in named features, and distances between paired images."""

from __future__ import annotations

from progdistill.metrics.classifier import (
    FeatureClassifier,
    load_classifier,
    save_classifier,
    train_classifier,
)
from progdistill.metrics.features import extract_features, statistics_of
from progdistill.metrics.frechet import GaussianStatistics, frechet_distance
from progdistill.metrics.paired import mean_and_standard_error, paired_distance

__all__ = [
    "FeatureClassifier",
    "GaussianStatistics",
    "extract_features",
    "frechet_distance",
    "load_classifier",
    "mean_and_standard_error",
    "paired_distance",
    "save_classifier",
    "statistics_of",
    "train_classifier",
]
