"""Teachers of other kinds: noise prediction, diffusers' folders, classes, guidance; what cannot be done is said."""

import pytest
import torch

import tiny
from progdistill import Denoiser
from progdistill.comparison import compare
from progdistill.core import CosineSchedule
from progdistill.nets.unet import UNet
from progdistill.training import distill, train
from small_comparisons import METHODS, TRAINING, settings


@pytest.fixture
def own(folder, tmp_path):
    """Settings without a teacher."""
    return settings(folder, output_dir=str(tmp_path / "out"), teacher=None, methods=tuple(METHODS), steps=(1, 2))


def with_output(network):
    """A network whose output is not zero."""
    torch.nn.init.normal_(network.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return network


def step_counts(result):
    return {name: list(entry["steps"]) for name, entry in result["methods"].items()}


def test_an_epsilon_teacher_takes_part_in_every_method(own, capsys):
    teacher = Denoiser(
        with_output(UNet(tiny.NETWORK)),
        sample_shape=(1, 8, 8),
        prediction_type="epsilon",
        schedule=CosineSchedule(logsnr_min=-20.0),
    )
    found = step_counts(compare(**{**own, "teacher": teacher}))
    assert found == {name: ["1", "2"] for name in METHODS} | {"d_ode": ["2"]}
    assert "round 0 converts it" in capsys.readouterr().out


def test_an_epsilon_teacher_that_starts_at_pure_noise(own):
    """Plain DDIM and SFD's steps cannot begin there; the converted network of pd can."""
    teacher = Denoiser(with_output(UNet(tiny.NETWORK)), sample_shape=(1, 8, 8), prediction_type="epsilon")
    result = compare(**{**own, "teacher": teacher, "methods": ("ddim", "ddim@logsnr", "sfd", "pd")})
    assert step_counts(result) == {"ddim": [], "ddim@logsnr": ["1", "2"], "sfd": [], "pd": ["1", "2"]}
    for name in ("ddim", "sfd"):
        assert "says nothing about x at SNR 0" in result["methods"][name]["left_out"]["2"]


def test_a_folder_of_diffusers(own, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    torch.manual_seed(0)
    pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**sizes, **blocks), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "ddpm")
    found = step_counts(compare(**{**own, "teacher": str(tmp_path / "ddpm")}))
    # Its noisiest state is not pure noise, so that a single step of DDIM has an eps to correct.
    assert found == {name: ["1", "2"] for name in METHODS} and METHODS[3] == "d_ode"


def test_classes_are_made_in_turn_and_guided_students_are_left_out(folder, own, tmp_path):
    data = str(folder / "images.npz")
    teacher = train(
        data, str(tmp_path / "teacher"), network=tiny.NETWORK, max_train_steps=2, class_conditional=True,
        label_dropout=0.5, **TRAINING,
    )  # fmt: skip
    own = {**own, "teacher": str(tmp_path / "teacher")}
    result = compare(**own)
    assert step_counts(result) == {name: ["1", "2"] for name in METHODS if name != "d_ode"} | {"d_ode": ["2"]}
    assert result["num_classes"] == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "images of all 3 classes in turn, without guidance" in page
    guided = str(tmp_path / "guided")
    distill(teacher, rounds=1, output_dir=guided, updates_per_round=1, guidance_range=(1.0, 3.0), **TRAINING)
    result = compare(**{**own, "methods": ("ddim", "pd"), "pd": guided})
    assert step_counts(result) == {"ddim": ["1", "2"], "pd": []}
    assert "are guided, but the comparison is without guidance" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(ValueError, match=r"a student for \(1,\) steps"):
        compare(**{**own, "teacher": guided})
    taught = str(tmp_path / "guided" / "guided")
    with pytest.raises(ValueError, match="one that takes guidance scales"):
        compare(**{**own, "teacher": taught})
