"""The norm of all gradients: to half a unit in the last place, whatever they are and wherever they lie."""

import math
from fractions import Fraction

import pytest
import torch

from progdistill import ops

SHAPES = [(5, 3, 3, 3), (4099,), (0,), (7, 11), (1,), ()]


def gradients(dtype=torch.float32, size=1.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [(size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def exact(grads):
    """In rational numbers until the root."""
    total = sum((Fraction(value) ** 2 for grad in grads for value in grad.double().flatten().tolist()), Fraction())
    return math.sqrt(total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e25, 1e-25])
def test_rounded_once(backend, dtype, size):
    grads = gradients(dtype, size)
    norm, truth = backend.call(ops.gradient_norm, grads), exact(grads)
    assert norm.dtype == torch.float32 and norm.shape == ()
    assert abs(float(norm) - truth) <= 2.0**-24 * (1 + 1e-6) * truth


def test_float64_among_others_makes_it_float64(backend):
    grads = [*gradients(torch.bfloat16), *gradients(torch.float64), *gradients()]
    norm, truth = backend.call(ops.gradient_norm, grads), exact(grads)
    assert norm.dtype == torch.float64
    assert abs(float(norm) - truth) <= 1e-14 * truth


def test_as_clip_grad_norm(backend):
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for param, grad in zip(params, gradients(), strict=True):
        param.grad = grad
    mine = backend.call(ops.gradient_norm, [param.grad for param in params])
    torch.testing.assert_close(mine, torch.nn.utils.clip_grad_norm_(params, math.inf))


def test_any_order_in_memory(backend):
    grads = gradients(shapes=[(6, 5, 4, 3), (64, 33), (300,)])
    moved = [grads[0].contiguous(memory_format=torch.channels_last), grads[1].T, grads[2].flip(0)]
    gaps = [torch.randn(64, 66)[:, ::2], torch.randn(5, 1).expand(5, 7), torch.randn(9)[1:]]
    same = torch.equal(backend.call(ops.gradient_norm, grads), backend.call(ops.gradient_norm, moved))
    assert same, "but for the order in which float64 adds up"
    assert abs(float(backend.call(ops.gradient_norm, gaps)) - exact(gaps)) <= 1e-7 * exact(gaps)


def test_nothing(backend):
    assert ops.gradient_norm([]) == 0
    assert backend.call(ops.gradient_norm, [torch.zeros(0), torch.zeros(3, 0)]) == 0
    assert backend.call(ops.gradient_norm, [torch.zeros(5)]) == 0


def test_more_tensors_than_one_launch_takes(backend, monkeypatch):
    count = 1500
    if backend.interpreted:
        count = 40
        monkeypatch.setattr("progdistill.ops.triton_kernels.tensor_table._MOST", 16)
    grads = [torch.full((1 + i % 2,), float(i)) for i in range(count)]
    assert float(backend.call(ops.gradient_norm, grads)) == pytest.approx(exact(grads), rel=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(backend, bad):
    grads = gradients()
    grads[1][4098] = bad
    torch.testing.assert_close(backend.call(ops.gradient_norm, grads), torch.tensor(bad), equal_nan=True)


def test_the_reference_agrees():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        grads = gradients(dtype)
        mine = ops.gradient_norm(grads, backend="reference")
        assert float(mine) == pytest.approx(exact(grads), rel=1e-14 if dtype == torch.float64 else 2.0**-24)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"grads\[1\] is torch.float16.*float32, bfloat16 or float64"):
        ops.gradient_norm([torch.zeros(1), torch.zeros(1).half()])
    with pytest.raises(TypeError, match=r"grads\[0\] is torch.float32, torch.sparse_coo"):
        ops.gradient_norm([torch.zeros(3).to_sparse()])
    with pytest.raises(ValueError, match=r"grads\[1\] is on meta, grads\[0\] on cpu"):
        ops.gradient_norm([torch.zeros(1), torch.zeros(1, device="meta")])
    with pytest.raises(ValueError, match=r"pass grads\[0\].detach"):
        ops.gradient_norm([torch.zeros(1, requires_grad=True)])
