"""Operations against the paper's literal formulas in float64 (tests/literal.py)."""

import pytest
import torch

import literal
from progdistill import ops
from progdistill.ops import rotation

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "min_snr")
BATCH, SHAPE = 8, (3, 4, 5)


def tensors(count, dtype=torch.float64, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, channels, *SHAPE[1:], generator=generator, dtype=dtype) for _ in range(count)]


def outputs(count, prediction_type, dtype=torch.float64, seed=1):
    return tensors(count, dtype, 6 if prediction_type == "sample_epsilon" else 3, seed)


def spread(steps):
    """Student step indices over the whole range, both ends included."""
    return torch.linspace(0, steps - 1, BATCH).round().long()


def epsilon_safe(phis, *types):
    """An epsilon output needs SNR > 0 (the paper's schedule stops at logSNR = -20)."""
    return phis * (1 - 1e-3) if "epsilon" in types else phis


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim_step(prediction_type, clip):
    (z,) = tensors(1)
    (out,) = outputs(1, prediction_type)
    phis = epsilon_safe(literal.cosine_grid(4, torch.arange(BATCH) % 4), prediction_type)
    expected = literal.ddim(z, out, phis[0], phis[1], prediction_type, clip)
    got = ops.ddim_step(z, out, phis[0], phis[1], prediction_type=prediction_type, clip=clip)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_last_clipped_step_returns_the_clipped_image_exactly():
    z, out = tensors(2, torch.float32)
    phi = torch.full((BATCH,), 0.7, dtype=torch.float64)
    image = ops.ddim_step(z, out, phi, torch.zeros_like(phi), clip=1.0)
    assert image.abs().max() == 1.0


@pytest.mark.parametrize("teacher", TYPES)
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("teacher_steps", [1, 2, 3, 5])
def test_target_in_float64(teacher, target, clip, teacher_steps):
    (z,) = tensors(1)
    outs = outputs(teacher_steps, teacher)
    phis = epsilon_safe(literal.cosine_grid(4, torch.arange(BATCH) % 4, teacher_steps), teacher)
    expected = literal.from_x(z, literal.x_target(z, outs, phis, teacher, clip), phis[0], target)
    got = ops.distillation_target(z, outs, phis, prediction_type=teacher, target_type=target, clip=clip)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 64, 512, 1024, 4096, 8192])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_float32_residual_keeps_its_digits_at_every_step_count(steps, prediction_type, weighting):
    """1e-6 in the weighted residual s r, times s where an x network's weight makes s itself large."""
    phis = literal.cosine_grid(steps, spread(steps))
    z, pred, *outs = (t.float() for t in [*tensors(1), *outputs(3, prediction_type)])
    double = [out.double() for out in outs]
    x_star = literal.x_target(z.double(), double, phis, prediction_type)
    x, _ = literal.x_and_eps(z.double(), pred.double(), phis[0], prediction_type)
    root = literal.expand(literal.weight(phis[0], weighting).sqrt(), z)
    expected = (root * (x - x_star)).square()

    # The loss of one element at a time is that element's squared residual.
    flat = lambda t: t.flatten(2).movedim(2, 1).reshape(-1, t.shape[1])  # noqa: E731
    repeated = phis.repeat_interleave(SHAPE[1] * SHAPE[2], dim=1)
    channels = [slice(c, None, 3) for c in range(3)]
    got = torch.stack(
        [
            ops.distillation_loss(
                flat(pred)[:, c],
                flat(z)[:, c],
                [flat(out)[:, c] for out in outs],
                repeated,
                prediction_type=prediction_type,
                weighting=weighting,
            )
            for c in channels
        ],
        dim=1,
    )
    error = (got.double().sqrt() - flat(expected).sqrt()).abs().reshape(BATCH, -1).amax(1)
    scale, _ = rotation.loss_scale(prediction_type, weighting, phis[0], 5.0)
    # The literal inversion is itself only good to ~1e-15 / step in float64, which stays far below this bound.
    assert (error <= 1e-6 * scale.clamp(min=1)).all(), error / scale.clamp(min=1)


@pytest.mark.parametrize("steps", [64, 1024, 8192])
def test_literal_inversion_would_lose_the_digits(steps):
    """Why the cancelled form exists: the same inversion in float32 misses the bound that ours keeps."""
    phis = literal.cosine_grid(steps, spread(steps))
    (z,), outs = tensors(1), outputs(2, "sample")
    exact = literal.x_target(z, outs, phis, "sample")
    rounded = literal.x_target(z.float(), [o.float() for o in outs], phis.float(), "sample")
    ours = ops.distillation_target(
        z.float(), [o.float() for o in outs], phis, prediction_type="sample", target_type="sample"
    )
    assert (rounded - exact).abs().max() > 1e-5
    assert (ours - exact).abs().max() < 1e-6


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("teacher", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_loss_in_float64(prediction_type, teacher, weighting, clip):
    (z,), (pred,), outs = tensors(1), outputs(1, prediction_type, seed=2), outputs(2, teacher)
    phis = epsilon_safe(literal.cosine_grid(4, torch.arange(BATCH) % 4), prediction_type, teacher)
    x_star = literal.x_target(z, outs, phis, teacher, clip)
    pred.requires_grad_()
    expected = literal.loss(pred, z, x_star, phis[0], prediction_type, weighting)
    (expected_grad,) = torch.autograd.grad(expected.mean(), pred)
    options = {
        "prediction_type": prediction_type,
        "teacher_prediction_type": teacher,
        "weighting": weighting,
        "clip": clip,
    }
    got = ops.distillation_loss(pred, z, outs, phis, **options)
    (grad,) = torch.autograd.grad(got.mean(), pred)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-7, atol=1e-9)
    both = ops.distillation_loss_and_grad(pred, z, outs, phis, **options, grad_scale=1 / BATCH)
    torch.testing.assert_close(both[0], got.detach(), rtol=0, atol=0)
    torch.testing.assert_close(both[1], grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("target_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_prediction_loss_in_float64(prediction_type, target_type, weighting):
    (z, x), (pred,) = tensors(2), outputs(1, prediction_type, seed=2)
    phi = torch.linspace(0.05, 1.5, BATCH, dtype=torch.float64)
    target = literal.from_x(z, x, phi, target_type)
    expected = literal.loss(pred, z, x, phi, prediction_type, weighting)
    options = {"prediction_type": prediction_type, "target_type": target_type, "weighting": weighting}
    pred.requires_grad_()
    got = ops.prediction_loss(pred, z, target, phi, **options)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)
    reference = literal.loss(pred, z, x, phi, prediction_type, weighting).sum()
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), pred), torch.autograd.grad(reference, pred), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weighted_loss_is_finite_at_both_ends(weighting):
    """v and two-headed losses divide by nothing: phi = pi / 2 and phi = 0 are ordinary angles."""
    z, pred, x = tensors(3, torch.float32)
    phi = torch.tensor([0.0, torch.pi / 2] * (BATCH // 2), dtype=torch.float64)
    value = ops.prediction_loss(
        pred, z, x, phi, prediction_type="v_prediction", target_type="v_prediction", weighting=weighting
    )
    assert torch.isfinite(value).all()


def test_diffuse_is_the_forward_process():
    x, noise = tensors(2)
    phi = torch.linspace(0, torch.pi / 2, BATCH, dtype=torch.float64)
    expected = literal.diffuse(x, noise, phi)
    torch.testing.assert_close(ops.diffuse(x, noise, phi), expected, rtol=1e-14, atol=1e-14)
