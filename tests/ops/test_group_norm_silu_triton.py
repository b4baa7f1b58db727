"""group_norm_silu in Triton: its kernels' own interface in the interpreter, and its launches compiled for sm_90."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from progdistill.ops import backends
from progdistill.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference
from tolerance import assert_within_rule
from triton_launches import split

pytestmark = pytest.mark.skipif(
    backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
EPS = 1e-5


class Case(NamedTuple):
    """Sizes of a call, and what is given."""

    samples: int
    channels: int
    skip_channels: int
    height: int
    width: int
    groups: int
    given: str = ""  # of "residual shift scale_shift", with "one" row of the latter two for all samples
    silu: bool = True
    dtype: torch.dtype = torch.float32
    offset: float = 0.0


CASES = [
    # A program holds whole groups.
    Case(2, 3, 0, 5, 3, 1, "residual shift scale_shift"),
    Case(2, 256, 128, 2, 2, 32, "shift"),
    Case(3, 20, 16, 4, 3, 3, "residual scale_shift", dtype=torch.bfloat16),
    Case(1, 1536, 0, 1, 2, 32, "residual shift one"),
    Case(2, 16, 0, 1, 1, 16, "shift scale_shift one", silu=False),
    Case(2, 12, 12, 8, 8, 4, "shift scale_shift", offset=100.0),
    # Groups in chunks of pixels and blocks of channels.
    Case(2, 5, 7, 40, 41, 1, "residual shift"),
    Case(1, 130, 62, 10, 11, 1, "shift scale_shift", dtype=torch.bfloat16),
    Case(2, 80, 50, 9, 20, 2, "residual shift scale_shift", silu=False),
    Case(1, 3, 0, 72, 72, 1, "", offset=100.0),
]


def tensors(case, other=None):
    """Arguments by name; those left out are None. Some that are not images have the images' dtype, or the `other`."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    image = lambda channels: draw(case.samples, channels, case.height, case.width).to(case.dtype)  # noqa: E731
    total, rows = case.channels + case.skip_channels, 1 if "one" in case.given else case.samples
    return {
        "x": last(image(case.channels) + case.offset),
        "skip": last(image(case.skip_channels) + case.offset) if case.skip_channels else None,
        "residual": last(image(case.channels)) if "residual" in case.given else None,
        "shift": draw(rows, case.channels) if " shift" in f" {case.given}" else None,
        "weight": draw(total),
        "bias": draw(total).to(other or case.dtype),
        "scale_shift": draw(rows, 2 * total).to(other or case.dtype) if "scale_shift" in case.given else None,
    }


def last(image):
    return image.contiguous(memory_format=torch.channels_last)


def literal(case, x, weight, bias, skip, shift, scale_shift):
    """The formula, written out, in the arguments' precision; without the residual sum."""
    u = x if shift is None else x + shift[:, :, None, None]
    if skip is not None:
        u = torch.cat((u, skip), dim=1)
    grouped = u.reshape(len(u), case.groups, -1)
    grouped = grouped - grouped.mean(dim=2, keepdim=True)
    y = (grouped / (grouped.square().mean(dim=2, keepdim=True) + EPS).sqrt()).reshape(u.shape)
    y = weight[:, None, None] * y + bias[:, None, None]
    if scale_shift is not None:
        scale, shift_after = scale_shift[:, :, None, None].chunk(2, dim=1)
        y = (1 + scale) * y + shift_after
    return y / (1 + (-y).exp()) if case.silu else y


def reference(case, x, weight, bias, skip, shift, scale_shift):
    """Plain PyTorch."""
    rest = {"skip": skip, "shift": shift, "scale_shift": scale_shift}
    return group_norm_silu_reference(x, weight, bias, case.groups, EPS, **rest, silu=case.silu)


