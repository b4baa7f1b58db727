"""torch's operations on the simulated GPU, computed by the CPU in the same memory, or kept while torch captures.

Each operation of aten that has a CUDA kernel gets one in Python instead, which lays CPU tensors over the memory of its
CUDA tensors and calls the CPU's kernel. During a capture it does nothing but hand the call to the runtime, as a node of
the graph; a result has its shape then, and NaNs until the graph is launched. What needs the host is refused.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_runtime = ctypes.CDLL(os.environ["SIMULATED_GPU_RUNTIME"])
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_runtime.simulated_gpu_enqueue.argtypes = [ctypes.c_void_p, _CALL, ctypes.c_void_p]
_runtime.simulated_gpu_refuse.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_runtime.simulated_gpu_is_pinned.argtypes = [ctypes.c_void_p]

# Memory and views need no kernel.
_KEPT = {"as_strided", "empty", "empty_strided", "is_pinned", "record_stream", "resize_", "set_", "unfold", "view"}
_KEPT |= {"_pin_memory", "_reshape_alias", "is_set_to"}
# CUDA's own algorithms, which the CPU has not: what calls them is replaced, or told to do without.
_CUDA_ONLY = ("_cudnn", "cudnn", "_efficient", "_flash", "_scaled_dot_product", "_fused_sdp", "_thnn", "miopen")
_WITHOUT_A_KERNEL = ("convolution", "convolution_backward", "_batch_norm_impl_index")
_NEED_THE_HOST = {"_local_scalar_dense", "_unique2", "bincount", "equal", "masked_select", "nonzero", "unique_dim"}
_INDEXING = {"index", "index_put_", "_index_put_impl_"}

_recorded: dict[int, Callable[[], object]] = {}
_numbers = itertools.count(1)


@_CALL
def _run_recorded(number: int) -> None:
    try:
        _recorded[number]()
    except Exception:  # nothing above can take it
        traceback.print_exc()
        os._exit(70)


def record(call: Callable[[], object]) -> None:
    """Makes a call a node of the graph that the current stream captures."""
    number = next(_numbers)
    _recorded[number] = call
    _runtime.simulated_gpu_enqueue(_stream(), _run_recorded, number)


def refuse(why: str) -> None:
    """Ends the capture, as CUDA does.

    Raises:
        RuntimeError: always.
    """
    _runtime.simulated_gpu_refuse(_stream(), why.encode())
    raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({why})")


def on_cpu(tensor: Tensor) -> Tensor:
    """A CPU tensor in the memory of a simulated CUDA tensor."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    same = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(same, tensor.storage_offset(), tensor.size(), tensor.stride())


def _stream() -> int:
    return torch._C._cuda_getCurrentRawStream(0)


def _is_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _as_on_cpu(value: Any) -> Any:
    if _is_cuda(value):
        return on_cpu(value)
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _harmless(value: Any) -> Any:
    """For the shape of a result during a capture, when indices are not there yet: zeros index nothing beyond."""
    if isinstance(value, Tensor) and not value.is_floating_point() and value.dim() > 0:
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype).zero_()
    return value


