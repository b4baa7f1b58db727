"""What copies of networks keep of their weights: the same outputs, and new ones when it is made anew."""

from __future__ import annotations

import copy

import pytest
import torch

from image_passes import ImagePasses, stand_ins
from nets.small_networks import CONFIGS, gradients, inputs, random_weights
from progdistill.nets import pending_sum, upsampling
from progdistill.nets.bfloat16_twin import bfloat16_twin
from progdistill.nets.constants import MadeOfWeights, keep_constants
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Sums wait, and the narrowest convolutions are transposed: all that may be kept is."""
    monkeypatch.setattr(pending_sum, "_has_kernel", lambda device, dtype: True)
    monkeypatch.setattr(upsampling, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(upsampling, "LEAST_PIXELS", 0)


def case(name: str) -> tuple[UNet, tuple]:
    net = UNet(CONFIGS[name]).eval().double()
    net.load_state_dict(random_weights(net))
    sample, times, labels = inputs(net.config, torch.tensor([999.0, 0.0, 37.5]))
    last = torch.channels_last
    return net.to(memory_format=last), (sample.double().contiguous(memory_format=last), times, labels)


def kept(net: UNet) -> dict[str, int]:
    """Where it lies, by module."""
    modules = net.named_modules()
    return {name: m._kept.data_ptr() for name, m in modules if isinstance(m, MadeOfWeights) and m._kept is not None}


@torch.no_grad()
@pytest.mark.parametrize("name", ["ddpm-cifar10-32", "imagenet64"])
def test_outputs_are_those_of_the_weights_that_were_kept(name):
    net, given = case(name)
    net.requires_grad_(False)
    before, keys = net(*given), list(net.state_dict())
    keep_constants(net)
    places = kept(net)
    assert any("samplers" in module for module in places) and any("up_blocks.0.resnets" in module for module in places)
    assert torch.equal(net(*given), before) and list(net.state_dict()) == keys
    fresh = copy.deepcopy(net).requires_grad_()  # weights that require gradients keep nothing
    for module in (net, fresh):
        for parameter in module.parameters():
            parameter.mul_(1.1)
    after = fresh(*given)
    stale = net(*given)
    assert (after - before).abs().max() > 0.01 and (stale - after).abs().max() > 0.01, "or nothing is kept"
    keep_constants(net)
    assert torch.equal(net(*given), after) and kept(net) == places


def test_a_samplers_call_launches_little():
    """Each operation that writes anything is a launch on a GPU, but for what its libraries do inside."""
    with torch.device("meta"), torch.no_grad():
        twin = bfloat16_twin(UNet(preset("ddpm-cifar10-32"))).eval().requires_grad_(False)
        keep_constants(twin)
        fixed, passes = twin.fixed_time(7.0), ImagePasses()
        sample = torch.empty(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        with stand_ins(passes), passes:
            twin(sample, fixed)
    expected = {"convolution": 52, "norm": 51, "padded_sum": 6, "attention": 6}
    expected |= {"mm": 19, "addmm_": 12, "addmm": 6}  # of shortcuts and attentions
    expected |= {"_to_copy": 1, "add": 1}  # of the input, and the output's bias in float32
    assert passes.calls == expected and sum(expected.values()) == 154


def test_what_is_trained_has_it_made_in_every_call():
    net, given = case("ddpm-cifar10-32")
    expected = gradients(net, given)
    keep_constants(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, MadeOfWeights) and module._kept is not None:
                module._kept.fill_(torch.nan)
    for key, value in gradients(net, given).items():
        assert torch.equal(value, expected[key]), key
