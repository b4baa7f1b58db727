"""EDM's and flow matching's networks, and plain functions, as Denoisers: against data whose ideal denoiser is known."""

import math
from types import SimpleNamespace

import pytest
import torch

from analytic import MixtureDenoiser
from progdistill.core import CallableNetwork, Condition, CosineSchedule, Denoiser, from_edm, from_flow_matching
from progdistill.ops import distillation_loss, distillation_target
from progdistill.sampling.ddim import ddim
from progdistill.sampling.unrolled import UnrolledSampler

SHAPE = (1, 2, 2)
IDEAL = MixtureDenoiser([-0.6, 0.1, 0.7], [0.05, 0.2, 0.1], [0.5, 0.2, 0.3], sample_shape=SHAPE)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(values):
    return values.double().reshape(-1, 1, 1, 1)


def edm_denoised(state, sigma):
    """D(x + sigma eps; sigma) of the mixture."""
    phi = torch.atan(sigma.double())
    return IDEAL.x(column(torch.cos(phi)) * state, phi)


def edm_bare(data_std):
    """F with D = c_skip state + c_out F, Karras et al. 2022, table 1, as written."""

    def network(scaled, c_noise):
        sigma = torch.exp(4 * c_noise.double())
        c_in = 1 / torch.sqrt(sigma**2 + data_std**2)
        c_skip = data_std**2 / (sigma**2 + data_std**2)
        c_out = sigma * data_std / torch.sqrt(sigma**2 + data_std**2)
        state = scaled / column(c_in)
        return (edm_denoised(state, sigma) - column(c_skip) * state) / column(c_out)

    return network


def velocity(state, t):
    """u = E[eps - x | (1 - t) x + t eps] of the mixture."""
    t = t.double()
    size = torch.sqrt((1 - t) ** 2 + t**2)
    z, phi = state / column(size), torch.atan2(t, 1 - t)
    return IDEAL.eps(z, phi) - IDEAL.x(z, phi)


ADAPTED = {
    "D": lambda: from_edm(edm_denoised, sample_shape=SHAPE),
    "F": lambda: from_edm(edm_bare(0.5), sample_shape=SHAPE, preconditioned=False),
    "F, another sigma_data": lambda: from_edm(edm_bare(0.9), sample_shape=SHAPE, preconditioned=False, sigma_data=0.9),
    "u": lambda: from_flow_matching(velocity, sample_shape=SHAPE),
    "u, t to 1000": lambda: from_flow_matching(
        lambda state, t: velocity(state, t / 1000), sample_shape=SHAPE, time_scale=1000
    ),
    "u, noise at 0": lambda: from_flow_matching(
        lambda state, t: -velocity(state, 1 - t.double()), sample_shape=SHAPE, noise_at_one=False
    ),
}


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("steps", [1, 4, 32])
def test_ddim_samples_are_those_of_the_ideal_denoiser(name, steps):
    """The time is told in float32, so the last digits of float64 are not expected."""
    model, z = ADAPTED[name](), randn(64, *SHAPE)
    phis = model.schedule.grid(steps)
    torch.testing.assert_close(ddim(model, z, phis), ddim(IDEAL, z, phis), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ADAPTED)
def test_predictions_at_every_noise_level(name):
    model, z = ADAPTED[name](), randn(40, *SHAPE)
    phi = torch.atan(torch.logspace(math.log10(0.003), math.log10(75), 40, dtype=torch.float64))
    for found, expected, gain in ((model.x, IDEAL.x, 1.0), (model.eps, IDEAL.eps, 1 / torch.sin(phi))):
        error = (found(z, phi) - expected(z, phi)).abs().flatten(1).amax(dim=1)
        assert (error <= 2e-6 * gain).all()


@pytest.mark.parametrize("name", ADAPTED)
def test_finite_and_near_from_pure_noise_on(name):
    """Our own grid starts at SNR 0, which EDM's networks never saw: they are told their own largest sigma."""
    model, phis = ADAPTED[name](), CosineSchedule().grid(8)
    z = randn(64, *SHAPE).float()
    torch.testing.assert_close(ddim(model, z, phis), ddim(IDEAL, z, phis), rtol=0, atol=0.03)


def test_edm_coefficients_are_the_papers():
    sigma, s = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64), 0.5
    state, out, seen = column(torch.sqrt(1 + sigma**2)) * randn(5, *SHAPE), randn(5, *SHAPE, seed=1), []

    def network(scaled, c_noise):
        seen.append((scaled, c_noise))
        return out

    model = from_edm(network, sample_shape=SHAPE, preconditioned=False, sigma_data=s)
    phi = torch.atan(sigma)
    x = model.x(column(torch.cos(phi)) * state, phi)
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / torch.sqrt(sigma**2 + s**2)
    torch.testing.assert_close(x, column(c_skip) * state + column(c_out) * out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen[0][0], state / column(torch.sqrt(sigma**2 + s**2)), rtol=1e-6, atol=0)
    torch.testing.assert_close(seen[0][1], (sigma.log() / 4).float())


