"""The compiled kernels (CUDA: emulated where there is no GPU) are as good as the reference, and refuse what it does."""

import itertools
import math

import pytest
import torch

from ops.operands import SHAPES, angles, images
from progdistill import ops
from progdistill.ops import native
from tolerance import assert_within_rule, largest, root_mean_square

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "min_snr")


def double(value):
    """The same numbers in float64, through lists."""
    if isinstance(value, list):
        return [double(item) for item in value]
    return value.double() if isinstance(value, torch.Tensor) else value


def assert_as_good_as_reference(backend, operation, *arguments, size=largest, **options):
    """Runs an operation three ways and applies the rule to each of its results."""
    as_tuple = lambda result: result if isinstance(result, tuple) else (result,)  # noqa: E731
    mine = as_tuple(backend.call(operation, *arguments, **options))
    reference = as_tuple(operation(*arguments, backend="reference", **options))
    truth = as_tuple(operation(*double(list(arguments)), backend="reference", **options))
    for got, plain, exact in zip(mine, reference, truth, strict=True):
        assert got.dtype == plain.dtype and got.shape == plain.shape and got.stride() == plain.stride()
        assert_within_rule(got, plain, exact, size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffuse(backend, shape, dtype):
    x, noise = images(2, shape, dtype=dtype)
    assert_as_good_as_reference(backend, ops.diffuse, x, noise, angles(shape[0], 1)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_ddim_step(backend, shape, prediction_type, clip):
    (z,), phis = images(1, shape), angles(shape[0], 1)
    for dtype in (torch.float32, torch.bfloat16):
        (out,) = images(1, shape, prediction_type, dtype, seed=1)
        assert_as_good_as_reference(backend, ops.ddim_step, z, out, *phis, prediction_type=prediction_type, clip=clip)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("target_type", TYPES)
def test_distillation_target(backend, prediction_type, target_type):
    types = {"prediction_type": prediction_type, "target_type": target_type}
    for shape, steps, clip in itertools.product([(3, 5), (4, 3, 9, 7)], (1, 2, 3, 5), (None, 0.8)):
        (z,), outs = images(1, shape), images(steps, shape, prediction_type, seed=1)
        assert_as_good_as_reference(
            backend, ops.distillation_target, z, outs, angles(shape[0], steps), clip=clip, **types
        )


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("teacher_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_distillation_loss(backend, prediction_type, teacher_type, weighting):
    shape = (4, 3, 9, 7)
    types = {"prediction_type": prediction_type, "teacher_prediction_type": teacher_type, "weighting": weighting}
    for steps, clip in itertools.product((1, 2, 3, 5), (None, 0.8)):
        (z,), (pred,) = images(1, shape), images(1, shape, prediction_type, seed=1)
        outs = images(steps, shape, teacher_type, seed=2)
        assert_as_good_as_reference(
            backend,
            ops.distillation_loss_and_grad,
            pred,
            z,
            outs,
            angles(4, steps),
            clip=clip,
            grad_scale=0.25,
            **types,
        )


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("target_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_prediction_loss(backend, prediction_type, target_type, weighting):
    shape = (4, 3, 9, 7)
    types = {"prediction_type": prediction_type, "target_type": target_type, "weighting": weighting}
    (z,), (pred,) = images(1, shape), images(1, shape, prediction_type, seed=1)
    for dtype in (torch.float32, torch.bfloat16):
        (target,) = images(1, shape, target_type, dtype, seed=2)
        arguments = (pred, z, target, angles(4, 1)[0])
        assert_as_good_as_reference(backend, ops.prediction_loss_and_grad, *arguments, **types)
        # The slopes of these are bounded, so what is lost is lost in the few residuals near 0: no maximum then.
        for loss_type in ("l1", "pseudo_huber"):
            options = {**types, "loss_type": loss_type, "huber_c": 1.0, "size": root_mean_square}
            assert_as_good_as_reference(backend, ops.prediction_loss_and_grad, *arguments, **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_losses_of_mixed_dtypes_and_odd_shapes(backend, shape, prediction_type, clip):
    (z,), phis = images(1, shape), angles(shape[0], 2)
    for dtype, teacher_dtype in itertools.product((torch.float32, torch.bfloat16), repeat=2):
        (pred,) = images(1, shape, prediction_type, dtype, seed=1)
        outs = images(2, shape, prediction_type, teacher_dtype, seed=2)
        assert_as_good_as_reference(
            backend, ops.distillation_loss_and_grad, pred, z, outs, phis, prediction_type=prediction_type, clip=clip
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("loss_type", ["l1", "pseudo_huber"])
def test_loss_types_of_mixed_dtypes_and_odd_shapes(backend, shape, prediction_type, loss_type):
    (z,), phis = images(1, shape), angles(shape[0], 2)
    for dtype in (torch.float32, torch.bfloat16):
        (pred,), outs = images(1, shape, prediction_type, dtype, seed=1), images(2, shape, prediction_type, dtype, 2)
        options = {"prediction_type": prediction_type, "loss_type": loss_type, "size": root_mean_square}
        assert_as_good_as_reference(backend, ops.distillation_loss_and_grad, pred, z, outs, phis, **options)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_float64_agrees_to_its_last_digits(backend, prediction_type):
    shape = (3, 3, 6, 5)
    (z,), (pred,) = images(1, shape, dtype=torch.float64), images(1, shape, prediction_type, torch.float64, seed=1)
    outs, phis = images(3, shape, prediction_type, torch.float64, seed=2), angles(3, 3)
    for clip in (None, 0.8):
        arguments, types = (pred, z, outs, phis), {"prediction_type": prediction_type, "clip": clip}
        results = (
            backend.call(ops.distillation_loss_and_grad, *arguments, **types),
            ops.distillation_loss_and_grad(*arguments, **types, backend="reference"),
        )
        for mine, reference in zip(*results, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-13)


def test_not_a_number_stays_one(backend):
    shape, phis = (2, 3, 8, 8), angles(2, 2)
    (z,), (pred,) = images(1, shape), images(1, shape, dtype=torch.bfloat16, seed=1)
    outs = images(2, shape, seed=2)
    pred[1, 0, 0, 0] = math.nan
    outs[1][0, 1, 2, 3] = math.nan
    loss, grad = backend.call(ops.distillation_loss_and_grad, pred, z, outs, phis, clip=1.0)
    assert loss.isnan().all()
    assert grad.isnan().nonzero().tolist() == [[0, 1, 2, 3], [1, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 5)])
def test_no_samples(backend, shape):
    (z, pred, *outs), phis = images(4, shape), torch.empty(3, 0, dtype=torch.float64)
    loss, grad = backend.call(ops.distillation_loss_and_grad, pred, z, outs, phis)
    assert loss.shape == (0,) and grad.shape == shape
    assert backend.call(ops.diffuse, z, pred, phis[0]).shape == shape
    assert backend.call(ops.ddim_step, z, pred, phis[0], phis[1], clip=1.0).shape == shape


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


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
@pytest.mark.parametrize("call", list(out_of_order()))
def test_wrong_values_get_the_same_message_from_every_backend(call):
    with pytest.raises(ValueError) as plain:
        call(backend="reference")
    with pytest.raises(ValueError) as mine:
        call(backend="cpu")
    assert str(mine.value) == str(plain.value)


def test_more_steps_than_the_kernels_take_is_an_error_that_says_so(backend):
    (z, pred), outs = images(2, (2, 3)), images(17, (2, 3))
    with pytest.raises(ValueError, match="17 teacher outputs.*1 to 16"):
        backend.call(ops.distillation_loss_and_grad, pred, z, outs, angles(2, 17))


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
def test_two_interleaved_heads_of_too_many_channels():
    (z,), outs = images(1, (1, 1025, 2, 2)), images(2, (1, 1025, 2, 2), "sample_epsilon", seed=1)
    z, *outs = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (z, *outs))
    with pytest.raises(ValueError, match="1025 channels a head.*1024 at most: pass contiguous"):
        ops.distillation_target(z, outs, angles(1, 2), prediction_type="sample_epsilon", backend="cpu")
