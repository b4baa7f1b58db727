"""Density and coverage (Naeem et al., ICML 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.metrics.neighbours import ball_counts, neighbour_distances
from progdistill.metrics.precision_recall import share_error


class DensityCoverage(NamedTuple):
    """Density (not limited to 1) and coverage in [0, 1], with their standard errors."""

    density: float
    coverage: float
    density_error: float
    coverage_error: float


def density_coverage(
    real: Tensor, generated: Tensor, *, k: int = 5, device: torch.device | str = "cpu"
) -> DensityCoverage:
    """Precision and recall that one outlier cannot spoil: only the real images have balls.

    With B_i the closed ball around real vector i that reaches to its k-th nearest real neighbour (the authors' code
    takes open balls, which holds no copy of a real image that has k copies itself), N real and M generated vectors:

        density  = sum over generated j and real i of [j in B_i] / (k M)      (how deep in the real crowd they lie)
        coverage = share of the real i whose B_i holds a generated vector     (how much of the real data is met)

    (eq. 3 and 4; k = 5). For two samples of one distribution of equal counts the expected density is 1 and the
    expected coverage is 1 - (N - 1) ... (N - k) / ((2N - 1) ... (2N - k)), about 1 - 2^-k, whatever the distribution
    (the paper's eq. 9): compare equal counts only. Exact neighbours in float64 (see `neighbours`), on `device`.

    Errors: of the density, the standard error over the generated vectors; of the coverage, that of a share of N
    independent ones, which the balls are not quite, for they overlap.

    Raises ValueError for at most k real vectors, different widths, or values that are not finite.
    """
    radii = neighbour_distances(real, k, device=device)[:, -1]
    holding, held = ball_counts(generated, real, radii, device=device)
    depth = holding.double() / k
    coverage = float((held > 0).double().mean())
    error = float(depth.std()) / len(generated) ** 0.5 if len(generated) > 1 else 0.0
    return DensityCoverage(float(depth.mean()), coverage, error, share_error(coverage, len(real)))
