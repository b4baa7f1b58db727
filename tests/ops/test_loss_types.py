"""l1 and pseudo-Huber of the weighted residual: values, gradients, limits, and what becomes of 0 and NaN."""

import math
import os

import pytest
import torch

import literal
from progdistill import ops
from progdistill.ops import native

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "min_snr")
ROBUST = ("l1", "pseudo_huber")
BACKENDS = ["reference", *(["cpu"] if native._C is not None else [])]
if os.environ.get("TRITON_INTERPRET") == "1":  # see test_triton_interpreted.py
    BACKENDS = ["triton"]
BATCH, SHAPE = 4, (3, 4, 5)


def images(count, prediction_type="v_prediction", seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = SHAPE[0] * (2 if prediction_type == "sample_epsilon" else 1)
    size = (BATCH, channels, *SHAPE[1:])
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def assert_loss(got, expected, pred):
    torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-8, atol=1e-10)
    # Unequal cotangents, as after a mean over some of the samples.
    cotangents = torch.arange(1.0, BATCH + 1, dtype=torch.float64)
    grads = [torch.autograd.grad(loss, pred, cotangents)[0] for loss in (got, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("loss_type", ROBUST)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_literal_formula(prediction_type, weighting, loss_type, backend):
    (z, x), (pred,) = images(2), images(1, prediction_type, seed=2)
    pred.requires_grad_()
    given = {"prediction_type": prediction_type, "weighting": weighting}
    options = {**given, "loss_type": loss_type, "huber_c": 0.3, "backend": backend}
    for other in TYPES:
        phis = literal.cosine_grid(4, torch.arange(BATCH)) * (1 - 1e-3)
        outs = images(2, other, seed=3)
        x_star = literal.x_target(z, outs, phis, other)
        expected = literal.robust_loss(pred, z, x_star, phis[0], **given, loss_type=loss_type, c=0.3)
        assert_loss(
            ops.distillation_loss(pred, z, outs, phis, teacher_prediction_type=other, **options), expected, pred
        )
        target = literal.from_x(z, x, phis[0], other)
        expected = literal.robust_loss(pred, z, x, phis[0], **given, loss_type=loss_type, c=0.3)
        assert_loss(ops.prediction_loss(pred, z, target, phis[0], target_type=other, **options), expected, pred)


@pytest.mark.parametrize("loss_type", ROBUST)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(loss_type, backend):
    """Random residuals lie away from the kink of l1."""
    (z, first, second), (pred,) = images(3), images(1, seed=2)
    phis = literal.cosine_grid(4, torch.arange(BATCH))
    loss = lambda pred: ops.distillation_loss(  # noqa: E731
        pred, z, [first, second], phis, loss_type=loss_type, huber_c=0.3, backend=backend
    )
    torch.autograd.gradcheck(loss, (pred.requires_grad_(),))


@pytest.mark.parametrize("loss_type", ["l2", *ROBUST])
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_and_nan(loss_type, backend):
    """An exact prediction costs nothing and pulls nowhere; a NaN shows in loss and gradient."""
    (z, pred), phi = (t.float() for t in images(2)), torch.linspace(0.1, 1.5, BATCH, dtype=torch.float64)
    types = {"prediction_type": "v", "target_type": "v", "weighting": "truncated_snr", "loss_type": loss_type}
    loss, grad = ops.prediction_loss_and_grad(pred, z, pred.clone(), phi, **types, backend=backend)
    assert torch.equal(loss, torch.zeros(BATCH)) and torch.equal(grad, torch.zeros_like(pred))
    target = pred + 1
    target[1, 2, 3, 4] = math.nan
    loss, grad = ops.prediction_loss_and_grad(pred, z, target, phi, **types, backend=backend)
    assert loss.isnan().tolist() == [False, True, False, False]
    assert grad.isnan().nonzero().tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pseudo_huber_lies_between_the_other_two(backend):
    """r^2 / (2 c) for |r| << c, even in float32, where sqrt(r^2 + c^2) - c has no digits left; |r| - c for |r| >> c."""
    z, phi = torch.zeros(4, 1), torch.full((4,), 0.5, dtype=torch.float64)
    error = torch.tensor([[1e-5], [-1e-4], [1e3], [-1e4]])
    loss, grad = ops.prediction_loss_and_grad(
        error,
        z,
        z,
        phi,
        prediction_type="v",
        target_type="v",
        weighting="snr_plus_one",
        loss_type="huber",
        huber_c=1.0,
        backend=backend,
    )
    torch.testing.assert_close(loss, torch.tensor([0.5e-10, 0.5e-8, 1e3 - 1, 1e4 - 1]), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, torch.tensor([[1e-5], [-1e-4], [1.0], [-1.0]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss_type", ["l2", *ROBUST])
def test_the_loss_does_not_depend_on_what_the_network_predicts(loss_type):
    """r is the weighted v error for all of them, so huber_c means the same everywhere."""
    (z, x, x_star), phi = images(3), torch.linspace(0.1, 1.4, BATCH, dtype=torch.float64)
    losses = [
        ops.prediction_loss(
            literal.from_x(z, x, phi, own),
            z,
            x_star,
            phi,
            prediction_type=own,
            target_type="x",
            weighting="truncated_snr",
            loss_type=loss_type,
            huber_c=0.3,
        )
        for own in TYPES
    ]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-10, atol=0)


def test_compile_fullgraph():
    (z, first, second), (pred,) = images(3), images(1, seed=2)
    phis = literal.cosine_grid(4, torch.arange(BATCH))

    def update(pred, z, outs, phis):
        total = 0
        for loss_type in ROBUST:
            loss = ops.distillation_loss(pred, z, outs, phis, loss_type=loss_type, huber_c=0.2)
            total = total + loss.mean()
        return total

    results = []
    for function in (update, torch.compile(update, fullgraph=True, backend="aot_eager")):
        leaf = pred.clone().requires_grad_()
        value = function(leaf, z, [first, second], phis)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_errors():
    (pred, z, first, second), phis = images(4), literal.cosine_grid(4, torch.arange(BATCH))
    with pytest.raises(ValueError, match="unknown loss type 'lpips'; use one of l2, l1, pseudo_huber"):
        ops.distillation_loss(pred, z, [first, second], phis, loss_type="lpips")
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"huber_c is {bad}; use a number between 1e-9 and 1e9"):
            ops.distillation_loss(pred, z, [first, second], phis, loss_type="pseudo_huber", huber_c=bad)
