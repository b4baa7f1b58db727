"""Which image comes when: a pure function of the seed and the sample's number, so a resume needs no state."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from progdistill.ops import random_bits

# Keeps the order's random words apart from those of the noise, which may be keyed by the same seed.
_DOMAIN = 0x6F726472


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """The order in which epoch `epoch` visits a data set of `size` images.

    Image i gets the low 64 bits of Philox4x32-10(counter = (i, epoch), key = seed), and the images are sorted
    by that number, equal ones by index: integer arithmetic only, so the order is the same on every platform
    and with every library version.

    Args:
        seed: an integer of at most 64 bits.
        epoch: 0, 1, ...
        size: the number of images, at least 1.

    Returns:
        int64, (size,): a permutation of 0..size-1, on the CPU.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.
    """
    _check_integer("seed", seed, -(2**63), 2**64 - 1)
    _check_integer("epoch", epoch, 0, 2**63 - 1)
    _check_integer("size", size, 1, 2**63 - 1)
    return _cached_order(seed, epoch, size).clone()


def sample_indices(seed: int, start: int, count: int, size: int) -> Tensor:
    """The data set's indices of the samples numbered start..start+count-1, counted from the run's beginning.

    Sample k is at position k % size of `epoch_order(seed, k // size, size)`; a range may span epochs.

    Args:
        seed: an integer of at most 64 bits.
        start: the first sample's number, at least 0.
        count: how many, at least 0.
        size: the number of images in the data set, at least 1.

    Returns:
        int64, (count,), values in 0..size-1, on the CPU.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.
    """
    _check_integer("seed", seed, -(2**63), 2**64 - 1)
    _check_integer("start", start, 0, 2**63 - 1)
    _check_integer("count", count, 0, 2**63 - 1)
    _check_integer("size", size, 1, 2**63 - 1)
    pieces = [torch.empty(0, dtype=torch.int64)]
    stop = start + count
    while start < stop:
        epoch, position = divmod(start, size)
        taken = min(size - position, stop - start)
        pieces.append(_cached_order(seed, epoch, size)[position : position + taken])
        start += taken
    return torch.cat(pieces)


@functools.lru_cache(maxsize=4)
def _cached_order(seed: int, epoch: int, size: int) -> Tensor:
    """A training loop asks for one batch after the other: without this each would sort the whole epoch."""
    bits = random_bits(torch.arange(size, dtype=torch.int64), seed ^ _DOMAIN << 32, epoch)
    return torch.argsort(bits, stable=True)


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__} ({value!r})")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, not {value}")
