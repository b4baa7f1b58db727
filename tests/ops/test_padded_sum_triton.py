"""padded_sum in Triton compiled for the H100 and H200 without a GPU: its launches, and their PTX.

What they compute is held against the formula in test_padded_sum.py, in the interpreter.
"""

import os
import re

import pytest
import torch

from progdistill.ops import backends
from triton_launches import split

pytestmark = [
    pytest.mark.skipif(
        backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
    ),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]
EVERYTHING = ("u", "padded", "residual", "shift", "dsum")


def launch(channels, size, given=EVERYTHING, dtype=torch.bfloat16, samples=4, shift_dtype=torch.float32, padding=1):
    """Forward and, with padding, backward, which here compile and compute nothing."""
    from progdistill.ops.triton_kernels import padded_sum

    def image(more=0):
        room = torch.zeros(samples, channels, size + more, size + more, dtype=dtype)
        return room.contiguous(memory_format=torch.channels_last)

    u, residual, dsum = (image() if name in given else None for name in ("u", "residual", "dsum"))
    shift = torch.zeros(samples, channels, dtype=shift_dtype) if "shift" in given else None
    padded_sum.forward(u, image(1) if padding else None, image(), residual, shift, padding)
    if padding:
        padded_sum.backward(image(), dsum, image(1), padding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [16, 32])
def test_images_move_by_16_bytes(launches, size, dtype):
    launch(256, size, dtype=dtype)
    assert [kernel.name for kernel in launches] == ["_padded_sum", "_padded_sum_gradient"]
    vectors = 32 * dtype.itemsize // 16  # of the 32 elements of an image that a thread holds
    for kernel, (read, written) in zip(launches, ((2, 2), (2, 1)), strict=True):
        loads, stores = split(kernel.accesses("ld")), split(kernel.accesses("st"))
        assert len(loads[0]) >= vectors * read and len(stores[0]) == vectors * written
        assert not stores[1] and not {"b8", "b16"} & {*loads[1]}  # the rest: shifts, which are float32
        assert not re.search(r"\b(atom|red)\.", kernel.ptx) and ".local" not in kernel.ptx


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_calls_compile(launches, dtype):
    launch(3, 5, ("u", "residual"), dtype, padding=0)
    launch(1031, 7, ("u", "shift"), dtype, shift_dtype=dtype)
    launch(20, 1, (), dtype)
    assert len(launches) == 5 and all(kernel.machine_code for kernel in launches)


def test_another_batch_or_image_needs_no_other_kernels(launches):
    """A last batch that is smaller must not stop for a compiler; nor do sizes that need tiles of one kind."""
    kernels = set()
    for samples, size in ((64, 32), (16, 37), (7, 16), (1, 48)):
        launches.clear()
        launch(128, size, samples=samples)
        kernels.add(tuple(kernel.ptx for kernel in launches))
    assert len(kernels) == 1
