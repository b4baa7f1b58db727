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
from progdistill.nets.resnet import ResnetBlock
from progdistill.nets.unet import UNet

TIMES = torch.tensor([999.0, 0.0, 37.5])
LAST = torch.channels_last


@pytest.fixture
def waiting(monkeypatch):
    """Makes the sums of networks wait that are called with it on."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(pending_sum, "_has_kernel", lambda device, dtype: on)

    return switch


def case(name: str, dtype: torch.dtype = torch.float64) -> tuple[UNet, tuple]:
    """A network and its arguments, in channels_last order."""
    net = UNet(CONFIGS[name]).eval()
    net.load_state_dict(random_weights(net))
    times = TIMES.round() if CONFIGS[name].time_embedding_type == "learned" else TIMES
    sample, times, labels = inputs(CONFIGS[name], times)
    if labels is not None and labels.is_floating_point():
        labels = labels.to(dtype)
    return net.to(dtype).to(memory_format=LAST), (sample.to(dtype).contiguous(memory_format=LAST), times, labels)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_changes_in_float64(name, waiting):
    net, given = case(name)
    waiting(False)
    expected = gradients(net, given)
    waiting(True)
    results = gradients(net, given)
    assert results["output"].is_contiguous(memory_format=LAST)
    for key, value in results.items():
        tolerance = 1e-12 * (1 + expected[key].abs().max().item())
        torch.testing.assert_close(value, expected[key], rtol=0, atol=tolerance, msg=lambda text, k=key: k + text)


@pytest.mark.parametrize("name", ["ddpm-cifar10-32", "imagenet64"])
def test_a_fixed_time_holds_either_way(name, waiting):
    net, (sample, _, *labels) = case(name)
    waiting(False)
    expected, fixed = net(sample, 7.5, *labels), [net.fixed_time(7.5)]
    waiting(True)
    fixed.append(net.fixed_time(7.5))
    for on in (False, True):
        waiting(on)
        for time in fixed:
            torch.testing.assert_close(net(sample, time, *labels), expected, rtol=0, atol=1e-12)


def test_the_same_elements_are_dropped(waiting):
    net, given = case("small")
    for block in net.train().modules():
        if isinstance(block, ResnetBlock):
            block.dropout = 0.5
    outputs = []
    for on in (False, True):
        waiting(on)
        torch.manual_seed(3)
        outputs.append(net(*given))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    assert (outputs[0] - net(*given)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["small", "scale_shift_with_middle_norm"])
def test_compiles_without_graph_breaks(name, waiting):
    waiting(True)
    net, given = case(name, torch.float32)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), net(*given), rtol=0, atol=1e-5)


def test_an_exported_graph_waits_for_nothing(waiting, monkeypatch):
    """It is to be plain PyTorch, also where there is a kernel."""
    net, given = case("small")
    expected = net(*given)
    waiting(True)
    monkeypatch.setattr(pending_sum, "group_norm_silu", None)
    program = torch.export.export(net, given)
    torch.testing.assert_close(program.module()(*given), expected)


def test_other_orders_than_channels_last_do_not_wait(waiting, monkeypatch):
    """For the kernels would copy all images there and back."""
    net, (sample, *rest) = case("small")
    expected = net(sample, *rest)
    waiting(True)
    monkeypatch.setattr(pending_sum, "group_norm_silu", None)
    output = net.to(memory_format=torch.contiguous_format)(sample.contiguous(), *rest)
    assert output.is_contiguous()
    torch.testing.assert_close(output, expected)


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
        y, total, handed_on = pending.normalised_and_formed(norm, skip=skip)
        torch.testing.assert_close(y, torch.nn.functional.silu(norm(torch.cat((exact, skip), dim=1))))
        torch.testing.assert_close(total, exact)
        assert torch.equal(handed_on, skip)
        assert kept[0].formed() is total and pending.formed() is total
        torch.testing.assert_close(pending.divided(4.0).formed(), exact / 4)

    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("formed_first", [False, True])
    def test_padding(self, waits, formed_first):
        x, shift, residual, _ = self.terms()
        exact = x + shift[None, :, None, None] + residual
        pending = PendingSum(x, shift, residual, waits=waits)
        if formed_first:
            pending.formed()
        torch.testing.assert_close(pending.padded(), torch.nn.functional.pad(exact, (0, 1, 0, 1)))
        torch.testing.assert_close(pending.formed(), exact)

    @pytest.mark.parametrize("waits", [False, True])
    def test_each_sample_may_have_its_own_shift(self, waits):
        x, *_ = self.terms()
        shift = torch.randn(2, 6, dtype=torch.float64)
        norm = torch.nn.GroupNorm(3, 6, dtype=torch.float64)
        exact = x + shift[:, :, None, None]
        y = PendingSum(x, shift, waits=waits).normalised(norm, silu=False)
        torch.testing.assert_close(y, norm(exact))
        torch.testing.assert_close(PendingSum(x, shift, waits=waits).formed(), exact)


@pytest.mark.parametrize("channels", [(5,), (5, 3)])
def test_pointwise(channels):
    parts = [torch.randn(2, c, 4, 6, dtype=torch.float64).contiguous(memory_format=LAST) for c in channels]
    weight = torch.randn(7, sum(channels), 1, 1, dtype=torch.float64)
    operands = [tensor.requires_grad_() for tensor in (weight, *parts)]
    result, expected = pointwise(*operands), torch.nn.functional.conv2d(torch.cat(parts, dim=1), weight)
    assert result.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(expected)
    for got, wanted in zip(*(torch.autograd.grad(y, operands, grad) for y in (result, expected)), strict=True):
        torch.testing.assert_close(got, wanted)
    by_itself = pointwise(weight, *(part.contiguous() for part in parts))
    torch.testing.assert_close(by_itself, expected)
