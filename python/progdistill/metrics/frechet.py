"""Frechet distance between two Gaussians, with statistics that are gathered batch by batch in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class GaussianStatistics:
    """Mean and covariance of feature vectors, gathered in one pass in float64 on the CPU.

    Every batch is centred on its own mean before its products are summed, and joined to what is already there
    by the pairwise update of Chan, Golub and LeVeque (1983). Sums of raw squares, from which the squared mean
    is taken off at the end, would lose every digit that the mean has above the deviation, twice over. Means
    are kept relative to the first batch's, so that a large mean does not round their differences.
    """

    def __init__(self, num_features: int) -> None:
        """Starts empty. `num_features` is the width F of a feature vector; ValueError if it is below 1."""
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        self.num_features = num_features
        self._count = 0
        self._origin = torch.zeros(num_features, dtype=torch.float64)
        self._mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    @classmethod
    def from_moments(cls, count: int, mean: Tensor, scatter: Tensor) -> GaussianStatistics:
        """Statistics with this count, mean (F,) and scatter (F, F), which `scatter` and `mean` give back bit for bit.

        Raises ValueError for count < 1, other shapes, values that are not finite, or a negative variance.
        """
        if count < 1 or mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise ValueError(
                f"moments need a count of at least 1, a mean (F,) and a scatter (F, F); got {count}, "
                f"{tuple(mean.shape)} and {tuple(scatter.shape)}"
            )
        mean, scatter = mean.double().cpu(), scatter.double().cpu()
        if not (torch.isfinite(mean).all() and torch.isfinite(scatter).all()) or bool((scatter.diagonal() < 0).any()):
            raise ValueError("moments hold NaN, infinity or a negative variance: the file is damaged, make it anew")
        statistics = cls(len(mean))
        statistics._count, statistics._origin, statistics._scatter = count, mean, scatter
        return statistics

    @property
    def count(self) -> int:
        """Number of feature vectors seen."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean, float64 (F,). ValueError before the first vector."""
        if self._count < 1:
            raise ValueError("the mean needs at least 1 sample, got 0: call update() first")
        return self._origin + self._mean

    @property
    def scatter(self) -> Tensor:
        """Sum of the outer products of the deviations from the mean, float64 (F, F)."""
        return self._scatter

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (division by count - 1), float64 (F, F). ValueError below two samples."""
        if self._count < 2:
            raise ValueError(f"the covariance needs at least 2 samples, got {self._count}: call update() with more")
        return self._scatter / (self._count - 1)

    def update(self, features: Tensor) -> None:
        """Adds a batch of feature vectors (B, F), floating point, on any device; B = 0 changes nothing.

        Raises ValueError if the shape is not (B, num_features) or a value is not finite, TypeError if the
        features are not floating point; the statistics are then as they were.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features must have the shape (B, {self.num_features}), got {tuple(features.shape)}")
        if not features.is_floating_point():
            raise TypeError(f"features must be floating point, got {features.dtype}: convert them with .float()")
        if features.shape[0] == 0:
            return
        batch = features.detach().to("cpu", torch.float64)
        if not torch.isfinite(batch).all():
            bad = int((~torch.isfinite(batch)).any(dim=1).sum())
            raise ValueError(
                f"{bad} of {batch.shape[0]} feature vectors hold NaN or infinity; "
                "look at the images they come from and at the feature network"
            )
        origin = self._origin if self._count else batch.mean(dim=0)
        batch = batch - origin
        mean = batch.mean(dim=0)
        centred = batch - mean
        self._join(batch.shape[0], origin, mean, centred.T @ centred)

    def merge(self, other: GaussianStatistics) -> None:
        """Adds everything `other` has seen (its state stays as it is). ValueError if the widths differ."""
        if other.num_features != self.num_features:
            raise ValueError(
                f"cannot merge statistics of {other.num_features} features into {self.num_features}: "
                "both must come from the same feature network"
            )
        if other._count:
            self._join(other._count, other._origin, other._mean, other._scatter)

    def _join(self, count: int, origin: Tensor, mean: Tensor, scatter: Tensor) -> None:
        if self._count == 0:
            self._origin = origin
        total = self._count + count
        delta = (origin - self._origin) + (mean - self._mean)
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self._count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._count = total


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Squared Frechet distance of the two fitted Gaussians, in float64:

        |mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

    (Dowson and Landau 1982; the "FID" of Heusel et al. 2017 if, and only if, the features are Inception's).
    The last trace is the sum of the singular values of C_a^(1/2) C_b^(1/2). Each covariance is factored by a
    symmetric eigen-decomposition whose eigenvalues within rounding of zero are dropped, so fewer samples than
    features are no numerical problem. They are a statistical one: the distance of two finite samples of one
    distribution is positive and falls as they grow, about as 1 / count, so compare only numbers that come from equal
    counts (the literature: 50,000 images against the whole data set). `frechet_error` extrapolates that bias away and
    estimates the sampling error.

    Raises ValueError if either has seen fewer than two samples or the widths differ.
    """
    if a.num_features != b.num_features:
        raise ValueError(
            f"the statistics have different widths, {a.num_features} and {b.num_features} features: "
            "both must come from the same feature network"
        )
    for name, statistics in (("first", a), ("second", b)):
        if statistics.count < 2:
            raise ValueError(f"the {name} set has {statistics.count} samples, a Frechet distance needs at least 2")
    covariance_a, covariance_b = a.covariance, b.covariance
    overlap = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    distance = (a.mean - b.mean).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return max(float(distance), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """A matrix L (F, rank) with L L^T = covariance, without the eigenvalues that are only rounding errors.

    Their square roots are 1e-8 of the largest, not 1e-16: kept, each missing rank would add a visible bias.
    """
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.abs().max() * covariance.shape[0] * torch.finfo(values.dtype).eps
    kept = values > noise
    return vectors[:, kept] * values[kept].sqrt()
