"""Many tensors in one launch: where they lie and how they are cut into chunks, in a table in device memory.

The table's numbers reach the device as arguments of small kernels. Nothing is copied from the host, which a captured
graph could not do anew; so gradients may lie elsewhere at every call. Its rows are, for all tensors of a launch: the
first chunk, the number of elements, and then addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096  # elements
TILE = 1024  # that a program works on at a time
WARPS = 4
_MOST = 1024  # tensors of a launch
_VECTOR = 8  # elements that begin at 16 bytes if the tensor does
_WRITTEN = 256  # numbers that a kernel is given, 2 of the 4 KB that arguments may take
# Arguments are 2 n + 2^33 + 1: Triton compiles anew for those that are 1, divisible by 16, or above 2^31 for once.
_SHIFT: tl.constexpr = tl.constexpr(2**33 + 1)


class Table(NamedTuple):
    """A launch's tensors."""

    data: Tensor
    tensors: int
    chunks: int

    @property
    def arguments(self) -> tuple[Tensor, int]:
        return self.data, self.tensors

    @property
    def constants(self) -> dict:
        return {"TENSORS": triton.next_power_of_2(self.tensors), "num_warps": WARPS}


def chunks_of(elements: int) -> int:
    """The number of chunks of a tensor."""
    return triton.cdiv(elements, CHUNK)


def vector(tensors: Sequence[Tensor]) -> int:
    """Elements that are aligned together, in tensors that lie alike: 8 if all begin at 16 bytes, else 1."""
    return _VECTOR if all(tensor.data_ptr() % 16 == 0 for tensor in tensors) else 1


def tables(elements: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device) -> list[Table]:
    """The tables of tensors of these numbers of elements, none of them 0; `rows` follow in it."""
    made = []
    for start in range(0, len(elements), _MOST):
        counts, first, total = elements[start : start + _MOST], [], 0
        for count in counts:
            first.append(total)
            total += chunks_of(count)
        numbers = [*first, *counts]
        for row in rows:
            numbers += row[start : start + _MOST]
        made.append(Table(_on_device(numbers, device), len(counts), total))
    return made


def _on_device(numbers: list[int], device: torch.device) -> Tensor:
    rounded = triton.cdiv(len(numbers), _WRITTEN) * _WRITTEN
    data = torch.empty(rounded, dtype=torch.int64, device=device)
    numbers = [2 * number + _SHIFT.value for number in numbers + [0] * (rounded - len(numbers))]
    for start in range(0, rounded, _WRITTEN):
        _write[(1,)](data, start, tuple(numbers[start : start + _WRITTEN]), COUNT=_WRITTEN, num_warps=1)
    return data


@triton.jit(do_not_specialize=["start"])
def _write(data, start, numbers, COUNT: tl.constexpr):
    for i in tl.static_range(COUNT):
        tl.store(data + start + i, (numbers[i] - _SHIFT) >> 1)


@triton.jit
def place(table, tensors, TENSORS: tl.constexpr, CHUNK: tl.constexpr):
    """(tensor, its chunk, elements from where that begins on) of this program."""
    n = tl.arange(0, TENSORS)
    first = tl.load(table + n, mask=n < tensors, other=1 << 62)
    tensor = tl.sum((first <= tl.program_id(0)).to(tl.int32), axis=0) - 1
    chunk = tl.program_id(0) - tl.load(table + tensor)
    return tensor, chunk, tl.load(table + tensors + tensor) - chunk * CHUNK


@triton.jit
def address(table, tensors, tensor, row, DTYPE: tl.constexpr):
    """Where a tensor lies: what a row of the table says."""
    return tl.load(table + (2 + row) * tensors + tensor).to(tl.pointer_type(DTYPE))


@triton.jit
def in_vectors(left, CHUNK: tl.constexpr, VECTOR: tl.constexpr):
    """How many elements of a chunk are whole vectors, so that the compiler sees it; the rest is less than one."""
    return tl.minimum(left // VECTOR, CHUNK // VECTOR).to(tl.int32) * VECTOR
