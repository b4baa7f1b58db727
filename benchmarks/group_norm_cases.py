"""group_norm_silu on the layers of a network, for benchmarks/kernels.py: bfloat16, channels_last, values as its twins.

"shift" is a norm after a convolution whose bias and time's projection it adds; "residual" is one that forms the sum of
the block before on its way. The textbook has `F.group_norm` and `F.silu` on bfloat16 tensors, and sums and a
concatenation of its own. "cuda, read twice" are the CUDA kernels for large samples, where those that read each image
once would serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_cases import FORWARD, GRADIENT, Case, Contender, Inputs, as_it_is, serving
from progdistill import ops
from progdistill.ops import group_norm_kernels
from progdistill.ops.group_norm_silu import group_norm_silu_reference

GROUPS, EPS = 32, 1e-6
# The kinds of ddpm-cifar10-32, by resolution: x alone, and with the largest and smallest skip connection.
LAYERS = (
    "128x128+0x32x32",
    "128x256+128x32x32",
    "128x128+128x32x32",
    "128x256+0x16x16",
    "128x256+256x16x16",
    "128x256+0x8x8",
    "128x256+256x8x8",
    "128x256+256x4x4",
)
QUICK_LAYERS = ("2x32+32x4x4", "2x64+0x4x4")
# Images of x and skip, their gradients, y, its cotangent and float32 temporaries of the reference.
MOST_STATES = 24


def layer_sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of x and skip of "128x256+128x32x32": samples, channels + skip's channels, height, width.

    Raises:
        ValueError: the text is none, or 32 groups do not divide its channels.
    """
    samples, channels, height, width = text.split("x")
    shapes = tuple((int(samples), int(count), int(height), int(width)) for count in channels.split("+"))
    all_channels = sum(shape[1] for shape in shapes)
    if len(shapes) != 2 or all_channels % GROUPS != 0:
        raise ValueError(f"{all_channels} channels cannot be cut into {GROUPS} groups")
    return shapes


def cases(device: str) -> list[Case]:
    """The operation as far as this progdistill has it."""
    return list(_group_norm_silu(device)) if hasattr(ops, "group_norm_silu") else []


def _inputs(gradient: bool, residual: bool, shapes: tuple[tuple[int, ...], ...], device: str, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    def image(shape: tuple[int, ...]) -> Tensor:
        return draw(*shape).contiguous(memory_format=torch.channels_last)

    (samples, channels, height, width), (_, others, _, _) = shapes
    t: Inputs = {"x": image(shapes[0]), "weight": draw(channels + others), "bias": draw(channels + others)}
    t["shift"] = draw(channels) if residual else draw(samples, channels)
    t["skip"] = image(shapes[1]) if others else None
    t["residual"] = image(shapes[0]) if residual else None
    for value in t.values():
        if value is not None:
            value.requires_grad_(gradient)
    t["cotangents"] = [image((samples, channels + others, height, width)), *([image(shapes[0])] * residual)]
    return t


def _call(function: Any, t: Inputs, **options: Any) -> tuple[Tensor, ...]:
    given = {name: t[name] for name in ("shift", "skip", "residual")}
    found = function(t["x"], t["weight"], t["bias"], GROUPS, EPS, **given, **options)
    return found if isinstance(found, tuple) else (found,)


def _textbook(x, weight, bias, groups, eps, *, shift, skip, residual) -> Any:
    u = x + shift.reshape(-1, x.shape[1], 1, 1)
    if residual is not None:
        u = u + residual
    whole = u if skip is None else torch.cat((u, skip), dim=1)
    y = F.silu(F.group_norm(whole, groups, weight, bias, eps))
    return y if residual is None else (y, u)


def _with_gradients(forward: Any) -> Any:
    """The call, and autograd's gradients for all that it was given."""

    def call(t: Inputs) -> tuple[Tensor, ...]:
        results = forward(t)
        leaves = [value for name, value in t.items() if name != "cotangents" and value is not None]
        gradients = torch.autograd.grad(results, leaves, t["cotangents"])
        return *(result.detach() for result in results), *gradients

    return call


def _read_twice(join: Callable[[Any], Any], forward: Any) -> Any:
    def call(t: Inputs) -> tuple[Tensor, ...]:
        with mock.patch.object(group_norm_kernels, "TILE_BYTES", 0):
            return join(forward)(t)

    return call


def _group_norm_silu(device: str) -> Iterator[Case]:
    functions = {name: partial(ops.group_norm_silu, backend=name) for name in serving("group_norm_silu", device)}
    functions |= {"reference": group_norm_silu_reference, "textbook": _textbook}
    for residual in (False, True):
        given = ("x", "skip", "shift", "residual", "weight", "bias")
        # Backwards u once more, of which x has the size, and skip.
        again = ("cotangents", "x", "skip")
        for mode, join, reads in ((FORWARD, as_it_is, given), (GRADIENT, _with_gradients, (*given, *again))):
            contenders = {
                name: Contender((partial(_call, function),), join, compiles=name in ("reference", "textbook"))
                for name, function in functions.items()
            }
            if "cuda" in functions:
                pieces = contenders["cuda"].pieces
                contenders["cuda, read twice"] = Contender(pieces, partial(_read_twice, join))
            variant = "residual" if residual else "shift"
            inputs = partial(_inputs, mode == GRADIENT, residual)
            yield Case("group_norm_silu", variant, mode, inputs, reads, contenders, most_states=MOST_STATES)
