"""One random number a sample, for benchmarks/kernels.py: what an update draws its times, seeds and mirrorings with.

The textbook has torch's own generator for it, whose numbers depend on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from kernel_cases import FORWARD, Case, Contender, Inputs, as_it_is, serving
from progdistill import ops
from progdistill.ops.draws import draw_reference, random_bits_reference

HIGH, KEY = 1000, 42


def cases(device: str) -> list[Case]:
    """The operations that draw a number a sample."""
    return list(_cases(device))


def _cases(device: str) -> Iterator[Case]:
    def uniform(backend: str, t: Inputs) -> Tensor:
        return ops.uniform(t["seeds"], t["step"], 0, backend=backend)

    def integers(backend: str, t: Inputs) -> Tensor:
        return ops.integers(t["seeds"], t["step"], 0, HIGH, backend=backend)

    def random_bits(backend: str, t: Inputs) -> Tensor:
        return ops.random_bits(t["seeds"], KEY, 1, backend=backend)

    def drawn(high: int | None, t: Inputs) -> Tensor:
        return draw_reference(t["seeds"], t["step"], 0, high)

    def bits(t: Inputs) -> Tensor:
        return random_bits_reference(t["seeds"], KEY, 1)

    def rand(t: Inputs) -> Tensor:
        return torch.rand(len(t["seeds"]), dtype=torch.float64, device=t["seeds"].device)

    def randint(low: int, high: int, t: Inputs) -> Tensor:
        return torch.randint(low, high, (len(t["seeds"]),), device=t["seeds"].device)

    yield _case("uniform", "draw", device, uniform, partial(drawn, None), rand)
    yield _case("integers", "draw", device, integers, partial(drawn, HIGH), partial(randint, 0, HIGH))
    yield _case("random_bits", "random_bits", device, random_bits, bits, partial(randint, -(2**63), 2**63 - 1))


def _case(operation: str, declared: str, device: str, ours: Callable, reference: Callable, textbook: Callable) -> Case:
    contenders = {name: Contender((partial(ours, name),), as_it_is) for name in serving(declared, device)}
    contenders["reference"] = Contender((reference,), as_it_is)  # 64-bit products by hand: minutes to compile
    contenders["textbook"] = Contender((textbook,), as_it_is, other_numbers=True)
    return Case(operation, "", FORWARD, _inputs, ("seeds",), contenders)


def _inputs(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
    seeds = torch.arange(shape[0], device=device) + seed * shape[0]
    return {"seeds": seeds, "step": torch.ones((), dtype=torch.int64, device=device)}
