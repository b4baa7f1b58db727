"""Comparing models: rounds against their teachers, and quality against step counts."""

from progdistill.evaluation.classes import class_labels_in_turn, rows_by_class
from progdistill.evaluation.compare_conversion import ConversionComparison, compare_conversion
from progdistill.evaluation.compare_round import RoundComparison, any_steps, compare_round
from progdistill.evaluation.compare_trajectory import TrajectoryComparison, compare_trajectory
from progdistill.evaluation.quality import Quality, QualityMeter, features_of_seeds
from progdistill.evaluation.reference import (
    add_dataset,
    dataset_fingerprint,
    measure_dataset,
    reference_statistics,
)

__all__ = [
    "ConversionComparison",
    "Quality",
    "QualityMeter",
    "RoundComparison",
    "TrajectoryComparison",
    "add_dataset",
    "any_steps",
    "class_labels_in_turn",
    "compare_conversion",
    "compare_round",
    "compare_trajectory",
    "dataset_fingerprint",
    "features_of_seeds",
    "measure_dataset",
    "reference_statistics",
    "rows_by_class",
]
