"""What a feature network is, and how one runs over a set of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from progdistill.core.modes import evaluating
from progdistill.metrics.frechet import GaussianStatistics


class FeatureModule(Protocol):
    """What the metrics measure images with: an `nn.Module` that maps uint8 images to feature vectors.

    Only the call is required: uint8 (B, C, H, W) in [0, 255] to floating point (B, F) or (B, F, 1, 1), an image's
    features depending on that image alone. That is torchmetrics' convention of a custom feature extractor. Optional:

    num_features: F.
    features_name: names the features in reports, "digits classifier features"; default: the class's name.
    description: names the Frechet distance in them; "FID" for Inception's features alone.
    features_and_logits(images): (features (B, F), logits (B, K)), for the Inception score's formula.
    fingerprint: identifies the weights; default: a hash of the state dict.
    """

    def __call__(self, images: Tensor) -> Tensor: ...


class PixelFeatures(nn.Module):
    """The pixels themselves, in [-1, 1], as features (B, C H W): for the sliced Wasserstein distance of images."""

    features_name = "pixels"

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, C H W) of uint8 images (B, C, H, W)."""
        require_uint8_images(images)
        return images.flatten(1).float() / 127.5 - 1


def features_name(module: nn.Module) -> str:
    """How reports name the module's features."""
    return getattr(module, "features_name", None) or f"{type(module).__name__} features"


def features_fingerprint(module: nn.Module) -> str:
    """Identifies a feature module: its own `fingerprint`, or 32 hex digits of SHA-256 over its class and state dict.

    Two modules without parameters and buffers are told apart by their class only.
    """
    own = getattr(module, "fingerprint", None)
    if own is not None:
        return own
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


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
    return torch.cat(
        [features for features, _ in feature_batches(module, images, batch_size=batch_size, device=device)]
    )


def statistics_of(
    module: nn.Module, images: Tensor, *, batch_size: int = 256, device: torch.device | str | None = None
) -> GaussianStatistics:
    """Mean and covariance of the images' features; arguments and errors as in `extract_features`.

    The feature vectors are never held all at once. ValueError also if a feature is not finite.
    """
    statistics: GaussianStatistics | None = None
    for features, _ in feature_batches(module, images, batch_size=batch_size, device=device):
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


def feature_batches(
    module: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    with_logits: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Features, float32 (B, F) on the CPU, of one batch after another; arguments and errors as in `extract_features`.

    With them come the class logits (B, K) on the CPU, as the module gives them, if `with_logits`, else None.
    """
    require_uint8_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if device is None:
        device = module_device(module)
    else:
        module.to(device)
    with evaluating(module):
        for batch in images.split(batch_size):
            # Entered anew for each batch: around the loop it would leak into the caller at every yield.
            with torch.no_grad():
                output = module.features_and_logits(batch.to(device)) if with_logits else (module(batch.to(device)),)
            features = _checked(output[0], batch.shape[0]).to("cpu", torch.float32)
            yield features, output[1].cpu() if with_logits else None


def module_device(module: nn.Module) -> torch.device:
    """Where the module's first parameter or buffer is, else the CPU."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


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
