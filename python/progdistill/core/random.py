"""Random numbers as pure functions of (seed, round, sample, update, stream): nothing to save, nothing to advance."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from progdistill.ops.philox import join_words, philox_4x32_10, split_words


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
    """A seed (B,) int64 for each global sample number (B,) int64 of a round of a run."""
    low, high = split_words(samples)
    words = philox_4x32_10((low, high, round_index, int(Stream.SEEDS)), split_words(seed))
    return join_words(words[0], words[1])


def uniform(seeds: Tensor, step: int, stream: Stream) -> Tensor:
    """(B,) float64 in [0, 1) with 53 random bits, one for each seed."""
    high, low, *_ = _words(seeds, step, stream)
    return (((high >> 5) << 26) + (low >> 6)).double() * 2.0**-53


def integers(seeds: Tensor, step: int, stream: Stream, high: int) -> Tensor:
    """(B,) int64, uniform on 0 ... high - 1 (high < 2^31; the bias is below high / 2^32)."""
    return (_words(seeds, step, stream)[0] * high) >> 32


def _words(seeds: Tensor, step: int, stream: Stream) -> tuple[Tensor, ...]:
    return philox_4x32_10((0, int(stream), *split_words(step)), split_words(torch.as_tensor(seeds)))
