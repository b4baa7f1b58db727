"""The solvers on a Gaussian mixture whose ideal denoiser is known, in float64, and beside diffusers' schedulers."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from analytic import MixtureDenoiser
from progdistill import sample
from progdistill.core import CosineSchedule, EDMSchedule
from progdistill.sampling import ddim as fused_ddim
from progdistill.sampling.solvers import (
    SOLVERS,
    Thresholding,
    chosen_solver,
    make_grid,
    network_calls,
    solve,
    solver_stages,
    with_analytic_first_step,
)
from progdistill.sampling.solvers.adams_bashforth import adams_bashforth, ipndm
from progdistill.sampling.solvers.dpm_multistep import dpm_solver_multistep
from progdistill.sampling.solvers.first_order import angle_of_half_logsnr, ddim, euler, half_logsnr, rk4
from progdistill.sampling.solvers.single_step import allotted_orders, dpm_solver_2, dpm_solver_3, heun
from progdistill.sampling.solvers.stages import combined
from progdistill.sampling.solvers.unipc import unipc

MIXTURE = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7])
FROM, TO = 1.3, 0.2


def noise(count=64, seed=0):
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(z, start, end, steps=200):
    """The probability-flow ODE by the literal classic Runge-Kutta rule for dz / dphi = v, finely."""
    angles = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    v = lambda state, phi: MIXTURE.v(state, phi.expand(len(state)))  # noqa: E731
    for s, t in zip(angles[:-1], angles[1:], strict=True):
        h, middle = t - s, (s + t) / 2
        k1 = v(z, s)
        k2 = v(z + h / 2 * k1, middle)
        k3 = v(z + h / 2 * k2, middle)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(z + h * k3, t))
    return z


def in_lambda(count):
    low, high = half_logsnr(FROM), half_logsnr(TO)
    return [angle_of_half_logsnr(low + (high - low) * k / count) for k in range(count + 1)]


ONE_STEP = {
    "ddim": (ddim, 1),
    "euler": (euler, 1),
    "rk4": (rk4, 4),
    "heun": (heun, 2),
    "dpm_2s": (dpm_solver_2, 2),
    "dpm_2s, r1 = 0.7": (partial(dpm_solver_2, r1=0.7), 2),
    "dpm_3s": (dpm_solver_3, 3),
    "dpmpp_2s": (partial(dpm_solver_2, quantity="x"), 2),
    "dpmpp_3s": (partial(dpm_solver_3, quantity="x"), 3),
    "dpmpp_2m": (partial(dpm_solver_multistep, order=2, lower_order_final=False), 2),
    "dpmpp_3m starts with Euler": (partial(dpm_solver_multistep, order=3, corrected=True, lower_order_final=False), 2),
    "unipc_1": (partial(unipc, order=1, lower_order_final=False), 2),
    "unipc_2": (partial(unipc, order=2, lower_order_final=False), 3),
    "unipc_2 of eps": (partial(unipc, order=2, quantity="eps", lower_order_final=False), 3),
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_global_order(name):
    stages, order = ONE_STEP[name]
    z = noise(16)
    truth = exact(z, FROM, TO)
    counts = (16, 32) if order == 4 else (80, 160)
    errors = [(solve(MIXTURE, z, stages(in_lambda(n))) - truth).abs().mean() for n in counts]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25), errors


MULTISTEP = {
    "dpmpp_2m": (partial(dpm_solver_multistep, order=2, lower_order_final=False), 2),
    "dpmpp_3m as published": (partial(dpm_solver_multistep, order=3, lower_order_final=False), 2),
    "dpmpp_3m corrected": (partial(dpm_solver_multistep, order=3, corrected=True, lower_order_final=False), 3),
    "dpm_3m of eps, corrected": (
        partial(dpm_solver_multistep, order=3, corrected=True, quantity="eps", lower_order_final=False),
        3,
    ),
    "rhoab_2": (partial(adams_bashforth, order=2), 2),
    "rhoab_3": (partial(adams_bashforth, order=3), 3),
    "rhoab_4": (partial(adams_bashforth, order=4), 4),
    "tab_3": (partial(adams_bashforth, order=3, variable=lambda phi: phi), 3),
    "tab_4": (partial(adams_bashforth, order=4, variable=lambda phi: phi), 4),
    "ipndm_3 on steps that are not equal": (partial(ipndm, order=3), 2),
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_local_order_with_an_exact_history(name):
    """The error of a step that is given the exact path so far is one order higher than what adds up of it."""
    stages, order = MULTISTEP[name]
    errors = []
    for h in (0.02, 0.01):
        angles = [angle_of_half_logsnr(0.3 + h * k) for k in range(5)]
        path = [noise(16)]
        for s, t in zip(angles[:-1], angles[1:], strict=True):
            path.append(exact(path[-1], s, t, steps=8))
        stage = stages(angles)[3]
        reversed_path = list(zip(path[:4], angles[:4], strict=True))[::-1]
        of = {"x": MIXTURE.x, "eps": MIXTURE.eps}[stage.quantity]
        outputs = [of(z, torch.full((len(z),), phi, dtype=torch.float64)) for z, phi in reversed_path]
        errors.append((combined(stage.result, path[3], path[3], outputs) - path[4]).abs().mean())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.3), errors


def test_one_first_order_step_has_many_names():
    angles, z = in_lambda(6), noise()
    expected = fused_ddim(MIXTURE, z, torch.tensor(angles, dtype=torch.float64))
    same = [partial(ddim, quantity=q) for q in ("v", "x", "eps")]
    same += [partial(dpm_solver_multistep, order=1), partial(ipndm, order=1), partial(adams_bashforth, order=1)]
    for stages in same:
        torch.testing.assert_close(solve(MIXTURE, z, stages(angles)), expected, rtol=1e-12, atol=1e-12)


def test_adams_bashforth_on_equal_steps_of_rho_is_ipndm():
    angles = np.arctan(np.linspace(3.0, 0.3, 10)).tolist()
    for order in (1, 2, 3, 4):
        for ours, theirs in zip(adams_bashforth(angles, order), ipndm(angles, order), strict=True):
            np.testing.assert_allclose(ours.result.outputs, theirs.result.outputs, rtol=1e-9, atol=1e-12)


def test_the_variance_preserving_run_is_the_edm_run_rescaled():
    """Heun as EDM states it, for x + sigma eps: d = (z - D) / sigma, Euler, then the mean of both slopes."""
    sigmas = np.linspace(4.0, 0.2, 8).tolist()
    angles = np.arctan(sigmas).tolist()
    z = noise()
    state = z / math.cos(angles[0])
    denoise = lambda state, sigma: MIXTURE.x(  # noqa: E731
        state * math.cos(math.atan(sigma)), torch.full((len(state),), math.atan(sigma), dtype=torch.float64)
    )
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (state - denoise(state, sigma)) / sigma
        euler_state = state + (following - sigma) * d
        state = state + (following - sigma) * (d + (euler_state - denoise(euler_state, following)) / following) / 2
    torch.testing.assert_close(solve(MIXTURE, z, heun(angles)), state * math.cos(angles[-1]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", [CosineSchedule(), CosineSchedule(-20, 20), EDMSchedule()])
def test_every_solver_goes_from_noise_to_images(name, schedule):
    model = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7], schedule=schedule)
    z = noise(32)
    truth = fused_ddim(model, z, schedule.grid(1000))
    errors = []
    for steps in (5, 40):
        stages = solver_stages(name, make_grid(schedule, steps), model)
        errors.append((solve(model, z, stages) - truth).square().mean().sqrt())
    first_order = (fused_ddim(model, z, schedule.grid(40)) - truth).square().mean().sqrt()
    assert torch.isfinite(errors[0]) and errors[1] < max(1.7 * first_order, 0.01), errors


def test_network_calls_are_counted():
    model, phis = MIXTURE, CosineSchedule().grid(10)
    calls = []
    raw = model.raw
    counting = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7])
    counting.raw = lambda *arguments: calls.append(1) or raw(*arguments)
    for name in SOLVERS:
        stages = solver_stages(name, phis, model)
        calls.clear()
        solve(counting, noise(2), stages)
        assert len(calls) == network_calls(stages), name
    assert network_calls(solver_stages("ddim", phis, model)) == 10
    # The first and the last of ten steps are of first order.
    assert network_calls(solver_stages("heun", phis, model)) == 18
    assert network_calls(solver_stages("dpm_3", phis, model)) == 10
    assert network_calls(solver_stages("dpmpp_3m", phis, model, analytic_first_step=True)) == 9


def test_orders_are_allotted_as_the_authors_do():
    assert allotted_orders(6, 2) == [2, 2, 2] and allotted_orders(7, 2) == [2, 2, 2, 1]
    assert allotted_orders(9, 3) == [3, 3, 2, 1] and allotted_orders(10, 3) == [3, 3, 3, 1]
    assert allotted_orders(11, 3) == [3, 3, 3, 2] and allotted_orders(3, 3) == [2, 1]


def test_the_analytic_first_step_takes_the_state_for_the_noise():
    """EDM: d = x / sqrt(1 + sigma^2) instead of (x - D) / sigma."""
    sigmas = (80.0, 10.0)
    s, t = map(math.atan, sigmas)
    z = noise()
    state = z / math.cos(s)
    expected = (state + (sigmas[1] - sigmas[0]) * state / math.sqrt(1 + sigmas[0] ** 2)) * math.cos(t)
    for quantity in ("v", "x", "eps"):
        stages = with_analytic_first_step(ddim([s, t], quantity=quantity))
        torch.testing.assert_close(solve(None, z, stages), expected, rtol=1e-9, atol=1e-12)


def test_thresholding_and_clipping_bound_x():
    x = torch.tensor([[0.5, -2.0, 1.0, 4.0], [0.1, 0.2, -0.3, 0.4]], dtype=torch.float64)
    got = Thresholding(quantile=1.0)(x)
    torch.testing.assert_close(got, torch.stack([x[0] / 4, x[1]]))
    wide = MixtureDenoiser([1.5, -1.6], [0.1, 0.1])
    phis = CosineSchedule().grid(3)
    clipped = solve(wide, noise(), ddim(phis.tolist()), clip=1.0)
    torch.testing.assert_close(clipped, fused_ddim(wide, noise(), phis, clip=1.0))


def test_grids():
    schedule = EDMSchedule()
    sigmas = torch.tan(make_grid(schedule, 4, "polynomial", sigma_min=0.006)[:-1])
    torch.testing.assert_close(
        sigmas, torch.tensor([80, 10.9293, 0.6699, 0.006], dtype=torch.float64), rtol=1e-4, atol=0
    )
    logs = torch.log(torch.tan(make_grid(schedule, 5, "logsnr")[:-1]))
    torch.testing.assert_close(logs[1:] - logs[:-1], (logs[-1] - logs[0]).expand(4) / 4)
    assert torch.equal(make_grid(CosineSchedule(), 7), CosineSchedule().grid(7))
    own = [1.5, 0.7, 0.0]
    assert make_grid(CosineSchedule(), 2, own).tolist() == own
    for wrong in ([0.7, 1.5, 0.0], [1.5, 0.7], [1.5, 0.7, 0.1], [1.6, 0.7, 0.0]):
        with pytest.raises(ValueError, match="fall from at most pi/2 to exactly 0"):
            make_grid(CosineSchedule(), 2, wrong)
    with pytest.raises(ValueError, match="grid is 'karras'; use one of trailing"):
        make_grid(CosineSchedule(), 2, "karras")


def test_errors_name_what_there_is():
    with pytest.raises(ValueError, match="solver is 'euler_a'; use one of ddim"):
        solver_stages("euler_a", CosineSchedule().grid(2), MIXTURE)
    for make in (partial(ipndm, order=5), partial(adams_bashforth, order=0), partial(unipc, order=4)):
        with pytest.raises(ValueError, match="order is"):
            make([1.0, 0.5, 0.0])


def theirs(scheduler, sigmas, z, quantity):
    """diffusers' scheduler along its own sigmas, with the ideal denoiser; its state is variance preserving."""
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        phi = torch.full((len(z),), math.atan(float(sigma)), dtype=torch.float64)
        out = getattr(MIXTURE, quantity)(z, phi)
        z = scheduler.step(out, timestep, z).prev_sample
    return z


