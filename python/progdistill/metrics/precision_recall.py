"""Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.metrics.neighbours import ball_counts, neighbour_distances


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1] with their standard errors."""

    precision: float
    recall: float
    precision_error: float
    recall_error: float


def precision_recall(
    real: Tensor, generated: Tensor, *, k: int = 3, device: torch.device | str = "cpu"
) -> PrecisionRecall:
    """Do generated images look real (precision), and is every kind of real image generated (recall)?

    A set's manifold is the union of the closed balls around its vectors that reach to their k-th nearest neighbour in
    the set. Precision is the share of `generated` (M, F) in the manifold of `real` (N, F), recall the share of `real`
    in the manifold of `generated` (eq. 1 and 2; k = 3 and 50,000 images each are the paper's). Exact neighbours in
    float64 (see `neighbours`), on `device`.

    Bias: both depend on the counts. A manifold of more vectors has smaller balls, and a single outlier has a large
    one, so compare only numbers from equal counts; two samples of one distribution do not reach 1.

    The errors are those of a share p of n independent vectors, sqrt(p (1 - p) / n), with the other set's manifold
    held fixed: n is M for the precision, N for the recall.

    Raises ValueError for sets of at most k vectors, different widths, or values that are not finite.
    """
    precision = _share_inside(generated, real, k, device)
    recall = _share_inside(real, generated, k, device)
    return PrecisionRecall(precision, recall, share_error(precision, len(generated)), share_error(recall, len(real)))


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent draws."""
    return (share * (1 - share) / count) ** 0.5


def _share_inside(points: Tensor, centres: Tensor, k: int, device: torch.device | str) -> float:
    radii = neighbour_distances(centres, k, device=device)[:, -1]
    holding, _ = ball_counts(points, centres, radii, device=device)
    return float((holding > 0).double().mean())
