"""Schedules against closed forms, the papers' formulas and diffusers' tables."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from progdistill.core import (
    CosineSchedule,
    EDMSchedule,
    ExponentialSchedule,
    FlowMatchingSchedule,
    TableSchedule,
    TimeMap,
    schedule_from_dict,
)
from progdistill.core.schedules import angle_of_logsnr, logsnr_of

PURE, CLIPPED = CosineSchedule(), CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)
DDPM = TableSchedule.from_diffusers({})
SCHEDULES = [
    PURE,
    CLIPPED,
    CosineSchedule(logsnr_min=-10.118, logsnr_max=9.21),
    CosineSchedule(logsnr_max=20.0),
    DDPM,
    TableSchedule.from_diffusers({"rescale_betas_zero_snr": True}),
    TableSchedule((0.9, 0.5, 0.0)),
    EDMSchedule(),
    ExponentialSchedule(),
    EDMSchedule(sigma_min=0.01, sigma_max=50.0, rho=3.0),
    FlowMatchingSchedule(),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)


def times(count=101):
    return torch.linspace(0, 1, count, dtype=torch.float64)


def close(found, expected, tolerance=1e-12):
    expected = torch.as_tensor(np.asarray(expected), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_logsnr_and_angle():
    phi = torch.tensor([0.0, math.pi / 4, 1.0, math.pi / 2], dtype=torch.float64)
    alpha, sigma = math.cos(1.0), math.sin(1.0)
    logsnr = logsnr_of(phi)
    assert logsnr[0] == math.inf and logsnr[3] < -70
    close(logsnr[1:3], [0.0, math.log(alpha**2 / sigma**2)])
    close(angle_of_logsnr(logsnr), phi)
    assert angle_of_logsnr(math.inf) == 0.0 and angle_of_logsnr(-math.inf) == math.pi / 2


def test_cosine_is_the_papers_alpha():
    phi = PURE.angle(times())
    close(torch.cos(phi), np.cos(np.pi * times().numpy() / 2))
    assert phi[0] == 0.0 and phi[-1] == math.pi / 2
    close(PURE.angle(0.5), math.pi / 4)


def test_clipped_cosine_is_the_released_codes_logsnr():
    t = times().numpy()
    b = np.arctan(np.exp(-0.5 * 20.0))
    a = np.arctan(np.exp(-0.5 * -20.0)) - b
    close(logsnr_of(CLIPPED.angle(times())), -2.0 * np.log(np.tan(a * t + b)), 1e-9)
    close(logsnr_of(CLIPPED.angle(times(2))), [20.0, -20.0], 1e-9)


def test_one_sided_and_extreme_bounds():
    close(logsnr_of(CosineSchedule(logsnr_max=9.0).angle(0.0)), 9.0)
    assert CosineSchedule(logsnr_max=9.0).angle(1.0) == math.pi / 2
    assert CosineSchedule(logsnr_min=-9.0).angle(0.0) == 0.0
    extreme = CosineSchedule(logsnr_min=-5000.0, logsnr_max=5000.0)
    close(extreme.angle(times()), PURE.angle(times()))


def test_cosine_time_is_extrapolated():
    """A network on a clipped schedule is asked about the clean end, beyond t = 0."""
    close(CLIPPED.time(0.0), -CLIPPED.offset / CLIPPED.slope)
    assert CLIPPED.time(0.0) < 0 < 1 < CLIPPED.time(math.pi / 2)


DIFFUSERS_CONFIGS = [
    {},
    {"num_train_timesteps": 400, "beta_start": 0.001, "beta_end": 0.05},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.001 * i for i in range(1, 101)], "num_train_timesteps": 100},
    {"rescale_betas_zero_snr": True},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("config", DIFFUSERS_CONFIGS, ids=str)
@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_tables_are_those_of_diffusers(config, scheduler):
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, scheduler)(**config)
    schedule = TableSchedule.from_diffusers(dict(theirs.config))
    assert len(schedule.alphas_cumprod) == len(theirs.alphas_cumprod)
    # Theirs are float32 products of a thousand factors.
    torch.testing.assert_close(
        torch.tensor(schedule.alphas_cumprod), theirs.alphas_cumprod, rtol=1e-4 if config else 2e-5, atol=1e-6
    )
    assert (schedule.alphas_cumprod[-1] == 0.0) == bool(config.get("rescale_betas_zero_snr"))


def test_table_levels_are_angles_of_equal_logsnr():
    count = len(DDPM.alphas_cumprod)
    phi = DDPM.angle(torch.arange(1, count + 1, dtype=torch.float64) / count)
    abar = np.array(DDPM.alphas_cumprod)
    close(logsnr_of(phi), np.log(abar / (1 - abar)), 1e-9)
    close(logsnr_of(phi[[0, -1]]), [9.2102, -10.1177], 1e-4)
    assert DDPM.angle(0.0) == 0.0
    # Half-way between two levels.
    close(DDPM.angle(10.5 / count), (phi[9] + phi[10]) / 2)


def test_table_from_betas():
    levels = TableSchedule.from_betas(torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)).alphas_cumprod
    np.testing.assert_allclose(levels, [0.9, 0.72, 0.36], rtol=1e-14)


def test_table_times_are_held_at_the_last_level():
    close(DDPM.time(torch.tensor([0.0, math.pi / 2], dtype=torch.float64)), [0.0, 1.0])


def test_a_table_is_laid_out_once(monkeypatch):
    """And not for those whose tensors do not last: tracers and inference mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    schedule = TableSchedule.from_diffusers({})
    with FakeTensorMode():
        schedule.time(torch.rand(3))
    with torch.inference_mode():
        first = schedule.time(torch.tensor([0.1, 1.5])).clone()
    monkeypatch.setattr(torch, "atan2", None)
    phi = torch.tensor([0.1, 1.5], dtype=torch.float64)
    assert torch.equal(schedule.time(phi.float()), first)
    schedule.angle(phi.clone().requires_grad_()).sum().backward()
    monkeypatch.undo()
    with FakeTensorMode():
        assert schedule.angle(torch.rand(3)).shape == (3,)
    assert copy.deepcopy(schedule) == schedule and hash(schedule) == hash(TableSchedule.from_diffusers({}))


