"""benchmarks/convolutions.py: the passes that it times are those of autograd, and its sums are those of a network."""

import json

import pytest
import torch
import torch.nn.functional as F

from convolutions import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Operands, main, measure, operands, passes_of, sums
from convolutions import update_flop as convolutions_update_flop
from products import ATTENTION, CONVOLUTION, LINEAR, Product, products, update_flop
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet

QUICK = {"repetitions": 1, "seconds_per_turn": 1e-5}
STRIDED = Product(CONVOLUTION, ((2, 3, 9, 9), (4, 3, 3, 3)), (2, 2), (0, 0))
ROWS = Product(LINEAR, ((2, 5, 3), (4, 3)))
HEADS = Product(ATTENTION, ((2, 3, 5, 4), (2, 3, 5, 4)))


@pytest.mark.parametrize("product", [STRIDED, ROWS, HEADS])
def test_passes_are_those_of_autograd(product):
    tensors = operands(product, "cpu", torch.channels_last)
    first, second = (tensor.clone().requires_grad_() for tensor in tensors[:2])
    if product.kind == CONVOLUTION:
        out = F.conv2d(first, second, stride=2)
    elif product.kind == LINEAR:
        out = F.linear(first, second)
    else:
        third = second.detach().clone().requires_grad_()
        out = F.scaled_dot_product_attention(first, second, third)
    out.backward(tensors.grad)
    passes = passes_of(product)
    torch.testing.assert_close(passes[FORWARD](tensors), out.detach())
    if product.kind == ATTENTION:
        assert WEIGHT_GRADIENT not in passes
        for got, expected in zip(passes[INPUT_GRADIENT](tensors), (first.grad, second.grad, third.grad), strict=True):
            torch.testing.assert_close(got, expected)
        return
    found = {which: passes[which](tensors) for which in (INPUT_GRADIENT, WEIGHT_GRADIENT)}
    if product.kind == CONVOLUTION:
        assert [result is not None for result in found[INPUT_GRADIENT]] == [True, False, False]
        assert [result is not None for result in found[WEIGHT_GRADIENT]] == [False, True, False]
        found = {INPUT_GRADIENT: found[INPUT_GRADIENT][0], WEIGHT_GRADIENT: found[WEIGHT_GRADIENT][1]}
    torch.testing.assert_close(found[INPUT_GRADIENT], first.grad)
    torch.testing.assert_close(found[WEIGHT_GRADIENT], second.grad)


def test_the_first_layer_needs_no_gradient_of_its_input():
    first = STRIDED._replace(wants_input_gradient=False)
    assert list(passes_of(first)) == [FORWARD, WEIGHT_GRADIENT]
    assert set(measure(first, "NCHW", "cpu", 0, QUICK)) == {FORWARD, WEIGHT_GRADIENT}


def test_an_update_is_three_passes_forward_and_one_backward():
    def figures(*medians):
        return {which: {"median": median} for which, median in zip((FORWARD, INPUT_GRADIENT), medians, strict=False)}

    layouts = {"channels_last": figures(1.0, 10.0), "NCHW": figures(2.0)}
    found = sums([{"count": 2, "seconds": layouts}, {"count": 1, "seconds": layouts}])
    assert found["channels_last"]["update"] == 3 * (3 * 1.0 + 10.0) and found["NCHW"]["update"] == 3 * 3 * 2.0
    counted = products(UNet(preset("digits8")), 4)
    # Less than five passes: the first layer's input has no gradient.
    skipped = next(p.flop for p in counted if not p.wants_input_gradient)
    assert convolutions_update_flop(counted) == update_flop(UNet(preset("digits8")), 4) - skipped


def test_layouts():
    for layout in (torch.channels_last, torch.contiguous_format):
        tensors = operands(STRIDED, "cpu", layout)
        assert all(tensor.is_contiguous(memory_format=layout) for tensor in tensors)
    assert isinstance(tensors, Operands)


def test_quick_on_the_cpu(tmp_path, capsys):
    output = tmp_path / "c.json"
    threads = str(torch.get_num_threads())
    assert main(["--device", "cpu", "--quick", "--threads", threads, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["notes"] == [] and sum(record["count"] for record in found["records"]) == 29
    for record in found["records"]:
        assert set(record["seconds"]) == {"channels_last", "NCHW"}
        assert all(rate is None or rate > 0 for rate in record["rates"].values())
    for total in found["sums"].values():
        assert total["update"] == pytest.approx(3 * total[FORWARD] + total[INPUT_GRADIENT] + total[WEIGHT_GRADIENT])
    assert found["summary"][1] in capsys.readouterr().out
