"""The U-Net against diffusers.UNet2DModel: the same parameters must give the same outputs and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from progdistill.nets.config import UNetConfig
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet

diffusers = pytest.importorskip("diffusers")

BATCH = 3
SIZE = 8
SMALL = UNetConfig(
    block_out_channels=(16, 24),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
)
RESNET_LEVELS = replace(
    SMALL,
    down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
)
# Attention on the level that is resampled, so that its block reads `downsample_type` and `upsample_type`.
ATTENTION_ABOVE = replace(
    SMALL,
    down_block_types=("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
)


def narrow(name: str, *channels: int, **fields: object) -> UNetConfig:
    return replace(
        preset(name), sample_size=None, block_out_channels=channels, norm_num_groups=4, dropout=0.0, **fields
    )


CONFIGS = {
    "cifar10": narrow("cifar10", 16, 16, 16, attn_norm_num_groups=8),
    "imagenet64": narrow(
        "imagenet64", 8, 16, 24, 32, attention_head_dim=8, num_class_embeds=10, attn_norm_num_groups=4
    ),
    "lsun128": narrow("lsun128", 8, 8, 16, 24, 32, attention_head_dim=8, time_embedding_dim=24, attn_norm_num_groups=2),
    "ddpm-cifar10-32": narrow("ddpm-cifar10-32", 16, 24, 24, 24),
    "digits8": narrow("digits8", 8, 16),
    "small": SMALL,
    "classes": replace(SMALL, num_class_embeds=5),
    "class_embed_timestep": replace(SMALL, class_embed_type="timestep"),
    "class_embed_identity": replace(SMALL, class_embed_type="identity"),
    "scale_shift_without_middle_norm": replace(SMALL, resnet_time_scale_shift="scale_shift"),
    "scale_shift_with_middle_norm": replace(SMALL, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=3),
    "resnet_levels": RESNET_LEVELS,
    "attention_conv": ATTENTION_ABOVE,
    "attention_resnet": replace(ATTENTION_ABOVE, downsample_type="resnet", upsample_type="resnet"),
    "types_not_read": replace(SMALL, downsample_type="resnet", upsample_type="conv"),
    "padding_0": replace(SMALL, downsample_padding=0),
    "attention_padding_0": replace(ATTENTION_ABOVE, downsample_padding=0),
    "one_head": replace(SMALL, attention_head_dim=None),
    "sines_first": replace(SMALL, flip_sin_to_cos=False, freq_shift=1),
    "no_middle_attention": replace(SMALL, add_attention=False),
    "no_middle": replace(SMALL, mid_block_type=None),
    "middle_scale": replace(SMALL, mid_block_scale_factor=2**0.5),
    "learned_time": replace(SMALL, time_embedding_type="learned", num_train_timesteps=1000),
    "centred": replace(SMALL, center_input_sample=True),
    "wide_time": replace(SMALL, time_embedding_dim=20),
    "grey_to_two_heads": replace(SMALL, in_channels=1, out_channels=2),
    "two_layers_one_level": replace(
        SMALL,
        block_out_channels=(16,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=2,
        norm_eps=1e-2,
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_weights(net: UNet, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that leave no branch at zero and no norm at one, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in net.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            weights[name] = 0.3 * noise + ("norm" in name and name.endswith("weight"))
        else:
            weights[name] = noise * value[0].numel() ** -0.5
    return weights


def build(config: UNetConfig) -> tuple[UNet, torch.nn.Module]:
    """Our network and diffusers', in evaluation mode, with equal random weights."""
    net = UNet(config).eval()
    weights = random_weights(net)
    net.load_state_dict(weights)
    twin = diffusers.UNet2DModel.from_config(config.to_dict()).eval()
    twin.load_state_dict(weights, strict=True)
    return net, twin


def inputs(config: UNetConfig, timesteps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    size = max(SIZE, 2 * config.size_divisor)
    sample = torch.randn((BATCH, config.in_channels, size, size), generator=generator)
    labels = None
    if config.class_embed_type == "identity":
        labels = torch.randn((BATCH, config.time_embed_dim), generator=generator)
    elif config.class_embed_type == "timestep" or config.num_class_embeds is not None:
        labels = torch.tensor([4, 0, 2])
    return sample, timesteps, labels


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