def test_a_cosine_grid_of_eight_steps_in_the_levels_of_google_ddpm():
    time_map = TimeMap(DDPM, scale=1000.0, offset=-1.0, minimum=0.0, maximum=999.0)
    found = time_map(PURE.grid(8)[:-1])
    expected = torch.tensor([999.0, 566.27, 433.05, 337.66, 258.09, 186.92, 120.60, 57.05])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.0051)


def test_edm_is_equation_5():
    steps, low, high, rho = 18, 0.002, 80.0, 7
    i = np.arange(steps)
    sigma = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    close(torch.tan(EDMSchedule().angle(torch.tensor(1 - i / (steps - 1)))), sigma, 1e-10)


def test_exponential_is_what_edm_tends_to():
    log_sigma = torch.log(torch.tan(ExponentialSchedule(0.01, 50.0).angle(times())))
    close(log_sigma, np.log(0.01) + times().numpy() * np.log(5000), 1e-10)
    phi = EDMSchedule(0.01, 50.0, rho=1e7).angle(times())
    torch.testing.assert_close(ExponentialSchedule(0.01, 50.0).angle(times()), phi, rtol=1e-5, atol=0)


def test_flow_matching_is_the_straight_line():
    t, x, eps = times().numpy(), 0.7, -1.3
    schedule = FlowMatchingSchedule()
    phi = schedule.angle(times())
    state = schedule.state_scale(phi) * (torch.cos(phi) * x + torch.sin(phi) * eps)
    close(state, (1 - t) * x + t * eps)


def test_edm_states_are_data_plus_noise():
    schedule = EDMSchedule()
    phi, x, eps = schedule.angle(times()), 0.7, -1.3
    state = schedule.state_scale(phi) * (torch.cos(phi) * x + torch.sin(phi) * eps)
    close(state, x + torch.tan(phi) * eps, 1e-10)


@pytest.mark.parametrize("schedule", [PURE, CLIPPED, DDPM], ids=lambda schedule: schedule.kind)
def test_other_states_are_variance_preserving_already(schedule):
    assert torch.equal(schedule.state_scale(times(5)), torch.ones(5, dtype=torch.float64))


@every_schedule
def test_time_inverts_angle(schedule):
    phi = schedule.angle(times(1001))
    assert phi.dtype == torch.float64 and phi.min() >= 0 and phi.max() <= math.pi / 2
    assert (phi[1:] > phi[:-1]).all()
    close(schedule.time(phi), times(1001), 1e-9)
    close(schedule.angle(schedule.time(phi)), phi, 1e-12)


