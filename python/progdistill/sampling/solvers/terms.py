"""Sums of tensors times numbers that are formed when they are needed, all in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from progdistill.ops import linear_combination


class Term(NamedTuple):
    """A tensor times a number, or one of two heads (B, 2C, ...), each of which has a number of its own."""

    tensor: Tensor
    factors: tuple[float, ...] = (1.0,)


def scaled(factor: float, terms: Sequence[Term]) -> list[Term]:
    """factor times a sum."""
    return [Term(tensor, tuple(factor * own for own in factors)) for tensor, factors in terms]


def evaluated(terms: Sequence[Term], state: Tensor) -> Tensor:
    """A sum's value in the dtype and layout of `state`; `state` itself if that is what the sum says."""
    merged = {id(state): Term(state, (0.0,))}
    for tensor, factors in terms:
        _, before = merged.get(id(tensor), (tensor, (0.0,) * len(factors)))
        merged[id(tensor)] = Term(tensor, tuple(a + b for a, b in zip(before, factors, strict=True)))
    (_, own), *others = merged.values()
    others = [term for term in others if any(term.factors)]
    if own == (1.0,) and not others:
        return state
    factors = [factor for term in others for factor in term.factors]
    return linear_combination([state, *(_readable(term.tensor, state) for term in others)], [*own, *factors])


def _readable(tensor: Tensor, state: Tensor) -> Tensor:
    narrow = torch.promote_types(tensor.dtype, state.dtype) == state.dtype
    return tensor if narrow else tensor.to(state.dtype)
