"""Counter-based Gaussian noise: noise[b] depends on seeds[b], step, stream and the element's place, on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.ops import native
from progdistill.ops.backends import choose, declare
from progdistill.ops.philox import philox_4x32_10, split_words
from progdistill.ops.registration import register


def normal(
    seeds: Tensor, step: int | Tensor, stream: int, shape: Sequence[int], *, backend: str | None = None
) -> Tensor:
    """Standard normal noise of shape (B, *shape), float32, on the device of `seeds`.

    Philox4x32-10 with key = seed and counter = (element // 4, stream, step low word, step high word); the four
    words of a block become four normals by Box-Muller, evaluated in float64 and rounded once. Element numbers run
    over the sample in contiguous order, so an image's noise is bitwise the same in every batch, process and device
    memory layout.

    Args:
        seeds: (B,) int64, one for each image.
        step: update or sampling step number, an int or a one-element int64 tensor on the same device.
        stream: in [0, 2^32); keeps draws for different purposes apart.
        shape: the shape of ONE sample, at most 2^34 elements.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Raises:
        TypeError, ValueError: wrong dtype, shape or range of an argument.
    """
    step = check_draw(seeds, step, stream, shape)
    return _normal(seeds, step, stream, list(shape), backend)


def check_draw(seeds: Tensor, step: int | Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Checks what a draw is made from, and returns the step as a tensor beside the seeds."""
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise TypeError(f"seeds is {seeds.dtype} of shape {tuple(seeds.shape)}; expected int64 of shape (B,)")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream is {stream}; it must lie in [0, 2^32)")
    if any(size < 0 for size in shape) or math.prod(shape) > 2**34:
        raise ValueError(f"shape {tuple(shape)} is not the shape of a sample of at most 2^34 elements")
    if not isinstance(step, Tensor):
        return torch.full((), step, dtype=torch.int64, device=seeds.device)
    if step.dtype != torch.int64 or step.numel() != 1:
        raise TypeError(f"step is {step.dtype} of shape {tuple(step.shape)}; expected one int64 element")
    if step.device != seeds.device:
        raise ValueError(f"step is on {step.device}, seeds on {seeds.device}; move one of them")
    return step


def normal_reference(seeds: Tensor, step: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """The formula in plain PyTorch."""
    count = math.prod(shape)
    blocks = torch.arange(-(-count // 4), device=seeds.device)
    counter = (blocks, stream, *split_words(step.reshape(())))
    low, high = split_words(seeds.unsqueeze(1))
    words = torch.stack(philox_4x32_10(counter, (low, high)), dim=-1)
    uniform = (words.double() + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0::2]))
    angle = 2.0 * math.pi * uniform[..., 1::2]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    flat = pairs.reshape(len(seeds), -1)[:, :count]
    return flat.to(torch.float32).reshape(len(seeds), *shape)


def _normal_native(seeds: Tensor, step: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    out = torch.empty((len(seeds), *shape), dtype=torch.float32, device=seeds.device)
    native._C.normal(native.view(out), native.view(seeds.contiguous()), native.view(step), stream, native.run(seeds))
    return out


def _normal_triton(seeds: Tensor, step: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    from progdistill.ops.triton_kernels.normal import normal

    out = torch.empty((len(seeds), *shape), dtype=torch.float32, device=seeds.device)
    normal(out, seeds.contiguous(), step, stream)
    return out


declare(
    "normal",
    {
        "reference": normal_reference,
        "cpu": _normal_native,
        "cuda": _normal_native,
        "triton": _normal_triton,
    },
)


def _implementation(seeds: Tensor, step: Tensor, stream: int, shape: list[int], backend: str | None) -> Tensor:
    return choose("normal", seeds.device.type, backend)(seeds, step, stream, shape)


def _fake(seeds: Tensor, step: Tensor, stream: int, shape: list[int], backend: str | None) -> Tensor:
    return seeds.new_empty((seeds.shape[0], *shape), dtype=torch.float32)


_normal = register(
    "normal(Tensor seeds, Tensor step, int stream, SymInt[] shape, str? backend) -> Tensor", _implementation, _fake
)
