"""The paper's released networks, written out flat: the outputs of a numpy implementation of theirs are ours."""

import dataclasses
import io
import math
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from interop import released_unet as released
from progdistill.core import Condition, CosineSchedule
from progdistill.interop import load, load_salimans_ho, save
from progdistill.nets.presets import PRESETS
from progdistill.nets.unet import UNet

TINY = dataclasses.replace(
    PRESETS["cifar10"],
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    time_embedding_dim=64,
    dropout=0.0,
)
TREE = {"widths": (32, 64), "blocks": 1, "attended": (False, True), "heads": 1}
LOGSNR = np.array([19.0, 0.3, -12.0])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def written(parameters, file):
    if file.suffix == ".npz":
        np.savez(file, **parameters)
    else:
        save_file(parameters, file)
    return file


@torch.no_grad()
def assert_same(model, parameters, *, labels=None, resample=True, levels=2, blocks=1):
    """The network's output in float64, at noise levels from nearly none to nearly nothing else."""
    z = np.random.default_rng(1).standard_normal((3, 8, 8, 3))
    in_float64 = {name: value.astype(np.float64) for name, value in parameters.items()}
    expected = released.forward(in_float64, z, LOGSNR, labels, levels=levels, blocks=blocks, resample=resample)
    expected = torch.tensor(expected).permute(0, 3, 1, 2)
    phi = torch.tensor(np.arctan(np.exp(-0.5 * LOGSNR)))
    cond = Condition(None if labels is None else torch.tensor(labels))
    found = model.double().raw(torch.tensor(z).permute(0, 3, 1, 2), phi, cond)
    assert expected.std() > 0.1
    # The sines of the time are float32, with phases up to 1000.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("tree", ["", "params/", "ema_params/"])
def test_outputs_are_theirs(tmp_path, suffix, tree):
    parameters = released.random_parameters(**TREE)
    stored = {f"{tree}{name}": value for name, value in parameters.items()}
    if tree == "ema_params/":
        others = released.random_parameters(**TREE, seed=1)
        stored |= {f"params/{name}": value for name, value in others.items()} | {"step": np.zeros(1, np.float32)}
    file = written(stored, tmp_path / f"cifar{suffix}")
    model = load_salimans_ho(file, TINY)
    assert_same(model, parameters)
    assert model.prediction_type == "sample" and model.sample_shape == (3, 8, 8) and model.valid_steps is None


@pytest.mark.parametrize(
    "config, tree, options",
    [
        ({"num_class_embeds": 5}, {"classes": 5}, {"labels": [0, 4, 2]}),
        ({"attention_head_dim": 16}, {"heads": 4}, {}),
        (
            {
                "downsample_padding": 0,
                "downsample_type": "conv",
                "upsample_type": "conv",
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            },
            {"resample": False},
            {"resample": False},
        ),
        (
            {
                "block_out_channels": (32, 64, 64),
                "layers_per_block": 2,
                "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            },
            {"widths": (32, 64, 64), "blocks": 2, "attended": (False, True, True)},
            {"levels": 3, "blocks": 2},
        ),
    ],
    ids=["classes", "heads", "convolutions", "three levels"],
)
def test_kinds_of_networks(tmp_path, config, tree, options):
    tree = {**TREE, **tree}
    parameters = released.random_parameters(**tree)
    model = load_salimans_ho(written(parameters, tmp_path / "a.npz"), dataclasses.replace(TINY, **config))
    assert model.num_classes == tree.get("classes")
    assert_same(model, parameters, **options)


def test_two_heads_are_mixed_as_theirs(tmp_path):
    """x = sigma^2 x_net + alpha^2 (z - sigma eps_net) / alpha, their function for "both"."""
    parameters = released.random_parameters(**TREE, out=6)
    file = written(parameters, tmp_path / "a.npz")
    model = load_salimans_ho(file, dataclasses.replace(TINY, out_channels=6)).double()
    assert model.prediction_type == "sample_epsilon"
    assert_same(model, parameters)
    z = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    phi = torch.tensor(np.arctan(np.exp(-0.5 * LOGSNR)))
    alpha, sigma = (f(phi)[:, None, None, None] for f in (torch.cos, torch.sin))
    x_net, eps_net = model.raw(z, phi).chunk(2, dim=1)
    expected = sigma**2 * x_net + alpha**2 * ((z - sigma * eps_net) / alpha)
    torch.testing.assert_close(model.x(z, phi), expected, rtol=1e-9, atol=1e-9)


def test_the_schedule_is_theirs(tmp_path):
    model = load_salimans_ho(written(released.random_parameters(**TREE), tmp_path / "a.npz"), TINY, valid_steps=(8,))
    b = math.atan(math.exp(-10))
    a = math.atan(math.exp(10)) - b
    grid = model.schedule.grid(8)
    expected = torch.tensor([a * i / 8 + b for i in range(8, 0, -1)] + [0.0], dtype=torch.float64)
    torch.testing.assert_close(grid, expected, rtol=1e-12, atol=0)
    assert model.valid_steps == (8,)
    told = model.time_map(torch.tensor([math.pi / 2, b + a / 2, 0.0], dtype=torch.float64))
    torch.testing.assert_close(told, torch.tensor([1000 * (a + b) / (math.pi / 2), 500.0, 1000 * b / (math.pi / 2)]))


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "lsun128"])
def test_the_map_names_every_parameter_of_the_presets(name):
    """The released networks have a bias more, that of the class embedding."""
    from progdistill.interop.salimans_ho import _source_of

    with torch.device("meta"):
        parameters = UNet(PRESETS[name]).state_dict()
    names = [each for parameter in parameters for each in _source_of(PRESETS[name])(parameter).names]
    assert len(set(names)) == len(names) == len(parameters) + (name == "imagenet64")
    assert {"dense0/kernel", "mid.attn_1/proj_out/kernel", "up_0.block_3/nin_shortcut/bias"} <= set(names)


