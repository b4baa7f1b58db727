"""benchmarks/upsampling.py: its contenders compute the same, on the shapes that networks have."""

import json

import pytest
import torch

from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet
from upsampling import CALLS, CONTENDERS, IMAGE, KEPT, TRANSPOSED, Shape, contenders, main, operands, shapes, summary


@pytest.mark.parametrize("call", CALLS)
def test_contenders_compute_the_same(call):
    torch.manual_seed(0)
    given = operands(Shape(5, 4, 6), 2, "cpu")
    results = {name: run(given) for name, run in contenders(call).items()}
    assert list(results) == (list(CONTENDERS) if call == "forward" else [IMAGE, TRANSPOSED])
    for result in results.values():
        torch.testing.assert_close(result, results[IMAGE])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddpm-cifar10-32", [(256, 256, 4), (256, 256, 8), (256, 256, 16)]),
        ("imagenet64", [(768, 768, 8), (576, 576, 16), (384, 384, 32)]),
    ],
)
def test_shapes_are_those_of_a_network(name, expected):
    with torch.device("meta"):
        assert list(shapes(UNet(preset(name)))) == expected


def test_an_update_is_two_calls_of_a_teacher_and_one_of_a_student():
    medians = {"forward": (10.0, 7.0, 5.0), "forward and backward": (30.0, 18.0)}
    seconds = {
        call: {name: {"median": value} for name, value in zip(CONTENDERS, values, strict=False)}
        for call, values in medians.items()
    }
    (line,) = summary({"network": "it", "batch_size": 2, "records": [{"seconds": seconds}] * 2})
    assert "take 56000.000 ms, 100000.000 of" in line


def test_it_runs_and_keeps_everything(tmp_path, capsys):
    output = tmp_path / "found.json"
    assert main(["--device", "cpu", "--quick", "--threads", "1", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["summary"][0] in capsys.readouterr().out
    (record,) = found["records"]
    assert set(record["seconds"]["forward"]) == {IMAGE, TRANSPOSED, KEPT}
