"""Triton's interpreter, made to round as GPUs do."""

import numpy
import torch


def round_to_nearest() -> None:
    """Lets it round float32 to the nearest bfloat16 (ties to even); by itself it cuts digits off. Also much faster."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            rounded = torch.from_numpy(numpy.array(values, numpy.float32)).bfloat16()
            return rounded.view(torch.int16).numpy().view(numpy.uint16)
        if source == tl.bfloat16 and target == tl.float32:
            return values.astype(numpy.uint32) << 16
        return convert(values, source, target, mode)

    interpreter._convert_float = converted
