"""The U-Net whose sums wait for the norm that follows, against the one that forms each where it arises.

A kernel adds them on a GPU; here the operation's reference stands in for it.
"""

from __future__ import annotations

import pytest
import torch

from nets.small_networks import CONFIGS, gradients, inputs, random_weights
from progdistill.nets import pending_sum
from progdistill.nets.layers import pointwise
from progdistill.nets.pending_sum import PendingSum
from progdistill.nets.unet import UNet

TIMES = torch.tensor([999.0, 0.0, 37.5])
CONTIGUOUS = ("digits8", "small", "attention_conv", "attention_resnet", "scale_shift_with_middle_norm")


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


def wide(given: tuple) -> tuple:
    return tuple(t.double() if t is not None and t.is_floating_point() else t for t in given)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_changes_in_float64(name, waiting):
    memory_format = torch.contiguous_format if name in CONTIGUOUS else torch.channels_last
    net = network(name).double().to(memory_format=memory_format)
    sample, *rest = wide(arguments(name))
    given = (sample.contiguous(memory_format=memory_format), *rest)
    waiting(False)
    expected = gradients(net, given)
    waiting(True)
    results = gradients(net, given)
    assert results["output"].is_contiguous(memory_format=memory_format)
    for key, value in results.items():
        tolerance = 1e-12 * (1 + expected[key].abs().max().item())
        torch.testing.assert_close(value, expected[key], rtol=0, atol=tolerance, msg=lambda text, k=key: k + text)


@pytest.mark.parametrize("name", ["ddpm-cifar10-32", "imagenet64"])
def test_a_fixed_time_holds_either_way(name, waiting):
    net = network(name).double()
    sample, _, *labels = wide(arguments(name))
    waiting(False)
    expected, fixed = net(sample, 7.5, *labels), [net.fixed_time(7.5)]
    waiting(True)
    for time in [*fixed, net.fixed_time(7.5)]:
        torch.testing.assert_close(net(sample, time, *labels), expected, rtol=0, atol=1e-12)
    waiting(False)
    torch.testing.assert_close(net(sample, time, *labels), expected, rtol=0, atol=1e-12)


def test_the_same_elements_are_dropped(waiting):
    net = network("small").double().train()
    for module in net.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    outputs = []
    for on in (False, True):
        waiting(on)
        torch.manual_seed(3)
        outputs.append(net(*wide(arguments("small"))))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    assert (outputs[0] - net(*wide(arguments("small")))).abs().max() > 0.01


@pytest.mark.parametrize("name", ["small", "scale_shift_with_middle_norm"])
def test_compiles_without_graph_breaks(name, waiting):
    waiting(True)
    net, given = network(name).to(memory_format=torch.channels_last), arguments(name)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), net(*given), rtol=0, atol=0)


def test_an_exported_graph_waits_for_nothing(waiting, monkeypatch):
    """It is to be plain PyTorch, also where there is a kernel."""
    net, given = network("small"), arguments("small")
    expected = net(*given)
    waiting(True)
    monkeypatch.setattr(pending_sum, "group_norm_silu", None)
    program = torch.export.export(net, given)
    torch.testing.assert_close(program.module()(*given), expected)


class TestPendingSum:
    def terms(self) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 6, 4, 4), (6,), (2, 6, 4, 4), (2, 3, 4, 4))
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("formed_first", [False, True])
    def test_norm_and_sum(self, waits, formed_first):
        x, shift, residual, skip = self.terms()
        norm = torch.nn.GroupNorm(3, 9, eps=0.1, dtype=torch.float64)
        torch.nn.init.normal_(norm.weight)
        pending = PendingSum(x, shift, residual, waits=waits)
        kept = [pending]
        exact = x + shift[None, :, None, None] + residual
        if formed_first:
            torch.testing.assert_close(pending.formed(), exact)
        y = pending.normalised(norm, skip=skip)
        torch.testing.assert_close(y, torch.nn.functional.silu(norm(torch.cat((exact, skip), dim=1))))
        torch.testing.assert_close(kept[0].formed(), exact)
        assert pending.formed() is pending.formed()
        torch.testing.assert_close(pending.divided(4.0).formed(), exact / 4)

    @pytest.mark.parametrize("waits", [False, True])
    def test_each_sample_may_have_its_own_shift(self, waits):
        x, *_ = self.terms()
        shift = torch.randn(2, 6, dtype=torch.float64)
        norm = torch.nn.GroupNorm(3, 6, dtype=torch.float64)
        exact = x + shift[:, :, None, None]
        y = PendingSum(x, shift, waits=waits).normalised(norm, silu=False)
        torch.testing.assert_close(y, norm(exact))
        torch.testing.assert_close(PendingSum(x, shift, waits=waits).formed(), exact)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [(5,), (5, 3)])
def test_pointwise(channels, memory_format):
    parts = [torch.randn(2, c, 4, 6, dtype=torch.float64).contiguous(memory_format=memory_format) for c in channels]
    weight = torch.randn(7, sum(channels), 1, 1, dtype=torch.float64)
    operands = [tensor.requires_grad_() for tensor in (weight, *parts)]
    result, expected = pointwise(*operands), torch.nn.functional.conv2d(torch.cat(parts, dim=1), weight)
    assert result.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(expected)
    for got, wanted in zip(*(torch.autograd.grad(y, operands, grad) for y in (result, expected)), strict=True):
        torch.testing.assert_close(got, wanted)
