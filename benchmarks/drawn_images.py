"""Images of any size drawn by rule, for machines without a data set: soft ellipses before gradients."""

from __future__ import annotations

import torch
from torch import Tensor

ELLIPSES = 3


def drawn_images(count: int, channels: int, edge: int, seed: int = 0) -> Tensor:
    """uint8 (count, channels, edge, edge), the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=generator)

    line = torch.linspace(-1, 1, edge)
    y, x = line.view(1, 1, edge, 1), line.view(1, 1, 1, edge)
    angle = uniform(1, high=2 * torch.pi)
    along = (angle.cos() * x + angle.sin() * y) / 2**1.5 + 0.5
    images = torch.lerp(uniform(channels), uniform(channels), along)
    for _ in range(ELLIPSES):
        centre_x, centre_y = uniform(1, low=-0.8, high=0.8), uniform(1, low=-0.8, high=0.8)
        radius_x, radius_y = uniform(1, low=0.15, high=0.6), uniform(1, low=0.15, high=0.6)
        radius = (((x - centre_x) / radius_x).square() + ((y - centre_y) / radius_y).square()).sqrt()
        inside = torch.sigmoid((1 - radius) * edge / 4)
        images = torch.lerp(images, uniform(channels), inside)
    return images.mul(255).round().to(torch.uint8)
