"""What a network's twin on a GPU reads and writes of images between its products, counted without a GPU.

    python benchmarks/image_passes.py --network ddpm-cifar10-32 --batch-size 128

A `TorchDispatchMode` sees every operation of a forward and a backward pass on the meta device, which computes nothing;
stand-ins count as the kernels of `group_norm_silu`, `padded_sum` and attention, which are not there. A convolution that
adds its own bias counts a pass for it, as PyTorch makes one after cuDNN's. Milliseconds are those of an update, three
passes forward and one back, in bfloat16 at 80 % of an H200's rate of copying: predicted, not measured.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from options import positive
from progdistill.nets import attention, pending_sum, upsampling
from progdistill.nets.bfloat16_twin import bfloat16_twin
from progdistill.nets.presets import PRESETS, preset
from progdistill.nets.unet import UNet
from progdistill.ops.group_norm_silu import group_norm_silu_reference
from progdistill.ops.padded_sum import padded_sum_reference

COPY_RATE = 4.27e12  # bytes a second, read and written, on an H200
PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "addmm_", "bmm", "attention", "attention_backward")
NORMS = ("norm", "norm_backward")
SAMPLES = 7  # divides no number of channels or weights


class ImagePasses(TorchDispatchMode):
    """Counts the operations that write images: tensors of at least `size` elements, and of whole samples.

    `calls`: how many, by name; views write nothing. `written`: how many images. `moved`: elements of images, read and
    written. `elsewhere`: images written in another order than channels_last. `norm`, `padded_sum` and `attention` are
    to stand in for those operations; what they do within is not seen.
    """

    def __init__(self, size: int = 1, samples: int = 1) -> None:
        super().__init__()
        self.size, self.samples, self._paused = size, samples, False
        self.calls, self.written, self.moved, self.elsewhere = Counter(), Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("convolution", "convolution_backward"):
            results = tree_map_only(Tensor, _as_cudnn_lays, results)
        if not self._paused:
            name, given = function.overloadpacket.__name__, (args, kwargs)
            known = {_storage(tensor) for tensor in _tensors(given)}
            new = [t for t in _tensors(results) if name.endswith("_") or _storage(t) not in known]
            self.note(name, _tensors(given) if new else (), new)
            if name == "convolution" and args[2] is not None:
                self.note("bias of a convolution", new, new)
        return results

    def note(self, name: str, read: Iterable[Tensor], wrote: Iterable[Tensor]) -> None:
        """One operation."""
        read, wrote = filter(self._is_image, read), list(filter(self._is_image, wrote))
        moved = sum(tensor.numel() for tensor in (*read, *wrote))
        elsewhere = sum(tensor.dim() == 4 and not _pixels_are_dense(tensor) for tensor in wrote)
        numbers = (min(1, len(wrote)), len(wrote), moved, elsewhere)
        for counts, number in zip((self.calls, self.written, self.moved, self.elsewhere), numbers, strict=True):
            if number:
                counts[name] += number

    def _is_image(self, tensor: Tensor) -> bool:
        return tensor.numel() >= self.size and tensor.numel() % self.samples == 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens is not seen."""
        self._paused = True
        yield
        self._paused = False

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, return_sources=False, **more):
        """Stands in for `group_norm_silu`, whose kernels add what reaches u and skip from elsewhere on the way back."""
        names = ("skip", "shift", "scale_shift", "residual")
        given = (x, weight, bias, *(more.get(name) for name in names))
        silu = more.get("silu", True)

        def function(x, weight, bias, *rest):
            options = dict(zip(names, rest, strict=True))
            results = group_norm_silu_reference(
                *(x, weight, bias, groups, eps), **options, silu=silu, return_sources=return_sources
            )
            return results if isinstance(results, tuple) else (results,)

        def backward(grads):
            images = [image for image in (x, more.get("skip")) if image is not None]
            self.note("norm_backward", (*grads, *images), images)

        results = _Opaque.apply(self, "norm", function, backward, *given)
        return results if len(results) > 1 else results[0]

    def padded_sum(self, x: Tensor, *, shift: Tensor | None = None, residual: Tensor | None = None, padding: int = 0):
        """Stands in for the operation of that name."""
        if shift is None and residual is None and not padding:
            return x

        def function(x, shift, residual):
            results = padded_sum_reference(x, shift=shift, residual=residual, padding=padding)
            return results if padding else (results,)

        def backward(grads):
            if padding:
                self.note("padded_sum_backward", grads, [x])
            self.note("sum", [] if shift is None else [x], [])

        results = _Opaque.apply(self, "padded_sum", function, backward, x, shift, residual)
        return results if padding else results[0]

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stands in for `F.scaled_dot_product_attention`."""

        def function(query, key, value):
            scores = query @ key.transpose(-1, -2)  # its shape is all that matters
            return ((scores @ value).transpose(1, 2).contiguous().transpose(1, 2),)

        def backward(grads):
            self.note("attention_backward", (*grads, *given), 3 * grads)

        given = query, key, value
        (result,) = _Opaque.apply(self, "attention", function, backward, *given)
        return result


def _as_cudnn_lays(tensor: Tensor) -> Tensor:
    """channels_last, as the weights of a twin are: the meta device's convolutions do not say so."""
    on_meta = tensor.is_meta and tensor.dim() == 4
    return tensor.contiguous(memory_format=torch.channels_last) if on_meta else tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # on the meta device there are no addresses


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _pixels_are_dense(tensor: Tensor) -> bool:
    """channels_last, or (B, heads, pixels, channels) of an attention that lie as (B, pixels, heads * channels)."""
    return tensor.is_contiguous(memory_format=torch.channels_last) or tensor.transpose(1, 2).is_contiguous()