@pytest.mark.parametrize(
    ("class_name", "options", "stages"),
    [
        ("DPMSolverMultistepScheduler", {"solver_order": 2}, partial(dpm_solver_multistep, order=2)),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, partial(dpm_solver_multistep, order=3)),
        ("UniPCMultistepScheduler", {"solver_order": 1}, partial(unipc, order=1)),
        ("UniPCMultistepScheduler", {"solver_order": 2}, partial(unipc, order=2)),
        ("UniPCMultistepScheduler", {"solver_order": 3}, partial(unipc, order=3)),
        # With bh1 their step to sigma = 0 is infinity times 0.
        (
            "UniPCMultistepScheduler",
            {"solver_order": 2, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
            partial(unipc, order=2, variant="bh1"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:__array__")
def test_same_images_as_diffusers_schedulers(class_name, options, stages):
    diffusers = pytest.importorskip("diffusers")
    given = {"final_sigmas_type": "zero", "timestep_spacing": "trailing", **options}
    scheduler = getattr(diffusers, class_name)(prediction_type="sample", **given)
    scheduler.set_timesteps(8)
    sigmas = scheduler.sigmas.double()
    got = solve(MIXTURE, noise(), stages(torch.atan(sigmas).tolist()))
    torch.testing.assert_close(got, theirs(scheduler, sigmas, noise(), "x").double(), rtol=0, atol=2e-5)


def test_sampling_with_a_solver():
    """`sample` follows the stages from the seeds' noise, whatever the batches."""
    latents = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    given = {"solver": "dpmpp_2m", "grid": "logsnr", "latents": latents, "output_type": "pt"}
    options = {"quantity": "eps", "sigma_min": 0.01, "analytic_first_step": True}
    got = sample(MIXTURE, 6, solver_options=options, max_batch_size=2, **given)
    phis = make_grid(MIXTURE.schedule, 6, "logsnr", sigma_min=0.01)
    stages = with_analytic_first_step(dpm_solver_multistep(phis.tolist(), 2, quantity="eps"))
    torch.testing.assert_close(2 * got - 1, solve(MIXTURE, latents, stages).clamp(-1, 1), rtol=0, atol=1e-6)
    assert chosen_solver(MIXTURE, "dpmpp_2m", 6, "logsnr", **options).network_calls == 5
    with pytest.raises(ValueError, match="a solver runs in float32 without a CUDA graph"):
        sample(MIXTURE, 6, dtype=torch.bfloat16, **given)
    student = MIXTURE.with_network(MIXTURE.network, valid_steps=(6,))
    with pytest.raises(ValueError, match="distilled for DDIM in \\(6,\\) steps"):
        sample(student, 6, **given)
