"""The samplers against analytic data, literal formulas and diffusers."""

import math

import pytest
import torch

from analytic import MixtureDenoiser, gaussian_steps
from progdistill.core import CosineSchedule, Denoiser, EDMSchedule, FlowMatchingSchedule, TableSchedule
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet
from progdistill.sampling import ddim, stochastic
from progdistill.sampling.double_step import double_step, renoise_coefficients
from progdistill.sampling.stochastic import ancestral_coefficients

MIXTURE = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7])


def noise(count=64, seed=0):
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", [CosineSchedule(-20, 20), FlowMatchingSchedule(), EDMSchedule()])
def test_ddim_is_of_first_order(schedule):
    model = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7], schedule=schedule)
    fine = ddim(model, noise(), schedule.grid(4096))
    errors = [(ddim(model, noise(), schedule.grid(n)) - fine).square().mean().sqrt() for n in (64, 128, 256)]
    for coarse, finer in zip(errors, errors[1:], strict=False):
        assert 1.8 < coarse / finer < 2.3, errors


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
def test_ddim_on_a_gaussian_is_the_closed_form(steps):
    model, phis = MixtureDenoiser([0.0], [0.5]), CosineSchedule().grid(steps)
    torch.testing.assert_close(ddim(model, noise(), phis), noise() * gaussian_steps(phis, 0.5))


def test_ddim_reaches_the_exact_flow():
    """The probability-flow ODE carries N(0, 1) noise to std * noise."""
    got = ddim(MixtureDenoiser([0.0], [0.5]), noise(), CosineSchedule().grid(2000))
    torch.testing.assert_close(got, 0.5 * noise(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_ancestral_coefficients_are_the_papers(gamma):
    """In the form of the released code: r = SNR ratio, log variance = gamma log large + (1 - gamma) log small."""
    phi = torch.tensor([1.2, 0.8, 0.3], dtype=torch.float64)
    phi_next = torch.tensor([0.9, 0.75, 0.01], dtype=torch.float64)
    snr = lambda p: 1 / torch.tan(p) ** 2  # noqa: E731
    r = snr(phi) / snr(phi_next)
    large, small = (1 - r) * torch.sin(phi) ** 2, (1 - r) * torch.sin(phi_next) ** 2
    c_z, c_x, std = ancestral_coefficients(phi, phi_next, gamma)
    torch.testing.assert_close(c_z, r * torch.cos(phi_next) / torch.cos(phi))
    torch.testing.assert_close(c_x, (1 - r) * torch.cos(phi_next))
    torch.testing.assert_close(std**2, torch.exp(gamma * large.log() + (1 - gamma) * small.log()))


def test_ancestral_step_from_pure_noise_is_finite():
    coefficients = ancestral_coefficients(*torch.tensor([[math.pi / 2], [1.0]], dtype=torch.float64), 0.5)
    assert all(torch.isfinite(c).all() for c in coefficients)


@pytest.mark.parametrize(("gamma", "bound"), [(0.0, 0.05), (0.5, 0.05), (1.0, 0.12)])
def test_stochastic_sampler_reaches_the_data_distribution(gamma, bound):
    count = 4096
    start = noise(count, 1)
    got = stochastic(MIXTURE, start, CosineSchedule().grid(128), torch.arange(count), gamma=gamma).flatten()
    mean = 0.3 * -0.7 + 0.7 * 0.4
    variance = 0.3 * (0.7**2 + 0.15**2) + 0.7 * (0.4**2 + 0.3**2) - mean**2
    assert abs(got.mean() - mean) < bound and abs(got.var() / variance - 1) < 2 * bound


def test_renoising_is_the_forward_process():
    """Meng et al.: z_s = (alpha_s / alpha_k) z_k + sigma eps with sigma^2 = (1 - e^(lambda_s - lambda_k)) sigma_s^2."""
    k, s = torch.tensor([[0.0, 0.3, 0.9], [0.4, 0.35, 1.5]], dtype=torch.float64)
    c_z, std = renoise_coefficients(k, s)
    torch.testing.assert_close(c_z, torch.cos(s) / torch.cos(k))
    ratio = (torch.tan(k) / torch.tan(s)) ** 2
    torch.testing.assert_close(std**2, (1 - ratio) * torch.sin(s) ** 2)


def test_the_double_step_sampler_reaches_the_data_distribution():
    count = 4096
    got = double_step(MIXTURE, noise(count, 1), CosineSchedule().grid(128), torch.arange(count)).flatten()
    mean = 0.3 * -0.7 + 0.7 * 0.4
    variance = 0.3 * (0.7**2 + 0.15**2) + 0.7 * (0.4**2 + 0.3**2) - mean**2
    assert abs(got.mean() - mean) < 0.05 and abs(got.var() / variance - 1) < 0.1


def test_the_double_step_sampler_in_one_step_is_ddim():
    phis = CosineSchedule().grid(1)
    assert torch.equal(double_step(MIXTURE, noise(), phis, torch.arange(64)), ddim(MIXTURE, noise(), phis))


def test_stochastic_noise_depends_on_the_images_seed_alone():
    grid, seeds = CosineSchedule().grid(4), torch.tensor([3, 4, 5])
    whole = stochastic(MIXTURE, noise(3), grid, seeds)
    assert torch.equal(stochastic(MIXTURE, noise(3)[1:2], grid, seeds[1:2]), whole[1:2])
    with pytest.raises(ValueError, match="gamma is 2"):
        stochastic(MIXTURE, noise(3), grid, seeds, gamma=2.0)


def test_clipping_recomputes_the_noise():
    """A clipped step is the step of the clipped x and of the eps that belongs to it."""
    model, phis = MixtureDenoiser([1.5, -1.6], [0.1, 0.1]), CosineSchedule().grid(3)
    z = noise()
    for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
        x = model.x(z, phi.expand(len(z))).clamp(-1, 1)
        z = torch.cos(phi_next) * x + torch.sin(phi_next) * (z - torch.cos(phi) * x) / torch.sin(phi)
    torch.testing.assert_close(ddim(model, noise(), phis, clip=1.0), z)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_same_images_as_diffusers_ddim_scheduler(prediction_type, steps):
    """Same network, same table, same noise: diffusers' DDIMScheduler and our sampler on its angles."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    )
    network = UNet(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network.eval()
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type=prediction_type,
    )
    start = torch.randn(4, 1, 8, 8)
    scheduler.set_timesteps(steps)
    theirs = start
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            theirs = scheduler.step(network(theirs, timestep), timestep, theirs).prev_sample
    schedule = TableSchedule.from_diffusers(scheduler.config)
    from progdistill.core import TimeMap

    model = Denoiser(
        network,
        sample_shape=(1, 8, 8),
        schedule=schedule,
        prediction_type=prediction_type,
        time_map=TimeMap(schedule, scale=1000.0),
    )
    ours = ddim(model, start, schedule.grid(steps))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))
