"""Triton's interpreter, made to round as GPUs do: it cuts off to bfloat16, and multiplies and adds in two steps."""

import numpy
import torch


def round_as_gpus() -> None:
    """Lets conversions to bfloat16 give the nearest (ties to even), and float32's fused multiply-add round once."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert, fma = interpreter._convert_float, interpreter.InterpreterBuilder.create_fma

    def converted(values, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            rounded = torch.from_numpy(numpy.array(values, numpy.float32)).bfloat16()
            return rounded.view(torch.int16).numpy().view(numpy.uint16)
        if source == tl.bfloat16 and target == tl.float32:
            return values.astype(numpy.uint32) << 16
        return convert(values, source, target, mode)

    def fused(self, x, y, z):
        if x.data.dtype != numpy.float32:
            return fma(self, x, y, z)
        # The product is exact in float64, and a sum that lies where rounding twice shows is one in 2^29.
        value = x.data.astype(numpy.float64) * y.data + z.data
        return interpreter.TensorHandle(value.astype(numpy.float32), z.dtype.scalar)

    interpreter._convert_float, interpreter.InterpreterBuilder.create_fma = converted, fused
