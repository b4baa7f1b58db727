"""Queries, keys and values of an attention as one matrix product, which reads the tokens once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progdistill.nets.layers import project


def projections(layers: Sequence[nn.Linear], tokens: Tensor) -> tuple[Tensor, ...]:
    """Each layer's product with tokens (B, T, C): (B, T, C') each, views of one tensor (B, T, len(layers) C').

    Where the layers' matrices lie one after the other in memory (`lay_side_by_side`) they are read there; else a copy
    of them is made. Gradients come back by products of their own, added up where they are written: one for all layers
    would want their gradients concatenated, an image's pass more. What else watches the call, torch.compile, autocast
    or a transform, sees a product for each layer.
    """
    parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (tokens, *parameters)):
        if _is_watched(tokens):
            return tuple(project(layer, tokens) for layer in layers)
        return _Projections.apply(tokens, *parameters)
    return _product(tokens, parameters)


@torch.no_grad()
def lay_side_by_side(layers: Sequence[nn.Linear]) -> None:
    """Moves matrices and biases of layers that are alike to where `projections` reads them without a copy."""
    for parameters in ([layer.weight for layer in layers], [layer.bias for layer in layers]):
        parts = torch.cat([parameter.data for parameter in parameters]).chunk(len(parameters))
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part


def _product(tokens: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    count = len(parameters) // 2
    weight, bias = _rows(parameters[:count]), _rows(parameters[count:])
    return F.linear(tokens, weight, bias.to(weight.dtype)).chunk(count, dim=-1)


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """The parts' rows in one tensor: the parts themselves if they lie so, else their concatenation."""
    first, size = parts[0], parts[0].numel()
    if not torch.compiler.is_compiling() and all(
        part.is_contiguous()
        and part.storage_offset() == first.storage_offset() + place * size
        and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        for place, part in enumerate(parts)
    ):
        return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())
    return torch.cat(list(parts))


def _is_watched(tokens: Tensor) -> bool:
    kind = tokens.device.type
    return bool(
        torch.compiler.is_compiling()
        or (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, *parameters):
        count = len(parameters) // 2
        ctx.save_for_backward(tokens, *parameters[:count])
        ctx.bias_dtypes = [bias.dtype for bias in parameters[count:]]
        return _product(tokens, parameters)

    @staticmethod
    def backward(ctx, *grads):
        tokens, *weights = ctx.saved_tensors
        for_tokens, *wanted = ctx.needs_input_grad
        for_weights, for_biases = wanted[: len(weights)], wanted[len(weights) :]
        rows, pixels = [grad.flatten(0, -2) for grad in grads], tokens.flatten(0, -2)
        total = None
        if for_tokens:
            total = rows[0] @ weights[0]
            for row, weight in zip(rows[1:], weights[1:], strict=True):
                total.addmm_(row, weight)
            total = total.view_as(tokens)
        of_weights = [row.t() @ pixels if wanted else None for row, wanted in zip(rows, for_weights, strict=True)]
        of_biases = [
            row.sum(0).to(dtype) if wanted else None
            for row, wanted, dtype in zip(rows, for_biases, ctx.bias_dtypes, strict=True)
        ]
        return total, *of_weights, *of_biases
