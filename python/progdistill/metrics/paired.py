"""Distance between images that two models made from the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

# Bounds that a clamp in bf16 or a rescaling may miss by rounding, far from those of the 0..255 range.
_BOUND = 1.01


def paired_distance(a: Tensor, b: Tensor) -> Tensor:
    """Root-mean-square difference over all elements of image a[i] and image b[i]: float64 (N,) on the CPU.

    `a`, `b`: floating-point images (N, ...) of the same shape in [-1, 1], made from the same noise; so the
    unit is half of the full value range and 2 is the largest distance. Unlike a Frechet distance it needs no
    feature network and few images, and it says how far a student has left its teacher's map from noise to
    images, not which of the two looks better.

    Raises TypeError for images that are not floating point, ValueError for different or empty shapes and for
    values that are not finite or not in [-1, 1].
    """
    if a.shape != b.shape or a.ndim < 2 or a.numel() == 0:
        raise ValueError(
            f"both sets must have the same shape (N, ...) without empty axes, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    difference = _as_float64(a, "first") - _as_float64(b, "second")
    return difference.square().flatten(1).mean(dim=1).sqrt()


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values (N,) and its standard error, deviation / sqrt(N) with the unbiased
    deviation.

    Raises ValueError for fewer than two values or any that is not finite.
    """
    values = values.detach().to("cpu", torch.float64)
    if values.ndim != 1 or values.numel() < 2:
        raise ValueError(f"a standard error needs values of the shape (N,) with N >= 2, got {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ValueError(f"{int((~torch.isfinite(values)).sum())} of {values.numel()} values are NaN or infinite")
    return float(values.mean()), float(values.std() / values.numel() ** 0.5)


def _as_float64(images: Tensor, name: str) -> Tensor:
    if not images.is_floating_point():
        raise TypeError(f"the {name} set must hold floating-point images in [-1, 1], got {images.dtype}")
    images = images.detach().to("cpu", torch.float64)
    if not torch.isfinite(images).all():
        bad = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
        raise ValueError(f"{bad} of {images.shape[0]} images of the {name} set hold NaN or infinity")
    largest = float(images.abs().max())
    if largest > _BOUND:
        raise ValueError(f"the {name} set has values up to {largest:.4g}, outside [-1, 1]: clamp or rescale the images")
    return images
