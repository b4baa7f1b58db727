"""A distance between images in the features of a network, for the last step of a trajectory fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from progdistill.sampling.ddim import scaled


class PerceptualDistance:
    """weight * |f(student's image) - f(teacher's image)|^2 of each image, and its derivative.

    Zhou et al. 2024 (SFD) add LPIPS (Zhang et al. 2018) to the L1 loss where the last step of their second stage ends.
    LPIPS is such a sum of squares, of features that are normalised over their channels, weighted, and divided by the
    root of their number of places.

    Args:
        features: maps float32 images (B, C, H, W), about in [-1, 1], to features (B, ...); gradients go through it, and
            its weights stay as they are.
        weight: against the mean absolute difference of the pixels; 1 is the paper's.
        sample_shape: (C, H, W).
        device: where the images will be.

    Raises:
        ValueError: a network that does not take such images, gives no features of each, or stops the gradient.
    """

    def __init__(
        self, features: nn.Module, *, weight: float, sample_shape: tuple[int, ...], device: torch.device
    ) -> None:
        self.features = features
        self.weight = weight
        self._check(torch.zeros(2, *sample_shape, device=device))

    def __call__(self, state: Tensor, target: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """((B,) distances, their derivative for `state`), of the images factor * state and factor * target."""
        with torch.no_grad():
            wanted = self.features(scaled(target, factor))
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            error = self.features(scaled(leaf, factor)) - wanted
            distance = self.weight * error.float().square().flatten(1).sum(1)
            (slope,) = torch.autograd.grad(distance.sum(), leaf)
        return distance.detach(), slope

    def _check(self, images: Tensor) -> None:
        try:
            distance, slope = self(images, images, 1.0)
        except Exception as error:
            raise ValueError(
                f"the perceptual network failed on float images {tuple(images.shape)} ({_last_line(error)}); it "
                "takes float images in [-1, 1] and gives features (B, ...) that gradients go through: wrap it in a "
                "module that scales and resizes as it needs, and write that with torch.jit.trace"
            ) from error
        if distance.shape != images.shape[:1] or slope.shape != images.shape:
            raise ValueError(
                f"the perceptual network gives features for {len(distance)} images of {len(images)}; their first "
                "dimension is the batch's"
            )


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
