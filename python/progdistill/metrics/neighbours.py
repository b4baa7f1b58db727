"""Exact nearest neighbours and ball counts of feature vectors, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS, _COLUMNS = 1024, 4096


def neighbour_distances(
    points: Tensor, k: int, *, block: tuple[int, int] = (_ROWS, _COLUMNS), device: torch.device | str = "cpu"
) -> Tensor:
    """Squared distances of every point to its k nearest others: float64 (N, k) on the CPU, rising along a row.

    A point is no neighbour of itself, its duplicates are: they are at distance 0. All N^2 distances are formed, in
    float64 on `device`, `block` of them (rows, columns) at a time; the result does not depend on `block` beyond
    rounding (1e-12 of the largest squared norm about the mean). Memory: one block and its rows and columns in float64,
    160 MB at 2048 features. Time: 2 N^2 F operations; 50,000 x 2048 are 1e13.

    Raises ValueError unless `points` is a finite floating-point (N, F) with N > k >= 1.
    """
    points = checked_features(points, "points")
    if not 1 <= k < len(points):
        raise ValueError(f"k is {k}: with {len(points)} points it must be between 1 and {len(points) - 1}")
    centre = _mean(points)
    nearest = []
    for first, rows in _blocks(points, centre, block[0], device):
        best = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device=device)
        for start, columns in _blocks(points, centre, block[1], device):
            squared = squared_distances(rows, columns)
            own = torch.arange(first, first + len(rows), device=device) - start
            inside = (own >= 0) & (own < len(columns))
            squared[inside.nonzero().squeeze(1), own[inside]] = torch.inf
            both = torch.cat([best, squared.topk(min(k, len(columns)), largest=False).values], dim=1)
            best = both.topk(k, largest=False).values
        nearest.append(best.cpu())
    return torch.cat(nearest)


def ball_counts(
    points: Tensor,
    centres: Tensor,
    squared_radii: Tensor,
    *,
    block: tuple[int, int] = (_ROWS, _COLUMNS),
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """How many balls hold each point (N,), and how many points each ball holds (M,): int64 on the CPU.

    `points` (N, F), `centres` (M, F), `squared_radii` (M,). The balls are closed, and a point that lies within the
    rounding of float64 of a surface counts as inside: copies of a centre are in its ball of radius 0, and the
    neighbour that gave a radius is in the ball. Memory and time as in `neighbour_distances`.

    Raises ValueError for other shapes, or values that are not finite.
    """
    points, centres = checked_features(points, "points"), checked_features(centres, "centres")
    if points.shape[1] != centres.shape[1] or squared_radii.shape != (len(centres),):
        raise ValueError(
            f"points {tuple(points.shape)}, centres {tuple(centres.shape)} and squared radii "
            f"{tuple(squared_radii.shape)} do not fit; expected (N, F), (M, F) and (M,)"
        )
    centre = _mean(centres)
    holding = torch.zeros(len(points), dtype=torch.int64)
    held = torch.zeros(len(centres), dtype=torch.int64)
    slack = max(points.shape[1], 16) * torch.finfo(torch.float64).eps
    for first, rows in _blocks(points, centre, block[0], device):
        row_slack = slack * rows.square().sum(1, keepdim=True)
        for start, columns in _blocks(centres, centre, block[1], device):
            stop = start + len(columns)
            bound = squared_radii[start:stop].to(device, torch.float64) + slack * columns.square().sum(1)
            inside = squared_distances(rows, columns) <= bound + row_slack
            holding[first : first + len(rows)] += inside.sum(1).cpu()
            held[start:stop] += inside.sum(0).cpu()
    return holding, held


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """All squared distances (N, M) of the rows of `a` (N, F) and `b` (M, F), never negative.

    As |a|^2 + |b|^2 - 2 a.b, which rounds at the scale of the norms: callers centre the points and use float64.
    """
    squared = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return squared.add_(a.square().sum(1, keepdim=True)).clamp_(min=0)


def checked_features(features: Tensor, name: str) -> Tensor:
    """`features` without gradients; ValueError unless it is a finite floating-point (N, F) with N, F >= 1."""
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point feature vectors (N, F) with N, F >= 1, got {features.dtype} "
            f"{tuple(features.shape)}"
        )
    features = features.detach()
    bad = sum(int((~torch.isfinite(part)).any(dim=1).sum()) for part in features.split(_COLUMNS))
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} vectors of {name} hold NaN or infinity; look at the images they come from and "
            "at the feature network"
        )
    return features


def _mean(points: Tensor) -> Tensor:
    return sum(part.double().sum(0) for part in points.split(_COLUMNS)) / len(points)


def _blocks(points: Tensor, centre: Tensor, size: int, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(points), size):
        yield start, (points[start : start + size].double() - centre).to(device)