def test_saved_again_it_is_the_same(tmp_path):
    parameters = released.random_parameters(**TREE)
    model = load_salimans_ho(written(parameters, tmp_path / "a.npz"), TINY)
    assert_same(load(save(model, tmp_path / "teacher")), parameters)
    assert model.schedule == CosineSchedule(-20.0, 20.0)


@pytest.mark.parametrize(
    "change, fragments",
    [
        (lambda p: p.pop("conv_in/bias"), ["1 missing: conv_in/bias"]),
        (lambda p: p.update({"optimizer/x": np.zeros(3, np.float32)}), ["1 unexpected: optimizer/x"]),
        (lambda p: p.update({"conv_in/kernel": p["conv_in/kernel"][:2]}), ["conv_in.weight (found (32, 3, 2, 3)"]),
        (lambda p: p.update({"dense0/kernel": p["dense0/kernel"][:, :3]}), ["time_embedding.linear_1.weight"]),
        (lambda p: p.update({"class_emb/bias": p["class_emb/bias"][:1]}), ["class_emb/bias has shape (1,)"]),
        (lambda p: p.update({"conv_in/bias": p["conv_in/bias"].astype(np.int64)}), ["conv_in.bias is <i8"]),
    ],
)
def test_a_file_of_another_network(tmp_path, change, fragments):
    parameters = released.random_parameters(**TREE, classes=5)
    change(parameters)
    file = written(parameters, tmp_path / "a.npz")
    with pytest.raises(ValueError) as caught:
        load_salimans_ho(file, dataclasses.replace(TINY, num_class_embeds=5))
    for fragment in [str(file), *fragments]:
        assert fragment in str(caught.value)


def test_impossible_requests(tmp_path):
    file = written(released.random_parameters(**TREE), tmp_path / "a.npz")
    with pytest.raises(KeyError, match="unknown network 'cifar'"):
        load_salimans_ho(file, "cifar")
    with pytest.raises(ValueError, match="the network 'cifar10'"):
        load_salimans_ho(file, "cifar10")
    with pytest.raises(ValueError, match="sample_size"):
        load_salimans_ho(file, dataclasses.replace(TINY, sample_size=None))
    with pytest.raises(ValueError, match="out_channels"):
        load_salimans_ho(file, TINY, prediction_type="both")


@pytest.mark.parametrize("kept", [0, 30, 5000, -30])
def test_truncated_archives(tmp_path, kept):
    file = written(released.random_parameters(**TREE), tmp_path / "a.npz")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.npz"):
        load_salimans_ho(file, TINY)


def test_arrays_of_objects_and_false_sizes_are_refused(tmp_path):
    objects = np.array([print, "x"], dtype=object)
    np.savez(tmp_path / "a.npz", **{"conv_in/kernel": objects})
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(lie, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)})
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("conv_in/kernel.npy", lie.getvalue())
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("text.npy", b"no array")
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(ValueError, match="no .npz"):
            load_salimans_ho(tmp_path / name, TINY)
