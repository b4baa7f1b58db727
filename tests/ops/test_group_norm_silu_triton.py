"""group_norm_silu in Triton compiled for the H100 and H200 without a GPU: its launches, and their PTX.

What they compute is held against the formula in test_group_norm_silu.py, in the interpreter.
"""

import os
import re
from typing import NamedTuple

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


class Case(NamedTuple):
    """A call's sizes, and what it is given of shift, scale_shift and residual; or "sources", to be handed on."""

    channels: int
    skip: int
    size: int
    groups: int
    given: tuple[str, ...] = ()
    samples: int = 4
    dtype: torch.dtype = torch.float32
    values_dtype: torch.dtype = torch.float32
    silu: bool = True


def launch(case):
    """Forward and backward, which here compile and compute nothing."""
    from progdistill.ops.triton_kernels import group_norm_silu

    every, samples = case.channels + case.skip, case.samples

    def image(channels):
        room = torch.zeros(samples, channels, case.size, case.size, dtype=case.dtype)
        return room.contiguous(memory_format=torch.channels_last)

    def given(name, *shape, dtype=case.values_dtype):
        return torch.zeros(shape, dtype=dtype) if name in case.given else None

    x, skip = image(case.channels), image(case.skip) if case.skip else None
    residual = image(case.channels) if "residual" in case.given else None
    sources = "sources" in case.given
    u = image(case.channels) if residual is not None or (sources and "shift" in case.given) else None
    shift, scale_shift = given("shift", samples, case.channels), given("scale_shift", 1, 2 * every)
    values = (torch.zeros(every, dtype=case.values_dtype), torch.zeros(every, dtype=case.values_dtype), scale_shift)
    saved = torch.zeros(samples, case.groups), torch.zeros(samples, case.groups)
    group_norm_silu.forward(image(every), u, *saved, x, skip, residual, shift, *values, case.groups, 1e-6, case.silu)
    gradients = (
        *(x, skip, torch.zeros(every), torch.zeros(every)),
        given("shift", samples, case.channels, dtype=torch.float32),
        given("scale_shift", samples, 2 * every, dtype=torch.float32),
    )
    bypasses = (x, skip) if sources else (u, None)
    shift = shift if u is None else None
    images = (image(every), *bypasses, x, skip)
    group_norm_silu.backward(*gradients, *images, shift, *values, *saved, case.groups, case.silu)


SUMS, MERGE = ("_column_sums", 0, 0, 0), ("_merge", 0, 0, 0)
# Launches: name, elements of an image that a thread holds, images read and written.
LAUNCHES = {
    Case(256, 128, 16, 32, ("shift",)): [("_whole", 64, 2, 1), ("_whole", 32, 3, 2), SUMS, SUMS],
    Case(256, 0, 32, 32, ("residual", "shift")): [("_whole", 64, 2, 2), ("_whole", 32, 3, 1), SUMS, SUMS],
    Case(128, 64, 64, 32, ("residual", "shift", "scale_shift")): [
        *(("_statistics", 32, 3, 1), MERGE, ("_normalise", 32, 2, 1)),
        *(("_channel_sums", 32, 3, 0), MERGE, ("_input_gradient", 32, 4, 2), SUMS, SUMS, SUMS),
    ],
    Case(256, 128, 16, 32, ("shift", "sources")): [("_whole", 64, 2, 2), ("_whole", 32, 5, 2), SUMS, SUMS],
    Case(128, 64, 64, 32, ("shift", "sources")): [
        *(("_statistics", 32, 2, 1), MERGE, ("_normalise", 32, 2, 1)),
        *(("_channel_sums", 32, 3, 0), MERGE, ("_input_gradient", 32, 5, 2), SUMS, SUMS, SUMS),
    ],
}
IDS = ("seam in a program", "residual", "chunks", "sources", "sources in chunks")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", LAUNCHES, ids=IDS)
def test_images_move_by_16_bytes(launches, case, dtype):
    launch(case._replace(dtype=dtype))
    assert [kernel.name for kernel in launches] == [name for name, *_ in LAUNCHES[case]]
    for kernel, (name, elements, read, written) in zip(launches, LAUNCHES[case], strict=True):
        vectors = elements * dtype.itemsize // 16
        loads, stores = split(kernel.accesses("ld")), split(kernel.accesses("st"))
        assert len(loads[0]) >= vectors * read and len(stores[0]) == vectors * written, name
        assert not {"b8", "b16"} & {*loads[1], *stores[1]}, name  # the rest is float32
        assert not re.search(r"\b(atom|red)\.", kernel.ptx) and ".local" not in kernel.ptx


@pytest.mark.parametrize(
    "case",
    [
        Case(3, 0, 5, 3, ("residual",)),
        Case(20, 16, 4, 3, ("scale_shift",), dtype=torch.bfloat16, values_dtype=torch.bfloat16),
        Case(16, 0, 1, 16, ("shift",), silu=False),
        Case(130, 62, 11, 1, ("shift", "scale_shift"), dtype=torch.bfloat16, silu=False),
        Case(1536, 0, 1, 32),
    ],
)
def test_other_sizes_compile(launches, case):
    launch(case)
    assert launches and all(kernel.machine_code for kernel in launches)


def test_another_batch_needs_no_other_kernels(launches):
    """A last batch that is smaller must not stop for a compiler."""
    kernels = set()
    for samples in (64, 16, 7, 1):
        launches.clear()
        for size in (5, 45):
            launch(Case(5, 7, size, 1, ("shift",), samples=samples))
        kernels.add(tuple(kernel.ptx for kernel in launches))
    assert len(kernels) == 1


@pytest.mark.parametrize("size", [4, 80])
def test_float32_is_divided_exactly(launches, size):
    """Triton's own division misses the last digits, which the interpreter does not show; only bfloat16 hides that."""
    launch(Case(32, 16, size, 4, ("residual", "shift", "scale_shift")))
    assert launches and not [kernel.name for kernel in launches if "div.full.f32" in kernel.ptx]
    launch(Case(32, 16, size, 4, dtype=torch.bfloat16))
    assert any("div.full.f32" in kernel.ptx for kernel in launches)