def _like_on_gpu(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cuda")


class _Operation:
    """The kernel of one operation."""

    def __init__(self, operation: torch._ops.OpOverload) -> None:
        schema = operation._schema
        self._operation, self._arguments = operation, schema.arguments
        self._name = schema.name.removeprefix("aten::")
        self._changed = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        self._returned = [self._argument_of(r) for r in schema.returns]
        self._draws = any(a.name == "generator" and a.kwarg_only for a in schema.arguments)

    def _argument_of(self, returned) -> str | None:
        if returned.alias_info is None:
            return None
        own = [a for a in self._arguments if a.alias_info is not None]
        return next((a.name for a in own if a.alias_info.before_set & returned.alias_info.before_set), None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip((a.name for a in self._arguments), args, strict=False)), **kwargs}
        capturing = torch._C._cuda_isCurrentStreamCapturing()
        if capturing and self._needs_the_host(given):
            refuse(self._name)
        values, options = tree_map(_as_on_cpu, list(args)), tree_map(_as_on_cpu, kwargs)
        for i, argument in enumerate(self._arguments[: len(values)]):
            if isinstance(values[i], (bool, int, float)) and str(argument.type) == "Tensor":
                values[i] = torch.tensor(values[i])
        if self._draws:
            options["generator"] = _generator(given.get("generator"), capturing)
        self._size_output(given, values, options)
        if not self._changed:
            return self._computed(capturing, values, options)
        call = lambda: self._operation(*values, **options)  # noqa: E731
        result = record(call) if capturing else call()
        if not self._returned:
            return None
        if None in self._returned:
            assert not capturing, f"the simulated GPU does not capture {self._name}"
            return tree_map(_copied_to_gpu, result)
        own = tuple(given[name] for name in self._returned)
        return own[0] if len(own) == 1 else own

    def _needs_the_host(self, given: dict[str, Any]) -> bool:
        masks = self._name in _INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in given["indices"]
        )
        return masks or self._name in _NEED_THE_HOST

    def _size_output(self, given: dict[str, Any], values: list, options: dict[str, Any]) -> None:
        """An empty `out` takes the result's shape, which memory that the CPU only borrows cannot."""
        out = given.get("out")
        if "out" in self._changed and _is_cuda(out) and out.numel() == 0:
            others = {name: _harmless(value) for name, value in options.items() if name != "out"}
            shape = getattr(torch.ops.aten, self._name)(*tree_map(_harmless, values), **others).shape
            options["out"] = on_cpu(out.resize_(shape))

    def _computed(self, capturing: bool, values: list, options: dict[str, Any]) -> Any:
        if not capturing:
            return tree_map(_copied_to_gpu, self._operation(*values, **options))
        shapes = self._operation(*tree_map(_harmless, values), **tree_map(_harmless, options))
        results = tree_map(_like_on_gpu, shapes)
        places = [on_cpu(leaf) if _is_cuda(leaf) else None for leaf in tree_leaves(results)]
        for place in places:
            if place is not None and place.numel():
                ctypes.memset(place.untyped_storage().data_ptr(), 0xFF, place.untyped_storage().nbytes())

        def again() -> None:
            for place, value in zip(places, tree_leaves(self._operation(*values, **options)), strict=True):
                if place is not None and place.numel():
                    place.copy_(value)

        record(again)
        return results


def _copied_to_gpu(value: Any) -> Any:
    result = _like_on_gpu(value)
    if result is not value and value.numel():
        on_cpu(result).copy_(value)
    return result


def _generator(own: torch.Generator | None, capturing: bool) -> torch.Generator:
    """A CPU generator in place of CUDA's: other numbers, as reproducible."""
    own = own or torch.cuda.default_generators[0]
    result = torch.Generator()
    if own.device.type == "cuda" and not capturing:
        result.manual_seed((1_000_003 * own.initial_seed() + own.get_offset()) % 2**63)
        own.set_offset(own.get_offset() + 4)
    return result


def _copy_(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    to, source = _as_on_cpu(self), _as_on_cpu(src)
    if not torch._C._cuda_isCurrentStreamCapturing():
        to.copy_(source)
    elif to.numel():
        host = [tensor for tensor in (self, src) if not _is_cuda(tensor)]
        pinned = all(_runtime.simulated_gpu_is_pinned(tensor.data_ptr()) for tensor in host)
        if host and not (pinned and non_blocking):
            refuse(f"a copy between CPU and GPU: page-locked {pinned}, non_blocking {non_blocking}")
        record(lambda: to.copy_(source))
    return self


def _replaceable(name: str) -> torch._ops.OpOverload | None:
    """The operation that aten calls so, if its CUDA kernel is to be replaced."""
    base, _, overload = name.partition(".")
    if base in _KEPT or base.startswith(_CUDA_ONLY) or not hasattr(torch.ops.aten, base):
        return None
    operation = getattr(getattr(torch.ops.aten, base), overload or "default", None)
    if operation is None or any(
        r.alias_info is not None and not r.alias_info.is_write for r in operation._schema.returns
    ):
        return None  # a view
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA")
    return operation if has_kernel or name in _WITHOUT_A_KERNEL else None


def install() -> torch.library.Library:
    """Replaces the CUDA kernels for the rest of the process."""
    library = torch.library.Library("aten", "IMPL")
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, name = qualified.partition("::")
        operation = _replaceable(name) if namespace == "aten" else None
        if operation is not None and name != "copy_":
            library.impl(name, _Operation(operation).__call__, "CUDA", allow_override=True)
    library.impl("copy_", _copy_, "CUDA", allow_override=True)
    for algorithm in ("cudnn", "flash", "mem_efficient"):
        getattr(torch.backends.cuda, f"enable_{algorithm}_sdp")(False)
    torch.cuda._sleep = lambda cycles: None
    return library
