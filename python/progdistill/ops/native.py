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


def view(tensor: Tensor):
    """What the extension takes for a tensor: the tensor itself, or a description of it."""
    if _exchange_api is not None:
        return tensor
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), _DTYPE_CODES[tensor.dtype])


def stream(device: torch.device) -> tuple[int, int] | None:
    """Where a CUDA kernel is to run: None if the extension asks torch itself, else (device index, stream pointer)."""
    if _exchange_api is not None:
        return None
    return device.index, torch.cuda.current_stream(device).cuda_stream


def threads() -> int:
    """How many CPU threads an operation may use: torch's own setting."""
    return torch.get_num_threads()
