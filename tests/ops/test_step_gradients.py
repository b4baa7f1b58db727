"""Gradients through `diffuse` and `ddim_step`, against autograd of the literal float64 formulas."""

from __future__ import annotations

import pytest
import torch

import literal
from progdistill import ops
from progdistill.ops import backends

# Whole vectors and a rest; and samples of several blocks.
SMALL = (3, 3, 5, 7)
SHAPES = [SMALL, (3, 3, 37, 40)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BACKENDS = [name for name in ("reference", "cpu") if backends.unavailable(name) is None]
ANGLES = torch.tensor([1.2, 0.7, 0.3], dtype=torch.float64)


def images(
    shape: tuple[int, ...],
    prediction_type: str,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    layout: torch.memory_format,
):
    """z, a network's output and a gradient from above; x of some elements beyond a bound of 0.5, of others within."""
    generator = torch.Generator().manual_seed(5)
    channels = shape[1] * (2 if prediction_type == "sample_epsilon" else 1)
    shapes = shape, (shape[0], channels, *shape[2:]), shape
    z, out, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    dtypes = dtype, out_dtype, dtype
    return (t.to(d).contiguous(memory_format=layout) for t, d in zip((z, out, grad), dtypes, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("dtypes", [("float64", "float64"), ("float32", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("shape", SHAPES)
def test_ddim_step(backend, shape, layout, clip, prediction_type, dtypes):
    dtype, out_dtype = (getattr(torch, name) for name in dtypes)
    z, out, grad = images(shape, prediction_type, dtype, out_dtype, LAYOUTS[layout])
    exact = [t.double().requires_grad_() for t in (z, out)]
    moved = literal.ddim(*exact, ANGLES, 0.5 * ANGLES, prediction_type, clip)
    expected = torch.autograd.grad(moved, exact, grad.double())

    inputs = [t.requires_grad_() for t in (z, out)]
    step = ops.ddim_step(*inputs, ANGLES, 0.5 * ANGLES, prediction_type=prediction_type, clip=clip, backend=backend)
    found = torch.autograd.grad(step, inputs, grad)

    for got, want, given in zip(found, expected, inputs, strict=True):
        assert got.dtype == given.dtype and got.shape == given.shape
        tolerance = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3}[got.dtype]
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_diffuse(backend, shape, layout, dtype):
    x, noise, grad = images(shape, "v_prediction", dtype, dtype, LAYOUTS[layout])
    inputs = [t.requires_grad_() for t in (x, noise)]
    found = torch.autograd.grad(ops.diffuse(*inputs, ANGLES, backend=backend), inputs, grad)
    for got, factor in zip(found, (torch.cos(ANGLES), torch.sin(ANGLES)), strict=True):
        torch.testing.assert_close(got.double(), factor.view(-1, 1, 1, 1) * grad.double(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_only_one_of_the_gradients(backend, clip):
    z, out, grad = images(SMALL, "v_prediction", torch.float32, torch.float32, torch.contiguous_format)
    both = [t.requires_grad_() for t in (z, out)]
    step = ops.ddim_step(*both, ANGLES, 0.5 * ANGLES, clip=clip, backend=backend)
    expected = torch.autograd.grad(step, both, grad)
    for place in (0, 1):
        alone = [t.detach() for t in both]
        alone[place].requires_grad_()
        step = ops.ddim_step(*alone, ANGLES, 0.5 * ANGLES, clip=clip, backend=backend)
        assert torch.equal(torch.autograd.grad(step, alone[place], grad)[0], expected[place])


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_and_strided_gradients(backend):
    z, out, _ = images(SMALL, "v_prediction", torch.float64, torch.float64, torch.contiguous_format)
    inputs = tuple(t.requires_grad_() for t in (z, out))
    weights = torch.linspace(0.5, 2.0, SMALL[3], dtype=torch.float64)

    def squared(z, out):
        step = ops.ddim_step(z, out, ANGLES, 0.5 * ANGLES, backend=backend)
        return (step.transpose(2, 3) ** 2 * weights.view(-1, 1)).sum()  # its gradient is not dense

    assert torch.autograd.gradcheck(squared, inputs)
    assert torch.autograd.gradgradcheck(squared, inputs)
