"""The convolutions, matrix products and attentions of a network's forward pass: their shapes and their arithmetic."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from progdistill.nets.unet import UNet
from textbook_unet import TextbookUNet

CONVOLUTION, LINEAR, ATTENTION = "convolution", "linear", "attention"
Shape = tuple[int, ...]


class Product(NamedTuple):
    """One of them; as often as it occurs with these shapes it costs the same.

    `inputs`: of a convolution and a linear layer input and weight, of an attention query and key.
    `wants_input_gradient`: no in the network's first layer.
    """

    kind: str
    inputs: tuple[Shape, Shape]
    stride: Shape = ()
    padding: Shape = ()
    wants_input_gradient: bool = True

    @property
    def flop(self) -> int:
        """Operations of the forward pass, 2 a multiply-add."""
        first, second = self.inputs
        if self.kind == ATTENTION:  # scores, and their product with the values
            batch, heads, length, channels = first
            return 4 * batch * heads * length * second[2] * channels
        if self.kind == LINEAR:
            return 2 * math.prod(first) * second[0]
        pixels = math.prod(
            (edge + 2 * pad - kernel) // step + 1
            for edge, pad, kernel, step in zip(first[2:], self.padding, second[2:], self.stride, strict=True)
        )
        return 2 * first[0] * pixels * math.prod(second)

    def __str__(self) -> str:
        """For a line of a table."""
        first, second = self.inputs
        if self.kind == CONVOLUTION:
            sizes = f"{second[2]}x{second[3]}, {first[1]} -> {second[0]} channels, {first[2]}x{first[3]}"
            return sizes + (f", stride {self.stride[0]}" if self.stride[0] > 1 else "")
        if self.kind == LINEAR:
            return f"linear, {second[1]} -> {second[0]}, {math.prod(first[:-1])} rows"
        return f"attention, {first[0]}x{first[1]} heads, {first[2]} tokens, {first[3]} channels"


class _Collector(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            first = not any(product.kind == CONVOLUTION for product in self.found)
            self.found[_convolution(first, *args, **(kwargs or {}))] += 1
        elif func is F.linear:
            self.found[Product(LINEAR, (tuple(args[0].shape), tuple(args[1].shape)))] += 1
        elif func is F.scaled_dot_product_attention:
            self.found[Product(ATTENTION, (tuple(args[0].shape), tuple(args[1].shape)))] += 1
        return func(*args, **(kwargs or {}))


def _convolution(
    first: bool, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Product:
    if groups != 1 or any(step != 1 for step in dilation):
        raise ValueError(f"a convolution with {groups} groups and dilation {dilation}: only plain ones are known here")
    shapes = tuple(x.shape), tuple(weight.shape)
    return Product(CONVOLUTION, shapes, tuple(stride), tuple(padding), wants_input_gradient=not first)


def products(network: UNet, batch_size: int = 1) -> Counter[Product]:
    """How often a forward pass of `batch_size` samples of the configured size has each product. Computes nothing."""
    config = network.config
    meta = TextbookUNet(copy.deepcopy(network).to("meta"))
    edges = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    sample = torch.empty(batch_size, config.in_channels, *edges, device="meta")
    times = torch.empty(batch_size, device="meta")
    labels = None
    if config.num_class_embeds is not None:
        labels = torch.empty(batch_size, dtype=torch.int64, device="meta")
    with torch.no_grad(), _Collector() as collector:
        meta(sample, times, labels)
    return collector.found


def forward_flop(network: UNet) -> int:
    """Operations of a forward pass of one sample, 2 a multiply-add; others than the products are not counted."""
    return sum(count * product.flop for product, count in products(network).items())


def update_flop(network: UNet, batch_size: int) -> int:
    """Operations of a distillation update: the teacher twice, the student forward and, counted as two, backward."""
    return 5 * batch_size * forward_flop(network)
