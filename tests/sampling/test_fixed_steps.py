"""The inputs of a network in bfloat16: those that separate casts would give it, from the launches of the steps."""

import pytest
import torch
from torch import nn

from progdistill import ops
from progdistill.core import Denoiser
from progdistill.core.random import Stream
from progdistill.ops import backends
from progdistill.sampling import fixed_steps
from progdistill.sampling.fixed_steps import FixedSteps

SEEDS = torch.arange(4)


class Network(nn.Module):
    """Mixes channels pixel by pixel, in bfloat16, and keeps what it was given."""

    def __init__(self, heads=1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = 0.4 * torch.randn(3, 3 * heads, generator=generator)
        self.weight, self.given = nn.Parameter(weight), []

    def forward(self, z, time):
        self.given.append(z)
        out = (z.movedim(1, -1) @ self.weight + torch.cos(time).reshape(-1, 1, 1, 1).to(z.dtype)).movedim(-1, 1)
        return out if z.is_contiguous(memory_format=torch.channels_last) else out.contiguous()


def model(prediction_type="v_prediction"):
    network = Network(2 if prediction_type == "sample_epsilon" else 1)
    return Denoiser(network, sample_shape=(3, 5, 4), prediction_type=prediction_type)


def in_channels_last(program):
    """What a program on a GPU does."""
    program._channels_last = True
    return program


def literally(denoiser, program, steps, clip, layout):
    """(samples, the network's inputs), every cast and change of layout by itself."""
    phis, times = program.constants(len(SEEDS))
    z = ops.normal(SEEDS, 0, Stream.LATENT, denoiser.sample_shape)
    inputs = []
    for step in range(steps):
        inputs.append(z.bfloat16().contiguous(memory_format=layout))
        out = program.network(inputs[-1], times[step])
        z = ops.ddim_step(z, out, phis[step], phis[step + 1], prediction_type=denoiser.prediction_type, clip=clip)
    return z.clamp(-1, 1), inputs


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 0.9])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_bits_of_separate_casts(steps, clip, prediction_type, layout):
    denoiser = model(prediction_type)
    program = FixedSteps(denoiser, steps, torch.bfloat16, clip)
    program = in_channels_last(program) if layout == torch.channels_last else program
    expected, inputs = literally(denoiser, program, steps, clip, layout)
    program.network.given.clear()
    got = program.run(program.constants(len(SEEDS)), SEEDS)
    assert torch.equal(got, expected) and got.is_contiguous()
    assert len(program.network.given) == steps
    for given, wanted in zip(program.network.given, inputs, strict=True):
        assert torch.equal(given, wanted) and given.dtype == torch.bfloat16
        assert given.is_contiguous(memory_format=layout)


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_cast_a_sample_and_no_copies(layout, monkeypatch):
    """Four steps: the first input is made by a cast, the first state brought into its order; all else by the steps."""
    program = FixedSteps(model(), 4, torch.bfloat16)
    program = in_channels_last(program) if layout == torch.channels_last else program
    copies, steps = [], []
    plain, best = ops.ddim_step_and_input, backends.best("ddim_step", "cpu")
    run = backends.declared()["ddim_step"][best]
    monkeypatch.setattr(fixed_steps, "ddim_step_and_input", lambda *a, **o: steps.append(1) or plain(*a, **o))
    monkeypatch.setitem(
        backends.declared()["ddim_step"],
        best,
        lambda z, out, *rest: (
            copies.append((z, out)) or run(z, out, *rest)  # what the kernel is given lies alike, or it would be copied
        ),
    )
    program.run(program.constants(len(SEEDS)), SEEDS)
    assert len(steps) == 3 and len(copies) == 4
    assert all(tensor.is_contiguous(memory_format=layout) for pair in copies for tensor in pair)


@torch.no_grad()
def test_float32_makes_no_copies(monkeypatch):
    monkeypatch.setattr(fixed_steps, "ddim_step_and_input", None)
    program = FixedSteps(model(), 2, torch.float32)
    program.run(program.constants(len(SEEDS)), SEEDS)
    assert all(given.dtype == torch.float32 for given in program.network.given)
