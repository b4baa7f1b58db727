"""padded_sum at the ends of a network's blocks, for benchmarks/kernels.py: bfloat16, channels_last, as its twins.

"padding" is what stands before a downsampling convolution, the sum and its padding with zeros; "sum" what stands before
an upsampling one. The textbook has sums and `F.pad` of bfloat16 tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_cases import FORWARD, GRADIENT, Case, Contender, Inputs, as_it_is, serving
from progdistill import ops
from progdistill.ops.padded_sum import padded_sum_reference

LEAVES = ("x", "residual", "shift")
# Four images, their cotangents and gradients, and float32 temporaries of the reference.
MOST_STATES = 16


def cases(device: str) -> list[Case]:
    """The operation on x of a layer that has no skip connection (`group_norm_cases.layer_sizes`)."""
    return list(_padded_sum(device))


def _inputs(gradient: bool, padding: int, shapes: tuple[tuple[int, ...], ...], device: str, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    def image(more: int = 0) -> Tensor:
        shape = (samples, channels, height + more, width + more)
        return draw(*shape).contiguous(memory_format=torch.channels_last)

    samples, channels, height, width = shapes[0]
    t: Inputs = {"x": image(), "residual": image(), "shift": draw(channels)}
    for value in t.values():
        value.requires_grad_(gradient)
    return t | {"cotangents": [image(more) for more in range(padding + 1)]}


def _call(function: Any, padding: int, t: Inputs) -> tuple[Tensor, ...]:
    found = function(t["x"], residual=t["residual"], shift=t["shift"], padding=padding)
    return found if isinstance(found, tuple) else (found,)


def _textbook(x: Tensor, *, residual: Tensor, shift: Tensor, padding: int) -> Any:
    u = x + residual + shift.reshape(1, -1, 1, 1)
    return (u, F.pad(u, (0, padding, 0, padding))) if padding else u


def _with_gradients(forward: Any) -> Any:
    """The call, and autograd's gradients of x, which is that of the residual, and of the shift."""

    def call(t: Inputs) -> tuple[Tensor, ...]:
        results = forward(t)
        dx, _, dshift = torch.autograd.grad(results, [t[name] for name in LEAVES], t["cotangents"])
        return *(result.detach() for result in results), dx, dshift

    return call


def _padded_sum(device: str) -> Iterator[Case]:
    functions = {name: partial(ops.padded_sum, backend=name) for name in serving("padded_sum", device)}
    functions |= {"reference": padded_sum_reference, "textbook": _textbook}
    for variant, padding, mode, join, reads in (
        ("sum", 0, FORWARD, as_it_is, LEAVES),
        ("padding", 1, FORWARD, as_it_is, LEAVES),
        ("padding", 1, GRADIENT, _with_gradients, (*LEAVES, "cotangents")),
    ):
        contenders = {
            name: Contender((partial(_call, function, padding),), join, compiles=name in ("reference", "textbook"))
            for name, function in functions.items()
        }
        inputs = partial(_inputs, mode == GRADIENT, padding)
        yield Case("padded_sum", variant, mode, inputs, reads, contenders, most_states=MOST_STATES)
