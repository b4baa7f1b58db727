"""The convolution of an upsampled image as a transposed one, against the image upsampled and convolved."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from nets.small_networks import CONFIGS, gradients, inputs, random_weights, relative_error
from progdistill.nets import pending_sum, upsampling
from progdistill.nets.bfloat16_twin import bfloat16_twin
from progdistill.nets.unet import UNet
from progdistill.nets.upsampling import UpsamplingConv2d
from tolerance import assert_within_rule

LAST = torch.channels_last
FORMATS = {"channels_last": LAST, "NCHW": torch.contiguous_format}


def literal(conv: UpsamplingConv2d, x: torch.Tensor, *, bias: bool = True) -> torch.Tensor:
    """Every pixel four times, zeros around, the nine products of each output one after the other."""
    weight, (height, width) = conv.weight, x.shape[2:]
    rows, columns = torch.arange(2 * height) // 2, torch.arange(2 * width) // 2
    around = F.pad(x[:, :, rows][:, :, :, columns], (1, 1, 1, 1))
    result = torch.zeros((), dtype=x.dtype)
    for k in range(3):
        for m in range(3):
            seen = around[:, :, k : k + 2 * height, m : m + 2 * width]
            result = result + torch.einsum("oc,bchw->bohw", weight[:, :, k, m], seen)
    return result + conv.bias[:, None, None] if bias else result


@pytest.fixture
def always(monkeypatch):
    """Has small convolutions transposed too."""
    monkeypatch.setattr(upsampling, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(upsampling, "LEAST_PIXELS", 0)


def case(*size: int, dtype: torch.dtype, format: torch.memory_format) -> tuple[UpsamplingConv2d, torch.Tensor]:
    torch.manual_seed(0)
    batch, channels, others, height, width = size
    conv = UpsamplingConv2d(channels, others).to(dtype).to(memory_format=format)
    return conv, torch.randn(batch, channels, height, width, dtype=dtype).contiguous(memory_format=format)


def with_gradients(function, x: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *parameters])]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(2, 5, 7, 4, 4), (1, 3, 2, 1, 1), (3, 4, 4, 5, 2), (1, 2, 9, 1, 6)])
def test_value_and_gradients(always, size, bias, format):
    conv, x = case(*size, dtype=torch.float64, format=FORMATS[format])
    parameters = [conv.weight, conv.bias] if bias else [conv.weight]
    expected = with_gradients(lambda x: literal(conv, x, bias=bias), x, parameters)
    results = with_gradients(lambda x: conv.of_upsampled(x, bias=bias), x, parameters)
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert results[0].is_contiguous(memory_format=FORMATS[format])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding(always, dtype):
    """Within the rule, although sums of weights are rounded too."""
    conv, x = case(2, 24, 16, 6, 6, dtype=dtype, format=LAST)
    plain = with_gradients(lambda x: conv(upsampling.upsample(x)), x, [conv.weight, conv.bias])
    results = with_gradients(conv.of_upsampled, x, [conv.weight, conv.bias])
    wide = copy.deepcopy(conv).double()
    exact = with_gradients(lambda x: literal(wide, x), x.double(), [wide.weight, wide.bias])
    for got, usual, wanted in zip(results, plain, exact, strict=True):
        assert got.dtype == dtype
        assert_within_rule(*(tensor.reshape(1, -1) for tensor in (got, usual, wanted)))


def test_four_ninths_of_the_arithmetic():
    counted = []
    for channels, batch in ((64, 8), (63, 8), (64, 7)):
        conv, x = case(batch, channels, channels, 8, 8, dtype=torch.float32, format=LAST)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            conv.of_upsampled(x)
        counted.append(counter.get_total_flops() / (2 * batch * channels**2 * 9 * 16 * 16))
    assert counted == pytest.approx([4 / 9, 1, 1]), "narrow convolutions and few pixels stay as they are"


def test_called_it_is_a_convolution(always):
    conv, x = case(2, 5, 7, 4, 4, dtype=torch.float32, format=LAST)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert list(conv.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_kept_kernel(always, format, monkeypatch):
    conv, x = case(2, 5, 7, 4, 4, dtype=torch.float32, format=FORMATS[format])
    expected = conv.of_upsampled(x).detach()
    conv.requires_grad_(False).keep()
    monkeypatch.setattr(upsampling, "LEAST_PIXELS", 10**9)  # it is there: then it is taken
    torch.testing.assert_close(conv.of_upsampled(x), expected, rtol=0, atol=0)
    kept, place = copy.deepcopy(conv), conv._kept.data_ptr()
    conv.weight.mul_(2)
    conv.bias.mul_(2)
    conv.keep()
    assert conv._kept.data_ptr() == place and list(conv.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(conv.of_upsampled(x), 2 * expected)
    torch.testing.assert_close(kept.of_upsampled(x), expected, rtol=0, atol=0)


def test_what_is_trained_keeps_nothing(always):
    conv, x = case(2, 5, 7, 4, 4, dtype=torch.float64, format=LAST)
    conv.keep()
    with torch.no_grad():
        conv.weight.mul_(2)
    torch.testing.assert_close(conv.of_upsampled(x), literal(conv, x))


def test_an_exported_graph_upsamples(always):
    net = UNet(CONFIGS["small"]).eval()
    given = inputs(net.config, torch.tensor([1.0, 2.0, 3.0]))
    names = {str(node.target) for node in torch.export.export(net, given).graph.nodes}
    assert any("upsample_nearest2d" in name for name in names)
    assert not any("transpose2d" in name for name in names)


NAMES = ["ddpm-cifar10-32", "cifar10", "imagenet64", "attention_conv"]


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_networks(name, waits, monkeypatch, request):
    """In float64 nothing changes; and bfloat16 is as near to it as with the image upsampled."""
    monkeypatch.setattr(pending_sum, "_has_kernel", lambda device, dtype: waits)
    net = UNet(CONFIGS[name]).eval()
    net.load_state_dict(random_weights(net))
    given = inputs(net.config, torch.tensor([999.0, 0.0, 37.5]))
    wide = (given[0].double().contiguous(memory_format=LAST), *given[1:])
    found = []
    for _ in range(2):
        twin = gradients(bfloat16_twin(net), (given[0].contiguous(memory_format=LAST), *given[1:]))
        found.append((gradients(copy.deepcopy(net).double().to(memory_format=LAST), wide), twin))
        request.getfixturevalue("always")
    (exact, plain), (same, twin) = found
    for key, value in same.items():
        tolerance = 1e-12 * (1 + exact[key].abs().max().item())
        torch.testing.assert_close(value, exact[key], rtol=0, atol=tolerance, msg=lambda text, k=key: k + text)
    # Gradients of a few small biases, which other seeds have larger and smaller, are most of the second figure.
    for keys, factor in (({"output"}, 1.1), (set(exact), 1.6)):
        errors = [relative_error(values, {key: exact[key] for key in keys}) for values in (twin, plain)]
        assert errors[0] <= factor * errors[1], errors


def test_compiles_without_graph_breaks(always):
    net = UNet(CONFIGS["small"]).eval().to(memory_format=LAST)
    sample, times, _ = inputs(net.config, torch.tensor([1.0, 2.0, 3.0]))
    given = (sample.contiguous(memory_format=LAST), times)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), net(*given), rtol=0, atol=1e-5)


def test_autocast(always):
    conv, x = case(2, 5, 7, 4, 4, dtype=torch.float32, format=LAST)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv.of_upsampled(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), literal(conv, x), rtol=0, atol=0.05)
