"""Conversions as runs: what they reach, resuming, what is kept and said, by themselves and before a distillation."""

import json
import math

import pytest
import torch
from torch import nn

import progdistill
import tiny
from analytic import EpsilonMixture, MixtureDenoiser, foreign_teacher
from interop import models
from interrupted_runs import Interrupted, interrupt_at, lines
from progdistill.core import Denoiser, TableSchedule
from progdistill.nets.unet import UNet
from progdistill.training import ConvertConfig, DistillConfig, convert, distill
from progdistill.training.run_fingerprint import fingerprint

QUICK = {"train_batch_size": 8, "progress": False, "device": "cpu", "logging_steps": 2, "checkpointing_steps": 3}
QUICK |= {"validation_images": 4, "ema_decay": 0.9}
MILD = TableSchedule.from_betas(torch.linspace(5e-3, 0.15, 32, dtype=torch.float64))
MEAN = -0.2


def unet_teacher():
    return foreign_teacher(models.randomise(UNet(tiny.NETWORK)), sample_shape=(1, 8, 8))


def quick_distill(teacher, folder, **settings):
    options = {"rounds": 2, "updates_per_round": 5, "conversion_updates": 7, "data": tiny.IMAGES, **QUICK}
    return distill(teacher, output_dir=str(folder), **{**options, **settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


class Turned(nn.Module):
    """a(level) eps + b(level) z + c(level) with the ideal eps of a mixture: every other prediction is one of these."""

    def __init__(self, mistake=0.0):
        super().__init__()
        self.eps = EpsilonMixture([MEAN - 0.5, MEAN + 0.5], [0.2, 0.3], schedule=MILD).requires_grad_(False)
        self.mistake = mistake
        self.turn = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]).repeat(32, 1))

    def forward(self, z, level):
        below = level.floor().clamp(0, 30).long()
        part = (level - below).unsqueeze(1)
        a, b, c = ((1 - part) * self.turn[below] + part * self.turn[below + 1]).to(z.dtype).unbind(1)
        a, b, c = (f.reshape(-1, 1, 1, 1) for f in (a, b, c))
        return a * (self.eps(z, level) + self.mistake) + b * z + c


def mixture_images(count=512):
    generator = torch.Generator().manual_seed(0)
    side = torch.rand(count, 1, 2, 2, generator=generator) < 0.5
    noise = torch.randn(count, 1, 2, 2, generator=generator)
    x = torch.where(side, MEAN - 0.5 + 0.2 * noise, MEAN + 0.5 + 0.3 * noise)
    return list(x.clamp(-1, 1))


def closest(teacher, folder, **settings):
    return convert(
        teacher,
        data=mixture_images(),
        output_dir=str(folder),
        updates=400,
        **{**QUICK, "train_batch_size": 64, "learning_rate": 5e-2, "logging_steps": 200, "checkpointing_steps": 200},
        **settings,
    )


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_converted_network_agrees_with_its_teacher(prediction_type, tmp_path):
    """v and x of the mixture's ideal denoiser within 0.03, at every noise level of the teacher's."""
    teacher = foreign_teacher(Turned(), schedule=MILD)
    converted = closest(teacher, tmp_path, prediction_type=prediction_type)
    ideal = MixtureDenoiser([MEAN - 0.5, MEAN + 0.5], [0.2, 0.3])
    phi = converted.schedule.angle(torch.linspace(0, 1, 64, dtype=torch.float64))
    x = torch.stack(mixture_images(64)).double()
    z = torch.cos(phi).reshape(-1, 1, 1, 1) * x + torch.sin(phi).reshape(-1, 1, 1, 1) * torch.randn_like(x)
    for quantity in ("x",) if prediction_type == "sample" else ("v", "x"):
        error = (getattr(converted, quantity)(z, phi) - getattr(ideal, quantity)(z, phi)).square().mean().sqrt()
        assert error < 0.03, quantity
    end = lines(tmp_path)[-1]
    assert end["conversion_distance"] < 0.03 and end["sampling_steps"] == 64


