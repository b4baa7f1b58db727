from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from progdistill.metrics import sliced_wasserstein
from progdistill.metrics.sliced_wasserstein import quantile_distance, random_directions


def points(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_repetition(a: Tensor, b: Tensor) -> float:
    """Both samples repeated to a common count have the same distributions, and then sorting is enough."""
    common = math.lcm(len(a), len(b))
    x, y = (s.repeat_interleave(common // len(s)).sort().values for s in (a, b))
    return float((x - y).square().mean())


@pytest.mark.parametrize(("m", "n"), [(5, 5), (4, 6), (1, 7), (12, 5), (30, 31)])
def test_one_dimensional_distance_for_unequal_counts(m: int, n: int) -> None:
    a, b = points(m, 3, 0), points(n, 3, 1) + 0.5
    expected = torch.tensor([by_repetition(a[:, i], b[:, i]) for i in range(3)], dtype=torch.float64)
    torch.testing.assert_close(quantile_distance(a, b), expected, rtol=1e-12, atol=0)


def test_first_order_distance_of_scipy_bounds_it_from_below() -> None:
    """W1 <= W2, with equality for a shift."""
    stats = pytest.importorskip("scipy.stats")
    a, b = points(13, 1, 2), points(9, 1, 3)
    first = stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert float(quantile_distance(a, b)) ** 0.5 >= first > 0
    first = stats.wasserstein_distance(a[:, 0].numpy(), a[:, 0].numpy() + 0.7)
    assert float(quantile_distance(a, a + 0.7)) ** 0.5 == pytest.approx(first, rel=1e-12)


def test_a_shift_by_hand() -> None:
    """Every direction moves by its share of the shift; the mean square over directions is |shift|^2 / F."""
    a, shift = points(50, 8, 4), torch.tensor([3.0, 4.0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    found = sliced_wasserstein(a, a + shift, projections=64)
    exact = (shift @ random_directions(8, 64, 0)).square().mean().sqrt()
    assert found.value == pytest.approx(float(exact), rel=1e-12)
    assert abs(found.value - 5 / 8**0.5) < 4 * found.projection_error
    assert sliced_wasserstein(a, a.flip(0)).value < 1e-15


def test_directions_are_unit_vectors_of_the_seed() -> None:
    directions = random_directions(16, 400, 7)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(400, dtype=torch.float64))
    assert directions.mean(1).abs().max() < 4 / (16 * 400) ** 0.5
    assert torch.equal(directions, random_directions(16, 400, 7))
    assert not torch.equal(directions, random_directions(16, 400, 8))


def test_standard_error_is_the_spread_over_fresh_draws() -> None:
    reference = points(400, 3, 5)
    found = [sliced_wasserstein(points(60, 3, 100 + s) * 1.5 + 1, reference, projections=16) for s in range(60)]
    values = torch.tensor([f.value for f in found])
    errors = torch.tensor([f.standard_error for f in found])
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.35)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="3 and 2 features"):
        sliced_wasserstein(torch.rand(5, 3), torch.rand(5, 2))
    with pytest.raises(ValueError, match="got 0"):
        sliced_wasserstein(torch.rand(5, 3), torch.rand(5, 3), projections=0)
    with pytest.raises(ValueError, match="2 vectors.*at least 3"):
        sliced_wasserstein(torch.rand(2, 3), torch.rand(5, 3))
