"""aDDIM against its literal formula, and on Gaussian data, where the lost variance is known."""

import math

import pytest
import torch

import literal
from analytic import MixtureDenoiser
from progdistill import ops
from progdistill.sampling.addim import addim_prediction

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
BATCH, SHAPE = 8, (3, 8, 8)


def case(steps, prediction_type, substeps=2):
    """States, the clean data they are made of, outputs wrong by about 0.3 sigma, and angles of a student's steps."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    phis = literal.cosine_grid(steps, torch.linspace(0, steps - 1, BATCH).round().long(), substeps)
    if prediction_type == "epsilon":
        phis = phis * (1 - 1e-3)
    x, noise = draw().clamp(-1, 1), draw()
    alpha, sigma = literal.expand(torch.cos(phis[0]), x), literal.expand(torch.sin(phis[0]), x)
    outs = [
        {
            "epsilon": lambda: noise + 0.3 * draw(),
            "sample": lambda: x + 0.3 * sigma * draw(),
            "v_prediction": lambda: alpha * noise - sigma * x + 0.3 * draw(),
            "sample_epsilon": lambda: torch.cat([x + 0.3 * sigma * draw(), noise + 0.3 * draw()], dim=1),
        }[prediction_type]()
        for _ in range(substeps)
    ]
    return alpha * x + sigma * noise, x, outs, phis


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 256])
def test_a_step_is_the_literal_one(prediction_type, known, steps):
    z, x, (out, _), phis = case(steps, prediction_type)
    if prediction_type == "sample_epsilon":  # what the heads mean together, in the operations' own way
        cos, sin = literal.expand(torch.cos(phis[0]), z), literal.expand(torch.sin(phis[0]), z)
        x_net, eps_net = out.chunk(2, dim=1)
        expected_out, expected_type = cos * eps_net - sin * x_net, "v_prediction"
    else:
        expected_out, expected_type = out, prediction_type
    given = {"x": x if known else None, "eta": 0.6}
    expected = literal.addim(z, expected_out, phis[0], phis[2], expected_type, **given)
    corrected, own_type = addim_prediction(z, out, phis[0], phis[2], prediction_type=prediction_type, **given)
    assert own_type == expected_type
    got = ops.ddim_step(z, corrected, phis[0], phis[2], prediction_type=own_type)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert (got - ops.ddim_step(z, out, phis[0], phis[2], prediction_type=prediction_type)).abs().max() > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_eta_zero_is_ddim_to_the_last_bit(prediction_type, dtype):
    z, x, (out, _), phis = case(4, prediction_type)
    z, out = z.float(), out.to(dtype)
    corrected, own_type = addim_prediction(
        z, out, phis[0], phis[1], prediction_type=prediction_type, x=x.float(), eta=0.0
    )
    assert own_type == prediction_type and torch.equal(corrected, out.float())


@pytest.mark.parametrize("steps", [4, 16, 64, 256, 1024])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_float32_target_keeps_its_digits_at_every_step_count(prediction_type, steps):
    """Two aDDIM steps inverted, against the literal formula in float64; in float32 that one has lost 1e-6 N."""
    z, x, outs, phis = case(steps, prediction_type)
    z, x, outs = z.float(), x.float(), [out.float() for out in outs]

    def written_down(z, x, outs, phis):
        state = z
        for out, phi, phi_next in zip(outs, phis[:-1], phis[1:], strict=True):
            state = literal.addim(state, out, phi, phi_next, prediction_type, x)
        return literal.from_x(z, literal.one_step_x(z, state, phis[0], phis[-1]), phis[0], prediction_type)

    exact = written_down(z.double(), x.double(), [out.double() for out in outs], phis)
    types = {"prediction_type": prediction_type}
    first, _ = addim_prediction(z, outs[0], *phis[:2], x=x, **types)
    half = ops.ddim_step(z, first, *phis[:2], **types)
    second, _ = addim_prediction(half, outs[1], *phis[1:], x=x, **types)
    got = ops.distillation_target(z, [first, second], phis, target_type=prediction_type, **types)
    assert (got - exact).abs().max() < (1e-6 if steps <= 256 else 6e-6)
    if steps >= 64:
        assert (written_down(z, x, outs, phis.float()) - exact).abs().max() > 1e-5


def gaussian_states(phi, std, count=256):
    generator = torch.Generator().manual_seed(1)
    x = std * torch.randn(count, 1, 16, 16, generator=generator, dtype=torch.float64)
    phi = torch.full((count,), phi, dtype=torch.float64)
    return ops.diffuse(x, torch.randn(x.shape, generator=generator, dtype=torch.float64), phi), x, phi


def variance_after(z, x, phi, phi_next, std, eta):
    """Variance after a step with the ideal denoiser of N(0, std^2), over that of the forward process."""
    phi_next = torch.full_like(phi, phi_next)
    out = MixtureDenoiser([0.0], [std]).raw(z, phi)
    if eta is not None:
        out, _ = addim_prediction(z, out, phi, phi_next, prediction_type="v_prediction", x=x, eta=eta)
    state = ops.ddim_step(z, out, phi, phi_next)
    return float(state.var() / (math.cos(phi_next[0]) ** 2 * std**2 + math.sin(phi_next[0]) ** 2))


@pytest.mark.parametrize("std", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("phi_next", [1.2, 0.8, 0.3])
def test_the_first_step_keeps_the_variance_that_ddim_loses(std, phi_next):
    """From pure noise the ideal x is its mean, 0: DDIM keeps sin^2 of cos^2 std^2 + sin^2, aDDIM with eta = 1 all."""
    z, x, phi = gaussian_states(math.pi / 2, std)
    kept = math.sin(phi_next) ** 2 / (math.cos(phi_next) ** 2 * std**2 + math.sin(phi_next) ** 2)
    assert abs(variance_after(z, x, phi, phi_next, std, None) / kept - 1) < 0.02
    assert abs(variance_after(z, x, phi, phi_next, std, 1.0) - 1) < 0.02


@pytest.mark.parametrize("std", [0.2, 0.5])
@pytest.mark.parametrize(("phi", "phi_next"), [(1.4, 1.0), (1.2, 0.8), (1.2, 0.6)])
def test_steps_from_the_middle_keep_more_of_the_variance(std, phi, phi_next):
    """There x and eps are not orthogonal, which the formula takes them to be: better than DDIM, not exact."""
    z, x, phi = gaussian_states(phi, std)
    lost = 1 - variance_after(z, x, phi, phi_next, std, None)
    assert lost > 0.005
    assert abs(1 - variance_after(z, x, phi, phi_next, std, 0.75)) < 0.5 * lost + 0.01


def test_nothing_to_correct():
    """Neither an exact last step nor a prediction without noise divides by zero."""
    x, phi = torch.ones(2, 1, 2, 2), torch.full((2,), 0.5, dtype=torch.float64)
    exact, _ = addim_prediction(x, x, phi, torch.zeros_like(phi), prediction_type="sample", x=x)
    assert torch.equal(exact, x)
    zero = torch.zeros_like(x)
    corrected, _ = addim_prediction(zero, zero, phi, 0.5 * phi, prediction_type="sample", x=x)
    assert torch.equal(corrected, zero)


def test_errors():
    z, phi = torch.ones(2, 3), torch.full((2,), 0.5, dtype=torch.float64)
    for eta in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"addim_eta is {eta}; use a number from 0"):
            addim_prediction(z, z, phi, 0.5 * phi, prediction_type="sample", x=z, eta=eta)
    with pytest.raises(ValueError, match="unknown prediction type 'score'"):
        addim_prediction(z, z, phi, 0.5 * phi, prediction_type="score")