def test_finetuned_to_snr_0_it_knows_the_datas_mean(tmp_path):
    """Where only noise is left, x is the mean: a mistake of the teacher's epsilon, there magnified, is forgotten."""
    mistake, noise = 0.1, torch.randn(512, 1, 2, 2)
    teacher = foreign_teacher(Turned(mistake), schedule=MILD)
    end = torch.full((512,), math.pi / 2, dtype=torch.float64)
    images = torch.stack(mixture_images())
    wrong = mistake * math.tan(float(MILD.angle(1.0)))
    assert wrong > 0.3
    converted = closest(teacher, tmp_path, zero_snr="finetune")
    got = converted.x(noise, end).detach()
    assert abs(float(got.mean() - images.mean())) < wrong / 3
    assert float(got.std()) < 0.15


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    student = quick_distill(unet_teacher(), folder)
    torch.set_num_threads(before)
    return folder, student


@pytest.mark.parametrize("writes", [1, 2, 4, 5, 7])
def test_an_interrupted_run_resumes_bit_for_bit(whole_run, tmp_path, monkeypatch, writes):
    """In the conversion (the first five lines), at its end, and in the round after it."""
    folder, whole = whole_run
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, writes + 1)
        quick_distill(unet_teacher(), tmp_path)
    resumed = quick_distill(unet_teacher(), tmp_path)
    assert torch.equal(weights(whole), weights(resumed))
    assert lines(folder) == lines(tmp_path)
    kept = [weights(progdistill.load(run / "converted")) for run in (folder, tmp_path)]
    assert torch.equal(*kept)


@pytest.mark.parametrize("zero_snr", ["truncate", "finetune"])
def test_distill_converts_and_says_so(zero_snr, tmp_path, capsys):
    student = quick_distill(unet_teacher(), tmp_path, zero_snr=zero_snr)
    said = capsys.readouterr().out
    assert said.count("predicts epsilon") == 1 and said.count("\n") == 1 and "7 updates" in said
    rounds = [(r["round"], r["label"]) for r in lines(tmp_path) if r["event"] == "round_end"]
    assert rounds == [(0, "epsilon -> v_prediction"), (1, "4 -> 2 steps"), (2, "2 -> 1 steps")]
    page = (tmp_path / "report.html").read_text()
    assert "epsilon -&gt; v_prediction" in page and "converted to teacher, at equal steps" in page
    assert (tmp_path / "samples" / "converted-update-0000007.png").is_file()
    origin = student.students[2]().provenance["teacher"]
    assert origin["recipe"] == "convert" and origin["updates"] == 7 and origin["zero_snr"] == zero_snr
    converted = progdistill.load(tmp_path / "converted")
    assert converted.prediction_type == "v_prediction" and converted.valid_steps is None
    assert converted.time_map == student.time_map == unet_teacher().time_map
    assert json.loads((tmp_path / "status.json").read_text())["total_updates"] == 7 + 2 * 5
    quick_distill(unet_teacher(), tmp_path, zero_snr=zero_snr)
    assert capsys.readouterr().out == ""


def test_the_raw_weights_teach_on_if_asked(tmp_path):
    quick_distill(unet_teacher(), tmp_path / "a", next_teacher="raw", rounds=1)
    quick_distill(unet_teacher(), tmp_path / "b", rounds=1)
    a, b = (lines(tmp_path / name) for name in "ab")
    assert a[:4] == b[:4] and a[-1] != b[-1]


