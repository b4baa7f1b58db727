"""The noise that sampling starts from: per-image seeds of our own, or torch generators as diffusers uses them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.core.random import Stream
from progdistill.ops import normal


def image_seeds(seed: int | Sequence[int] | Tensor, batch_size: int | None) -> Tensor:
    """(B,) int64: consecutive seeds from an int, or the given ones.

    Raises:
        ValueError: a list of seeds whose length is not batch_size.
    """
    if isinstance(seed, int):
        return torch.arange(seed, seed + (1 if batch_size is None else batch_size))
    seeds = torch.as_tensor(seed, dtype=torch.int64).cpu()
    if seeds.dim() != 1 or (batch_size is not None and len(seeds) != batch_size):
        raise ValueError(f"{tuple(seeds.shape)} seeds were given for batch_size {batch_size}; pass one for each image")
    return seeds


def seeded_latents(seeds: Tensor, sample_shape: Sequence[int]) -> Tensor:
    """Standard normal (B, *sample_shape); each image depends on its own seed alone, bitwise."""
    return normal(seeds, 0, Stream.LATENT, sample_shape)


def generator_latents(
    generator: torch.Generator | Sequence[torch.Generator], batch_size: int, sample_shape: Sequence[int]
) -> Tensor:
    """The noise that diffusers' pipelines draw from the same generator (or one generator for each image).

    Raises:
        ValueError: a list whose length is not batch_size.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn((batch_size, *sample_shape), generator=generator, device=generator.device)
    if len(generator) != batch_size:
        raise ValueError(f"{len(generator)} generators were given for batch_size {batch_size}; pass one for each image")
    return torch.cat([torch.randn((1, *sample_shape), generator=g, device=g.device) for g in generator])
