"""How good the images are: distances in named features, and distances between paired images."""

from __future__ import annotations

from progdistill.metrics.classifier import (
    FeatureClassifier,
    load_classifier,
    save_classifier,
    train_classifier,
)
from progdistill.metrics.compare import METRICS, Measurement, compare, metric_names
from progdistill.metrics.density_coverage import DensityCoverage, density_coverage
from progdistill.metrics.feature_bank import FeatureBank
from progdistill.metrics.features import (
    FeatureModule,
    PixelFeatures,
    extract_features,
    features_fingerprint,
    features_name,
    statistics_of,
)
from progdistill.metrics.frechet import GaussianStatistics, frechet_distance
from progdistill.metrics.frechet_error import FrechetInfinity, frechet_distance_infinity, frechet_standard_error
from progdistill.metrics.inception import InceptionFeatures, load_inception
from progdistill.metrics.inception_score import ClassScore, inception_score
from progdistill.metrics.kernel_distance import KernelDistance, kernel_distance
from progdistill.metrics.open_features import open_features
from progdistill.metrics.paired import mean_and_standard_error, paired_distance
from progdistill.metrics.precision_recall import PrecisionRecall, precision_recall
from progdistill.metrics.reference_statistics import (
    ReferenceStatistics,
    load_reference_statistics,
    save_reference_statistics,
)
from progdistill.metrics.sliced_wasserstein import SlicedWasserstein, sliced_wasserstein
from progdistill.metrics.torchscript import TorchScriptFeatures, TorchScriptInception

__all__ = [
    "METRICS",
    "ClassScore",
    "DensityCoverage",
    "FeatureBank",
    "FeatureClassifier",
    "FeatureModule",
    "FrechetInfinity",
    "GaussianStatistics",
    "InceptionFeatures",
    "KernelDistance",
    "Measurement",
    "PixelFeatures",
    "PrecisionRecall",
    "ReferenceStatistics",
    "SlicedWasserstein",
    "TorchScriptFeatures",
    "TorchScriptInception",
    "compare",
    "density_coverage",
    "extract_features",
    "features_fingerprint",
    "features_name",
    "frechet_distance",
    "frechet_distance_infinity",
    "frechet_standard_error",
    "inception_score",
    "kernel_distance",
    "load_classifier",
    "load_inception",
    "load_reference_statistics",
    "mean_and_standard_error",
    "metric_names",
    "open_features",
    "paired_distance",
    "precision_recall",
    "save_classifier",
    "save_reference_statistics",
    "sliced_wasserstein",
    "statistics_of",
    "train_classifier",
]
