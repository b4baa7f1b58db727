"""benchmarks/precision.py: errors against what is known, precisions that are what they say, and the verdict."""

import json

import pytest
import torch
from torch import nn

from drawn_images import drawn_images
from low_precision import PACKAGE, Autocast, RoundedInput, TwoPartConvolution, precisions
from precision import main, verdict
from progdistill.core import Denoiser
from random_model import random_model
from teacher_step_error import Steps, draw, errors, exact_steps, step_error, truncated_snr, two_steps

ANGLES = torch.tensor([1.2, 0.4], dtype=torch.float64)


class LinearDenoiser(nn.Module):
    """v of data that are zero: eps = z / sin(phi), v = cos(phi) / sin(phi) z; x is zero at every angle."""

    def forward(self, z, time):
        phi = ((time.double() + 1) / 1024 * torch.pi / 2).view(-1, 1, 1, 1)
        return z / torch.tan(phi).to(z.dtype)


def samples_of(model, count=6):
    generator = torch.Generator().manual_seed(3)
    return draw(model, torch.rand(count, *model.sample_shape, generator=generator) * 2 - 1, None)


def test_a_denoiser_whose_x_never_changes_has_nothing_to_teach():
    model = Denoiser(LinearDenoiser(), sample_shape=(1, 4, 4))
    samples = samples_of(model)
    phis = torch.stack([torch.full((6,), angle, dtype=torch.float64) for angle in (1.0, 0.9, 0.8)])
    steps = exact_steps(model, samples, phis)
    assert float((steps.target - steps.first).norm() / steps.first.norm()) < 1e-6  # the time is told in float32
    assert float((steps.second - steps.first).norm() / steps.first.norm()) > 0.1


def test_errors_are_ratios_of_weighted_norms():
    one = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    exact = Steps(one, 3 * one, 5 * one)
    found = Steps(one + torch.tensor([0.1, 0.0]).view(2, 1, 1, 1).double(), 3.2 * one, 5 * one)
    error = step_error(found, exact, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert error.output == pytest.approx(0.1) and error.change == pytest.approx(0.1 / 2)
    assert error.signal == pytest.approx(0.1 / 4) and error.loss == pytest.approx((3.9 / 4) ** 2)
    assert error.cosine == pytest.approx(1) and error.true_signal == pytest.approx(4)
    assert truncated_snr(ANGLES).tolist() == pytest.approx(
        [max(angle.sin() ** 2, angle.cos() ** 2).item() for angle in ANGLES]
    )


def test_the_error_grows_with_the_number_of_steps_and_shrinks_with_the_precision():
    model = random_model("digits8", "cpu")
    samples, models = samples_of(model), precisions(model)
    few, many = errors(models, samples, 8), errors(models, samples, 512)
    assert next(iter(few)) == "float32" and PACKAGE in few
    for name in few:
        assert many[name]["change"] > 1.2 * few[name]["change"], name
        assert few[name]["cosine"] > 0.99
    assert few["float32"]["signal"] < 1e-4 < 1e-3 < few[PACKAGE]["signal"] < 0.2
    assert few["float32"]["signal"] < few["float32, input rounded to bfloat16"]["signal"] < few[PACKAGE]["signal"]


def test_two_parts_of_the_input_are_as_good_as_float32():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.bfloat16())  # so that only the input is rounded
        conv.bias.zero_()
    x = torch.randn(2, 3, 6, 6)
    exact = conv(x)
    low = conv.bfloat16()(x.bfloat16()).float()
    own = TwoPartConvolution(conv.float())
    assert torch.equal(own(x), exact)
    with torch.autocast("cpu", torch.bfloat16):
        two = own(x)
    assert two.dtype == torch.bfloat16
    two = two.float()
    rounded = exact.bfloat16().float()
    assert (two - rounded).norm() < 0.1 * (low - rounded).norm()
    assert torch.equal(RoundedInput(nn.Identity())(x), x.bfloat16().float())


def test_a_last_layer_in_float32_is_not_rounded():
    model = random_model("digits8", "cpu")
    z, time = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 900.0])
    with torch.no_grad():
        assert Autocast(model.network)(z, time).dtype == torch.bfloat16
        out = Autocast(model.network, last_in_float32=True)(z, time)
        exact = Autocast(model.network, in_two_parts=True)
        exact.enabled = False
        torch.testing.assert_close(exact(z, time), model.network(z, time), rtol=1e-4, atol=1e-5)
    assert out.dtype == torch.float32 and not torch.equal(out, out.bfloat16().float())
    assert model.network.conv_out.weight.dtype == torch.float32


def test_two_steps_leave_the_model_as_it_is():
    model = random_model("digits8", "cpu")
    samples = samples_of(model, 2)
    phis = torch.stack([torch.full((2,), angle, dtype=torch.float64) for angle in (1.0, 0.9, 0.8)])
    before = two_steps(model, samples, phis)
    exact_steps(model, samples, phis)
    assert torch.equal(two_steps(model, samples, phis).second, before.second)
    assert next(model.network.parameters()).dtype == torch.float32


def entry(steps, excess, error=0.001, other=0.0):
    runs = {
        "float32": {"distance": (0.1, 0.01), "excess": (0.0, 0.0)},
        "bfloat16": {"distance": (0.1 + excess, 0.01), "excess": (excess, error)},
        "float32, other data": {"distance": (0.1 + other, 0.01), "excess": (other, error)},
    }
    return {"student_steps": steps, "teacher": (0.2, 0.01), "runs": runs}


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([entry(8, 0.004), entry(64, -0.1), entry(256, 0.006)], 64),  # 5 % of 0.1 are allowed
        ([entry(8, 0.0), entry(64, 0.006, error=0.004)], 64),  # within two standard errors
        ([entry(8, 0.0), entry(64, 0.006, other=0.007)], 64),  # other data change as much
        ([entry(64, 0.0), entry(8, 0.02)], None),
        ([entry(8, float("nan"))], None),
    ],
)
def test_the_verdict(rounds, expected):
    assert verdict(rounds) == expected


def test_quick_on_the_cpu(tmp_path, capsys):
    pytest.importorskip("sklearn")
    output, threads = tmp_path / "p.json", str(torch.get_num_threads())
    assert main(["--device", "cpu", "--quick", "--threads", threads, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert [one["teacher_steps"] for one in found["steps"]] == [8, 64]
    (round_,) = found["rounds"]
    assert list(round_["runs"]) == ["float32", "bfloat16", "float32, other data", "bfloat16, two parts"]
    assert round_["runs"]["float32"]["distance"] != round_["runs"]["bfloat16"]["distance"]
    assert "4 -> 2" in capsys.readouterr().out and found["threshold"]["allowed"] == 0.05


def test_drawn_images():
    images = drawn_images(5, 3, 16)
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(images, drawn_images(5, 3, 16)) and not torch.equal(images, drawn_images(5, 3, 16, seed=1))
    assert images.float().std(dim=(2, 3)).mean() > 10
