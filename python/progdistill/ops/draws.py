"""One random number a sample: uniform, an integer, or 64 bits that serve as another seed.

All of them are made of the first two words w0, w1 of a Philox4x32-10 block (see `philox`), so they are a pure function
of seed, step and stream, and the same bits on every backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from progdistill.ops import native
from progdistill.ops.backends import choose, declare
from progdistill.ops.normal import check_draw
from progdistill.ops.philox import join_words, philox_4x32_10, split_words
from progdistill.ops.registration import register


def uniform(seeds: Tensor, step: int | Tensor, stream: int, *, backend: str | None = None) -> Tensor:
    """(B,) float64 in [0, 1) with 53 random bits, one number for each seed.

    (floor(w0 / 2^5) 2^26 + floor(w1 / 2^6)) 2^-53, with key = seed and counter = (0, stream, step low word, step high
    word): the first block of `normal` with these arguments.

    Args:
        seeds: (B,) int64, one for each sample.
        step: update or sampling step number, an int or a one-element int64 tensor on the same device.
        stream: in [0, 2^32); keeps draws for different purposes apart.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Raises:
        TypeError, ValueError: wrong dtype, shape or range of an argument.
    """
    return _draw(seeds, check_draw(seeds, step, stream, ()), stream, None, backend)


def integers(seeds: Tensor, step: int | Tensor, stream: int, high: int, *, backend: str | None = None) -> Tensor:
    """(B,) int64, uniform on 0 ... high - 1, one number for each seed: floor(w0 high / 2^32).

    The probabilities of two values differ by at most 2^-32.

    Args:
        seeds, step, stream, backend: as in `uniform`, whose counters these are: never draw both from one stream.
        high: in [1, 2^31].

    Raises:
        TypeError, ValueError: wrong dtype, shape or range of an argument.
    """
    step = check_draw(seeds, step, stream, ())
    if not 1 <= high <= 2**31:
        raise ValueError(f"high is {high}; it must lie in [1, 2^31]")
    return _draw(seeds, step, stream, high, backend)


def random_bits(numbers: Tensor, key: int, counter_high: int, *, backend: str | None = None) -> Tensor:
    """(B,) int64 of 64 random bits for each of `numbers`: w0 in the lower half, w1 in the upper one.

    Args:
        numbers: (B,) int64, the lower half of the counters.
        key: an integer, of which 64 bits count.
        counter_high: the upper half of all counters, an integer of which 64 bits count.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Raises:
        TypeError: numbers of another dtype or shape.
    """
    if numbers.dtype != torch.int64 or numbers.dim() != 1:
        raise TypeError(f"numbers is {numbers.dtype} of shape {tuple(numbers.shape)}; expected int64 of shape (B,)")
    return _random_bits(numbers, _signed(key), _signed(counter_high), backend)


def _signed(value: int) -> int:
    # The int64 of the same 64 bits, which is what operators take.
    return (value + 2**63) % 2**64 - 2**63


def draw_reference(seeds: Tensor, step: Tensor, stream: int, high: int | None) -> Tensor:
    """The formulas in plain PyTorch: that of `integers`, or without `high` that of `uniform`."""
    words = philox_4x32_10((0, stream, *split_words(step.reshape(()))), split_words(seeds))
    if high is not None:
        return (words[0] * high) >> 32
    return (((words[0] >> 5) << 26) + (words[1] >> 6)).double() * 2.0**-53


def random_bits_reference(numbers: Tensor, key: int, counter_high: int) -> Tensor:
    """The formula in plain PyTorch."""
    # Beside numbers on a GPU a number of the host may not be broadcast.
    high = torch.full((), counter_high, dtype=torch.int64, device=numbers.device)
    words = philox_4x32_10((*split_words(numbers), *split_words(high)), split_words(key))
    return join_words(words[0], words[1])


def _empty(like: Tensor, high: int | None = 0) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float64 if high is None else torch.int64, device=like.device)


def _draw_native(seeds: Tensor, step: Tensor, stream: int, high: int | None) -> Tensor:
    out, given = _empty(seeds, high), native.view(seeds.contiguous())
    native._C.draw(native.view(out), given, native.view(step), stream, high, native.run(seeds))
    return out


def _draw_triton(seeds: Tensor, step: Tensor, stream: int, high: int | None) -> Tensor:
    from progdistill.ops.triton_kernels.draws import draw

    out = _empty(seeds, high)
    draw(out, seeds.contiguous(), step, stream, high)
    return out


def _random_bits_native(numbers: Tensor, key: int, counter_high: int) -> Tensor:
    out, given = _empty(numbers), native.view(numbers.contiguous())
    native._C.random_bits(native.view(out), given, key, counter_high, native.run(numbers))
    return out


def _random_bits_triton(numbers: Tensor, key: int, counter_high: int) -> Tensor:
    from progdistill.ops.triton_kernels.draws import random_bits

    out = _empty(numbers)
    random_bits(out, numbers.contiguous(), key, counter_high)
    return out


declare("draw", {"reference": draw_reference, "cpu": _draw_native, "cuda": _draw_native, "triton": _draw_triton})
declare(
    "random_bits",
    {
        "reference": random_bits_reference,
        "cpu": _random_bits_native,
        "cuda": _random_bits_native,
        "triton": _random_bits_triton,
    },
)


def _draw_implementation(seeds: Tensor, step: Tensor, stream: int, high: int | None, backend: str | None) -> Tensor:
    return choose("draw", seeds.device.type, backend)(seeds, step, stream, high)


def _draw_fake(seeds: Tensor, step: Tensor, stream: int, high: int | None, backend: str | None) -> Tensor:
    return _empty(seeds, high)


def _random_bits_implementation(numbers: Tensor, key: int, counter_high: int, backend: str | None) -> Tensor:
    return choose("random_bits", numbers.device.type, backend)(numbers, key, counter_high)


def _random_bits_fake(numbers: Tensor, key: int, counter_high: int, backend: str | None) -> Tensor:
    return _empty(numbers)


_draw = register(
    "draw(Tensor seeds, Tensor step, int stream, int? high, str? backend) -> Tensor", _draw_implementation, _draw_fake
)
_random_bits = register(
    "random_bits(Tensor numbers, int key, int counter_high, str? backend) -> Tensor",
    _random_bits_implementation,
    _random_bits_fake,
)
