"""Teachers in every form that diffusers saves them: the outputs are diffusers' own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")

from diffusers.training_utils import EMAModel  # noqa: E402

from interop import diffusers_models as theirs  # noqa: E402
from progdistill.interop import load  # noqa: E402

STEM = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_look_alike_in_the_root_layout(tmp_path, prediction_type):
    """google/ddpm-cifar10-32 lies like this: everything at the top, with a model_index.json."""
    network, scheduler = theirs.unet(), diffusers.DDPMScheduler(prediction_type=prediction_type)
    theirs.pipeline(tmp_path, network=network, scheduler=scheduler)
    for file in [*tmp_path.glob("unet/*"), *tmp_path.glob("scheduler/*")]:
        file.rename(tmp_path / file.name)
    for folder in ("unet", "scheduler"):
        (tmp_path / folder).rmdir()
    model = load(tmp_path)
    theirs.assert_same_outputs(model, network)
    assert model.prediction_type == prediction_type and model.sample_shape == theirs.SHAPE


@pytest.mark.parametrize(
    "changes",
    [
        {"center_input_sample": True},
        {"num_class_embeds": 5},
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
        {"attention_head_dim": 4, "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1},
        {"sample_size": (16, 32), "in_channels": 1, "out_channels": 1},
        {"time_embedding_type": "learned", "num_train_timesteps": 1000},
        {"add_attention": False, "mid_block_scale_factor": 2**0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_kinds_of_networks(tmp_path, changes):
    network = theirs.unet(**changes)
    labels = torch.tensor([4, 0]) if "num_class_embeds" in changes else None
    theirs.assert_same_outputs(load(theirs.pipeline(tmp_path, network=network)), network, labels=labels)


@pytest.mark.parametrize("size", ["5KB", "40KB"])
def test_weights_in_parts(tmp_path, size):
    network = theirs.unet()
    theirs.pipeline(tmp_path, network=network, max_shard_size=size)
    assert len(list((tmp_path / "unet").glob(f"{STEM}-*-of-*.safetensors"))) > 1
    theirs.assert_same_outputs(load(tmp_path), network)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "parts"])
def test_variants(tmp_path, options):
    network = theirs.unet().half()
    theirs.pipeline(tmp_path, network=network, variant="fp16", **options)
    theirs.assert_same_outputs(load(tmp_path, variant="fp16"), network.float())
    with pytest.raises(FileNotFoundError, match=r"no weights .*diffusion_pytorch_model\.safetensors.*variant='fp16'"):
        load(tmp_path)


def test_a_variant_beside_the_whole(tmp_path):
    whole, half = theirs.unet(0), theirs.unet(1)
    theirs.pipeline(tmp_path, network=whole)
    half.save_pretrained(tmp_path / "unet", variant="non_ema")
    theirs.assert_same_outputs(load(tmp_path), whole, [500])
    theirs.assert_same_outputs(load(tmp_path, variant="non_ema"), half, [500])
    with pytest.raises(FileNotFoundError, match=r"fp16\.safetensors.*variant='non_ema'"):
        load(tmp_path, variant="fp16")


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "parts"])
def test_old_pickled_weights(tmp_path, options):
    network = theirs.unet()
    theirs.pipeline(tmp_path, network=network, safe_serialization=False, **options)
    assert not list(tmp_path.rglob("*.safetensors"))
    theirs.assert_same_outputs(load(tmp_path), network)


def test_safetensors_go_before_pickles(tmp_path):
    network = theirs.unet()
    theirs.pipeline(tmp_path, network=network)
    (tmp_path / "unet" / f"{STEM}.bin").write_bytes(b"no pickle")
    theirs.assert_same_outputs(load(tmp_path), network, [500])


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_a_learned_variance_is_left_out(tmp_path, variance_type, prediction_type):
    network = theirs.unet(out_channels=6)
    scheduler = diffusers.DDPMScheduler(variance_type=variance_type, prediction_type=prediction_type)
    theirs.pipeline(tmp_path, network=network, scheduler=scheduler)
    model = load(tmp_path)
    theirs.assert_same_outputs(model, network)
    assert torch.equal(model.network.conv_out.weight, network.conv_out.weight[:3])
    assert model.network.config.out_channels == 3 and model.provenance["learned_variance"] == "left out"


def test_a_learned_variance_must_be_said(tmp_path):
    theirs.pipeline(tmp_path, network=theirs.unet(out_channels=6))
    with pytest.raises(ValueError, match='out_channels = 6.*variance_type = "learned_range"'):
        load(tmp_path)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint as diffusers' train_unconditional.py leaves it: raw and averaged weights, the scheduler above."""
    network = theirs.unet(0)
    ema = EMAModel(network.parameters(), model_cls=diffusers.UNet2DModel, model_config=network.config)
    raw = theirs.unet(1)
    folder = tmp_path / "output" / "checkpoint-500"
    ema.save_pretrained(folder / "unet_ema")
    raw.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "output" / "scheduler")
    return folder, network, raw


