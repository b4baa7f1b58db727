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
from progdistill.ops.padded_sum import padded_sum_reference


class ImagePasses(TorchDispatchMode):
    """Counts the operations that write tensors of at least `size` elements; views write nothing.

    `written`: by name. `elsewhere`: those that wrote in another order than channels_last.
    `norm` and `padded_sum` are operations of their own, as kernels are: "norm", "norm_backward", "padded_sum", ...
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

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, return_sources=False, **more):
        """Stands in for `group_norm_silu`, whose kernels add what reaches u and skip from elsewhere on the way back."""
        names = ("skip", "shift", "scale_shift", "residual")
        given = (x, weight, bias, *(more.get(name) for name in names))

        def function(x, weight, bias, *rest):
            options = dict(zip(names, rest, strict=True))
            results = group_norm_silu_reference(
                *(x, weight, bias, groups, eps), **options, silu=more.get("silu", True), return_sources=return_sources
            )
            return results if isinstance(results, tuple) else (results,)

        results = _Opaque.apply(self, "norm", function, *given)
        return results if len(results) > 1 else results[0]

    def padded_sum(self, x: Tensor, *, shift: Tensor | None = None, residual: Tensor | None = None, padding: int = 0):
        """Stands in for the operation of that name."""
        if shift is None and residual is None and not padding:
            return x

        def function(x, shift, residual):
            results = padded_sum_reference(x, shift=shift, residual=residual, padding=padding)
            return results if padding else (results,)

        results = _Opaque.apply(self, "padded_sum", function, x, shift, residual)
        return results if padding else results[0]


def _pixels_are_dense(tensor: Tensor) -> bool:
    """channels_last, or (B, heads, pixels, channels) of an attention that lie as (B, pixels, heads * channels)."""
    return tensor.is_contiguous(memory_format=torch.channels_last) or tensor.transpose(1, 2).is_contiguous()


class _Opaque(torch.autograd.Function):
    """A function of tensors as an operation of its own, forwards and backwards; what it hands on it does not write."""

    @staticmethod
    def forward(ctx, mode: ImagePasses, name: str, function, *given):
        ctx.set_materialize_grads(False)
        with mode.pause(), torch.enable_grad():
            ctx.leaves = [None if t is None else t.detach().requires_grad_() for t in given]
            ctx.results = function(*ctx.leaves)
            handed_on = {id(leaf): t for leaf, t in zip(ctx.leaves, given, strict=True) if leaf is not None}
            results = [
                None if result is None else handed_on.get(id(result), result.detach().clone()) for result in ctx.results
            ]
        ctx.mode, ctx.name = mode, name
        mode.note(name, results, given)
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        wanted = [leaf for leaf in ctx.leaves if leaf is not None]
        with ctx.mode.pause():
            given = [(r, g) for r, g in zip(ctx.results, grads, strict=True) if g is not None]
            found = torch.autograd.grad([r for r, _ in given], wanted, [g for _, g in given], allow_unused=True)
            found = [g if g is None or g.dim() != 4 else g.contiguous(memory_format=torch.channels_last) for g in found]
        ctx.mode.note(ctx.name + "_backward", [g for g in found if g is not None], grads)
        found = iter(found)
        return (None, None, None, *(None if leaf is None else next(found) for leaf in ctx.leaves))
