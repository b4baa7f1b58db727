from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from progdistill.metrics import kernel_distance


def points(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def literal(a: Tensor, b: Tensor) -> float:
    """The definition, pair by pair."""
    k = lambda x, y: (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3  # noqa: E731
    a, b = a.double().tolist(), b.double().tolist()
    within = [
        sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / len(s) / (len(s) - 1) for s in (a, b)
    ]
    return sum(within) - 2 * sum(k(x, y) for x in a for y in b) / len(a) / len(b)


@pytest.mark.parametrize("block_size", [1, 3, 5, 2048])
def test_value_is_the_definition_for_any_block_size(block_size: int) -> None:
    a, b = points(11, 4, 0), points(7, 4, 1, 0.5)
    found = kernel_distance(a, b, block_size=block_size, subsets=1)
    assert found.value == pytest.approx(literal(a, b), rel=1e-12)
    whole = kernel_distance(a, b, subsets=1)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-9)


def test_by_hand() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    # k(1, 2) = 27, k(0, 3) = 1, k(a, b) = 1, 64, 1, 343
    assert kernel_distance(a, b, subsets=1).value == pytest.approx(27 + 1 - 2 * 409 / 4, rel=1e-15)


class Features(nn.Module):
    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :6].double() / 255


def test_agrees_with_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    generator = torch.Generator().manual_seed(3)
    real = torch.randint(0, 200, (60, 1, 3, 3), dtype=torch.uint8, generator=generator)
    fake = torch.randint(40, 256, (60, 1, 3, 3), dtype=torch.uint8, generator=generator)
    metric = kid.KernelInceptionDistance(feature=Features(), subsets=2, subset_size=60).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    expected = float(metric.compute()[0])
    found = kernel_distance(Features()(real), Features()(fake), subset_size=60, subsets=2)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.subset_mean == pytest.approx(expected, rel=1e-10), "subsets of everything"
    assert found.subset_deviation < 1e-12


def test_subsets_estimate_the_same_and_depend_on_the_seed_only() -> None:
    a, b = points(300, 5, 4), points(200, 5, 5, 0.3)
    found = kernel_distance(a, b, subsets=60, subset_size=50)
    assert (found.subset_size, found.subsets) == (50, 60)
    assert abs(found.subset_mean - found.value) < 5 * found.subset_deviation / 60**0.5
    assert found == kernel_distance(a, b, subsets=60, subset_size=50)
    assert found.subset_mean != kernel_distance(a, b, subsets=60, subset_size=50, seed=1).subset_mean
    assert kernel_distance(a, b, subsets=2).subset_size == 200, "limited to the smaller set"


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(("m", "n"), [(60, 60), (40, 120)])
def test_unbiased_with_the_stated_error_over_fresh_draws(shift: float, m: int, n: int) -> None:
    """Over 300 draws: equal distributions give 0 on average, and the spread is the standard error's mean."""
    found = [
        kernel_distance(points(m, 3, 2 * s), points(n, 3, 2 * s + 1, shift), subsets=1, subset_size=2)
        for s in range(300)
    ]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    errors = torch.tensor([f.standard_error for f in found], dtype=torch.float64)
    if shift == 0:
        assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.2)


def test_bad_input_is_named() -> None:
    good = torch.rand(5, 3)
    with pytest.raises(ValueError, match="3 and 2 features"):
        kernel_distance(good, torch.rand(5, 2))
    with pytest.raises(ValueError, match="at least 2 vectors in each set, got 5 and 1"):
        kernel_distance(good, good[:1])
    with pytest.raises(ValueError, match="second set.*int64"):
        kernel_distance(good, torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="got 0, 1000"):
        kernel_distance(good, good, subsets=0)