def test_averaged_weights_are_preferred(checkpoint):
    folder, averaged, raw = checkpoint
    with pytest.warns(UserWarning, match=r"unet_ema holds averaged weights.*weights='raw'"):
        model = load(folder)
    theirs.assert_same_outputs(model, averaged, [500])
    assert model.provenance == {"source": str(folder), "weights": "unet_ema"}
    theirs.assert_same_outputs(load(folder, weights="raw"), raw, [500])


def test_averaged_weights_alone(checkpoint, recwarn):
    folder, averaged, _ = checkpoint
    shutil.rmtree(folder / "unet")
    theirs.assert_same_outputs(load(folder), averaged, [500])
    assert not [warning for warning in recwarn if "unet_ema" in str(warning.message)]
    with pytest.raises(FileNotFoundError, match="there are no others"):
        load(folder, weights="raw")


def test_a_networks_own_folder_finds_the_scheduler_beside_it(tmp_path):
    network = theirs.unet()
    theirs.pipeline(tmp_path, network=network)
    theirs.assert_same_outputs(load(tmp_path / "unet"), network, [500])


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
    ],
)
def test_other_samplers_have_the_noise_levels_of_their_betas(tmp_path, name):
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.015)
    theirs.unet().save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    time = torch.arange(1, 1001, dtype=torch.float64) / 1000
    levels = torch.cos(load(tmp_path).schedule.angle(time)) ** 2
    torch.testing.assert_close(levels, scheduler.alphas_cumprod.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "part, fragment",
    [
        ("vqvae", "latents of an autoencoder"),
        ("vae", "latents of an autoencoder"),
        ("text_encoder", "text"),
        ("transformer", "callable"),
        ("other", "only a UNet2DModel"),
    ],
)
def test_other_pipelines_are_refused_with_the_reason(tmp_path, part, fragment):
    theirs.pipeline(tmp_path)
    edit(tmp_path / "model_index.json", **{part: ["diffusers", "Something"], "_class_name": "OtherPipeline"})
    with pytest.raises(ValueError, match=f"model_index.json: this OtherPipeline has the part '{part}'.*{fragment}"):
        load(tmp_path)


def test_parts_of_a_pipeline_that_are_absent_do_no_harm(tmp_path):
    network = theirs.unet()
    theirs.pipeline(tmp_path, network=network)
    edit(tmp_path / "model_index.json", vae=[None, None], safety_checker=None)
    theirs.assert_same_outputs(load(tmp_path), network, [500])


def test_a_pipeline_without_its_network(tmp_path):
    theirs.pipeline(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    with pytest.raises(FileNotFoundError, match="no network: looked for .*unet"):
        load(tmp_path)


class Hostile:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize(
    "content, fragment",
    [
        ({"conv_in.weight": Hostile()}, "nothing but tensors"),
        ([torch.zeros(2)], "holds a list"),
        ({"state_dict": {"a": torch.zeros(2)}}, "no flat state dict: state_dict"),
        ({"conv_in.weight": torch.zeros(1).expand(10**6, 10**6)}, "larger than the file"),
        ({}, "not a state dict"),
    ],
    ids=["code", "list", "nested", "expanded", "empty"],
)
def test_pickles_of_anything_else_are_refused(tmp_path, capsys, content, fragment):
    theirs.pipeline(tmp_path, safe_serialization=False)
    file = tmp_path / "unet" / f"{STEM}.bin"
    torch.save(content, file)
    with pytest.raises(ValueError, match=fragment) as caught:
        load(tmp_path)
    assert str(file) in str(caught.value) and "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_truncated_pickles(tmp_path, kept):
    theirs.pipeline(tmp_path, safe_serialization=False)
    file = tmp_path / "unet" / f"{STEM}.bin"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin"):
        load(tmp_path)


def test_pickles_by_other_names_are_named(tmp_path):
    theirs.pipeline(tmp_path)
    (tmp_path / "unet" / f"{STEM}.safetensors").rename(tmp_path / "unet" / "model.ckpt")
    with pytest.raises(ValueError, match=r"no weights .*model\.ckpt is not by a name"):
        load(tmp_path)


@pytest.fixture
def parted(tmp_path):
    theirs.pipeline(tmp_path, max_shard_size="40KB")
    return tmp_path


def test_a_missing_part(parted):
    part = sorted((parted / "unet").glob("*-of-*"))[1]
    part.unlink()
    with pytest.raises(FileNotFoundError, match=f"no weights {part}"):
        load(parted)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "", ".."])
def test_parts_must_lie_beside_their_list(parted, name):
    index = parted / "unet" / f"{STEM}.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["conv_in.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="beside the list") as caught:
        load(parted)
    assert str(index) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_damaged_lists_of_parts(parted, text):
    (parted / "unet" / f"{STEM}.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        load(parted)


def test_a_tensor_in_two_parts(parted):
    first, second = sorted((parted / "unet").glob("*-of-*.safetensors"))[:2]
    save_file({**load_file(second), **dict(list(load_file(first).items())[:1])}, second)
    with pytest.raises(ValueError, match="is in .* and in"):
        load(parted)
