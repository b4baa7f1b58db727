"""Kernel distance: the squared maximum mean discrepancy of feature vectors under a cubic kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.metrics.neighbours import checked_features

_BLOCK = 2048


class KernelDistance(NamedTuple):
    """Estimates of one squared maximum mean discrepancy."""

    value: float
    """The unbiased estimate from all pairs; negative values occur where the sets are alike."""
    standard_error: float
    """Standard error of `value` under fresh draws of both sets."""
    subset_mean: float
    """Mean over random subsets, which the literature reports."""
    subset_deviation: float
    """Standard deviation between those subsets: the spread of one subset's estimate, no error of the mean."""
    subset_size: int
    subsets: int


def kernel_distance(
    a: Tensor,
    b: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    block_size: int = _BLOCK,
    device: torch.device | str = "cpu",
) -> KernelDistance:
    """Unbiased squared MMD of features `a` (M, F) and `b` (N, F) under k(x, y) = (x.y / F + 1)^3.

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    (Gretton et al. 2012; Binkowski et al., ICLR 2018, whose "KID" it is if, and only if, the features are
    Inception's.) Unlike the Frechet distance its expectation does not depend on the counts. `subsets` pairs of
    random subsets of `subset_size` vectors (or all, if a set is smaller), drawn without replacement by `seed`,
    give the mean and deviation that the literature reports.

    The standard error is that of the two-sample U-statistic: 4 var / count of each set's first-order term, estimated
    from the row means of the kernel matrices, and the second-order term, which alone is left where the distributions
    agree and which the row means hold twice.

    Everything is summed in float64 on `device`, `block_size` rows and columns at a time: 50,000 x 2048 need 140 MB
    beyond the features, and 2e13 operations. Another block size changes the result by rounding (1e-12) only.

    Raises ValueError for fewer than 2 vectors, different widths, values that are not finite, subsets < 1 or
    subset_size < 2.
    """
    a, b = checked_features(a, "the first set"), checked_features(b, "the second set")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"the sets have different widths, {a.shape[1]} and {b.shape[1]} features: both must come from the same "
            "feature network"
        )
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 vectors in each set, got {len(a)} and {len(b)}")
    if subsets < 1 or subset_size < 2 or block_size < 1:
        raise ValueError(
            f"subsets must be at least 1, subset_size 2 and block_size 1, got {subsets}, {subset_size}, {block_size}"
        )
    value, error = _full_estimate(a, b, block_size, device)
    size = min(subset_size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [_unbiased(_chosen(a, size, generator, device), _chosen(b, size, generator, device)) for _ in range(subsets)],
        dtype=torch.float64,
    )
    deviation = float(values.std()) if subsets > 1 else 0.0
    return KernelDistance(value, error, float(values.mean()), deviation, size, subsets)


def _full_estimate(a: Tensor, b: Tensor, block_size: int, device: torch.device | str) -> tuple[float, float]:
    m, n = len(a), len(b)
    rows_aa, _, squares_aa = _kernel_sums(a, a, block_size, device, same=True)
    rows_bb, _, squares_bb = _kernel_sums(b, b, block_size, device, same=True)
    rows_ab, columns_ab, squares_ab = _kernel_sums(a, b, block_size, device)
    rows_aa, rows_bb = rows_aa / (m - 1), rows_bb / (n - 1)
    rows_ab, columns_ab = rows_ab / n, columns_ab / m
    cross = rows_ab.mean()
    value = rows_aa.mean() + rows_bb.mean() - 2 * cross

    second = (
        2 * _interaction(squares_aa / (m * (m - 1)), rows_aa, rows_aa) / (m * (m - 1))
        + 2 * _interaction(squares_bb / (n * (n - 1)), rows_bb, rows_bb) / (n * (n - 1))
        + 4 * _interaction(squares_ab / (m * n), rows_ab, columns_ab) / (m * n)
    )
    from_rows = 4 * (rows_aa - rows_ab).var() / m + 4 * (rows_bb - columns_ab).var() / n
    variance = torch.maximum(from_rows - second, second)
    return float(value), float(variance.clamp(min=0).sqrt())


def _interaction(mean_square: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Variance of the part of k(x, y) that is no sum of a function of x and one of y."""
    total = rows.mean()
    return mean_square - (rows - total).square().mean() - (columns - total).square().mean() - total.square()


def _kernel_sums(
    x: Tensor, y: Tensor, block_size: int, device: torch.device | str, *, same: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums, column sums and the sum of squares of the kernel matrix; `same`: of x with itself, no diagonal."""
    rows = torch.zeros(len(x), dtype=torch.float64, device=device)
    columns = rows if same else torch.zeros(len(y), dtype=torch.float64, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for i in range(0, len(x), block_size):
        left = x[i : i + block_size].to(device, torch.float64)
        for j in range(i if same else 0, len(y), block_size):
            kernel = _kernel(left, y[j : j + block_size].to(device, torch.float64))
            diagonal = same and i == j
            if diagonal:
                kernel.fill_diagonal_(0)
            rows[i : i + block_size] += kernel.sum(1)
            if not diagonal:
                # With `same`, these are the row sums of the mirrored block below the diagonal, which is not formed.
                columns[j : j + block_size] += kernel.sum(0)
            squares += kernel.square_().sum() * (2 if same and not diagonal else 1)
    return rows.cpu(), columns.cpu(), squares.cpu()


def _unbiased(a: Tensor, b: Tensor) -> float:
    return float(_mean_off_diagonal(_kernel(a, a)) + _mean_off_diagonal(_kernel(b, b)) - 2 * _kernel(a, b).mean())


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base * base * base


def _chosen(x: Tensor, size: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:size].to(x.device)].to(device, torch.float64)
