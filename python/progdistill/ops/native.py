"""The compiled extension, if there is one, and how tensors are handed to it.

The extension links no torch. It reads tensors through the DLPack C exchange API that torch.Tensor exposes; where a
torch has none, through plain descriptions (data pointer, shape, strides, dtype).
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

try:
    from progdistill import _C

    import_error: str | None = None
except ImportError as error:
    if os.environ.get("PROGDISTILL_CPU_CAPABILITY"):  # asked for by name: no silent fallback
        raise
    _C = None
    import_error = str(error)

_exchange_api = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
_DTYPE_CODES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.int64: (0, 64)}

if _C is not None and _exchange_api is not None:
    _C.set_dlpack_exchange_api(_exchange_api)


def view(tensor: Tensor | None):
    """What the extension takes for a tensor: the tensor itself, or a description of it; None for None."""
    if _exchange_api is not None or tensor is None:
        return tensor
    # The tensor itself comes last, so that a temporary one lives as long as its description.
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), _DTYPE_CODES[tensor.dtype], tensor)


def knows_devices() -> bool:
    """Whether the extension sees where a tensor lies, and so checks it: descriptions do not say."""
    return _exchange_api is not None


def run(tensor: Tensor):
    """Where the extension is to work for a call on `tensor`.

    Torch's number of threads for a CPU tensor; for a CUDA tensor None, which has the extension ask torch for its
    stream, or (device index, stream pointer) where it cannot.
    """
    if tensor.is_cpu:
        return torch.get_num_threads()
    if _exchange_api is not None:
        return None
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def partial_sums(z: Tensor):
    """Where the CUDA kernels leave the partial sums of a loss on `z`, as the extension takes it; None if nowhere."""
    on_cpu = isinstance(run(z), int)
    chunks = 1 if on_cpu or not len(z) else _C.chunks_per_sample(z.numel() // len(z))
    return view(z.new_empty((len(z), chunks), dtype=torch.float64)) if chunks > 1 else None
