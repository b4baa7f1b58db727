"""Embeddings of the time and of whatever else is a number per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.layers import project


def _frequencies(half: int, freq_shift: float) -> Tensor:
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu")
    return torch.exp(exponents / (half - freq_shift))


class SinusoidalEmbedding(nn.Module):
    """sin and cos of a number at geometrically falling frequencies 1 .. 1/10000 (Vaswani et al. 2017).

    ``channels`` outputs, sines first unless ``flip_sin_to_cos``. ``freq_shift`` 1 makes the last frequency
    exactly 1/10000, 0 stops one step before it. Always computed in float32, whatever the network's dtype:
    bfloat16 cannot tell neighbouring times apart.
    """

    def __init__(self, channels: int, *, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.half = channels // 2
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift
        # Not a buffer: `.to(dtype)` would round it and DistributedDataParallel would broadcast it every step.
        frequencies, device = _frequencies(self.half, freq_shift), torch.get_default_device()
        self.frequencies = frequencies if device.type == "meta" else frequencies.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalEmbedding:
        device = fn(self.frequencies).device
        if device != self.frequencies.device:
            self.frequencies = _frequencies(self.half, self.freq_shift).to(device)
        return super()._apply(fn, recurse)

    def forward(self, values: Tensor) -> Tensor:
        """``values`` (B,), any real dtype -> (B, channels) in float32."""
        phases = values.float()[:, None] * self.frequencies.to(values.device)
        sine, cosine = phases.sin(), phases.cos()
        return torch.cat((cosine, sine) if self.flip_sin_to_cos else (sine, cosine), dim=1)


class FixedTime(dict):
    """`ResnetBlock.time_terms` of a fixed time by block, (1, C) each: `UNet.fixed_time` makes it.

    A few-step sampler knows its times beforehand, so that no embedding has to be computed while it runs. In a network
    with classes, whose blocks see the sum of time and class, there is the time's `embedding` (1, E) instead.
    """

    def __init__(self, by_block: Iterable[tuple[nn.Module, Tensor]] = (), embedding: Tensor | None = None) -> None:
        super().__init__(by_block)
        self.embedding = embedding

    def copy_(self, other: FixedTime) -> None:
        """Takes over another one's values, for a captured graph that goes on reading these tensors."""
        for block, value in other.items():
            self[block].copy_(value)
        if other.embedding is not None:
            self.embedding.copy_(other.embedding)


class GuidanceEmbedding(nn.Module):
    """A projection of sinusoids of 1000 times the guidance weight: (B,) -> (B, features).

    It starts at zero, so that a network to which it is added starts as it was (Meng et al. 2023 train it like that of
    the time; the factor and the missing bias are those of diffusers' latent consistency models).
    """

    def __init__(self, sinusoids: int, features: int) -> None:
        super().__init__()
        self.sinusoids = SinusoidalEmbedding(sinusoids, flip_sin_to_cos=False, freq_shift=1)
        self.projection = nn.Linear(sinusoids, features, bias=False)

    def forward(self, guidance: Tensor) -> Tensor:
        weight = self.projection.weight
        return self.projection(self.sinusoids(1000.0 * guidance.float()).to(weight.dtype))


class StepCountEmbedding(nn.Module):
    """Two linear layers with a SiLU between, of sinusoids of the number of sampling steps: int -> (1, features).

    The last layer starts at zero, so that a network to which it is added starts as it was (Zhou et al. 2024 give each
    block a layer of its own, at random).
    """

    def __init__(self, sinusoids: int, features: int) -> None:
        super().__init__()
        self.sinusoids = SinusoidalEmbedding(sinusoids, flip_sin_to_cos=False, freq_shift=1)
        self.linear_1 = nn.Linear(sinusoids, features)
        self.linear_2 = nn.Linear(features, features)

    def forward(self, steps: int) -> Tensor:
        weight = self.linear_1.weight
        told = self.sinusoids(torch.full((1,), float(steps), device=weight.device)).to(weight.dtype)
        return project(self.linear_2, F.silu(project(self.linear_1, told)))


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between: (B, in_features) -> (B, features)."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, features)
        self.linear_2 = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return project(self.linear_2, F.silu(project(self.linear_1, x)))
