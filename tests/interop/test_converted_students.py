"""Students that plain diffusers cannot sample become ones that it can, by a conversion at the same step counts."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import tiny
from interop import diffusers_models as theirs
from interop import models
from progdistill import convert, export_diffusers, from_edm, from_flow_matching, load, sample
from progdistill.cli import main
from progdistill.core import CallableNetwork, CosineSchedule, EDMSchedule
from progdistill.nets.unet import UNet
from progdistill.training.converted_student import converted_student
from progdistill.training.plain_unet import beginning

QUICK = {"train_batch_size": 4, "progress": False, "validation_images": 2, "ema_decay": 0.0}
SMALL = ["--train-batch-size", "4", "--no-progress", "--ema-decay", "0"]


@pytest.fixture(autouse=True)
def one_thread(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


def test_a_two_headed_student_by_the_command_line(tmp_path, capsys):
    """Trained, distilled, refused by diffusers, converted count by count, sampled there."""
    pytest.importorskip("diffusers")
    np.savez("images.npz", images=tiny.IMAGES)
    (tmp_path / "tiny.json").write_text(json.dumps(tiny.NETWORK.to_dict()))
    train = ["train", "--data", "images.npz", "--network", "tiny.json", "--prediction-type", "both", *SMALL]
    assert main([*train, "--max-train-steps", "3", "--output-dir", "teacher"]) == 0
    rounds = ["--rounds", "2", "--step-factor", "4", "--teacher-substeps", "4", "--updates-per-round", "2"]
    compared = ["--validation-images", "2"]
    assert main(["distill", "--teacher", "teacher", "--output-dir", "run", *rounds, *SMALL, *compared]) == 0
    assert "`progdistill convert --teacher run/model" in capsys.readouterr().out
    for steps, folder in ((1, "run/model"), (4, "run/students/steps-0004")):
        assert not (tmp_path / folder / "model_index.json").exists()
        made = f"one-head-{steps}"
        assert main(["convert", "--teacher", folder, "--output-dir", made, "--updates", "3", *SMALL, *compared]) == 0
        converted = load(made)
        assert converted.valid_steps == (steps,) and converted.prediction_type == "v_prediction"
        assert (tmp_path / made / "model" / "model_index.json").is_file()
        assert list(export_diffusers(converted, tmp_path / "exported").deviations) == [steps]
    assert sample(load("one-head-4"), steps=4, batch_size=2, output_type="pt").isfinite().all()


def unet_of_ours():
    return models.randomise(UNet(dataclasses.replace(tiny.NETWORK, in_channels=3, out_channels=3)))


def unet_of_diffusers():
    pytest.importorskip("diffusers")
    return theirs.unet(
        sample_size=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )


def edm(network, **options):
    return from_edm(network, sample_shape=(3, 8, 8), preconditioned=False, sigma_data=0.4, **options)


def flow(network, **options):
    return from_flow_matching(network, sample_shape=(3, 8, 8), time_scale=1000.0, **options)


def flow_the_other_way(network):
    return flow(network, noise_at_one=False)


FAMILIES = [edm, flow, flow_the_other_way]


class Heard(torch.nn.Module):
    """Notes what times a network is told."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.times = unet, []

    def forward(self, state, time):
        self.times.append(time)
        return self.unet(state, time)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("wrapped", [lambda net: net, CallableNetwork], ids=["module", "callable"])
