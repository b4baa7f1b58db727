"""The twin that computes in bfloat16: its dtypes, its precision, and what it does to memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from image_passes import PRODUCTS, ImagePasses, stand_ins
from nets.small_networks import CONFIGS, SMALL, gradients, inputs, random_weights, relative_error
from progdistill.nets import pending_sum, upsampling
from progdistill.nets.bfloat16_twin import bfloat16_twin, compute_dtypes
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet

TIMES = torch.tensor([999.0, 0.0, 37.5])
NAMES = ["cifar10", "imagenet64", "ddpm-cifar10-32", "digits8"]
LAST = torch.channels_last


def network(config: UNetConfig, seed: int = 0) -> UNet:
    net = UNet(config).eval()
    net.load_state_dict(random_weights(net, seed))
    return net


@pytest.fixture(params=[True, False], ids=["waiting", "plain"])
def waits(request, monkeypatch) -> bool:
    """With sums that wait for the norm, as beside its kernel, and without."""
    monkeypatch.setattr(pending_sum, "_has_kernel", lambda device, dtype: request.param)
    return request.param


def test_dtypes():
    net = network(CONFIGS["imagenet64"])
    dtypes = compute_dtypes(net)
    assert list(dtypes) == [name for name, _ in net.named_parameters()]
    for name, parameter in net.named_parameters():
        assert parameter.ndim == 1 or dtypes[name] == torch.bfloat16, name
    block, attention = "up_blocks.0.resnets.0.", "mid_block.attentions.0."
    wide = ["conv_out.bias", "conv_norm_out.weight", attention + "to_out.0.bias", attention + "group_norm.bias"]
    wide += ["conv_in.bias"] + [
        block + name for name in ("norm1.weight", "norm2.bias", "conv1.bias", "conv2.bias", "conv_shortcut.bias")
    ]
    narrow = ["time_embedding.linear_1.bias", attention + "to_q.bias", block + "time_emb_proj.bias"]
    assert {dtypes[name] for name in wide} == {torch.float32}
    assert {dtypes[name] for name in narrow} == {torch.bfloat16}


def test_the_twin_is_a_copy():
    net = network(CONFIGS["small"])
    before = copy.deepcopy(net.state_dict())
    net.conv_in.requires_grad_(False)
    twin = bfloat16_twin(net)
    assert twin.dtype == torch.bfloat16 and twin.config == net.config and not twin.training
    dtypes = compute_dtypes(net)
    for name, parameter in twin.named_parameters():
        assert parameter.dtype == dtypes[name]
        assert torch.equal(parameter, before[name].to(dtypes[name]))
        assert parameter.requires_grad == (not name.startswith("conv_in"))
        assert parameter.ndim < 4 or parameter.is_contiguous(memory_format=LAST)
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert copy.deepcopy(twin).state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", NAMES)
def test_precision(name, waits):
    """At most a quarter more error than plain PyTorch with all weights in bfloat16, in output and gradients."""
    net, given = network(CONFIGS[name]), inputs(CONFIGS[name], TIMES)
    exact = gradients(copy.deepcopy(net).double(), (given[0].double(), *given[1:]))
    twin = gradients(bfloat16_twin(net), (given[0].contiguous(memory_format=LAST), *given[1:]))
    assert twin["output"].dtype == torch.float32 and twin["output"].is_contiguous(memory_format=LAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_sum, "_has_kernel", lambda device, dtype: False)
        plain = gradients(copy.deepcopy(net).bfloat16(), given)
    for keys in ({"output"}, set(exact)):
        errors = [relative_error(values, {key: exact[key] for key in keys}) for values in (twin, plain)]
        assert errors[0] <= 1.25 * errors[1] and errors[0] < 0.05, errors


def test_any_mixture_computes(waits):
    """All vectors float32, and all of them bfloat16 but the norms'."""
    net = network(CONFIGS["ddpm-cifar10-32"]).to(memory_format=LAST)
    sample, times, _ = inputs(net.config, TIMES)
    given = (sample.contiguous(memory_format=LAST), times)
    exact = net(*given)
    for wide in (lambda name: True, lambda name: "norm" in name):
        mixed = copy.deepcopy(net).bfloat16()
        for name, parameter in mixed.named_parameters():
            if parameter.ndim == 1 and wide(name):
                parameter.data = parameter.data.float()
        output = mixed(*given)
        assert output.dtype == (torch.float32 if wide("conv_out.bias") else torch.bfloat16)
        assert (output - exact).norm() < 0.03 * exact.norm()


def test_a_fixed_time(waits):
    net = network(CONFIGS["ddpm-cifar10-32"])
    twin, sample = bfloat16_twin(net), inputs(net.config, TIMES)[0].contiguous(memory_format=LAST)
    fixed = twin.fixed_time(7.5)
    assert {value.dtype for value in fixed.values()} == {torch.float32}
    torch.testing.assert_close(twin(sample, fixed), twin(sample, 7.5), rtol=0, atol=0.01)


def test_autocast(waits):
    """Weights in float32, as users who keep one network train on a GPU."""
    net = network(CONFIGS["ddpm-cifar10-32"]).to(memory_format=LAST)
    sample, times, _ = inputs(net.config, TIMES)
    given = (sample.contiguous(memory_format=LAST), times)
    exact = net(*given)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(*given)
    assert (output - exact).norm() < 0.03 * exact.norm()
    output.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in net.parameters())


CONVOLUTIONS = replace(SMALL, block_out_channels=(16, 32), downsample_padding=0)
RESIDUAL_BLOCKS = replace(
    CONVOLUTIONS,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    attn_norm_num_groups=4,
)
# What writes images because it computes them: products, norms with the sums before them, resampling.
FORWARD = {*PRODUCTS, "norm", "padded_sum", "avg_pool2d"}
BACKWARD = {*PRODUCTS, "norm_backward", "padded_sum_backward", "upsample_nearest2d_backward", "avg_pool2d_backward"}


@pytest.mark.parametrize(
    ("config", "upsampled", "sums"),
    [
        (CONVOLUTIONS, 0, 2),
        (RESIDUAL_BLOCKS, 1, 3),  # the shortcut's image
    ],
    ids=["convolutions", "residual_blocks"],
)
def test_images_are_not_copied(config, upsampled, sums, monkeypatch):
    """No clone, no cast, no sum, no concatenation, no other order than channels_last, forwards and backwards.

    But for one sum of gradients for each skip that the way down goes on with; where it is padded, that joins them.
    This sees the operations that autograd and the network ask for, on a CPU, not what a GPU's libraries do inside.
    """
    twin = bfloat16_twin(network(config))
    sample = torch.randn(12, 3, 16, 16).contiguous(memory_format=LAST)
    passes = ImagePasses(12 * 8 * 8 * 32)
    assert max(parameter.numel() for parameter in twin.parameters()) < passes.size
    monkeypatch.setattr(upsampling, "LEAST_CHANNELS", 1)
    with stand_ins(passes), passes:
        output = twin(sample, torch.arange(12))
    expected = {"upsample_nearest2d": upsampled} if upsampled else {}
    assert {name: count for name, count in passes.written.items() if name not in FORWARD} == expected
    passes.written.clear()
    with passes:
        output.backward(torch.randn_like(output))
    assert {name: count for name, count in passes.written.items() if name not in BACKWARD} == {"add": sums}
    assert not passes.elsewhere
