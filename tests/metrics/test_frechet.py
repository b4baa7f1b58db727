from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from progdistill.metrics import GaussianStatistics, frechet_distance, statistics_of


def gather(*batches: Tensor) -> GaussianStatistics:
    statistics = GaussianStatistics(batches[0].shape[1])
    for batch in batches:
        statistics.update(batch)
    return statistics


def with_moments(mean: Tensor, deviations: Tensor, rotation: Tensor | None = None) -> GaussianStatistics:
    """Statistics of 2F points with the sample mean `mean` and the unbiased covariance R diag(d^2) R^T."""
    width = len(mean)
    scale = ((2 * width - 1) / 2) ** 0.5
    axes = torch.diag(deviations * scale)
    points = torch.cat([axes, -axes])
    return gather((points if rotation is None else points @ rotation.T) + mean)


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_batches_give_what_one_batch_gives(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, 5, dtype=torch.float64, generator=generator) * 3 + 1 for size in [*sizes, 7]]
    everything = torch.cat(batches)
    streamed = gather(*batches)
    assert streamed.count == len(everything)
    assert relative_error(streamed.mean, everything.mean(0)) < 1e-12
    assert relative_error(streamed.covariance, torch.cov(everything.T)) < 1e-12


def test_merge_gives_what_one_pass_gives_and_leaves_the_other_alone() -> None:
    points = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    left, right = gather(points[:120]), gather(points[120:])
    before = right.covariance
    left.merge(right)
    left.merge(GaussianStatistics(6))
    assert left.count == 300
    assert relative_error(left.mean, points.mean(0)) < 1e-12
    assert relative_error(left.covariance, torch.cov(points.T)) < 1e-12
    assert right.count == 180 and torch.equal(right.covariance, before)


@pytest.mark.parametrize("offset", [100.0, 1e6])
def test_covariance_keeps_its_digits_under_a_large_mean(offset: float) -> None:
    points = torch.randn(4000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shifted = points + offset
    # The shifted points are rounded; taking the offset off again is exact, so this is what they really hold.
    expected = torch.cov((shifted - offset).T)
    found = gather(*shifted.split(64)).covariance
    assert relative_error(found, expected) < 1e-12
    merged = gather(shifted[:1000])
    merged.merge(gather(shifted[1000:]))
    assert relative_error(merged.covariance, expected) < 1e-12
    raw_squares = (shifted.T @ shifted - len(points) * torch.outer(shifted.mean(0), shifted.mean(0))) / 3999
    assert relative_error(found, expected) < 0.02 * relative_error(raw_squares, expected)


def test_float32_and_bf16_features_are_gathered_in_float64() -> None:
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(2))
    assert relative_error(gather(*points.split(10)).mean, points.double().mean(0)) < 1e-12
    assert gather(points.bfloat16()).covariance.dtype == torch.float64


def test_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(3)
    rotation = random_rotation(6, generator)
    mean_a, mean_b = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    deviations_a, deviations_b = torch.rand(2, 6, dtype=torch.float64, generator=generator) + 0.1
    a = with_moments(mean_a, deviations_a, rotation)
    b = with_moments(mean_b, deviations_b, rotation)
    expected = (mean_a - mean_b).square().sum() + (deviations_a - deviations_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_distance_in_one_dimension_by_hand() -> None:
    a, b = gather(torch.tensor([[1.0], [3.0]])), gather(torch.tensor([[10.0], [18.0]]))
    # means 2 and 14, deviations sqrt(2) and 4 sqrt(2)
    assert frechet_distance(a, b) == pytest.approx(12.0**2 + (3 * 2**0.5) ** 2, rel=1e-14)


def test_distance_of_two_by_two_covariances_that_do_not_commute() -> None:
    """tr((AB)^(1/2)) of 2 x 2 matrices is (tr(AB) + 2 sqrt(det(AB)))^(1/2)."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    a = with_moments(zero, torch.tensor([1.0, 3.0], dtype=torch.float64))
    b = with_moments(zero, torch.tensor([2.0, 0.5], dtype=torch.float64), turn)
    product = a.covariance @ b.covariance
    overlap = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = a.covariance.trace() + b.covariance.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_fewer_samples_than_features() -> None:
    generator = torch.Generator().manual_seed(4)
    rotation = random_rotation(40, generator)
    few = torch.randn(10, 40, dtype=torch.float64, generator=generator) @ rotation
    a, b = gather(few), gather(few * 3 + 1)
    assert abs(frechet_distance(a, a)) < 1e-12
    expected = (b.mean - a.mean).square().sum() + 4 * a.covariance.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)
    constant = gather(torch.ones(5, 40))
    assert frechet_distance(constant, constant) == 0.0
    assert frechet_distance(constant, a) == pytest.approx(float((a.mean - 1).square().sum() + a.covariance.trace()))


def test_one_direction_against_all() -> None:
    """If C_a is v v^T, tr((C_a C_b)^(1/2)) is (v^T C_b v)^(1/2): rounding errors must not add to it."""
    generator = torch.Generator().manual_seed(8)
    direction = torch.randn(40, dtype=torch.float64, generator=generator)
    a = gather(torch.stack([direction, -direction]) / 2**0.5)
    b = gather(torch.randn(200, 40, dtype=torch.float64, generator=generator))
    overlap = (direction @ b.covariance @ direction).sqrt()
    expected = b.mean.square().sum() + direction.square().sum() + b.covariance.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_distance_is_symmetric_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (gather(torch.randn(50, 7, dtype=torch.float64, generator=generator) ** 3) for _ in range(2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    again = gather(torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) ** 3)
    assert 0.0 <= frechet_distance(a, again) < 1e-10


class Projection(nn.Module):
    """A fixed feature network that returns float64, so that torchmetrics does not round its result."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        self.register_buffer("matrix", torch.randn(48, 12, dtype=torch.float64, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return (images.double().flatten(1) / 255) @ self.matrix + 5


def test_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    generator = torch.Generator().manual_seed(7)
    real = torch.randint(0, 200, (300, 3, 4, 4), dtype=torch.uint8, generator=generator)
    fake = torch.randint(60, 256, (250, 3, 4, 4), dtype=torch.uint8, generator=generator)
    module = Projection()
    metric = fid.FrechetInceptionDistance(feature=module, normalize=False).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    a, b = GaussianStatistics(12), GaussianStatistics(12)
    for statistics, images in ((a, real), (b, fake)):
        for batch in images.split(64):
            statistics.update(module(batch))
    expected = float(metric.compute())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    in_float32 = frechet_distance(statistics_of(module, real), statistics_of(module, fake, batch_size=17))
    assert in_float32 == pytest.approx(expected, rel=1e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GaussianStatistics(0)
    empty = GaussianStatistics(3)
    with pytest.raises(ValueError, match="got 0"):
        _ = empty.mean
    with pytest.raises(ValueError, match=r"\(B, 3\), got \(2, 4\)"):
        empty.update(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="int64"):
        empty.update(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 of 2 feature vectors"):
        empty.update(torch.tensor([[0.0, 1.0, float("nan")], [0.0, 1.0, 2.0]]))
    assert empty.count == 0
    empty.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        _ = empty.covariance
    full = gather(torch.rand(5, 3))
    with pytest.raises(ValueError, match="second set has 1 samples"):
        frechet_distance(full, empty)
    with pytest.raises(ValueError, match="3 and 4"):
        frechet_distance(full, gather(torch.rand(5, 4)))
    with pytest.raises(ValueError, match="merge"):
        full.merge(gather(torch.rand(5, 4)))
