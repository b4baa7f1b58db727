"""guided-diffusion's checkpoints: the outputs of a network with its names and its semantics are ours."""

import math

import pytest
import torch
from safetensors.torch import save_file

from interop import adm
from progdistill.core import Condition
from progdistill.interop import load, load_guided_diffusion

FLAGS = (
    "--image_size 8 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 4 "
    "--num_head_channels 32 --use_scale_shift_norm True --resblock_updown True "
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def their_network(seed=0, **shape):
    network, generator = adm.Network(**shape), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1) + (parameter.ndim == 1)
    return network


def written(network, file):
    if file.suffix == ".pt":
        torch.save(network.state_dict(), file)
    else:
        save_file(network.state_dict(), file)
    return file


@torch.no_grad()
def assert_same(model, network, labels=None, count=1000, factor=1.0):
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([0, count // 3, count - 1])
    phi = model.schedule.angle((level + 1).double() / count)
    expected = network(z, level * factor, labels)[:, :3]
    assert expected.std() > 0.1
    torch.testing.assert_close(model.raw(z, phi, Condition(labels)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_outputs_are_theirs(tmp_path, suffix, new_order, updown, scale_shift):
    network = their_network(new_order=new_order, updown=updown, scale_shift=scale_shift)
    flags = FLAGS + f"--use_new_attention_order {new_order} --resblock_updown={updown} "
    file = written(network, tmp_path / f"ema{suffix}")
    model = load_guided_diffusion(file, flags + f"--use_scale_shift_norm {str(scale_shift).lower()}")
    assert_same(model, network)
    assert model.prediction_type == "epsilon" and model.sample_shape == (3, 8, 8) and model.valid_steps is None
    assert model.provenance == {"source": str(file), "format": "guided-diffusion"}


@pytest.mark.parametrize(
    "shape, flags",
    [
        ({"classes": 6}, "--class_cond True"),
        ({"out": 6}, "--learn_sigma True"),
        ({"widths": (32, 64, 64), "attended": (False, True, True), "blocks": 2}, "--attention_resolutions 4,2"),
        ({"attended": (True, True)}, "--attention_resolutions 8,4"),
        ({"attended": (False, False)}, "--attention_resolutions 1"),
        ({"head_dim": None}, "--num_head_channels -1 --num_heads 1"),
        ({}, "--num_head_channels -1 --num_heads 2"),
        ({}, "--predict_xstart True --dropout 0.1 --use_fp16 True --timestep_respacing 250"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_kinds_of_networks(tmp_path, shape, flags):
    network = their_network(**shape)
    sizes = "--channel_mult 1,2,2 --num_res_blocks 2" if "widths" in shape else ""
    model = load_guided_diffusion(written(network, tmp_path / "ema.pt"), f"{FLAGS} {flags} {sizes}")
    assert_same(model, network, torch.tensor([0, 5, 3]) if "classes" in shape else None)
    assert model.num_classes == shape.get("classes")
    assert model.prediction_type == ("sample" if "xstart" in flags else "epsilon")
    assert (model.provenance.get("learned_variance") == "left out") == ("out" in shape)


@pytest.mark.parametrize("rescale, factor", [(False, 1.0), (True, 4.0)])
def test_times_of_other_step_counts(tmp_path, rescale, factor):
    network = their_network()
    flags = f"{FLAGS} --diffusion_steps 250 --rescale_timesteps {rescale}"
    model = load_guided_diffusion(written(network, tmp_path / "ema.pt"), flags)
    assert_same(model, network, count=250, factor=factor)


def test_noise_levels(tmp_path):
    """The definitions of their two schedules, written out level by level."""
    file = written(their_network(), tmp_path / "ema.pt")
    for name, count in (("linear", 1000), ("linear", 400), ("cosine", 1000)):
        model = load_guided_diffusion(file, f"{FLAGS} --noise_schedule {name} --diffusion_steps {count}")
        kept = 1.0
        for i, found in enumerate(model.schedule.alphas_cumprod):
            if name == "linear":
                beta = 1000 / count * (1e-4 + (0.02 - 1e-4) * i / (count - 1))
            else:
                bar = [math.cos(((i + j) / count + 0.008) / 1.008 * math.pi / 2) ** 2 for j in (0, 1)]
                beta = min(1 - bar[1] / bar[0], 0.999)
            kept *= 1 - beta
            assert math.isclose(found, kept, rel_tol=1e-9)


def test_flags_may_be_a_mapping(tmp_path):
    network = their_network()
    flags = {
        "image_size": 8,
        "num_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": "4",
        "num_head_channels": 32,
        "resblock_updown": True,
        "dropout": 0,
    }
    assert_same(load_guided_diffusion(written(network, tmp_path / "ema.pt"), flags), network)


@pytest.mark.parametrize(
    "flags, fragment",
    [
        ("--num_chanels 32", "unknown model flags num_chanels"),
        ("--large_size 256 --small_size 64", "upsampler"),
        ("--noise_schedule sigmoid", "use 'linear' or 'cosine'"),
        ("--image_size", "every flag with a value"),
        ("image_size 8", "every flag with a value"),
        ("--image_size eight", "image_size is 'eight'"),
        ("--class_cond maybe", "class_cond is 'maybe'"),
        ("--diffusion_steps 0", "diffusion_steps is 0"),
        ("--channel_mult 0.5,1", "time embedding is then wider"),
        ("--channel_mult one,two", "channel_mult is 'one,two'"),
        ("--image_size 48 --channel_mult=", "no default"),
        ("--num_head_channels -1 --attention_resolutions 8,4 --num_heads 4", "heads of several sizes"),
        ("--num_head_channels -1 --num_heads 2 --num_heads_upsample 4", "one size of heads"),
    ],
)
def test_flags_that_cannot_be(tmp_path, flags, fragment):
    file = written(their_network(), tmp_path / "ema.pt")
    with pytest.raises(ValueError, match=fragment):
        load_guided_diffusion(file, f"{FLAGS} {flags}")


@pytest.mark.parametrize(
    "flags, fragments",
    [
        ("--resblock_updown False", ["input_blocks.2.0.op.weight", "input_blocks.2.0.in_layers.0.weight"]),
        ("--class_cond True", ["1 missing: label_emb.weight"]),
        ("--num_res_blocks 2", ["missing: input_blocks."]),
        ("--num_channels 64", ["found", "expected"]),
        ("--learn_sigma True --num_channels 96", ["the network's configuration"]),
        ("--num_channels 1000000", ["in all"]),
        ("--num_res_blocks 1000000", ["in all"]),
    ],
)
def test_a_file_of_another_model(tmp_path, flags, fragments):
    file = written(their_network(), tmp_path / "ema.pt")
    with pytest.raises(ValueError) as caught:
        load_guided_diffusion(file, f"{FLAGS} {flags}")
    for fragment in [str(file), *fragments]:
        assert fragment in str(caught.value)


def test_damaged_files(tmp_path):
    file = written(their_network(), tmp_path / "ema.pt")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        load_guided_diffusion(file, FLAGS)
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_guided_diffusion(tmp_path / "other.pt", FLAGS)
    (tmp_path / "ema.ckpt2").write_bytes(b"")
    with pytest.raises(ValueError, match="of no known kind"):
        load_guided_diffusion(tmp_path / "ema.ckpt2", FLAGS)


def test_load_says_how(tmp_path):
    file = written(their_network(), tmp_path / "ema.pt")
    with pytest.raises(FileNotFoundError, match="load_guided_diffusion"):
        load(file)
