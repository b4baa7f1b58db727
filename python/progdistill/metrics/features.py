"""Runs a feature network over a set of images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from progdistill.core.modes import evaluating
from progdistill.metrics.frechet import GaussianStatistics


def extract_features(
    module: nn.Module, images: Tensor, *, batch_size: int = 256, device: torch.device | str | None = None
) -> Tensor:
    """Feature vectors of all images: float32 (N, F) on the CPU, in the images' order.

    `module` takes uint8 images (B, C, H, W) in [0, 255] and returns (B, F) or (B, F, 1, 1), which is the
    convention of torchmetrics' custom feature extractors. It runs in evaluation mode without gradients, and
    every sub-module's mode is restored. `images` are uint8 (N, C, H, W), N >= 1, on any device. `device` is
    where to compute; the module is moved there and stays. By default it is where the module's first parameter
    or buffer is, else the CPU.

    Raises TypeError if the images are not uint8 or the module does not return a floating-point tensor,
    ValueError for other shapes than these or batch_size < 1.
    """
    return torch.cat(list(_feature_batches(module, images, batch_size, device)))


def statistics_of(
    module: nn.Module, images: Tensor, *, batch_size: int = 256, device: torch.device | str | None = None
) -> GaussianStatistics:
    """Mean and covariance of the images' features; arguments and errors as in `extract_features`.

    The feature vectors are never held all at once. ValueError also if a feature is not finite.
    """
    statistics: GaussianStatistics | None = None
    for features in _feature_batches(module, images, batch_size, device):
        if statistics is None:
            statistics = GaussianStatistics(features.shape[1])
        statistics.update(features)
    assert statistics is not None
    return statistics


def require_uint8_images(images: Tensor) -> None:
    """TypeError unless `images` is a uint8 tensor, ValueError unless it is a non-empty (N, C, H, W)."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images must be a uint8 tensor with values 0..255, got {found}; "
            "for floats in [-1, 1]: ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have the shape (N, C, H, W) without empty axes, got {tuple(images.shape)}")


def _feature_batches(
    module: nn.Module, images: Tensor, batch_size: int, device: torch.device | str | None
) -> Iterator[Tensor]:
    require_uint8_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if device is None:
        first = next(chain(module.parameters(), module.buffers()), None)
        device = "cpu" if first is None else first.device
    else:
        module.to(device)
    with evaluating(module):
        for batch in images.split(batch_size):
            # Entered anew for each batch: around the loop it would leak into the caller at every yield.
            with torch.no_grad():
                features = module(batch.to(device))
            yield _checked(features, batch.shape[0]).to("cpu", torch.float32)


def _checked(features: Tensor, batch: int) -> Tensor:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        found = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"the feature module must return a floating-point tensor, got {found}")
    if features.ndim == 4 and features.shape[2:] == (1, 1):
        features = features.flatten(1)
    if features.ndim != 2 or features.shape[0] != batch:
        raise ValueError(
            f"the feature module must return ({batch}, F) or ({batch}, F, 1, 1) for {batch} images, "
            f"got {tuple(features.shape)}"
        )
    return features