def test_it_is_told_the_times_that_it_was_trained_with(make, wrapped):
    unet = unet_of_ours()
    teacher, heard = make(wrapped(unet)), Heard(unet)
    student = converted_student(teacher, "v_prediction", "truncate")
    assert isinstance(student.network, UNet) and all(p.requires_grad for p in student.network.parameters())
    phi = student.schedule.angle(torch.linspace(0, 1, 9, dtype=torch.float64))
    make(heard).raw(torch.zeros(9, 3, 8, 8), phi)
    torch.testing.assert_close(student.time_map(phi), heard.times[0], rtol=1e-6, atol=1e-6)
    assert student.time_map(torch.tensor([0.0, np.pi / 2], dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("wanted", ["v_prediction", "sample"])
def test_it_begins_with_the_nearest_multiple_of_what_the_network_says(make, wanted):
    """Against least squares over random data of the size that the family reckons with, noise and times."""
    schedule = CosineSchedule(-6, 6)
    begun = beginning(make(unet_of_ours()), wanted, schedule)
    draw = torch.Generator().manual_seed(0)
    x, eps, t = (f(400_000, generator=draw, dtype=torch.float64) for f in (torch.randn, torch.randn, torch.rand))
    phi = schedule.angle(t)
    if make is edm:
        x, sigma = 0.4 * x, torch.tan(phi)
        size = torch.sqrt(sigma**2 + 0.4**2)
        # Karras et al. 2022, table 1: D = c_skip (x + sigma eps) + c_out F
        says = (x - 0.16 / size**2 * (x + sigma * eps)) / (0.4 * sigma / size)
        state = 1 / (size * torch.cos(phi))
    else:
        says = (eps - x) * (1 if make is flow else -1)
        state = 1 / (torch.cos(phi) + torch.sin(phi))
    target = torch.cos(phi) * eps - torch.sin(phi) * x if wanted == "v_prediction" else x
    expected = torch.linalg.lstsq(says[:, None], target[:, None]).solution.item()
    assert begun.outputs == pytest.approx((expected,), abs=4e-3)
    assert begun.state == pytest.approx(float(state.mean()), rel=2e-3)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("network", [unet_of_ours, unet_of_diffusers])
def test_an_adapted_student_leaves_for_diffusers(tmp_path, make, network):
    pytest.importorskip("diffusers")
    teacher = make(CallableNetwork(network()))
    student = teacher.with_network(teacher.network, valid_steps=(4, 2, 1))
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    converted = convert(student, data=images, output_dir="run", updates=3, **QUICK)
    assert converted.valid_steps == (4, 2, 1) and converted.schedule == teacher.schedule
    found = export_diffusers(converted, "exported").deviations
    assert sorted(found) == [1, 2, 4] and 0 < max(found.values()) < 1e-5
    back = load("run")
    assert back.time_map == converted.time_map and (tmp_path / "run/model/model_index.json").is_file()
    pair = [sample(model, steps=2, batch_size=2, output_type="pt") for model in (converted, back)]
    assert torch.equal(*pair)


def test_a_network_of_diffusers_in_a_denoiser_of_ones_own(tmp_path):
    network = unet_of_diffusers()
    teacher = models.denoiser(network=CallableNetwork(network), prediction_type="sample")
    student = converted_student(teacher, "v_prediction", "truncate")
    assert isinstance(student.network, UNet) and student.time_map == teacher.time_map
    student = converted_student(teacher, "sample", "truncate")
    z, phi = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 1.2], dtype=torch.float64)
    torch.testing.assert_close(student.raw(z, phi), teacher.raw(z, phi), rtol=1e-5, atol=1e-5)


def test_what_has_no_plain_network_inside():
    def refused(teacher, message):
        with pytest.raises(ValueError, match=message):
            converted_student(teacher, "v_prediction", "truncate")

    unet = unet_of_ours()
    refused(from_edm(unet, sample_shape=(3, 8, 8)), r"D\(x; sigma\).*from_edm\(net.model, preconditioned=False")
    refused(edm(torch.nn.Conv2d(3, 3, 1)), "EDMPreconditioned calls is a Conv2d; only a progdistill.nets.unet.UNet")
    refused(flow(CallableNetwork(torch.nn.Conv2d(3, 3, 1))), "FlowVelocity calls is a Conv2d")
    refused(edm(unet, num_classes=3, one_hot_labels=True), "calls is a _OneHot")
    refused(edm(unet, num_classes=3), "either both or neither know classes")
    assert beginning(models.denoiser(network=torch.nn.Conv2d(3, 3, 1)), "sample", EDMSchedule()) is None