class _Opaque(torch.autograd.Function):
    """A function of tensors as an operation of its own; `note_backward` gets the gradients of its results."""

    @staticmethod
    def forward(ctx, mode: ImagePasses, name: str, function, note_backward, *given):
        ctx.set_materialize_grads(False)
        with mode.pause(), torch.enable_grad():
            ctx.leaves = [None if t is None else t.detach().requires_grad_() for t in given]
            ctx.results = function(*ctx.leaves)
            handed_on = {id(leaf): t for leaf, t in zip(ctx.leaves, given, strict=True) if leaf is not None}
            results = [None if r is None else handed_on.get(id(r), r.detach().clone()) for r in ctx.results]
        ctx.mode, ctx.note_backward = mode, note_backward
        old = {_storage(tensor) for tensor in _tensors(given)}
        mode.note(name, _tensors(given), [r for r in results if r is not None and _storage(r) not in old])
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        wanted = [leaf for leaf in ctx.leaves if leaf is not None]
        with ctx.mode.pause():
            given = [(r, g) for r, g in zip(ctx.results, grads, strict=True) if g is not None]
            found = torch.autograd.grad([r for r, _ in given], wanted, [g for _, g in given], allow_unused=True)
            found = [g if g is None or g.dim() != 4 else _as(g, leaf) for g, leaf in zip(found, wanted, strict=True)]
        ctx.note_backward([g for _, g in given])
        found = iter(found)
        return (None,) * 4 + tuple(None if leaf is None else next(found) for leaf in ctx.leaves)


def _as(grad: Tensor, leaf: Tensor) -> Tensor:
    return torch.empty_like(leaf, memory_format=torch.preserve_format).copy_(grad)


@contextmanager
def stand_ins(passes: ImagePasses) -> Iterator[None]:
    """Networks call the stand-ins, as if there were kernels."""
    with (
        mock.patch.object(pending_sum, "_has_kernel", lambda device, dtype: True),
        mock.patch.object(pending_sum, "group_norm_silu", passes.norm),
        mock.patch.object(pending_sum, "padded_sum", passes.padded_sum),
        mock.patch.object(attention.F, "scaled_dot_product_attention", passes.attention),
    ):
        yield


def counted(name: str) -> tuple[Counter[str], Counter[str]]:
    """Elements a sample that the passes of a preset forwards and backwards move, by operation."""
    config = preset(name)
    with torch.device("meta"):
        twin = bfloat16_twin(UNet(config)).eval()  # students learn without dropout
        sample = torch.empty(SAMPLES, config.in_channels, config.sample_size, config.sample_size)
        labels = None if config.num_class_embeds is None else torch.empty(SAMPLES, dtype=torch.int64)
        passes = ImagePasses(samples=SAMPLES)
        with stand_ins(passes), mock.patch.object(upsampling, "LEAST_PIXELS", 0):
            with passes:
                output = twin(sample.to(memory_format=torch.channels_last), torch.empty(SAMPLES), labels)
            forward = passes.moved.copy()
            passes.moved.clear()
            with passes:
                output.backward(torch.empty_like(output))
    found = (Counter({name: count / SAMPLES for name, count in of.items()}) for of in (forward, passes.moved))
    return tuple(found)


def milliseconds(forward: float, backward: float, batch_size: int) -> float:
    """Of an update, for so many elements of bfloat16 a sample."""
    return 1e3 * 2 * batch_size * (3 * forward + backward) / (0.8 * COPY_RATE)


def lines(forward: Counter[str], backward: Counter[str], batch_size: int) -> list[str]:
    """A table: what is neither product nor norm, largest first, then these in all, and the norms."""

    def line(name: str, names: Iterable[str]) -> str:
        names = list(names)
        both = [sum(of[one] for one in names) for of in (forward, backward)]
        return f"{name:<34}{both[0] / 1e6:>12.3f}{both[1] / 1e6:>12.3f}{milliseconds(*both, batch_size):>12.3f}"

    others = [name for name in {**forward, **backward} if name not in PRODUCTS + NORMS]
    others.sort(key=lambda name: -3 * forward[name] - backward[name])
    return [
        f"{'':<34}{'forwards, M':>12}{'backwards, M':>12}{'update, ms':>12}",
        *(line(name, [name]) for name in others if 3 * forward[name] + backward[name] >= 1000),
        line("all of these", others),
        line("norms, each image once", NORMS),
    ]


def main(words: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(PRESETS), default="ddpm-cifar10-32")
    parser.add_argument("--batch-size", type=positive, default=128)
    arguments = parser.parse_args(words)
    print(f"{arguments.network}, batch {arguments.batch_size}: elements of images read and written, a sample")
    print("\n".join(lines(*counted(arguments.network), arguments.batch_size)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
