"""Comparing models: rounds against their teachers, and quality against step counts."""

from progdistill.evaluation.compare_round import RoundComparison, any_steps, compare_round
from progdistill.evaluation.quality import Quality, QualityMeter

__all__ = ["Quality", "QualityMeter", "RoundComparison", "any_steps", "compare_round"]
