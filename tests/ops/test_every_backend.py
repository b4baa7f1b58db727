"""Every backend against the papers' literal formulas in float64 (tests/literal.py), from the same float32 numbers."""

import itertools

import pytest
import torch

import literal
from progdistill import ops
from tolerance import assert_within_rule

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "min_snr")
BATCH, SHAPE = 4, (3, 5, 4)


def tensors(count, prediction_type="v_prediction", seed=0):
    """(float32 tensors, the same in float64)."""
    generator = torch.Generator().manual_seed(seed)
    channels = SHAPE[0] * (2 if prediction_type == "sample_epsilon" else 1)
    single = [torch.randn(BATCH, channels, *SHAPE[1:], generator=generator) for _ in range(count)]
    return single, [tensor.double() for tensor in single]


def grid(steps, teacher_steps, *types):
    """Angles of student steps spread over all of them; an epsilon output needs SNR > 0."""
    phis = literal.cosine_grid(steps, torch.linspace(0, steps - 1, BATCH).round().long(), teacher_steps)
    return phis * (1 - 1e-3) if "epsilon" in types else phis


def check(backend, operation, arguments, exact, **options):
    """Holds the backend's results and those of plain PyTorch against the exact ones."""
    mine, plain = backend.call(operation, *arguments, **options), operation(*arguments, backend="reference", **options)
    if isinstance(mine, torch.Tensor):
        mine, plain, exact = (mine,), (plain,), (exact,)
    for got, same_maths, truth in zip(mine, plain, exact, strict=True):
        assert_within_rule(got, same_maths, truth)


@pytest.mark.parametrize("steps", [1, 4, 256])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_steps_and_targets(backend, steps, prediction_type):
    ((z,), (z64,)), (outs, outs64) = tensors(1), tensors(3, prediction_type, seed=1)
    for clip, teacher_steps in itertools.product((None, 1.0), (1, 2, 3)):
        phis = grid(steps, teacher_steps, prediction_type)
        options = {"prediction_type": prediction_type, "clip": clip}
        exact = literal.ddim(z64, outs64[0], *phis[:2], **options)
        check(backend, ops.ddim_step, (z, outs[0], *phis[:2]), exact, **options)
        x_star = literal.x_target(z64, outs64[:teacher_steps], phis, **options)
        for target_type in TYPES:
            if target_type == "epsilon" and steps == 1:
                continue  # SNR 0
            exact = literal.from_x(z64, x_star, phis[0], target_type)
            arguments = (z, outs[:teacher_steps], phis)
            check(backend, ops.distillation_target, arguments, exact, target_type=target_type, **options)


@pytest.mark.parametrize("steps", [1, 4, 256])
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_losses_and_gradients(backend, steps, prediction_type, weighting):
    phis = grid(steps, 2, "epsilon")  # off SNR 0, where some weightings of some predictions are infinite
    ((z, x), (z64, x64)), ((pred,), (pred64,)) = tensors(2), tensors(1, prediction_type, seed=2)
    kind = {"prediction_type": prediction_type, "weighting": weighting}

    def exact(x_star):
        leaf = pred64.clone().requires_grad_()
        loss = literal.loss(leaf, z64, x_star, phis[0], **kind)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    for teacher, clip in itertools.product(("sample", "v_prediction", "sample_epsilon"), (None, 1.0)):
        outs, outs64 = tensors(2, teacher, seed=1)
        options = {"teacher_prediction_type": teacher, "clip": clip, **kind}
        truth = exact(literal.x_target(z64, outs64, phis, teacher, clip))
        check(backend, ops.distillation_loss_and_grad, (pred, z, outs, phis), truth, **options)
    check(backend, ops.prediction_loss_and_grad, (pred, z, x, phis[0]), exact(x64), target_type="sample", **kind)