@every_schedule
def test_shapes_and_numbers(schedule):
    assert schedule.angle(0.25).shape == () and schedule.angle(0.25).dtype == torch.float64
    assert schedule.angle(torch.tensor([[0.25, 0.5]])).shape == (1, 2)
    assert torch.equal(schedule.angle(torch.tensor(0.25)), schedule.angle(0.25))


def test_numbers_keep_their_digits():
    """A Python float is not rounded to torch's default dtype on the way."""
    assert PURE.angle(0.1).item() == pytest.approx(math.pi / 20, rel=1e-15)
    betas = {"trained_betas": [0.1, 0.2], "num_train_timesteps": 2}
    np.testing.assert_allclose(TableSchedule.from_diffusers(betas).alphas_cumprod, [0.9, 0.72], rtol=1e-15)


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 1024])
def test_grids_fall_to_exactly_zero(schedule, steps):
    grid = schedule.grid(steps)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert grid[-1].item() == 0.0
    assert (grid[1:] < grid[:-1]).all()
    assert torch.equal(grid[0], schedule.angle(1.0))
    close(grid[:-1], torch.stack([schedule.angle(i / steps) for i in range(steps, 0, -1)]), 1e-14)


@every_schedule
def test_every_other_point_of_a_grid_is_the_grid_of_half_the_steps(schedule):
    close(schedule.grid(64)[::2], schedule.grid(32), 1e-14)


@every_schedule
def test_a_description_survives_json(schedule):
    again = schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule and type(again) is type(schedule)
    time_map = TimeMap(schedule, scale=50.0, minimum=0.0, maximum=49.0)
    assert TimeMap.from_dict(json.loads(json.dumps(time_map.to_dict()))) == time_map


def test_the_default_time_map_counts_1024_levels():
    phi = CLIPPED.grid(8)[:-1]
    expected = torch.tensor([1024.0 * k / 8 - 1 for k in range(8, 0, -1)])
    found = TimeMap(CLIPPED)(phi)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_time_map_with_one_bound():
    phi = PURE.angle(torch.tensor([0.0, 0.5, 1.0]))
    assert TimeMap(PURE, minimum=10.0)(phi).tolist() == [10.0, 511.0, 1023.0]
    assert TimeMap(PURE, maximum=100.0)(phi).tolist() == [-1.0, 100.0, 100.0]


@pytest.mark.parametrize(
    "make, fragments",
    [
        (lambda: CosineSchedule(logsnr_min=5.0, logsnr_max=5.0), ["logsnr_min = 5.0", "below", "-20 and 20"]),
        (lambda: CosineSchedule(logsnr_min=math.nan), ["nan"]),
        (lambda: EDMSchedule(sigma_min=0.0), ["sigma_min=0.0", "0 < sigma_min < sigma_max"]),
        (lambda: EDMSchedule(sigma_max=math.inf), ["inf"]),
        (lambda: EDMSchedule(rho=0.0), ["rho > 0"]),
        (lambda: ExponentialSchedule(sigma_max=0.001), ["sigma_max=0.001", "0 < sigma_min < sigma_max"]),
        (lambda: TableSchedule((0.5,)), ["at least two", "got 1 values"]),
        (lambda: TableSchedule((0.5, 0.5)), ["fall strictly"]),
        (lambda: TableSchedule((1.0, 0.5)), ["[0, 1)", "(1.0,)"]),
        (lambda: TableSchedule((0.5, -0.1)), ["(-0.1,)"]),
        (lambda: TableSchedule((0.5, math.nan)), ["nan"]),
        (lambda: TableSchedule.from_diffusers({"beta_schedule": "sigmoid"}), ["'sigmoid'", "scaled_linear"]),
        (lambda: PURE.grid(0), ["0 sampling steps", "at least 1"]),
        (lambda: schedule_from_dict({"kind": "sine"}), ["'sine'", "cosine, table, edm, exponential, flow_matching"]),
        (lambda: schedule_from_dict({}), ["None"]),
        (lambda: schedule_from_dict({"kind": "cosine", "slope": 1}), ["'cosine'", "slope"]),
        (lambda: schedule_from_dict({"kind": "table"}), ["'table'", "alphas_cumprod"]),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(make, fragments):
    with pytest.raises(ValueError) as caught:
        make()
    for fragment in fragments:
        assert fragment in str(caught.value)
