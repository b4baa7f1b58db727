"""What samplers do beside their networks, for benchmarks/kernels.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernel_cases import FORWARD, Case, Contender, Inputs, V, as_it_is, literal, serving
from progdistill import ops
from progdistill.ops.ddim_step import ddim_step_reference
from progdistill.ops.linear_combination import linear_combination_reference

FACTORS = (0.9, -0.7, 0.4, -0.2, 0.05)


def cases(device: str) -> list[Case]:
    """The operations of samplers, forwards."""
    return [*_ddim_step_and_input(device), *_linear_combination(device)]


def _contenders(operation: str, device: str, ours: Callable, reference: Callable, textbook: Callable) -> dict:
    named = {name: Contender((partial(ours, name),), as_it_is) for name in serving(operation, device)}
    plain = {"reference": reference, "textbook": textbook}
    return named | {name: Contender((function,), as_it_is, compiles=True) for name, function in plain.items()}


def _ddim_step_and_input(device: str) -> Iterator[Case]:
    """A step along a bfloat16 network, and what that takes of the result."""

    def inputs(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        z, out = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
        phi = torch.linspace(0.1, 1.4, shape[0], dtype=torch.float64, device=device)
        return {"z": z, "out": out.bfloat16(), "phi": phi, "phi_next": 0.75 * phi}

    def ours(backend: str, t: Inputs) -> tuple[Tensor, Tensor]:
        return ops.ddim_step_and_input(t["z"], t["out"], t["phi"], t["phi_next"], backend=backend)

    def reference(t: Inputs) -> tuple[Tensor, Tensor]:
        z_next = ddim_step_reference(t["z"], t["out"], t["phi"], t["phi_next"], V, None)
        return z_next, z_next.bfloat16()

    def textbook(t: Inputs) -> tuple[Tensor, Tensor]:
        z_next = literal.ddim(t["z"], t["out"], t["phi"].float(), t["phi_next"].float(), V)
        return z_next, z_next.bfloat16()

    contenders = _contenders("ddim_step", device, ours, reference, textbook)
    yield Case("ddim_step_and_input", "bf16", FORWARD, inputs, ("z", "out"), contenders)


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
