"""What plain diffusers makes of a saved folder, against a DDIM loop on our own grid."""

import json

import pytest
import torch

from interop import models
from progdistill import ops
from progdistill.core import (
    Condition,
    CosineSchedule,
    EDMSchedule,
    FlowMatchingSchedule,
    TableSchedule,
    TimeMap,
)
from progdistill.interop import load, save

diffusers = pytest.importorskip("diffusers")

BATCH = 3
PURE, CLIPPED = CosineSchedule(), CosineSchedule(-20.0, 20.0)
LINEAR = TableSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
MILD = TableSchedule.from_betas(torch.linspace(1e-3, 5e-3, 512, dtype=torch.float64))
ZERO_SNR = TableSchedule.from_diffusers({"rescale_betas_zero_snr": True})


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def own_map(schedule):
    count = len(schedule.alphas_cumprod)
    return TimeMap(schedule, scale=float(count), minimum=0.0, maximum=count - 1.0)


@torch.no_grad()
def our_images(model, steps, seed, labels=None):
    z = torch.randn(BATCH, *model.sample_shape, generator=torch.Generator().manual_seed(seed))
    cond = Condition(class_labels=labels)
    grid = model.schedule.grid(steps).unsqueeze(1).expand(-1, BATCH)
    for phi, phi_next in zip(grid[:-1], grid[1:], strict=True):
        z = ops.ddim_step(z, model.raw(z, phi, cond), phi, phi_next, prediction_type=model.prediction_type)
    return (z / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def their_images(folder, steps, seed, **arguments):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    images = pipeline(
        batch_size=BATCH, num_inference_steps=steps, output_type="np", generator=generator, **arguments
    ).images
    return torch.from_numpy(images)


def assert_same_images(ours, theirs):
    # Saturated pixels would agree whatever happened.
    assert ((ours > 0) & (ours < 1)).float().mean() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("schedule", [PURE, CLIPPED], ids=["pure", "clipped"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_unconditional(tmp_path, schedule, prediction_type, steps):
    model = models.denoiser(schedule=schedule, prediction_type=prediction_type, valid_steps=(steps,))
    folder = save(model, tmp_path / "model")
    assert_same_images(our_images(model, steps, seed=7), their_images(folder, steps, seed=7))
    torch.testing.assert_close(our_images(load(folder), steps, 7), our_images(model, steps, 7), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_class_conditional(tmp_path, steps):
    network = models.unet(num_class_embeds=10, in_channels=1, out_channels=1)
    model = models.denoiser(network=network, sample_shape=(1, 8, 8), num_classes=10, valid_steps=(steps,))
    folder = save(model, tmp_path / "model")
    labels = torch.tensor([3, 9, 0])
    ours = our_images(model, steps, 5, labels)
    assert_same_images(ours, their_images(folder, steps, 5, class_labels=labels.tolist()))
    assert (ours - our_images(model, steps, 5, labels.flip(0))).abs().max() > 0.01


@pytest.mark.parametrize("schedule", [EDMSchedule(), FlowMatchingSchedule()], ids=lambda schedule: schedule.kind)
def test_schedules_of_other_families(tmp_path, schedule):
    folder = save(models.denoiser(schedule=schedule), tmp_path / "model")
    assert_same_images(our_images(models.denoiser(schedule=schedule), 8, seed=7), their_images(folder, 8, seed=7))


@pytest.mark.parametrize("schedule", [LINEAR, MILD, ZERO_SNR], ids=["linear", "mild", "zero_snr"])
def test_a_table_schedule_with_its_own_time_map(tmp_path, schedule):
    model = models.denoiser(schedule=schedule, time_map=own_map(schedule))
    folder = save(model, tmp_path / "model")
    assert_same_images(our_images(model, 8, seed=1), their_images(folder, 8, seed=1))


def test_epsilon_on_a_schedule_that_stops_short_of_pure_noise(tmp_path):
    model = models.denoiser(schedule=MILD, time_map=own_map(MILD), prediction_type="epsilon")
    assert_same_images(our_images(model, 16, 1), their_images(save(model, tmp_path / "model"), 16, 1))


def test_a_network_with_a_learned_table_of_times(tmp_path):
    network = models.unet(time_embedding_type="learned", num_train_timesteps=1024)
    model = models.denoiser(network=network)
    assert_same_images(our_images(model, 4, 1), their_images(save(model, tmp_path / "model"), 4, 1))


def test_images_that_are_not_square(tmp_path):
    model = models.denoiser(sample_shape=(3, 8, 16))
    assert_same_images(our_images(model, 2, 1), their_images(save(model, tmp_path / "model"), 2, 1))


def test_the_folder_without_our_manifest_is_a_diffusers_folder(tmp_path):
    model = models.denoiser(schedule=CLIPPED)
    folder = save(model, tmp_path / "model")
    (folder / "progdistill.json").unlink()
    foreign = load(folder)
    assert isinstance(foreign.schedule, TableSchedule) and foreign.valid_steps is None
    torch.testing.assert_close(our_images(foreign, 4, 1), our_images(model, 4, 1), rtol=0, atol=1e-5)


def test_other_solvers_stay_finite_on_zero_snr(tmp_path):
    folder = save(models.denoiser(), tmp_path / "model")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    euler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    euler.set_timesteps(4)
    assert torch.isfinite(euler.sigmas).all()


def two_headed(**description):
    return {"network": models.unet(out_channels=6), "prediction_type": "sample_epsilon", **description}


def conditional(**architecture):
    return {"network": models.unet(**architecture), "num_classes": 10}


LEARNED = {"network": models.unet(time_embedding_type="learned", num_train_timesteps=1024)}


@pytest.mark.parametrize(
    "steps, description",
    [
        (4, {"time_map": own_map(LINEAR)}),
        (8, {"schedule": LINEAR}),
        (3, {"valid_steps": (4, 3)}),
        (16, {"valid_steps": (16,), "schedule": LINEAR, "time_map": own_map(LINEAR)}),
        (1, {"time_map": TimeMap(PURE, minimum=0.0, maximum=1000.0)}),
        (2, {"time_map": TimeMap(CLIPPED)}),
        (2, {"schedule": CLIPPED, "time_map": own_map(LINEAR), "valid_steps": (2, 1)}),
    ],
)
def test_times_that_diffusers_does_not_pass_are_in_the_saved_folder(tmp_path, steps, description):
    model = models.denoiser(**description)
    folder = save(model, tmp_path / "model")
    ours = our_images(model, steps, 1)
    assert_same_images(ours, their_images(folder, steps, 1))
    assert torch.equal(our_images(load(folder), steps, 1), ours)


@pytest.mark.parametrize(
    "description, reason",
    [
        ({"prediction_type": "epsilon"}, "SNR 0"),
        ({"prediction_type": "epsilon", "schedule": ZERO_SNR, "time_map": own_map(ZERO_SNR)}, "SNR 0"),
        (two_headed(), "two-headed"),
        ({"valid_steps": (2048,)}, "2048 steps"),
        ({"valid_steps": (4, 3), **LEARNED}, "of 3 steps"),
        ({"time_map": own_map(LINEAR), **LEARNED}, "its own table of times"),
        ({**conditional(num_class_embeds=10), "sample_shape": (3, 8, 16)}, "square"),
        (conditional(class_embed_type="timestep"), "class_embed_type='timestep'"),
    ],
)
def test_diffusers_refuses_what_it_would_sample_wrongly(tmp_path, description, reason):
    model = models.denoiser(**description)
    folder = save(model, tmp_path / "model")
    written = json.loads((folder / "progdistill.json").read_text())["diffusers"]
    assert written["loadable"] is False and reason in written["reason"]
    assert not (folder / "model_index.json").exists()
    assert (folder / "unet/config.json").is_file() and (folder / "scheduler/scheduler_config.json").is_file()
    with pytest.raises(OSError, match=r"model_index\.json"):
        diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    load(folder)
