"""The U-Net whose sums wait for the norm that follows, against the one that forms each where it arises.

A kernel adds them on a GPU; here the operation's reference stands in for it.
"""

from __future__ import annotations

import copy

import pytest
import torch

from nets.small_networks import CONFIGS, inputs, random_weights
from progdistill.nets import pending_sum
from progdistill.nets.bfloat16_twin import bfloat16_twin, compute_dtypes
from progdistill.nets.layers import pointwise
from progdistill.nets.pending_sum import PendingSum
from progdistill.nets.unet import UNet

TIMES = torch.tensor([999.0, 0.0, 37.5])
SOME = ["cifar10", "imagenet64", "ddpm-cifar10-32", "digits8", "middle_scale", "scale_shift_without_middle_norm"]


@pytest.fixture
def waiting(monkeypatch):
    """Makes the sums of networks wait that are called with it on."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(pending_sum, "_has_kernel", lambda device, dtype: on)

    return switch


def network(name: str, seed: int = 0) -> UNet:
    net = UNet(CONFIGS[name]).eval()
    net.load_state_dict(random_weights(net, seed))
    return net


def arguments(name: str) -> tuple[torch.Tensor, ...]:
    times = TIMES.round() if CONFIGS[name].time_embedding_type == "learned" else TIMES
    sample, times, labels = inputs(CONFIGS[name], times)
    return sample, times, labels


def gradients(net: UNet, given: tuple) -> dict[str, torch.Tensor]:
    """Those of a random linear form in the output, for the sample and all parameters, and the output itself."""
    sample = given[0].detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = net(sample, *given[1:])
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    wanted = {"sample": sample, **dict(net.named_parameters())}
    grads = torch.autograd.grad((output * weights).sum(), list(wanted.values()))
    return {"output": output.detach(), **dict(zip(wanted, grads, strict=True))}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_changes_in_float64(name, memory_format, waiting):
    net = network(name).double().to(memory_format=memory_format)
    sample, times, labels = arguments(name)
    labels = labels.double() if labels is not None and labels.is_floating_point() else labels
    given = (sample.double().contiguous(memory_format=memory_format), times, labels)
    waiting(False)
    expected = gradients(net, given)
    waiting(True)
    for key, value in gradients(net, given).items():
        tolerance = 1e-12 * (1 + expected[key].abs().max().item())
        torch.testing.assert_close(value, expected[key], rtol=0, atol=tolerance, msg=lambda text, k=key: k + text)
