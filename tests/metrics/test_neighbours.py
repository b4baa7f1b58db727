"""Neighbours, precision and recall, density and coverage, against brute force in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from progdistill.metrics import density_coverage, precision_recall
from progdistill.metrics.neighbours import ball_counts, neighbour_distances


def points(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def all_squared(a: Tensor, b: Tensor) -> Tensor:
    """Pair by pair, without the expansion of the square."""
    return (a.double()[:, None] - b.double()[None]).square().sum(-1)


def brute_radii(x: Tensor, k: int) -> Tensor:
    squared = all_squared(x, x)
    squared.fill_diagonal_(torch.inf)
    return squared.sort(dim=1).values[:, k - 1]


def brute_figures(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    in_real = all_squared(fake, real) <= brute_radii(real, k) * (1 + 1e-12)
    in_fake = all_squared(real, fake) <= brute_radii(fake, k) * (1 + 1e-12)
    precision, recall = in_real.any(1).double().mean(), in_fake.any(1).double().mean()
    return (
        float(precision),
        float(recall),
        float(in_real.sum()) / (k * len(fake)),
        float(in_real.any(0).double().mean()),
    )


@pytest.mark.parametrize("block", [(1024, 4096), (7, 5), (1, 1), (64, 3)])
def test_neighbour_distances_are_those_of_brute_force_for_any_block(block) -> None:
    x = points(61, 9, 0) + 50
    squared = all_squared(x, x)
    squared.fill_diagonal_(torch.inf)
    expected = squared.sort(dim=1).values[:, :4]
    torch.testing.assert_close(neighbour_distances(x, 4, block=block), expected, rtol=1e-10, atol=1e-11)


def test_a_point_is_not_its_own_neighbour_but_its_duplicate_is() -> None:
    x = torch.tensor([[0.0], [0.0], [3.0], [4.0], [10.0]]) + 1000.1
    expected = [[0.0, 9.0], [0.0, 9.0], [1.0, 9.0], [1.0, 16.0], [36.0, 49.0]]
    torch.testing.assert_close(neighbour_distances(x, 2), torch.tensor(expected).double(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("block", [(1024, 4096), (3, 8)])
def test_balls_are_closed_and_count_ties_and_duplicates(block) -> None:
    centres = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]) + 7.3
    at = torch.tensor([[3.0, 4.0], [0.0, 5.0], [0.0, 5.1], [0.0, 0.0], [3.0, 4.0]]) + 7.3
    holding, held = ball_counts(at, centres, torch.tensor([25.0, 0.0, 0.0]), block=block)
    # The shift rounds 0 + 7.3 and 5 + 7.3 to float32: the tie of the second point is one up to that.
    tie = (at[1] - centres[0]).double().square().sum() <= 25
    assert holding.tolist() == [3, int(tie), 0, 1, 3]
    assert held.tolist() == [3 + int(tie), 2, 2]


def test_copies_of_the_centres_lie_in_balls_of_radius_zero_wherever_they_are() -> None:
    x = points(40, 300, 1) * 20 + 100
    holding, held = ball_counts(x, x, torch.zeros(40))
    assert holding.tolist() == [1] * 40 and held.tolist() == [1] * 40
    # The nearest neighbour lies on the surface of the ball that it defines.
    _, held = ball_counts(x, x, neighbour_distances(x, 1)[:, 0])
    assert held.tolist() == [2] * 40


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 0.5), (0.3, 2.0)])
def test_figures_are_those_of_brute_force(k: int, shift: float, scale: float) -> None:
    real, fake = points(120, 4, 2), points(90, 4, 3) * scale + shift
    fake[:5], fake[5:9], real[3:6] = real[:5], fake[9], real[2]
    expected = brute_figures(real, fake, k)
    shares, crowd = precision_recall(real, fake, k=k), density_coverage(real, fake, k=k)
    assert (shares.precision, shares.recall, crowd.density, crowd.coverage) == pytest.approx(expected, abs=1e-15)


def test_figures_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # nearest neighbours at 1, 1, 1, 8
    fake = torch.tensor([[0.5], [3.0], [30.0]])  # at 2.5, 2.5, 27
    shares = precision_recall(real, fake, k=1)
    # 0.5 is in the balls of 0 and 1, 3.0 in those of 2 and 10; real 0, 1, 2 are within 2.5 of 0.5, 10 within 27 of 30
    assert shares.precision == pytest.approx(2 / 3) and shares.recall == 1.0
    assert shares.precision_error == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5) and shares.recall_error == 0.0
    crowd = density_coverage(real, fake, k=1)
    assert crowd.density == pytest.approx(4 / 3) and crowd.coverage == 1.0
    assert crowd.density_error == pytest.approx(torch.tensor([2.0, 2.0, 0.0]).std().item() / 3**0.5)


def test_expectation_for_equal_distributions_is_the_papers() -> None:
    """Naeem et al. (2020), eq. 9: E[coverage] = 1 - prod (N - i) / (2N - i), E[density] = 1, in any dimension."""
    n, k = 60, 3
    found = torch.tensor([density_coverage(points(n, 5, 2 * s), points(n, 5, 2 * s + 1), k=k)[:2] for s in range(150)])
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n - i) / (2 * n - i)
    error = found.std(0) / 150**0.5
    assert abs(found[:, 0].mean() - 1) < 4 * error[0]
    assert abs(found[:, 1].mean() - (1 - missed)) < 4 * error[1]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="k is 3: with 3 points it must be between 1 and 2"):
        neighbour_distances(torch.zeros(3, 2), 3)
    with pytest.raises(ValueError, match=r"int64 \(3, 2\)"):
        neighbour_distances(torch.zeros(3, 2, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="1 of 3 vectors of points hold NaN"):
        neighbour_distances(torch.tensor([[0.0], [1.0], [float("nan")]]), 1)
    with pytest.raises(ValueError, match="do not fit"):
        precision_recall(torch.rand(9, 2), torch.rand(9, 3))
    with pytest.raises(ValueError, match="k is 5"):
        density_coverage(torch.rand(5, 2), torch.rand(9, 2))
