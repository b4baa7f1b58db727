"""Sums with a residual and a shift, and their asymmetric padding, against the formula in float64, both ways."""

import itertools
import math

import pytest
import torch

from ops.sums import Sum, check, literal, results, tensors_of
from progdistill import ops

OPERATION = "padded_sum"
DTYPES = [torch.float32, torch.bfloat16]


GIVEN = [given for given in itertools.product((None, 0, 1, 2), (True, False)) if given != (None, False)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shift, residual", GIVEN)
def test_every_combination(backend, shift, residual, padding, dtype):
    check(backend, Sum(16, 5, 3, shift, residual, padding), dtype)
    check(backend, Sum(7, 3, 6, shift, residual, padding, shift_dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("used", [("u",), ("padded",)])
def test_gradients_of_one_result(backend, used, dtype):
    for channels in (16, 5):
        check(backend, Sum(channels, shift=2), dtype, used)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (7, 5), (16, 16), (33, 31)])
def test_sizes_of_images(backend, height, width, dtype):
    """One pixel; a row; several blocks, the last of them with fewer pixels."""
    check(backend, Sum(24, height, width, shift=2), dtype)
    check(backend, Sum(3, height, width, shift=2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 8, 128, 256, 1031, 2056])
def test_numbers_of_channels(backend, channels, dtype):
    """The last two: more columns than threads."""
    check(backend, Sum(channels, 5, 4, shift=0, shift_dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [0, 1])
def test_padding_alone(backend, padding, dtype):
    (x,) = backend.place(list(tensors_of(Sum(8, residual=False), dtype).values()))
    result = ops.padded_sum(x, padding=padding, backend=backend.name)
    u, padded = result if padding else (result, None)
    assert u is x
    if padding:
        assert torch.equal(padded, literal(x, padding=1)[1])
        check(backend, Sum(8, residual=False), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [None, 0, 2])
def test_the_bits_of_a_norms_sum(backend, shift, dtype):
    for channels, values in ((24, torch.float32), (7, dtype)):
        tensors = tensors_of(Sum(channels, 9, 7, shift, shift_dtype=values), dtype)
        t = {name: value.to(backend.device) for name, value in tensors.items()}
        ones = torch.ones(channels, device=backend.device)
        _, expected = ops.group_norm_silu(**t, weight=ones, bias=ones, groups=1, eps=1e-6, backend=backend.name)
        u, padded = ops.padded_sum(**t, padding=1, backend=backend.name)
        assert torch.equal(u, expected) and torch.equal(padded[:, :, :-1, :-1], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_keep_their_sign_and_nan_its_place(backend, dtype):
    special = torch.tensor([-0.0, 0.0, math.nan, math.inf, -math.inf, 1.0, -0.0, 2.0])
    for channels in (8, 5):
        x = special[:channels].repeat(2, 3, 2, 1).permute(0, 3, 1, 2).to(dtype)
        for given in ({}, {"residual": x}, {"shift": torch.full((channels,), -0.0)}, {"residual": x.abs()}):
            u, padded = backend.call(lambda *t, g=given, **o: call_with(g, *t, **o), x, *given.values())
            expected = ops.padded_sum(x, padding=1, backend="reference", **given)[0]
            for got in (u, padded[:, :, :-1, :-1]):
                torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(got.signbit() & ~got.isnan(), expected.signbit() & ~expected.isnan())
            for edge in (padded[:, :, -1], padded[..., -1]):
                assert not edge.any() and not edge.signbit().any()


def call_with(given, x, *values, backend):
    return ops.padded_sum(x, padding=1, backend=backend, **dict(zip(given, values, strict=True)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels, height, width", [(16, 7, 5), (5, 3, 4), (256, 9, 8)])
def test_results_need_no_clean_memory_and_nothing_is_written_beside_them(
    backend, channels, height, width, dtype, monkeypatch
):
    kept, empty = [], torch.empty

    def guarded(shape, **options):
        like = empty(shape, **options)
        if "memory_format" not in options:  # not an image's room: torch may want some of its own
            return like
        kept.append(empty(like.numel() + 256, dtype=like.dtype, device=like.device).fill_(math.nan))
        return kept[-1][128:-128].as_strided(like.shape, like.stride())

    case = Sum(channels, height, width, shift=1)
    tensors = tensors_of(case, dtype)
    expected = results(ops.padded_sum, case, tensors, backend="reference")
    monkeypatch.setattr(torch, "empty", guarded)
    got = results(ops.padded_sum, case, tensors, backend.device, backend=backend.name)
    monkeypatch.undo()
    assert all(torch.equal(got[name], expected[name]) for name in ("u", "padded"))
    assert got["dx"].isfinite().all() and len(kept) >= 3
    assert all(room[:128].isnan().all() and room[-128:].isnan().all() for room in kept)


def test_the_gradient_of_the_sum_alone_is_handed_on(backend):
    t = {name: value.to(backend.device) for name, value in tensors_of(Sum(8, shift=2), torch.float32).items()}
    for value in t.values():
        value.requires_grad_()
    u, _ = ops.padded_sum(**t, padding=1, backend=backend.name)
    grad = torch.ones_like(u)
    dx, dresidual = torch.autograd.grad(u, [t["x"], t["residual"]], grad)
    assert dx.data_ptr() == dresidual.data_ptr() == grad.data_ptr()


def test_differentiable_twice(backend):
    """Of a cubic function, whose gradient depends on the sum."""
    found = []
    for name, device in ((backend.name, backend.device), ("reference", "cpu")):
        t = tensors_of(Sum(8, shift=2), torch.float32)
        leaves = [value.to(device).requires_grad_() for value in t.values()]
        u, padded = ops.padded_sum(**dict(zip(t, leaves, strict=True)), padding=1, backend=name)
        first = torch.autograd.grad((u**2).sum() + (padded**3).sum(), leaves, create_graph=True)
        found.append([g.cpu() for g in torch.autograd.grad(sum((g**2).sum() for g in first), leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
