"""The U-Net against diffusers.UNet2DModel: the same parameters must give the same outputs and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nets.small_networks import BATCH, CONFIGS, RESNET_LEVELS, inputs, random_weights
from progdistill.nets.config import UNetConfig
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config: UNetConfig) -> tuple[UNet, torch.nn.Module]:
    """Our network and diffusers', in evaluation mode, with equal random weights."""
    net = UNet(config).eval()
    weights = random_weights(net)
    net.load_state_dict(weights)
    twin = diffusers.UNet2DModel.from_config(config.to_dict()).eval()
    twin.load_state_dict(weights, strict=True)
    return net, twin


def widen(config: UNetConfig, sample, labels, net, twin) -> tuple:
    """The same inputs and networks in float64."""
    labels = labels.double() if config.class_embed_type == "identity" else labels
    # diffusers forgets to bring the sinusoid of "timestep" class labels to the network's dtype.
    twin.time_proj.register_forward_hook(lambda module, args, output: output.double())
    return sample.double(), labels, net.double(), twin.double()


INTEGER_TIMES = torch.tensor([999, 0, 37])
FRACTIONAL_TIMES = torch.tensor([1023.0, -0.75, 433.0498])


@pytest.mark.parametrize("name", CONFIGS)
def test_same_parameter_names_and_shapes(name):
    ours = {key: value.shape for key, value in UNet(CONFIGS[name]).state_dict().items()}
    theirs = diffusers.UNet2DModel.from_config(CONFIGS[name].to_dict()).state_dict()
    assert ours == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("timesteps", [INTEGER_TIMES, FRACTIONAL_TIMES], ids=["integer", "fractional"])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_output(name, timesteps):
    config = CONFIGS[name]
    if config.time_embedding_type == "learned" and timesteps.is_floating_point():
        pytest.skip("diffusers looks up integers only")
    net, twin = build(config)
    sample, timesteps, labels = inputs(config, timesteps)
    with torch.no_grad():
        ours, theirs = net(sample, timesteps, labels), twin(sample, timesteps, labels).sample
        sample, labels, net, twin = widen(config, sample, labels, net, twin)
        ours_wide, exact = net(sample, timesteps, labels), twin(sample, timesteps, labels).sample
    assert ours.dtype == torch.float32
    assert exact.std() > 0.1
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-7
    # The sinusoid is float32 in both; everything after it agrees to float64.
    torch.testing.assert_close(ours_wide, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_same_gradients(name):
    config = CONFIGS[name]
    sample, timesteps, labels = inputs(config, INTEGER_TIMES)
    sample, labels, net, twin = widen(config, sample, labels, *build(config))
    sample.requires_grad_()
    sensitivity = torch.randn(BATCH, config.out_channels, *sample.shape[2:], dtype=torch.float64)

    def gradients(module, output):
        wanted = dict(module.named_parameters())
        grads = torch.autograd.grad((output * sensitivity).sum(), [sample, *wanted.values()])
        return dict(zip(["sample", *wanted], grads, strict=True))

    ours = gradients(net, net(sample, timesteps, labels))
    theirs = gradients(twin, twin(sample, timesteps, labels).sample)
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        # A bias of the keys shifts all scores of a query alike: its gradient is nothing but rounding.
        assert grad.abs().max() > 1e-6 or key.endswith("to_k.bias"), key
        torch.testing.assert_close(ours[key], grad, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: key + text)


def test_same_dropout():
    """In training mode the same generator state drops the same elements in the same places.

    Without attention, after which diffusers goes on in channels_last, where the mask falls in another order.
    """
    config = replace(RESNET_LEVELS, add_attention=False, dropout=0.3)
    net, twin = build(config)
    sample, timesteps, _ = inputs(config, INTEGER_TIMES)
    outputs = []
    for module in (net.train(), twin.train()):
        torch.manual_seed(5)
        outputs.append(module(sample, timesteps))
    torch.testing.assert_close(outputs[0], outputs[1].sample, rtol=1e-4, atol=1e-5)


def test_configuration_travels_both_ways(tmp_path):
    for config in CONFIGS.values():
        diffusers.UNet2DModel.from_config(config.to_dict()).save_config(tmp_path)
        assert UNetConfig.from_dict(diffusers.UNet2DModel.load_config(tmp_path)) == config


def test_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        theirs = dict(diffusers.UNet2DModel().config)
    assert UNetConfig.from_dict(theirs) == UNetConfig()


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "lsun128", "ddpm-cifar10-32", "digits8"])
def test_presets_are_networks_of_diffusers(name):
    with torch.device("meta"):
        ours, theirs = UNet(preset(name)), diffusers.UNet2DModel.from_config(preset(name).to_dict())
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
