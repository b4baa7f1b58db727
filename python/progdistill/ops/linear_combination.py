"""A sum of tensors, each times a number, in one pass over memory: what the states of ODE solvers are formed by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from progdistill.ops import checks, native
from progdistill.ops.backends import choose, declare
from progdistill.ops.layout import dense, interleaved_channels, memory_format, split_heads
from progdistill.ops.registration import register

MOST_FACTORS = 8  # kMaxTerms of kernels/include/combination.h
# Beside a state of that dtype: what loses nothing where it is converted.
_NARROWER = {
    torch.float32: (torch.bfloat16, torch.float16),
    torch.float64: (torch.bfloat16, torch.float16, torch.float32),
}


def linear_combination(tensors: Sequence[Tensor], factors: Sequence[float], *, backend: str | None = None) -> Tensor:
    """sum_k factors[k] * tensors[k].

    Args:
        tensors: the first is a state, (B, ...) float32 or float64, and says what the result is like. Others have its
            shape, or are outputs of two heads, (B, 2C, ...), which take a factor for each; they have its dtype or a
            narrower one. bfloat16 beside a float32 state is read as it is, others are converted before.
        factors: finite numbers, 1 to 8 in all. A tensor whose factor is 0 is not read: it may hold infinities.
        backend: force "reference", "cpu", "cuda" or "triton"; default: the best available.

    Returns:
        The sum with the shape, dtype and layout of tensors[0], added up in the order given with one rounding for each
        term. Differentiable in the tensors. Factors are part of the launch: a captured graph repeats them.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or number, with what is allowed.
    """
    tensors, factors = list(tensors), [float(factor) for factor in factors]
    _check(tensors, factors)
    return _linear_combination(tensors, factors, backend)


def linear_combination_reference(tensors: list[Tensor], factors: list[float]) -> Tensor:
    """The formula in plain PyTorch."""
    total = None
    for tensor, own in _used(tensors, factors):
        for factor, part in zip(own, split_heads(tensor, len(own), tensors[0].dtype), strict=True):
            if factor != 0.0:
                total = factor * part if total is None else torch.add(total, part, alpha=factor)
    return torch.zeros_like(tensors[0]) if total is None else total


def _linear_combination_native(tensors: list[Tensor], factors: list[float]) -> Tensor:
    result, read = _prepared(tensors, factors)
    native._C.linear_combination(
        native.view(result), [native.view(tensor) for tensor, _ in read], [own for _, own in read], native.run(result)
    )
    return result


def _linear_combination_triton(tensors: list[Tensor], factors: list[float]) -> Tensor:
    from progdistill.ops.triton_kernels.linear_combination import linear_combination

    result, read = _prepared(tensors, factors)
    linear_combination(result, read, interleaved_channels(result, memory_format(result)))
    return result


declare(
    "linear_combination",
    {
        "reference": linear_combination_reference,
        "cpu": _linear_combination_native,
        "cuda": _linear_combination_native,
        "triton": _linear_combination_triton,
    },
)


def _used(tensors: list[Tensor], factors: list[float]) -> list[tuple[Tensor, list[float]]]:
    """The tensors that are read, each with the factors of its heads."""
    used, first = [], 0
    for tensor in tensors:
        own = factors[first : first + _heads(tensor, tensors[0])]
        first += len(own)
        if any(own):
            used.append((tensor, own))
    return used


def _prepared(tensors: list[Tensor], factors: list[float]) -> tuple[Tensor, list[tuple[Tensor, list[float]]]]:
    """(where the sum goes, what is read), which lie in memory alike."""
    state = tensors[0]
    format, kernels_read = memory_format(state), [state.dtype]
    if state.dtype == torch.float32:
        kernels_read.append(torch.bfloat16)
    read = []
    for tensor, own in _used(tensors, factors):
        tensor = tensor if tensor.dtype in kernels_read else tensor.to(state.dtype)
        read.append((dense(tensor, format), own))
    return torch.empty_like(state, memory_format=format), read


def _heads(tensor: Tensor, state: Tensor) -> int:
    return 1 if tensor.shape == state.shape else 2


def _check(tensors: list[Tensor], factors: list[float]) -> None:
    if not tensors:
        raise ValueError("tensors is empty; pass at least the state that the result is to be like")
    state, heads = tensors[0], 0
    checks.check_state("tensors[0]", state)
    for k, tensor in enumerate(tensors):
        if tensor.dtype != state.dtype and tensor.dtype not in _NARROWER[state.dtype]:
            raise TypeError(
                f"tensors[{k}] is {tensor.dtype}, tensors[0] is {state.dtype}; pass tensors[{k}].to({state.dtype})"
            )
        two = (state.shape[0], 2 * state.shape[1], *state.shape[2:])
        if tensor.shape not in (state.shape, two):
            raise ValueError(
                f"tensors[{k}] has shape {tuple(tensor.shape)}, tensors[0] has {tuple(state.shape)}; they must agree, "
                f"or tensors[{k}] hold two heads, {two}"
            )
        checks.check_device(f"tensors[{k}]", tensor, "tensors[0]", state)
        heads += _heads(tensor, state)
    if len(factors) != heads:
        raise ValueError(f"{len(factors)} factors were given for {heads} tensors, two-headed ones counted twice")
    if heads > MOST_FACTORS:
        raise ValueError(f"{heads} tensors were given, two-headed ones counted twice; at most {MOST_FACTORS} are taken")
    for k, factor in enumerate(factors):
        if not math.isfinite(factor):
            raise ValueError(f"factors[{k}] is {factor}; factors are finite numbers")


def _implementation(tensors: list[Tensor], factors: list[float], backend: str | None) -> Tensor:
    run = choose("linear_combination", tensors[0].device.type, backend)
    return dense(run(tensors, factors), memory_format(tensors[0]))


def _fake(tensors: list[Tensor], factors: list[float], backend: str | None) -> Tensor:
    return torch.empty_like(tensors[0], memory_format=memory_format(tensors[0]))


def _setup_context(ctx, inputs, output) -> None:
    tensors, ctx.factors, _ = inputs
    ctx.kinds = [(_heads(tensor, tensors[0]), tensor.dtype) for tensor in tensors]


def _backward(ctx, grad: Tensor):
    grads, first = [], 0
    for heads, dtype in ctx.kinds:
        parts = [factor * grad for factor in ctx.factors[first : first + heads]]
        grads.append((torch.cat(parts, dim=1) if heads > 1 else parts[0]).to(dtype))
        first += heads
    return grads, None, None


_linear_combination = register(
    "linear_combination(Tensor[] tensors, float[] factors, str? backend) -> Tensor",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
