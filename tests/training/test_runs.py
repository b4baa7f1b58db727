"""Runs: resuming, settings, what is kept, and what is refused."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import progdistill
from interrupted_runs import Interrupted, interrupt_at, lines
from progdistill.core import Denoiser
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet
from progdistill.training import DistillConfig, TrainConfig, distill, train
from progdistill.training.checkpoint import Checkpoint
from progdistill.training.optimizer import _MOMENTS, learning_rate
from progdistill.training.round_state import RoundState, copy_network

NETWORK = UNetConfig(
    sample_size=8,
    block_out_channels=(16,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
    dropout=0.1,
)
QUICK = {"train_batch_size": 8, "progress": False, "device": "cpu", "logging_steps": 2, "checkpointing_steps": 3}


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(24) % 3)
    return str(path)


def quick_train(images, folder, **settings):
    options = {"max_train_steps": 7, "learning_rate": 1e-3, "lr_warmup_steps": 2, "ema_decay": 0.9, **QUICK}
    return train(images, str(folder), network=NETWORK, **{**options, **settings})


def quick_distill(teacher, folder, **settings):
    options = {"rounds": 2, "updates_per_round": 5, "ema_decay": 0.9, "validation_images": 4, **QUICK}
    return distill(teacher, output_dir=str(folder), **{**options, **settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_interrupted_training_resumes_bit_for_bit(images, tmp_path, monkeypatch, writes):
    whole = quick_train(images, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, writes + 1)
        quick_train(images, tmp_path / "resumed")
    resumed = quick_train(images, tmp_path / "resumed")
    assert torch.equal(weights(whole), weights(resumed))
    assert lines(tmp_path / "whole") == lines(tmp_path / "resumed")


@pytest.mark.parametrize("writes", [1, 2, 3, 4, 5, 6, 7])
def test_interrupted_distillation_resumes_bit_for_bit(images, tmp_path, monkeypatch, writes):
    """At every line of both rounds, the ends of rounds included."""
    teacher = quick_train(images, tmp_path / "teacher")
    whole = quick_distill(teacher, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, writes + 1)
        quick_distill(teacher, tmp_path / "resumed")
    resumed = quick_distill(teacher, tmp_path / "resumed")
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(weights(whole.students[2]()), weights(resumed.students[2]()))
    assert lines(tmp_path / "whole") == lines(tmp_path / "resumed")


def test_a_finished_run_is_returned_as_it_is(images, tmp_path):
    first = quick_train(images, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = quick_train(images, tmp_path / "run")
    assert torch.equal(weights(first), weights(again))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_changed_settings_are_refused_and_overwrite_starts_anew(images, tmp_path):
    first = quick_train(images, tmp_path / "run")
    with pytest.raises(ValueError, match=r"settings\.learning_rate was 0\.001, is 0\.002.*--overwrite"):
        quick_train(images, tmp_path / "run", learning_rate=2e-3)
    anew = quick_train(images, tmp_path / "run", learning_rate=2e-3, overwrite=True)
    assert not torch.equal(weights(first), weights(anew))


def test_a_folder_with_something_else_is_left_alone(images, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="no config.json of a run"):
            quick_train(images, tmp_path / "run", overwrite=overwrite)
    assert (tmp_path / "run" / "model" / "precious.txt").read_text() == "mine"


def test_accumulation_equals_the_whole_batch(images, tmp_path):
    whole = quick_train(images, tmp_path / "whole", max_train_steps=3)
    network = dataclasses.replace(NETWORK, dropout=0.0)
    whole = train(images, str(tmp_path / "a"), network=network, max_train_steps=3, learning_rate=1e-3, **QUICK)
    split = train(
        images,
        str(tmp_path / "b"),
        network=network,
        max_train_steps=3,
        learning_rate=1e-3,
        gradient_accumulation_steps=4,
        **QUICK,
    )
    torch.testing.assert_close(weights(whole), weights(split), rtol=0, atol=2e-5)


def test_every_student_is_kept_and_sampled(images, tmp_path):
    teacher = quick_train(images, tmp_path / "teacher")
    student = quick_distill(str(tmp_path / "teacher"), tmp_path / "run", rounds=3, updates_at={1: 8})
    assert student.valid_steps == (1,) and sorted(student.students) == [2, 4]
    loaded = progdistill.load(tmp_path / "run")
    for model in (student, loaded):
        for steps in (1, 2, 4):
            images_of = progdistill.sample(model, steps, batch_size=2, output_type="pt")
            assert images_of.shape == (2, 3, 8, 8)
        with pytest.raises(ValueError, match=r"distilled for 1 steps, not 8.*1, 2, 4"):
            progdistill.sample(model, 8)
    assert torch.equal(weights(student), weights(loaded))
    raw = progdistill.load(tmp_path / "run" / "students" / "steps-0001", weights="raw")
    assert not torch.equal(weights(raw), weights(loaded))
    ends = [record for record in lines(tmp_path / "run") if record["event"] == "round_end"]
    assert [(record["steps"], record["updates"]) for record in ends] == [(4, 5), (2, 5), (1, 8)]
    assert all(record["student_distance"] > 0 and record["teacher_distance"] > 0 for record in ends)
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 3
    assert teacher.valid_steps is None


def test_a_student_starts_as_its_teacher_and_ends_at_learning_rate_zero(images, tmp_path):
    teacher = quick_train(images, tmp_path / "teacher")
    still = quick_distill(teacher, tmp_path / "still", rounds=1, learning_rate=0.0)
    assert torch.equal(weights(still), weights(teacher))


def test_data_come_from_the_teachers_folder(images, tmp_path):
    quick_train(images, tmp_path / "teacher")
    loaded = progdistill.load(tmp_path / "teacher")
    quick_distill(loaded, tmp_path / "run", rounds=1)
    loaded.provenance = {}
    with pytest.raises(ValueError, match="does not record a data set; name one with --data"):
        quick_distill(loaded, tmp_path / "other", rounds=1)


def test_class_conditional(images, tmp_path):
    teacher = quick_train(images, tmp_path / "teacher", class_conditional=True)
    assert teacher.num_classes == 3
    student = quick_distill(teacher, tmp_path / "run", rounds=1)
    assert progdistill.sample(student, 1, class_labels=[0, 2], output_type="pt").shape == (2, 3, 8, 8)


@pytest.mark.parametrize("prediction_type", ["sample", "sample_epsilon"])
def test_other_prediction_types(images, tmp_path, prediction_type):
    settings = {"prediction_type": prediction_type, "logsnr_min": -20.0, "logsnr_max": 20.0}
    teacher = quick_train(images, tmp_path / "teacher", **settings)
    student = quick_distill(teacher, tmp_path / "run", rounds=1)
    assert torch.isfinite(weights(student)).all()


def test_an_epsilon_teacher_is_refused_without_a_conversion(images, tmp_path):
    teacher = Denoiser(UNet(NETWORK), sample_shape=(3, 8, 8), prediction_type="epsilon")
    with pytest.raises(ValueError, match="predicts epsilon.*conversion_updates is 0"):
        quick_distill(teacher, tmp_path / "run", data=images, conversion_updates=0)


def test_a_network_of_ones_own(images, tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, z, time):
            return self.conv(z) * (time / 1024).reshape(-1, 1, 1, 1)

    teacher = train(images, str(tmp_path / "teacher"), network=Own(), max_train_steps=3, **QUICK)
    student = quick_distill(teacher, tmp_path / "run", data=images)
    again = quick_distill(teacher, tmp_path / "run", data=images)
    assert torch.equal(weights(student), weights(again))
    assert progdistill.sample(student, 2, output_type="pt").shape == (1, 3, 8, 8)


def test_a_non_finite_loss_stops_with_what_to_try(images, tmp_path):
    with pytest.raises(FloatingPointError, match=r"round 0 \(teacher\).*in update \d+, in tenths \[.*learning_rate"):
        quick_train(images, tmp_path / "run", learning_rate=1e30, lr_warmup_steps=0, max_grad_norm=0.0)


def test_metrics_hold_the_loss_by_noise_level(images, tmp_path):
    quick_train(images, tmp_path / "run", train_batch_size=64, max_train_steps=4)
    record = lines(tmp_path / "run")[0]
    levels = [value for value in record["loss_by_noise_level"] if value is not None]
    assert len(record["loss_by_noise_level"]) == 10 and len(levels) >= 8
    assert min(levels) <= record["loss"] <= max(levels)


def test_learning_rate_is_the_paper_s():
    config = DistillConfig(output_dir="", learning_rate=1.0, lr_warmup_steps=0)
    assert [learning_rate(config, u, 4) for u in range(4)] == [1.0, 0.75, 0.5, 0.25]
    config = TrainConfig(output_dir="", learning_rate=1.0, lr_warmup_steps=4)
    assert [learning_rate(config, u, 100) for u in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_is_the_bias_corrected_one(decay):
    """sum of (1 - d) d^(t-k) p_k over k <= t, divided by 1 - d^t; d = 0 is the last weight."""
    network, values = nn.Linear(1, 1, bias=False), [3.0, -1.0, 4.0, 1.5]
    config = TrainConfig(output_dir="", ema_decay=decay, learning_rate=0.0)
    state = RoundState(network, config, torch.device("cpu"))
    for value in values:
        nn.init.constant_(network.weight, value)
        network.weight.grad = torch.ones_like(network.weight)
        state.optimizer.step()
    weight = [decay ** (len(values) - 1 - k) for k in range(len(values))]
    expected = sum(w * v for w, v in zip(weight, values, strict=True)) / sum(weight)
    assert abs(state.averaged().weight.item() - expected) < (1e-6 if decay else 1e-30)


def test_a_checkpoint_of_torch_s_optimizer_resumes():
    """Checkpoints hold what `torch.optim.AdamW` and a plain average leave: by name, without counters."""
    config = TrainConfig(output_dir="", learning_rate=1e-2, ema_decay=0.9, max_grad_norm=0.5)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    network[1].bias.requires_grad_(False)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    reference = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    averages = {name: p.detach().clone() for name, p in network.named_parameters()}

    def gradients(update, parameters):
        generator = torch.Generator().manual_seed(update)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    def plain_update(update):
        gradients(update, trained.values())
        nn.utils.clip_grad_norm_(trained.values(), 0.5)
        reference.step()
        for name, parameter in network.named_parameters():
            averages[name].lerp_(parameter.detach(), (1 - 0.9) / (1 - 0.9**update))

    for update in range(1, 4):
        plain_update(update)
    moments = {f"{m}.{name}": reference.state[p][m].clone() for name, p in trained.items() for m in _MOMENTS}
    running = {key: torch.zeros(config.logging_steps, 10, dtype=torch.float64) for key in ("sums", "counts")}
    tensors = {"student": copy.deepcopy(network.state_dict()), "ema": copy.deepcopy(averages), "optimizer": moments}
    facts = {"metrics_position": 0, "seconds": 1.0, "torch": torch.__version__, "threads": 1, "processes": 1}
    resumed = copy_network(network)
    state = RoundState(resumed, config, torch.device("cpu"))
    state.restore(Checkpoint(0, 3, {**tensors, "running_loss": running}, facts), main_process=True)
    assert state.checkpoint(0, 0).tensors["optimizer"].keys() == moments.keys()
    for update in (4, 5):
        plain_update(update)
        gradients(update, [p for p in resumed.parameters() if p.requires_grad])
        state.optimizer.step()
    for name, parameter in resumed.named_parameters():
        torch.testing.assert_close(parameter, dict(network.named_parameters())[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(dict(state.averaged().named_parameters())[name].data, averages[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 3, "start_steps": 4}, "start_steps is 4.*start at 8"),
        ({"weighting": "snr"}, "zero at t = 1"),
        ({"updates_at": {3: 5}}, r"updates_at names \[3\]"),
        ({"train_batch_size": 9, "gradient_accumulation_steps": 2}, "does not divide into 2"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it lies in \[0, 1\)"),
        ({"cuda_graph": "yes"}, 'cuda_graph is .yes.; use "auto", "require" or False'),
        ({"weighting": "best"}, "unknown weighting 'best'"),
        ({"checkpoints_total_limit": 1}, "at least 2"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(output_dir="x", **settings)


def test_a_student_can_only_be_distilled_from_its_own_step_count(images, tmp_path):
    teacher = quick_train(images, tmp_path / "teacher")
    student = quick_distill(teacher, tmp_path / "run", rounds=1, end_steps=4)
    with pytest.raises(ValueError, match=r"starts from 8 steps, but the teacher was itself distilled for \(4,\)"):
        quick_distill(student, tmp_path / "next", rounds=3, data=images)
    quick_distill(student, tmp_path / "next", rounds=2, data=images)


def test_data_of_another_shape(images, tmp_path):
    teacher = quick_train(images, tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), the teacher makes \(3, 8, 8\)"):
        quick_distill(teacher, tmp_path / "run", data=np.zeros((4, 8, 8), dtype=np.uint8))


def test_no_gpu_is_said(images, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="torch sees no GPU; use --device cpu"):
        quick_train(images, tmp_path / "run", device="cuda")


@pytest.fixture
def mixed_sizes(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(8, 12), (20, 8), (17, 31)] * 4):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return str(folder)


def test_distilling_reads_the_images_as_the_teacher_did(mixed_sizes, tmp_path):
    """Without data=, the reading options come from the teacher's folder too; options of the run replace them."""
    with pytest.raises(ValueError, match="resolution="):
        quick_train(mixed_sizes, tmp_path / "refused")
    quick_train(mixed_sizes, tmp_path / "teacher", resolution=8, interpolation="area")
    teacher = str(tmp_path / "teacher" / "model")
    recorded = quick_distill(teacher, tmp_path / "recorded")
    options = {"data": mixed_sizes, "resolution": 8, "interpolation": "area"}
    assert torch.equal(weights(recorded), weights(quick_distill(teacher, tmp_path / "named", **options)))
    squeezed = quick_distill(teacher, tmp_path / "squeezed", center_crop=False)
    assert not torch.equal(weights(recorded), weights(squeezed))
    with pytest.raises(ValueError, match="resolution="):
        quick_distill(teacher, tmp_path / "mixed", data=mixed_sizes)


def test_reading_options_are_settings_of_a_run(images, tmp_path):
    quick_train(images, tmp_path / "run", resolution=8)
    with pytest.raises(ValueError, match=r"settings\.center_crop was None, is False"):
        quick_train(images, tmp_path / "run", resolution=8, center_crop=False)


def test_a_run_from_before_the_reading_options_resumes(images, tmp_path):
    first = quick_train(images, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert not {"resolution", "center_crop", "interpolation", "image_column", "split"} & set(settings)
    assert torch.equal(weights(first), weights(quick_train(images, tmp_path / "run")))
