"""benchmarks/products.py against torch.utils.flop_counter, which counts what is run."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from products import ATTENTION, CONVOLUTION, LINEAR, forward_flop, products, update_flop
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet
from textbook_unet import TextbookUNet


def network(name, **changes):
    return UNet(dataclasses.replace(preset(name), **changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("digits8", {}),
        ("ddpm-cifar10-32", {"sample_size": 16, "block_out_channels": (32, 32, 64, 64)}),
        ("imagenet64", {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "attention_head_dim": 16}),
    ],
)
def test_the_arithmetic_is_that_which_torch_counts(name, changes):
    net = network(name, **changes)
    labels = None if net.config.num_class_embeds is None else torch.zeros(1, dtype=torch.int64)
    sample = torch.zeros(1, net.config.in_channels, *(net.config.sample_size,) * 2)
    # The fused attention of CPUs is not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        TextbookUNet(net)(sample, torch.zeros(1), labels)
    assert forward_flop(net) == counter.get_total_flops()
    assert update_flop(net, 7) == 35 * forward_flop(net)


def test_the_reference_network():
    with torch.device("meta"):
        net = network("ddpm-cifar10-32")
    assert forward_flop(net) == pytest.approx(12.44e9, rel=1e-3)
    found = products(net, 128)
    kinds = {kind: sum(n for p, n in found.items() if p.kind == kind) for kind in (CONVOLUTION, LINEAR, ATTENTION)}
    resnets, attentions = 8 + 12 + 2, 2 + 3 + 1
    assert kinds == {
        CONVOLUTION: sum(isinstance(module, torch.nn.Conv2d) for module in net.modules()),
        LINEAR: 2 + resnets + 4 * attentions,
        ATTENTION: attentions,
    }
    first = [product for product in found if not product.wants_input_gradient]
    assert [str(product) for product in first] == ["3x3, 3 -> 128 channels, 32x32"]
    assert sum(n * p.flop for p, n in found.items()) == 128 * forward_flop(net)
    assert not any(parameter.device.type == "cpu" for parameter in net.parameters())
