"""What a network does to image-sized tensors, as a `TorchDispatchMode` sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from progdistill.ops.group_norm_silu import group_norm_silu_reference

NAMES = ("skip", "shift", "scale_shift", "residual")


class ImagePasses(TorchDispatchMode):
    """Counts the operations that write tensors of at least `size` elements; views write nothing.

    `written`: by name. `elsewhere`: those that wrote in another order than channels_last.
    `norm` is group_norm_silu as an operation of its own, as a kernel is: "norm" and "norm_backward".
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.written, self.elsewhere, self._paused = size, Counter(), Counter(), False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if not self._paused:
            self.note(function.overloadpacket.__name__, results, (args, kwargs))
        return results

    def note(self, name: str, results: object, arguments: object = ()) -> None:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves(arguments) if isinstance(t, Tensor)}
        for tensor in tree_leaves(results):
            if not isinstance(tensor, Tensor) or tensor.numel() < self.size:
                continue
            in_place = name.endswith("_")
            if in_place or tensor.untyped_storage().data_ptr() not in known:
                self.written[name] += 1
                if tensor.dim() == 4 and not _pixels_are_dense(tensor):
                    self.elsewhere[name] += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        self._paused = True
        yield
        self._paused = False

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool, **more):
        y, u = _OpaqueNorm.apply(self, (groups, eps, silu), x, weight, bias, *(more.get(name) for name in NAMES))
        return y if more.get("residual") is None else (y, u)


def _pixels_are_dense(tensor: Tensor) -> bool:
    """channels_last, or (B, heads, pixels, channels) of an attention that lie as (B, pixels, heads * channels)."""
    return tensor.is_contiguous(memory_format=torch.channels_last) or tensor.transpose(1, 2).is_contiguous()


class _OpaqueNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mode: ImagePasses, numbers, x, weight, bias, *more):
        ctx.set_materialize_grads(False)
        groups, eps, silu = numbers
        with mode.pause(), torch.enable_grad():
            ctx.leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, *more)]
            options = dict(zip(NAMES, ctx.leaves[3:], strict=True))
            results = group_norm_silu_reference(*ctx.leaves[:3], groups, eps, silu=silu, **options)
            ctx.results = results if isinstance(results, tuple) else (results,)
            ctx.mode = mode
            results = tuple(result.detach().clone() for result in ctx.results)
        mode.note("norm", results)
        return results if len(results) == 2 else (*results, None)

    @staticmethod
    def backward(ctx, dy, du):
        wanted = [leaf for leaf in ctx.leaves if leaf is not None]
        with ctx.mode.pause():
            given = [(r, g) for r, g in zip(ctx.results, (dy, du), strict=False) if g is not None]
            grads = torch.autograd.grad([r for r, _ in given], wanted, [g for _, g in given])
            grads = [g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g for g in grads]
        ctx.mode.note("norm_backward", grads)
        grads = iter(grads)
        return (None, None, *(None if leaf is None else next(grads) for leaf in ctx.leaves))
