"""Philox4x32-10, the counter-based generator behind every random number of the package.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter-based
generator is a pure function of (key, counter): nothing has to be saved or advanced, so a resumed run, another
batch split or another device sees the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_WORD = 0xFFFFFFFF


def philox_4x32_10(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors (broadcastable) or ints, each a 32-bit word in [0, 2^32).
        key: two of the same, low word first.

    Returns:
        Four int64 tensors of 32-bit words in [0, 2^32).
    """
    # A number becomes a tensor of no dimension on the CPU, which may stand beside those of a GPU: nothing is copied.
    c0, c1, c2, c3 = (torch.as_tensor(c, dtype=torch.int64) for c in counter)
    k0, k1 = (torch.as_tensor(k, dtype=torch.int64) for k in key)
    for _ in range(10):
        # The 64-bit product may wrap to a negative number; its bits, and so both halves, stay right.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high_0, high_1 = (product_0 >> 32) & _WORD, (product_1 >> 32) & _WORD
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, product_1 & _WORD, high_0 ^ c3 ^ k1, product_0 & _WORD
        k0, k1 = (k0 + _WEYL_0) & _WORD, (k1 + _WEYL_1) & _WORD
    return c0, c1, c2, c3


def split_words(value: Tensor | int) -> tuple[Tensor | int, Tensor | int]:
    """The low and high 32-bit words of 64-bit integers (negative ones by their two's complement bits)."""
    return value & _WORD, (value >> 32) & _WORD


def join_words(low: Tensor, high: Tensor) -> Tensor:
    """The inverse of `split_words`, as signed int64."""
    return low | (high << 32)
