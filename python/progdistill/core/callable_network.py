"""Any callable as a network: plain functions, and modules whose output is not one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class CallableNetwork(nn.Module):
    """`function(z, time)` or `function(z, time, class_labels)` as a module that returns one tensor.

    Args:
        function: any callable. A module's parameters are this network's: they are moved, copied and trained with it.
            What a plain function closes over is not.

    What the function may return: a tensor (B, C, ...); a tuple or list of K such tensors, which are K heads side by
    side along the channels ((x, eps) is the output of a "sample_epsilon" network); an object whose attribute `sample`
    is a tensor, as diffusers' models return.

    Raises:
        TypeError: what is given cannot be called; on a call, any other output.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(
                f"{function!r} is not callable; a network is called with (z, time), or (z, time, class_labels)"
            )
        self.function = function
        # Says where a function without parameters computes: it moves with the module.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def forward(self, *inputs: Any) -> Tensor:
        out = self.function(*inputs)
        if isinstance(out, Tensor):
            return out
        # Before the sequences: diffusers' outputs are dictionaries with attributes.
        sample = getattr(out, "sample", None)
        if isinstance(sample, Tensor):
            return sample
        if isinstance(out, (tuple, list)) and out and all(isinstance(head, Tensor) for head in out):
            return out[0] if len(out) == 1 else torch.cat(tuple(out), dim=1)
        raise TypeError(
            f"the network returned a {type(out).__name__}; return a tensor, a tuple of tensors (the heads) or an "
            "object whose attribute `sample` is a tensor"
        )