class LabelShift(torch.nn.Module):
    """Keeps its inputs and returns the label (or the row) times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, state, time, labels):
        self.inputs = (state, time, labels)
        return state * 0 + self.weight * labels.float().reshape(len(state), -1).sum(1).reshape(-1, 1, 1, 1)


def test_labels_reach_the_network():
    labels, phi = torch.tensor([2, 0]), torch.full((2,), 0.7, dtype=torch.float64)
    net = LabelShift()
    for model in (
        from_edm(net, sample_shape=SHAPE, num_classes=3),
        from_flow_matching(net, sample_shape=SHAPE, num_classes=3),
    ):
        model.x(randn(2, *SHAPE), phi, Condition(class_labels=labels))
        assert torch.equal(net.inputs[2], labels)
    model = from_edm(net, sample_shape=SHAPE, num_classes=3, one_hot_labels=True)
    model.x(randn(2, *SHAPE).float(), phi, Condition(class_labels=labels))
    assert torch.equal(net.inputs[2], torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    with pytest.raises(ValueError, match="num_classes"):
        from_edm(net, sample_shape=SHAPE, one_hot_labels=True)


@pytest.mark.parametrize(
    "make, fragment",
    [
        (lambda: from_edm(edm_denoised, sample_shape=SHAPE, sigma_data=0), "sigma_data is 0"),
        (lambda: from_edm(edm_denoised, sample_shape=SHAPE, sigma_min=0), "sigma_min"),
        (lambda: from_flow_matching(velocity, sample_shape=SHAPE, time_scale=-1), "time_scale is -1"),
    ],
)
def test_impossible_descriptions(make, fragment):
    with pytest.raises(ValueError, match=fragment):
        make()


def test_the_parameters_are_the_networks_own():
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    model = from_edm(CallableNetwork(lambda state, sigma: net(state)), sample_shape=SHAPE)
    assert list(model.parameters()) == []

    class Net(torch.nn.Conv2d):
        def forward(self, state, sigma):
            return super().forward(state)

    model = from_edm(Net(1, 1, 3, padding=1), sample_shape=SHAPE, preconditioned=False)
    out = model.raw(randn(2, *SHAPE).float(), torch.tensor([0.3, 1.5], dtype=torch.float64))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters()) and len(list(model.parameters())) == 2


@pytest.mark.parametrize("steps", [1, 3])
def test_an_adapted_network_unrolls(steps):
    class Net(torch.nn.Conv2d):
        def forward(self, state, time):
            return super().forward(state) * time.reshape(-1, 1, 1, 1).cos()

    for make in (from_edm, from_flow_matching):
        model = make(Net(1, 1, 3, padding=1), sample_shape=SHAPE)
        z = randn(2, *SHAPE).float()
        expected = ddim(model, z, model.schedule.grid(steps)).clamp(-1, 1)
        torch.testing.assert_close(UnrolledSampler(model, steps)(z), expected, rtol=1e-5, atol=1e-5)


def ideal_v(z, time):
    """time is 1024 t - 1 with phi = pi t / 2, what a Denoiser tells by default."""
    return IDEAL.v(z, (time.double() + 1) / 1024 * math.pi / 2)


def heads(z, time):
    phi = (time.double() + 1) / 1024 * math.pi / 2
    return IDEAL.x(z, phi), IDEAL.eps(z, phi)


@pytest.mark.parametrize(
    "function, prediction_type",
    [
        (ideal_v, "v_prediction"),
        (heads, "sample_epsilon"),
        (lambda z, time: torch.cat(heads(z, time), dim=1), "sample_epsilon"),
        (lambda z, time: list(heads(z, time)), "both"),
        (lambda z, time: (heads(z, time)[0],), "sample"),
        (lambda z, time: SimpleNamespace(sample=ideal_v(z, time)), "v_prediction"),
    ],
)
def test_a_plain_function_is_a_network(function, prediction_type):
    model = Denoiser(function, sample_shape=SHAPE, prediction_type=prediction_type)
    z, phis = randn(16, *SHAPE), CosineSchedule().grid(4)
    torch.testing.assert_close(ddim(model, z, phis), ddim(IDEAL, z, phis), rtol=0, atol=1e-6)


def test_k_outputs_of_a_plain_function_make_a_target():
    """A single step with the target of K = 3 outputs lands where three DDIM steps land."""
    model = Denoiser(heads, sample_shape=SHAPE, prediction_type="sample_epsilon")
    z, phis = randn(16, *SHAPE), CosineSchedule().grid(3)[:, None].expand(4, 16)
    outs, state = [], z
    for j in range(3):
        outs.append(model.raw(state, phis[j]))
        state = ddim(model, state, phis[j : j + 2, 0])
    target = distillation_target(z, outs, phis, prediction_type="sample_epsilon", target_type="sample")
    torch.testing.assert_close(target, state, rtol=1e-9, atol=1e-9)
    pred = torch.zeros(16, 1, 2, 2, dtype=torch.float64)
    loss = distillation_loss(
        pred, z, outs, phis, prediction_type="sample", teacher_prediction_type="sample_epsilon", weighting="constant"
    )
    torch.testing.assert_close(loss, (target**2).flatten(1).mean(1))


def test_a_function_moves_with_its_denoiser():
    model = Denoiser(ideal_v, sample_shape=SHAPE)
    assert model.device.type == "cpu" and model.to("meta").device.type == "meta"
    assert model.state_dict() == {}


@pytest.mark.parametrize("network", [3, None, "unet"])
def test_what_cannot_be_called(network):
    with pytest.raises(TypeError, match="not callable"):
        Denoiser(network, sample_shape=SHAPE)


@pytest.mark.parametrize("output", [None, (), (1, 2), {"x": torch.zeros(1)}])
def test_outputs_that_are_no_tensors(output):
    model = Denoiser(lambda z, time: output, sample_shape=SHAPE)
    with pytest.raises(TypeError, match="return a tensor, a tuple of tensors"):
        model.raw(randn(1, *SHAPE), torch.tensor([0.5], dtype=torch.float64))