def results(operation, given, dy, dsum=None):
    """Results and gradients by name, given those of the results."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in given.items() if value is not None}
    found = operation(**{name: leaves.get(name) for name in given})
    found = dict(zip(("y", "sum"), found if isinstance(found, tuple) else (found,), strict=False))
    grads = torch.autograd.grad(tuple(found.values()), tuple(leaves.values()), (dy, dsum)[: len(found)])
    return {name: value.detach() for name, value in found.items()} | dict(zip(leaves, grads, strict=True))


def kernels(case, **given):
    return group_norm_silu(groups=case.groups, eps=EPS, silu=case.silu, backend="triton", **given)


def complete(found, given, dsum):
    """Of results for a sum that was given as x, those for what it is the sum of."""
    x, residual, shift = (given[name] for name in ("x", "residual", "shift"))
    found["sum"] = x + residual if shift is None else x + residual + shift[:, :, None, None]
    found["x"] = found["residual"] = found["x"] + dsum
    if shift is not None:
        found["shift"] = found["x"].sum((2, 3)).sum_to_size(shift.shape)
    return found


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_formula(case, monkeypatch):
    # numpy adds up rows one after another, so of few pixels only are its sums as good as a GPU's, which are trees.
    monkeypatch.setattr("progdistill.ops.triton_kernels.channel_tiles._CHUNK", 1024)
    given, generator = tensors(case), torch.Generator().manual_seed(1)
    shape = (case.samples, case.channels + case.skip_channels, case.height, case.width)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(case.dtype)  # noqa: E731
    dy, dsum = draw(*shape), draw(*given["x"].shape)
    mine = results(partial(kernels, case), given, dy, dsum)
    rest = {name: value for name, value in given.items() if name != "residual"}
    if given["residual"] is not None:  # what follows it is that of the sum as it was rounded
        rest |= {"x": mine["sum"], "shift": None}
    # Contiguous, as in channels_last order PyTorch's own norm is worse.
    plain = results(partial(reference, case), {name: contiguous(value) for name, value in rest.items()}, dy)
    exact = results(partial(literal, case), {name: double(value) for name, value in rest.items()}, dy.double())
    if given["residual"] is not None:
        plain = complete(plain, given, dsum)
        exact = complete(exact, {name: double(value) for name, value in given.items()}, dsum.double())
    assert mine.keys() == plain.keys() == exact.keys()
    for name in mine:
        assert_within_rule(*(by_sample(name, found[name]) for found in (mine, plain, exact)))


def contiguous(value):
    return None if value is None else value.contiguous()


def double(value):
    return None if value is None else value.double()


def by_sample(name, value):
    """As the rule wants it: what all samples share as one."""
    return value.unsqueeze(0) if name in ("weight", "bias") else value


@interpreted
def test_a_sample_does_not_depend_on_its_batch():
    for case in (CASES[2], CASES[6]._replace(height=37)):
        given = tensors(case)
        whole = kernels(case, **given)
        alone = kernels(case, **{name: value[1:2] if share(case, value) else value for name, value in given.items()})
        assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))


def share(case, value):
    return value is not None and value.dim() > 1 and len(value) == case.samples


def launch(case, other=None):
    """Both passes, which compile here and compute nothing."""
    from progdistill.ops.triton_kernels import group_norm_silu

    given, total = tensors(case, other), case.channels + case.skip_channels
    x, skip, residual, shift, weight, bias, scale_shift = given.values()
    y = last(x.new_empty(case.samples, total, case.height, case.width))
    u = None if residual is None else x
    parts = torch.empty(case.samples, case.groups), torch.empty(case.samples, case.groups)
    rest = (weight, bias, scale_shift)
    group_norm_silu.forward(y, u, *parts, x, skip, residual, shift, *rest, case.groups, EPS, case.silu)
    dshift = None if shift is None else torch.empty(case.samples, case.channels)
    dscale_shift = None if scale_shift is None else torch.empty(case.samples, 2 * total)
    results = (x, skip, torch.empty(total), torch.empty(total), dshift, dscale_shift)
    shift = None if u is not None else shift
    group_norm_silu.backward(*results, y, u, x, skip, shift, *rest, *parts, case.groups, case.silu)


SUMS = ("_column_sums", 0, 0, 0)
# Launches: name, elements of an image that a thread holds, images read and written.
LAUNCHES = {
    Case(4, 256, 128, 16, 16, 32, "shift"): [("_whole", 64, 2, 1), ("_whole", 32, 3, 2), SUMS, SUMS],
    Case(4, 256, 0, 32, 32, 32, "residual shift"): [("_whole", 64, 2, 2), ("_whole", 32, 3, 1), SUMS, SUMS],
    Case(4, 128, 64, 64, 64, 32, "residual shift scale_shift"): [
        *(("_statistics", 32, 3, 1), ("_merge", 0, 0, 0), ("_normalise", 32, 2, 1)),
        *(("_channel_sums", 32, 3, 0), ("_merge", 0, 0, 0), ("_input_gradient", 32, 4, 2), SUMS, SUMS, SUMS),
    ],
}


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", LAUNCHES, ids=str)
def test_images_move_by_16_bytes(launches, case, dtype):
    launch(case._replace(dtype=dtype), other=torch.float32)
    assert [kernel.name for kernel in launches] == [name for name, *_ in LAUNCHES[case]]
    for kernel, (name, elements, read, written) in zip(launches, LAUNCHES[case], strict=True):
        vectors = elements * dtype.itemsize // 16
        whole, rest = split(kernel.accesses("st"))
        assert len(whole) == vectors * written, name
        whole, others = split(kernel.accesses("ld"))
        assert len(whole) >= vectors * read, name
        assert not re.search(r"\b(atom|red)\.", kernel.ptx) and ".local" not in kernel.ptx
        assert not {"b8", "b16"} & {*rest, *others}, name


@compiled
@pytest.mark.parametrize("case", [CASES[2], CASES[4], CASES[7]], ids=str)
def test_every_variant_compiles(launches, case):
    launch(case)
    assert launches and all(kernel.machine_code for kernel in launches)


@compiled
def test_another_batch_needs_no_other_kernels(launches):
    kernels = set()
    for samples in (64, 16, 7, 1):
        launches.clear()
        for case in (CASES[0], CASES[6]):
            launch(case._replace(samples=samples))
        kernels.add(tuple(kernel.ptx for kernel in launches))
    assert len(kernels) == 1


@pytest.mark.skipif(INTERPRETED, reason="runs itself")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
