"""Queries, keys and values as one product, against three nn.Linear."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nets.small_networks import CONFIGS, inputs, random_weights
from progdistill.nets.bfloat16_twin import bfloat16_twin
from progdistill.nets.query_key_value import lay_side_by_side, projections
from progdistill.nets.unet import UNet


def linears(dtype: torch.dtype = torch.float64, side_by_side: bool = False) -> nn.ModuleList:
    torch.manual_seed(3)
    layers = nn.ModuleList(nn.Linear(6, 4, dtype=dtype) for _ in range(3))
    if side_by_side:
        lay_side_by_side(layers)
    return layers


def tokens(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 5, 6, dtype=dtype, generator=torch.Generator().manual_seed(4))


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("frozen", [(), ("0.weight", "2.bias"), ("0.weight", "1.weight", "2.weight")])
@pytest.mark.parametrize("for_tokens", [False, True])
def test_values_and_gradients(side_by_side, frozen, for_tokens):
    plain, ours = linears(), linears(side_by_side=side_by_side)
    x, y = (tokens().requires_grad_(for_tokens) for _ in "ab")
    for layers in (plain, ours):
        for name, parameter in layers.named_parameters():
            parameter.requires_grad_(name not in frozen)
    expected, found = [layer(x) for layer in plain], projections(ours, y)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    weights = torch.linspace(-1, 2, 60, dtype=torch.float64).reshape(3, 2, 5, 2).repeat(1, 1, 1, 2)
    for outputs in (expected, found):
        sum((out * by).pow(2).sum() for out, by in zip(outputs, weights, strict=True)).backward()
    pairs = [(x, y), *zip(plain.parameters(), ours.parameters(), strict=True)]
    for want, got in pairs:
        assert (want.grad is None) == (got.grad is None)
        if want.grad is not None:
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    whole = _Whole(linears())
    names = [name for name, _ in whole.named_parameters()]

    def loss(x, *parameters):
        return torch.func.functional_call(whole, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(loss, (tokens().requires_grad_(), *whole.parameters()))


def test_one_product_without_a_copy():
    """Forwards; backwards, sums are made where products are written."""
    layers, x = linears(side_by_side=True), tokens()
    with Calls() as calls, torch.no_grad():
        projections(layers, x)
    assert calls.names["addmm"] + calls.names["mm"] == 1 and calls.names["cat"] == 0
    x.requires_grad_()
    with Calls() as calls:
        q, k, v = projections(layers, x)
        torch.autograd.grad((q, k, v), (x, *layers.parameters()), (q, k, v))
    assert not calls.names.keys() & {"cat", "add", "clone", "copy_"}
    products = {name: calls.names[name] for name in ("addmm", "mm", "addmm_")}
    assert products == {"addmm": 1, "mm": 4, "addmm_": 2}


def test_layers_side_by_side_stay_layers():
    layers, alone = linears(side_by_side=True), linears()
    for ours, plain in zip(layers.parameters(), alone.parameters(), strict=True):
        assert isinstance(ours, nn.Parameter) and torch.equal(ours, plain)
    with torch.no_grad():
        layers[1].weight.add_(1.0)
        expected = [layer(tokens()) for layer in layers]
        found = projections(layers, tokens())
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("move", ["deepcopy", "to", "load", "other order", "other places"])
def test_layers_that_no_longer_lie_side_by_side(move):
    layers = linears(side_by_side=True)
    if move == "deepcopy":
        layers = copy.deepcopy(layers)
    elif move == "to":
        layers = layers.to(torch.float32).to(torch.float64)
    elif move == "load":
        layers.load_state_dict(linears().state_dict(), assign=True)
    elif move == "other order":
        layers = nn.ModuleList([layers[2], layers[0], layers[1]])
    else:
        layers[1] = linears(side_by_side=True)[1]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.mul_(number + 2)
        expected = [layer(tokens()) for layer in layers]
        for got, want in zip(projections(layers, tokens()), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_transforms_autocast_and_compilers():
    layers, x = linears(torch.float32), tokens(torch.float32)
    expected = torch.autograd.grad(torch.cat([layer(x) for layer in layers]).square().sum(), layers.parameters())
    parameters = dict(layers.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(_Whole(layers), {f"layers.{k}": p for k, p in parameters.items()}, (x,))

    for got, want in zip(torch.func.grad(loss)(parameters).values(), expected, strict=True):
        torch.testing.assert_close(got, want)
    with torch.autocast("cpu", torch.bfloat16):
        loss_in_bfloat16 = _Whole(layers)(x)
    loss_in_bfloat16.backward()
    for parameter, want in zip(layers.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, want, rtol=0.05, atol=0.3)
    compiled = torch.compile(_Whole(layers), backend="aot_eager", fullgraph=True)
    for got, want in zip(torch.autograd.grad(compiled(x), layers.parameters()), expected, strict=True):
        torch.testing.assert_close(got, want)


class _Whole(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(projections(self.layers, x)).square().sum()


def test_a_twin_reads_its_matrices_where_they_lie():
    net = UNet(CONFIGS["ddpm-cifar10-32"]).eval()
    net.load_state_dict(random_weights(net, 0))
    twin, (sample, times, _) = bfloat16_twin(net), inputs(net.config, torch.tensor([999.0, 37.5, 0.0]))
    weights = [getattr(twin.mid_block.attentions[0], name).weight for name in ("to_q", "to_k", "to_v")]
    with Calls() as calls, torch.no_grad():
        twin(sample, times)
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    with Calls() as plain, torch.no_grad():
        copy.deepcopy(twin)(sample, times)
    attentions = sum(name.endswith("to_q.weight") for name, _ in twin.named_parameters())
    assert plain.names["cat"] - calls.names["cat"] == 2 * attentions
