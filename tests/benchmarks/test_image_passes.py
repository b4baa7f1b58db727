"""benchmarks/image_passes.py: what it counts is what was read and written."""

from collections import Counter

import pytest
import torch

from image_passes import ImagePasses, counted, lines, main, milliseconds


def test_elements_read_and_written():
    x, weight = torch.ones(7, 2, 4, 4), torch.ones(3, 2, 1, 1)
    image = x.numel()
    passes = ImagePasses(samples=7)
    with passes:
        y = (x + x[:1]).view(7, -1)  # 32 of the second are of no whole number of samples
        y.mul_(2.0)
        torch.nn.functional.conv2d(x, weight, torch.ones(3))
        weight + 1
        x.sum()
    moved = {name: count for name, count in passes.moved.items() if name != "convolution"}
    assert moved == {"add": 2 * image, "mul_": 2 * image, "bias of a convolution": 3 * image, "sum": image}
    assert passes.written["add"] == passes.written["mul_"] == 1
    assert passes.elsewhere["convolution"] == 1, "NCHW"


def test_what_a_padded_sum_moves():
    x, residual, shift = (torch.ones(shape, requires_grad=True) for shape in ((7, 2, 4, 4), (7, 2, 4, 4), (2,)))
    image, padded = 7 * 2 * 16, 7 * 2 * 25
    for padding, expected in ((0, {"sum": image}), (1, {"padded_sum_backward": 2 * image + padded, "sum": image})):
        passes = ImagePasses(samples=7)
        results = passes.padded_sum(x, shift=shift, residual=residual, padding=padding)
        assert passes.moved["padded_sum"] == 3 * image + padding * padded
        sum(result.sum() for result in (results if padding else [results])).backward()
        assert {name: count for name, count in passes.moved.items() if name != "padded_sum"} == expected
        torch.testing.assert_close(shift.grad, torch.full((2,), (1.0 + padding) * 112))
        shift.grad = None


def test_what_a_norm_moves():
    """Sum and skip are handed on; their other gradients are read where those of the norm are written."""
    x, skip, residual = (torch.randn(7, 4, 3, 3, requires_grad=True) for _ in range(3))
    weight, bias, image = torch.ones(8, requires_grad=True), torch.ones(8, requires_grad=True), 7 * 4 * 9
    passes = ImagePasses(samples=7)
    y, u, handed_on = passes.norm(x, weight, bias, 2, 1e-5, skip=skip, residual=residual, return_sources=True)
    assert passes.moved["norm"] == (3 + 3) * image, "x, residual, skip; the sum, and y of twice the channels"
    (y.sum() + u.sum() + handed_on.sum()).backward()
    assert passes.moved["norm_backward"] == (2 + 1 + 1 + 2 + 2) * image
    assert torch.equal(x.grad, residual.grad)


def test_the_reference_network():
    forward, backward = counted("ddpm-cifar10-32")
    assert {"norm", "padded_sum", "convolution", "attention"} <= forward.keys()
    others = {"padded_sum", "padded_sum_backward", "add", "sum"}
    left = {name for of in (forward, backward) for name, count in of.items() if count > 50_000}
    assert {name for name in left if "norm" not in name} - others <= {
        *("convolution", "convolution_backward", "mm", "addmm", "addmm_", "attention", "attention_backward"),
    }
    # Before a downsampling two images are read, one is written, and one with a rim; before an upsampling no padded one.
    down, up = 128 * 32**2 + 256 * (16**2 + 8**2), 256 * (4**2 + 8**2 + 16**2)
    rims = 128 * 65 + 256 * (33 + 17)
    assert forward["padded_sum"] == 4 * down + rims + 3 * up


def test_milliseconds():
    assert milliseconds(1e6, 3e6, 128) == pytest.approx(1e3 * 6e6 * 2 * 128 / (0.8 * 4.27e12))
    assert len(lines(Counter({"add": 1e6, "norm": 2e6, "mm": 5e6}), Counter({"add": 1e6}), 1)) == 4


def test_it_prints_a_table(capsys):
    assert main(["--network", "digits8", "--batch-size", "3"]) == 0
    assert "norms, each image once" in capsys.readouterr().out