def test_a_conversion_alone_is_distilled_later_without_naming_the_data(tmp_path):
    import numpy as np

    np.savez(tmp_path / "images.npz", images=tiny.IMAGES)
    data, first = str(tmp_path / "images.npz"), str(tmp_path / "first")
    converted = convert(unet_teacher(), data=data, output_dir=first, updates=3, **QUICK)
    again = convert(unet_teacher(), data=data, output_dir=first, updates=3, **QUICK)
    assert torch.equal(weights(converted), weights(again))
    student = distill(first, rounds=1, output_dir=str(tmp_path / "second"), updates_per_round=3, **QUICK)
    assert student.valid_steps == (1,)
    assert [r["round"] for r in lines(tmp_path / "second")] == [0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_a_gpu_it_is_the_same(tmp_path):
    """In float32; there the teacher computes in channels_last order, and updates are graphs."""
    own, losses = unet_teacher(), {}
    before = {name: value.clone() for name, value in own.network.state_dict().items()}
    for device, mode in (("cpu", False), ("cuda", "require")):
        options = {**QUICK, "device": device, "cuda_graph": mode, "mixed_precision": "no", "logging_steps": 1}
        convert(own, data=tiny.IMAGES, output_dir=str(tmp_path / device), updates=6, **options)
        losses[device] = [line["loss"] for line in lines(tmp_path / device) if "loss" in line]
        assert all(torch.equal(value.cpu(), before[name]) for name, value in own.network.state_dict().items())
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3) and len(losses["cpu"]) >= 6


def test_a_folder_of_diffusers(tmp_path):
    """An epsilon teacher as google/ddpm-cifar10-32 is stored: converted, two short rounds, saved, loaded, sampled."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, num_train_timesteps=1000, clip_sample=True)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "teacher")
    data = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    student = quick_distill(str(tmp_path / "teacher"), tmp_path / "run", data=data, updates_per_round=2)
    loaded = progdistill.load(tmp_path / "run")
    assert torch.equal(weights(student), weights(loaded)) and loaded.time_map == student.time_map
    for steps in (1, 2):
        images = [progdistill.sample(model, steps=steps, batch_size=2, output_type="pt") for model in (student, loaded)]
        assert torch.equal(*images) and images[0].isfinite().all()


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, time):
        return self.conv(z) + (time / 1000).reshape(-1, 1, 1, 1)


def test_another_network_keeps_its_bare_weights(tmp_path):
    teacher = foreign_teacher(Own(), sample_shape=(1, 8, 8))
    options = {"data": tiny.IMAGES, "updates": 3, "output_dir": str(tmp_path), **QUICK}
    converted = convert(teacher, **options)
    assert (tmp_path / "model" / "network.safetensors").is_file()
    assert torch.equal(weights(convert(teacher, **options)), weights(converted))


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match=r"prediction_type is 'epsilon'; a conversion makes"):
        ConvertConfig(output_dir="x", prediction_type="eps")
    for config in (ConvertConfig, DistillConfig):
        with pytest.raises(ValueError, match=r"unknown zero_snr 'rescale'; use truncate or finetune"):
            config(output_dir="x", zero_snr="rescale")
    with pytest.raises(ValueError, match=r"updates = 0"):
        ConvertConfig(output_dir="x", updates=0)
    with pytest.raises(ValueError, match=r"conversion_updates is -1"):
        DistillConfig(output_dir="x", conversion_updates=-1)
    with pytest.raises(ValueError, match=r"output_dir is missing"):
        convert(unet_teacher(), data=tiny.IMAGES)
    with pytest.raises(ValueError, match=r"does not record a data set"):
        convert(unet_teacher(), output_dir=str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"images of shape \(3, 8, 8\)"):
        data = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        convert(unet_teacher(), data=data, output_dir=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    quick_distill(unet_teacher(), tmp_path / "b", rounds=1)
    with pytest.raises(ValueError, match=r"settings.conversion_updates was 7, is 8"):
        quick_distill(unet_teacher(), tmp_path / "b", rounds=1, conversion_updates=8)


def test_runs_from_before_conversions_existed_resume():
    assert not {"zero_snr", "conversion_updates"} & set(fingerprint(DistillConfig(output_dir="x")))
    assert fingerprint(DistillConfig(output_dir="x", zero_snr="finetune"))["zero_snr"] == "finetune"
    assert fingerprint(ConvertConfig(output_dir="x"))["zero_snr"] == "truncate"


def test_a_teacher_that_can_be_distilled_is_not_converted(tmp_path):
    teacher = Denoiser(models.randomise(UNet(tiny.NETWORK)), sample_shape=(1, 8, 8))
    quick_distill(teacher, tmp_path, rounds=1)
    assert [r["round"] for r in lines(tmp_path) if r["event"] == "round_end"] == [0]
    assert not (tmp_path / "converted").exists()
