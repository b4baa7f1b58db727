"""The C++ and CUDA kernels against the PyTorch reference, by the rule for tolerances.

A kernel's error against float64 is at most twice the error that the same maths in plain PyTorch has, plus one unit in
the last place. Errors are maxima over a sample, because a sample's weight sets the scale of all its numbers.
"""

import itertools
import math

import pytest
import torch

from progdistill import ops
from progdistill.ops import backends, native

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "min_snr")
SHAPES = [(3, 5), (1, 1), (2, 3, 7, 5), (2, 3, 2, 4, 4), (2, 1, 3, 3), (5, 4, 40, 40)]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAST_PLACE = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7}

cpu = pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or backends.unavailable("cuda") is not None,
    reason="needs a GPU and an extension with CUDA kernels",
)


def images(count, shape, prediction_type="v_prediction", dtype=torch.float32, seed=0):
    """Standard normal states, or outputs of a prediction type for them."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1] * (2 if prediction_type == "sample_epsilon" else 1)
    shape = (shape[0], channels, *shape[2:])
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def angles(samples, steps):
    """Falling angles (steps + 1, samples), those of the first sample down to exactly 0, away from pi / 2."""
    start = torch.linspace(0.05, 1.5, max(samples, 1), dtype=torch.float64)[:samples]
    end = 0.3 * start
    end[:1] = 0.0
    return torch.lerp(start, end, torch.linspace(0, 1, steps + 1, dtype=torch.float64).unsqueeze(1))


def double(value):
    """The same numbers in float64, through lists."""
    if isinstance(value, list):
        return [double(item) for item in value]
    return value.double() if isinstance(value, torch.Tensor) else value


def per_sample(value):
    return value.abs().reshape(len(value), -1).amax(dim=1) if value.numel() else value.new_zeros(len(value))


def root_mean_square(value):
    return value.reshape(len(value), -1).square().mean(dim=1).sqrt() if value.numel() else value.new_zeros(len(value))


def assert_as_good_as_reference(operation, *arguments, backend="cpu", size=per_sample, **options):
    """Runs an operation three ways and applies the rule to each of its results."""
    as_tuple = lambda result: result if isinstance(result, tuple) else (result,)  # noqa: E731
    mine = as_tuple(operation(*arguments, backend=backend, **options))
    reference = as_tuple(operation(*arguments, backend="reference", **options))
    truth = as_tuple(operation(*double(list(arguments)), backend="reference", **options))
    for got, plain, exact in zip(mine, reference, truth, strict=True):
        assert got.dtype == plain.dtype and got.shape == plain.shape and got.stride() == plain.stride()
        error, allowed = size(got.double() - exact), size(plain.double() - exact)
        bound = 2 * allowed + LAST_PLACE[got.dtype] * size(exact)
        # In a sample of a few numbers the reference may be right by luck, so the sample's intermediate results count.
        if got.numel() < 50 * len(got):
            bound = bound + 4 * LAST_PLACE[got.dtype] * (1 + size(exact))
        assert (error <= bound).all(), (error / bound).max()


@cpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffuse(shape, dtype):
    x, noise = images(2, shape, dtype=dtype)
    assert_as_good_as_reference(ops.diffuse, x, noise, angles(shape[0], 1)[0])


@cpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_ddim_step(shape, prediction_type, clip):
    (z,), phis = images(1, shape), angles(shape[0], 1)
    for dtype in (torch.float32, torch.bfloat16):
        (out,) = images(1, shape, prediction_type, dtype, seed=1)
        assert_as_good_as_reference(ops.ddim_step, z, out, *phis, prediction_type=prediction_type, clip=clip)


@cpu
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("target_type", TYPES)
def test_distillation_target(prediction_type, target_type):
    types = {"prediction_type": prediction_type, "target_type": target_type}
    for shape, steps, clip in itertools.product([(3, 5), (4, 3, 9, 7)], (1, 2, 3, 5), (None, 0.8)):
        (z,), outs = images(1, shape), images(steps, shape, prediction_type, seed=1)
        assert_as_good_as_reference(ops.distillation_target, z, outs, angles(shape[0], steps), clip=clip, **types)


@cpu
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("teacher_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_distillation_loss(prediction_type, teacher_type, weighting):
    shape = (4, 3, 9, 7)
    types = {"prediction_type": prediction_type, "teacher_prediction_type": teacher_type, "weighting": weighting}
    for steps, clip in itertools.product((1, 2, 3, 5), (None, 0.8)):
        (z,), (pred,) = images(1, shape), images(1, shape, prediction_type, seed=1)
        outs = images(steps, shape, teacher_type, seed=2)
        assert_as_good_as_reference(
            ops.distillation_loss_and_grad, pred, z, outs, angles(4, steps), clip=clip, grad_scale=0.25, **types
        )


@cpu
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("target_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_prediction_loss(prediction_type, target_type, weighting):
    shape = (4, 3, 9, 7)
    types = {"prediction_type": prediction_type, "target_type": target_type, "weighting": weighting}
    (z,), (pred,) = images(1, shape), images(1, shape, prediction_type, seed=1)
    for dtype in (torch.float32, torch.bfloat16):
        (target,) = images(1, shape, target_type, dtype, seed=2)
        arguments = (pred, z, target, angles(4, 1)[0])
        assert_as_good_as_reference(ops.prediction_loss_and_grad, *arguments, **types)
        # The slopes of these are bounded, so what is lost is lost in the few residuals near 0: no maximum then.
        for loss_type in ("l1", "pseudo_huber"):
            options = {**types, "loss_type": loss_type, "huber_c": 1.0, "size": root_mean_square}
            assert_as_good_as_reference(ops.prediction_loss_and_grad, *arguments, **options)


@cpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_losses_of_mixed_dtypes_and_odd_shapes(shape, prediction_type, clip):
    (z,), phis = images(1, shape), angles(shape[0], 2)
    for dtype, teacher_dtype in itertools.product((torch.float32, torch.bfloat16), repeat=2):
        (pred,) = images(1, shape, prediction_type, dtype, seed=1)
        outs = images(2, shape, prediction_type, teacher_dtype, seed=2)
        assert_as_good_as_reference(
            ops.distillation_loss_and_grad, pred, z, outs, phis, prediction_type=prediction_type, clip=clip
        )


@cpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("loss_type", ["l1", "pseudo_huber"])
def test_loss_types_of_mixed_dtypes_and_odd_shapes(shape, prediction_type, loss_type):
    (z,), phis = images(1, shape), angles(shape[0], 2)
    for dtype in (torch.float32, torch.bfloat16):
        (pred,), outs = images(1, shape, prediction_type, dtype, seed=1), images(2, shape, prediction_type, dtype, 2)
        options = {"prediction_type": prediction_type, "loss_type": loss_type, "size": root_mean_square}
        assert_as_good_as_reference(ops.distillation_loss_and_grad, pred, z, outs, phis, **options)


@cpu
@pytest.mark.parametrize("prediction_type", TYPES)
def test_float64_agrees_to_its_last_digits(prediction_type):
    shape = (3, 3, 6, 5)
    (z,), (pred,) = images(1, shape, dtype=torch.float64), images(1, shape, prediction_type, torch.float64, seed=1)
    outs, phis = images(3, shape, prediction_type, torch.float64, seed=2), angles(3, 3)
    for clip in (None, 0.8):
        results = [
            ops.distillation_loss_and_grad(
                pred, z, outs, phis, prediction_type=prediction_type, clip=clip, backend=backend
            )
            for backend in ("cpu", "reference")
        ]
        for mine, reference in zip(*results, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-13)


@cpu
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) in LAYOUTS])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_channels_last_gives_the_same_numbers(shape, prediction_type, dtype, clip):
    def run(layout):
        (z,), (pred,) = images(1, shape), images(1, shape, prediction_type, dtype, seed=1)
        outs, phis = images(2, shape, prediction_type, dtype, seed=2), angles(shape[0], 2)
        z, pred, *outs = (tensor.contiguous(memory_format=layout) for tensor in (z, pred, *outs))
        types = {"prediction_type": prediction_type, "clip": clip, "backend": "cpu"}
        loss, grad = ops.distillation_loss_and_grad(pred, z, outs, phis, **types)
        target = ops.distillation_target(z, outs, phis, target_type=prediction_type, **types)
        assert grad.is_contiguous(memory_format=layout)
        return loss, [grad, target, ops.ddim_step(z, outs[0], *phis[:2], **types)]

    (loss, plain), (other_loss, last) = run(torch.contiguous_format), run(LAYOUTS[len(shape)])
    assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))
    torch.testing.assert_close(loss, other_loss, rtol=1e-6, atol=0)  # summed in another order


@cpu
def test_bfloat16_gradients_are_rounded_to_nearest_even():
    shape, phis = (4, 3, 32, 32), angles(4, 2)
    (z,), (pred,) = images(1, shape), images(1, shape, dtype=torch.bfloat16, seed=1)
    outs = images(2, shape, seed=2)
    _, half = ops.distillation_loss_and_grad(pred, z, outs, phis, backend="cpu")
    _, full = ops.distillation_loss_and_grad(pred.float(), z, outs, phis, backend="cpu")
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())


@cpu
def test_ties_of_bfloat16_gradients_go_to_even():
    # Two elements a sample and an unweighted v error: the gradient is pred - target itself.
    target = 1 + torch.arange(256).reshape(128, 2) / 256
    zero, phi = torch.zeros_like(target), torch.full((128,), 0.5, dtype=torch.float64)
    _, grad = ops.prediction_loss_and_grad(
        zero.bfloat16(),
        zero,
        -target,
        phi,
        prediction_type="v_prediction",
        target_type="v_prediction",
        weighting="snr_plus_one",
        backend="cpu",
    )
    assert torch.equal(grad, target.bfloat16())


@cpu
def test_not_a_number_stays_one():
    shape, phis = (2, 3, 8, 8), angles(2, 2)
    (z,), (pred,) = images(1, shape), images(1, shape, dtype=torch.bfloat16, seed=1)
    outs = images(2, shape, seed=2)
    pred[1, 0, 0, 0] = math.nan
    outs[1][0, 1, 2, 3] = math.nan
    loss, grad = ops.distillation_loss_and_grad(pred, z, outs, phis, clip=1.0, backend="cpu")
    assert loss.isnan().all()
    assert grad.isnan().nonzero().tolist() == [[0, 1, 2, 3], [1, 0, 0, 0]]


@cpu
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 5)])
def test_no_samples(shape):
    (z, pred, *outs), phis = images(4, shape), torch.empty(3, 0, dtype=torch.float64)
    loss, grad = ops.distillation_loss_and_grad(pred, z, outs, phis, backend="cpu")
    assert loss.shape == (0,) and grad.shape == shape
    assert ops.diffuse(z, pred, phis[0], backend="cpu").shape == shape
    assert ops.ddim_step(z, pred, phis[0], phis[1], clip=1.0, backend="cpu").shape == shape


def out_of_order():
    """Calls whose values, not shapes, are wrong."""
    (z, pred, *outs), phis = images(4, (2, 3)), angles(2, 2)
    negative, rising, half_pi = phis - 1.0, phis.flip(0), phis.clone()
    half_pi[0] = math.pi / 2
    loss = ops.distillation_loss_and_grad
    yield lambda **b: ops.diffuse(z, pred, negative[0], **b)
    yield lambda **b: ops.diffuse(z, pred, phis[0] * math.nan, **b)
    yield lambda **b: ops.ddim_step(z, pred, phis[2], phis[0], **b)
    yield lambda **b: ops.ddim_step(z, pred, half_pi[0], phis[1], prediction_type="epsilon", **b)
    yield lambda **b: ops.ddim_step(z, pred, phis[2], phis[2], clip=1.0, **b)
    yield lambda **b: ops.distillation_target(z, outs, rising, **b)
    yield lambda **b: ops.distillation_target(z, outs, half_pi, prediction_type="epsilon", **b)
    yield lambda **b: loss(pred, z, outs, rising, **b)
    yield lambda **b: loss(pred, z, outs, half_pi, prediction_type="epsilon", weighting="constant", **b)
    types = {"target_type": "sample", "weighting": "constant"}
    yield lambda **b: ops.prediction_loss(pred, z, z, negative[0], prediction_type="sample", **types, **b)
    yield lambda **b: ops.prediction_loss(pred, z, z, phis[2], prediction_type="epsilon", **types, **b)
    yield lambda **b: ops.prediction_loss(pred, z, z, half_pi[0], prediction_type="epsilon", **types, **b)


@cpu
@pytest.mark.parametrize("call", list(out_of_order()))
def test_wrong_values_get_the_same_message_from_every_backend(call):
    with pytest.raises(ValueError) as plain:
        call(backend="reference")
    with pytest.raises(ValueError) as mine:
        call(backend="cpu")
    assert str(mine.value) == str(plain.value)


@cpu
def test_more_steps_than_the_kernels_take_is_an_error_that_says_so():
    (z, pred), outs = images(2, (2, 3)), images(17, (2, 3))
    with pytest.raises(ValueError, match="17 teacher outputs.*1 to 16"):
        ops.distillation_loss_and_grad(pred, z, outs, angles(2, 17), backend="cpu")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 4, 4), (128, 3, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffuse_on_a_gpu(shape, dtype):
    x, noise = (tensor.cuda() for tensor in images(2, shape, dtype=dtype))
    assert_as_good_as_reference(ops.diffuse, x, noise, angles(shape[0], 1)[0].cuda(), backend="cuda")


@pytest.mark.gpu
@gpu
def test_diffuse_on_a_gpu_off_the_16_byte_grid_and_on_another_stream():
    phi = angles(4, 1)[0].cuda()
    x, noise = (torch.randn(4 * 64 + 1, device="cuda")[1:].reshape(4, 64) for _ in range(2))
    expected = ops.diffuse(x.clone(), noise.clone(), phi, backend="reference")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = ops.diffuse(x, noise, phi, backend="cuda")
    stream.synchronize()
    torch.testing.assert_close(got, expected)
