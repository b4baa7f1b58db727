"""What the finite number of images does to a Frechet distance: its sampling error, and its bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.metrics.frechet import GaussianStatistics, frechet_distance
from progdistill.metrics.jackknife import GROUPS, jackknife_error, random_groups

_BATCH = 1024


def frechet_standard_error(
    features: Tensor, reference: GaussianStatistics, *, groups: int = GROUPS, seed: int = 0
) -> float:
    """Standard error of the distance of `features` (N, F) to `reference` under fresh draws of the features.

    A delete-a-group jackknife (see `jackknife`): the statistics of each group are gathered once and merged without
    the group in turn, so the cost is `groups` + 1 Frechet distances, about a minute at F = 2048 on a CPU. The
    reference is held fixed, as it is where models are compared. Where several sets can be generated, the deviation
    between their distances needs no such approximation: QualityMeter reports that.

    Raises ValueError for a width other than the reference's, unless 2 <= groups <= N, or if fewer than 2 features
    are left without a group.
    """
    parts = _parts(features, random_groups(len(features), groups, seed=seed))
    values = []
    for k in range(groups):
        kept = GaussianStatistics(features.shape[1])
        for part in parts[:k] + parts[k + 1 :]:
            kept.merge(part)
        values.append(frechet_distance(kept, reference))
    return jackknife_error(values)


class FrechetInfinity(NamedTuple):
    """The line that was fitted: distance at N images = value + slope / N."""

    value: float
    slope: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance_infinity(
    features: Tensor, reference: GaussianStatistics, *, points: int = 8, smallest: int | None = None, seed: int = 0
) -> FrechetInfinity:
    """The Frechet distance that infinitely many images would have: a least-squares line in 1/N (Chong & Forsyth 2020).

    The distance of N features exceeds its limit by about slope / N, with a slope that depends on the model, so models
    can change places between counts. `points` counts, evenly spaced in 1/N from `smallest` (default N / 10, at least
    F + 1 if there are that many, for the bias is a line only there) to N, are measured on nested random subsets of
    `features` (N, F). The reference stays as it is: its own bias remains.

    Raises ValueError unless 2 <= smallest < N and points >= 2.
    """
    total, width = features.shape
    if smallest is None:
        smallest = max(total // 10, min(width + 1, total // 2), 2)
    if points < 2 or not 2 <= smallest < total:
        raise ValueError(
            f"points is {points} and smallest {smallest}: with {total} images use at least 2 points, and a smallest "
            f"count from 2 to {total - 1}"
        )
    inverse = torch.linspace(1 / smallest, 1 / total, points, dtype=torch.float64)
    counts = [int(count) for count in (1 / inverse).round().long().clamp(smallest, total).unique()]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    statistics = GaussianStatistics(width)
    distances = []
    for start, stop in zip([0, *counts], counts, strict=False):
        statistics.merge(_parts(features, [order[start:stop]])[0])
        distances.append(frechet_distance(statistics, reference))
    x = 1 / torch.tensor(counts, dtype=torch.float64)
    y = torch.tensor(distances, dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return FrechetInfinity(float(y.mean() - slope * x.mean()), slope, tuple(counts), tuple(distances))


def _parts(features: Tensor, groups: list[Tensor]) -> list[GaussianStatistics]:
    parts = []
    for group in groups:
        statistics = GaussianStatistics(features.shape[1])
        for indices in group.split(_BATCH):
            statistics.update(features[indices])
        parts.append(statistics)
    return parts
