"""Random numbers as pure functions of (seed, round, sample, update, stream): nothing to save, nothing to advance."""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

from progdistill.ops import integers, random_bits, uniform

__all__ = ["Stream", "integers", "sample_seeds", "uniform"]


class Stream(IntEnum):
    """What a draw is for. Numbers are part of the format: a new purpose gets a new one."""

    NOISE = 0  # diffusion noise of a training sample
    TIME = 1  # its noise level
    FLIP = 2  # its mirroring
    LATENT = 3  # the noise that a generated image starts from
    RENOISE = 4  # the noise that a stochastic sampler adds
    DROPOUT = 5  # seeds torch's own generator for one update
    SEEDS = 6  # derives per-sample seeds
    LABEL_DROPOUT = 7  # whether a training sample loses its label
    GUIDANCE = 8  # the guidance scale of a training sample
    CLASS = 9  # the class of a training sample that has no image


def sample_seeds(seed: int, round_index: int, samples: Tensor) -> Tensor:
    """A seed (B,) int64 for each global sample number (B,) int64 of a round (from 0, below 2^32) of a run."""
    return random_bits(samples, seed, Stream.SEEDS << 32 | round_index)
