"""Folders that diffusers itself wrote: the same predictions at the same noise levels."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interop import models
from progdistill.core import Condition
from progdistill.interop import load

diffusers = pytest.importorskip("diffusers")

# google/ddpm-cifar10-32 with a sixteenth of its channels.
LOOK_ALIKE = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 8,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def their_unet(**changes):
    return models.randomise(diffusers.UNet2DModel(**{**LOOK_ALIKE, **changes})).eval()


def in_sub_folders(unet, scheduler, folder):
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)


def in_the_root(unet, scheduler, folder):
    unet.save_pretrained(folder)
    scheduler.save_pretrained(folder)


@torch.no_grad()
def their_x(unet, scheduler, z, level, labels=None):
    scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    return scheduler.step(unet(z, level, labels).sample, level, z).pred_original_sample


@torch.no_grad()
def assert_same_x(model, unet, scheduler, levels, labels=None):
    count = scheduler.config.num_train_timesteps
    for level in levels:
        z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(level))
        phi = model.schedule.angle(torch.full((2,), (level + 1) / count, dtype=torch.float64))
        ours = model.x(z, phi, Condition(class_labels=labels))
        torch.testing.assert_close(ours, their_x(unet, scheduler, z, level, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [in_sub_folders, in_the_root])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_x_is_diffusers_own(tmp_path, layout, prediction_type):
    unet = their_unet()
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type)
    layout(unet, scheduler, tmp_path)
    model = load(tmp_path)
    assert (model.prediction_type, model.sample_shape, model.num_classes) == (prediction_type, (3, 8, 8), None)
    assert model.valid_steps is None and model.provenance == {"source": str(tmp_path)}
    assert_same_x(model, unet, scheduler, [0, 1, 37, 500, 998, 999])


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=400),
        diffusers.DDIMScheduler(trained_betas=[0.01 * i for i in range(1, 51)], num_train_timesteps=50),
        diffusers.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    ],
    ids=["scaled_linear", "squaredcos_cap_v2", "trained_betas", "zero_snr"],
)
def test_schedules(tmp_path, scheduler):
    unet = their_unet()
    in_sub_folders(unet, scheduler, tmp_path)
    count = scheduler.config.num_train_timesteps
    assert_same_x(load(tmp_path), unet, scheduler, [0, count // 2, int(0.9 * count)])


def test_class_labels(tmp_path):
    unet, scheduler = their_unet(num_class_embeds=7), diffusers.DDPMScheduler()
    in_sub_folders(unet, scheduler, tmp_path)
    model = load(tmp_path)
    assert model.num_classes == 7
    assert_same_x(model, unet, scheduler, [500], labels=torch.tensor([0, 6]))


def test_a_student_grid_meets_the_teacher_at_equal_noise(tmp_path):
    """The time that the network sees is the level of equal logSNR, held within the levels that it knows."""
    in_the_root(their_unet(), diffusers.DDPMScheduler(), tmp_path)
    model = load(tmp_path)
    phi = torch.tensor([1.0, 7 / 8, 1 / 8, 0.001], dtype=torch.float64) * torch.pi / 2
    expected = torch.tensor([999.0, 566.27, 57.05, 0.0])
    torch.testing.assert_close(model.time_map(phi), expected, rtol=0, atol=0.006)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path, dtype):
    unet = their_unet().to(dtype)
    in_sub_folders(unet, diffusers.DDPMScheduler(), tmp_path)
    state = load(tmp_path).network.state_dict()
    for name, tensor in unet.state_dict().items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], tensor.float())


def test_attention_weights_by_their_old_names(tmp_path):
    unet, scheduler = their_unet(), diffusers.DDPMScheduler()
    in_the_root(unet, scheduler, tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file(state, tmp_path / WEIGHTS)
    assert_same_x(load(tmp_path), unet, scheduler, [500])


def test_configurations_of_old_releases(tmp_path):
    unet, scheduler = their_unet(), diffusers.DDPMScheduler(prediction_type="sample")
    in_the_root(unet, scheduler, tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    for name in ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "steps_offset", "thresholding"):
        config.pop(name)
    file.write_text(json.dumps({**config, "predict_epsilon": False}))
    assert_same_x(load(tmp_path), unet, scheduler, [500])


def test_it_has_one_set_of_weights(tmp_path):
    in_the_root(their_unet(), diffusers.DDPMScheduler(), tmp_path)
    with pytest.raises(ValueError, match="one set of weights"):
        load(tmp_path, weights="raw")


def test_the_scheduler_is_needed(tmp_path):
    their_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json.*DDPMScheduler"):
        load(tmp_path)


def edit(file: Path, **changes):
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in {**config, **changes}.items() if value != "absent"}))


@pytest.mark.parametrize(
    "file, changes, fragments",
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, ["the network is a UNet2DConditionModel"]),
        ("unet/config.json", {"time_embedding_type": "fourier"}, ["time_embedding_type", "variance-exploding"]),
        ("unet/config.json", {"cross_attention_dim": 8}, ["cross_attention_dim"]),
        ("unet/config.json", {"sample_size": None}, ["sample_size"]),
        ("unet/config.json", {"class_embed_type": "timestep"}, ["class_embed_type", "num_class_embeds"]),
        ("unet/config.json", {"out_channels": 6}, ["out_channels = 6", "learned variance"]),
        ("scheduler/scheduler_config.json", {"_class_name": "RePaintScheduler"}, ["RePaintScheduler", "DDIMScheduler"]),
        ("scheduler/scheduler_config.json", {"_class_name": "KarrasVeScheduler"}, ["variance-exploding", "from_edm"]),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            ["from_flow_matching"],
        ),
        ("scheduler/scheduler_config.json", {"_class_name": ["DDPMScheduler"]}, ["can be read"]),
        ("scheduler/scheduler_config.json", {"thresholding": True}, ["thresholding"]),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, ["from_flow_matching"]),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, ["sigmoid", "scaled_linear"]),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, ["'flow'", "v_prediction"]),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, ["num_train_timesteps"]),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}, ["num_train_timesteps"]),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, ["trained_betas has 2 values"]),
        ("scheduler/scheduler_config.json", {"beta_start": 0.0}, ["alphas_cumprod"]),
        ("scheduler/scheduler_config.json", {"beta_end": "high"}, ["scheduler_config.json"]),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, file, changes, fragments):
    in_sub_folders(their_unet(), diffusers.DDPMScheduler(), tmp_path)
    edit(tmp_path / file, **changes)
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    for fragment in [str(tmp_path / file), *fragments]:
        assert fragment in str(caught.value)
