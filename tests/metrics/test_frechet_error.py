from __future__ import annotations

import pytest
import torch
from torch import Tensor

from progdistill.metrics import (
    GaussianStatistics,
    frechet_distance,
    frechet_distance_infinity,
    frechet_standard_error,
)
from progdistill.metrics.jackknife import jackknife_error, random_groups


def draw(count: int, seed: int, width: int = 4) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gather(points: Tensor) -> GaussianStatistics:
    statistics = GaussianStatistics(points.shape[1])
    statistics.update(points)
    return statistics


REFERENCE = gather(draw(20000, 0))


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    """With groups of one, exactly deviation / sqrt(N)."""
    x = draw(40, 1, 1)[:, 0]
    values = [float((x.sum() - x[i].sum()) / 39) for i in random_groups(40, 40)]
    assert jackknife_error(values) == pytest.approx(float(x.std()) / 40**0.5, rel=1e-12)


def test_groups_are_a_partition() -> None:
    groups = random_groups(43, 10)
    assert sorted(torch.cat(groups).tolist()) == list(range(43)) and {len(g) for g in groups} == {4, 5}
    with pytest.raises(ValueError, match="groups is 10: with 5 images"):
        random_groups(5)


def test_standard_error_is_the_spread_over_fresh_draws() -> None:
    sets = [draw(200, 10 + s) * 1.3 + 0.5 for s in range(60)]
    values = torch.tensor([frechet_distance(gather(x), REFERENCE) for x in sets])
    errors = torch.tensor([frechet_standard_error(x, REFERENCE) for x in sets])
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.35)


def test_infinity_takes_the_bias_of_the_count_away() -> None:
    """The features come from the reference's own distribution: at infinity the distance is 0 (but 1e-3)."""
    finite, infinite = [], []
    for s in range(12):
        x = draw(400, 200 + s)
        found = frechet_distance_infinity(x, REFERENCE, seed=s)
        assert found.counts[0] == 40 and found.counts[-1] == 400
        assert found.distances[-1] == pytest.approx(frechet_distance(gather(x), REFERENCE), rel=1e-9)
        finite.append(found.distances[-1])
        infinite.append(found.value)
    finite, infinite = torch.tensor(finite), torch.tensor(infinite)
    assert finite.mean() > 0.015
    assert abs(infinite.mean()) < finite.mean() / 3


def test_infinity_of_bad_counts() -> None:
    with pytest.raises(ValueError, match="points is 1"):
        frechet_distance_infinity(draw(50, 3), REFERENCE, points=1)
    with pytest.raises(ValueError, match="smallest 50: with 50 images"):
        frechet_distance_infinity(draw(50, 3), REFERENCE, smallest=50)
