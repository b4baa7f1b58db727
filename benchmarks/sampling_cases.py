"""What samplers do beside their networks, for benchmarks/kernels.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from kernel_cases import FORWARD, Case, Contender, Inputs, as_it_is, serving
from progdistill import ops
from progdistill.ops.linear_combination import linear_combination_reference

FACTORS = (0.9, -0.7, 0.4, -0.2, 0.05)


def cases(device: str) -> list[Case]:
    """The operations of samplers, forwards."""
    return [*_linear_combination(device)]


def _contenders(operation: str, device: str, ours: Callable, reference: Callable, textbook: Callable) -> dict:
    named = {name: Contender((partial(ours, name),), as_it_is) for name in serving(operation, device)}
    plain = {"reference": reference, "textbook": textbook}
    return named | {name: Contender((function,), as_it_is, compiles=True) for name, function in plain.items()}


def _linear_combination(device: str) -> Iterator[Case]:
    """A state and outputs of a network: one as in DDIM, four as in iPNDM."""

    def inputs(count: int, shape: tuple[int, ...], device: str, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        return {"tensors": [torch.randn(shape, generator=generator, device=device) for _ in range(count)]}

    def ours(backend: str, t: Inputs) -> Any:
        return ops.linear_combination(t["tensors"], FACTORS[: len(t["tensors"])], backend=backend)

    def reference(t: Inputs) -> Any:
        return linear_combination_reference(t["tensors"], list(FACTORS[: len(t["tensors"])]))

    def textbook(t: Inputs) -> Any:
        return sum(factor * tensor for factor, tensor in zip(FACTORS, t["tensors"], strict=False))

    for count in (2, 5):
        contenders = _contenders("linear_combination", device, ours, reference, textbook)
        yield Case("linear_combination", f"{count} tensors", FORWARD, partial(inputs, count), ("tensors",), contenders)
