"""Damage of every kind: an error that names file and fix, never a crash, never memory that only a header claims."""

import json
import random
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from interop import models
from progdistill.core import FlowMatchingSchedule, TimeMap
from progdistill.interop import load, save

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG, MANIFEST = "unet/config.json", "progdistill.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    torch.set_num_threads(1)
    return save(models.denoiser(valid_steps=(4,)), tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "model")


def refused(folder, file, *fragments):
    with pytest.raises(ValueError) as caught:
        load(folder)
    for fragment in (str(folder / file), *fragments):
        assert fragment in str(caught.value)


def header_and_data(file):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(file, header, data):
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_weights(folder, kept):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, WEIGHTS, "truncated", "download it again")


def test_weights_longer_than_their_header_says(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes() + b"\0\0\0\0")
    refused(folder, WEIGHTS, "damaged")


@pytest.mark.parametrize("length", [2**63, 2**40, 90_000_000])
def test_a_header_length_beyond_the_file(folder, length):
    file = folder / WEIGHTS
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused(folder, WEIGHTS, "damaged")


@pytest.mark.parametrize("shape", [[10**6, 10**6], [2**62, 4], [2**63, 2, 3]])
def test_a_shape_beyond_the_file(folder, shape):
    header, data = header_and_data(folder / WEIGHTS)
    header["conv_in.weight"]["shape"] = shape
    write_header(folder / WEIGHTS, header, data)
    refused(folder, WEIGHTS, "damaged")


def test_offsets_beyond_the_file(folder):
    header, data = header_and_data(folder / WEIGHTS)
    last = max(header, key=lambda name: header[name].get("data_offsets", [0, 0])[1])
    start = header[last]["data_offsets"][0]
    header[last].update(shape=[10**12], data_offsets=[start, start + 4 * 10**12])
    write_header(folder / WEIGHTS, header, data)
    refused(folder, WEIGHTS, "damaged")


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": [2 * 10**9, 4 * 10**9], "norm_num_groups": 1},
        {"layers_per_block": 10**9},
        {"num_class_embeds": 10**15},
        {"time_embedding_dim": 10**10},
        {"guidance_embed_dim": 10**12},
        {"time_embedding_type": "learned", "num_train_timesteps": 10**14},
    ],
)
def test_a_configuration_that_claims_a_giant(folder, changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    if "num_class_embeds" in changes:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, "num_classes": 10}))
    if "guidance_embed_dim" in changes:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, "guidance_range": [1, 5]}))
    refused(folder, CONFIG, "in all")


def test_missing_and_unexpected_weights_are_counted_and_five_listed(folder):
    state = load_file(folder / WEIGHTS)
    mid = [name for name in state if name.startswith("mid_block")]
    for name in mid:
        state[f"other.{name}"] = state.pop(name)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert f"{len(mid)} missing: mid_block" in message and f"{len(mid)} unexpected: other.mid_block" in message
    assert message.count("other.mid_block") == 5 and message.count("mid_block") == 10


def test_wrong_shapes_are_named(folder):
    state = load_file(folder / WEIGHTS)
    state["conv_out.bias"] = torch.zeros(7)
    save_file(state, folder / WEIGHTS)
    refused(folder, WEIGHTS, "conv_out.bias (found (7,), expected (3,))", "config.json")


def test_integer_weights_are_refused(folder):
    state = load_file(folder / WEIGHTS)
    state["conv_in.bias"] = state["conv_in.bias"].to(torch.int8)
    save_file(state, folder / WEIGHTS)
    refused(folder, WEIGHTS, "conv_in.bias is I8", "F32")


def test_missing_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no weights .*diffusion_pytorch_model\.safetensors.*holds config\.json"
    ):
        load(folder)


def test_missing_configuration(folder):
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json"):
        load(folder)


@pytest.mark.parametrize("file", [CONFIG, MANIFEST])
@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"\xff\xfe{}", b"[" * 100_000], ids=repr)
def test_broken_json(folder, file, text):
    (folder / file).write_bytes(text)
    refused(folder, file, "copy or download")


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"format_version": 2}, "format_version is 2"),
        ({"format_version": "1"}, "upgrade"),
        ({"format_version": None}, "format_version"),
        ({"prediction_type": "w"}, "unknown prediction type 'w'"),
        ({"prediction_type": None}, "unknown prediction type None"),
        ({"prediction_type": "both"}, "needs 6"),
        ({"schedule": {"kind": "sine"}}, "'sine'"),
        ({"schedule": {"kind": ["sine"]}}, MANIFEST),
        ({"schedule": None}, MANIFEST),
        ({"schedule": {"kind": "cosine", "logsnr_min": "low"}}, MANIFEST),
        ({"schedule": {"kind": "cosine", "logsnr_min": 5, "logsnr_max": 5}}, "logsnr_min"),
        ({"schedule": {"kind": "table", "alphas_cumprod": [0.5, 0.9]}}, "alphas_cumprod"),
        ({"schedule": {"kind": "edm", "rho": 1e-300}}, MANIFEST),
        ({"time_map": {"schedule": {"kind": "cosine"}, "scale": "much"}}, MANIFEST),
        ({"time_map": {"schedule": {"kind": "cosine"}, "scale": None}}, MANIFEST),
        ({"time_map": {"schedule": {"kind": "cosine"}, "minimum": "0"}}, MANIFEST),
        ({"time_map": {"scale": 1024}}, "'schedule' is missing"),
        ({"sample_shape": [1, 8, 8]}, "takes 3 channels"),
        ({"sample_shape": [3, 64]}, "(3, height, width)"),
        ({"sample_shape": [3, 8, 16]}, "sample_size is 8"),
        ({"sample_shape": [3, 8, -8]}, "sample_shape is -8"),
        ({"num_classes": 10}, "neither know classes"),
        ({"num_classes": True}, "num_classes is True"),
        ({"unconditional_label": "none"}, "unconditional_label is 'none'"),
        ({"unconditional_label": -1}, "unconditional_label is -1"),
        ({"unconditional_label": 0}, "num_class_embeds None"),
        ({"guidance_range": [1, 5]}, "either both or neither know a guidance scale"),
        ({"guidance_range": [0.5, 5]}, "both at least 1"),
        ({"guidance_range": 5}, MANIFEST),
        ({"valid_steps": [0]}, "valid_steps is 0"),
        ({"valid_steps": 4}, "valid_steps is 4"),
        ({"students": []}, MANIFEST),
        ({"students": {"four": "x"}}, "four"),
        ({"students": {"4": "/etc"}}, "relative"),
        ({"provenance": 5}, MANIFEST),
    ],
)
def test_wrong_fields_of_the_manifest(folder, changes, fragment):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    refused(folder, MANIFEST, fragment)


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"time_map": {"scale": 1024}}, "'schedule' is missing"),
        ({"time_map": {"schedule": {"kind": "cosine"}, "scale": "much"}}, "own_time"),
        ({"time_map": None}, "own_time"),
        ({"num_train_timesteps": -1}, "num_train_timesteps"),
    ],
)
def test_wrong_times_behind_a_table(tmp_path, changes, fragment):
    times = TimeMap(FlowMatchingSchedule(), scale=1.0, offset=0.0)
    folder = save(models.denoiser(time_map=times), tmp_path / "model")
    manifest = json.loads((folder / MANIFEST).read_text())
    own_time = {**manifest["own_time"], **changes}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "own_time": own_time}))
    refused(folder, MANIFEST, fragment)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "own_time": 3}))
    refused(folder, MANIFEST, "own_time")
    plain = save(models.denoiser(), tmp_path / "plain")
    of_another = json.loads((plain / MANIFEST).read_text())
    (plain / MANIFEST).write_text(json.dumps({**of_another, "own_time": manifest["own_time"]}))
    refused(plain, MANIFEST, "time_embedding_type is 'positional'")


def test_missing_fields_of_the_manifest(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    optional = {"unconditional_label", "guidance_range"}  # of models from before there was guidance
    for name in set(manifest) - {"progdistill_version", "diffusers", *optional}:
        (folder / MANIFEST).write_text(json.dumps({key: value for key, value in manifest.items() if key != name}))
        refused(folder, MANIFEST, f"'{name}' is missing")
    (folder / MANIFEST).write_text(json.dumps({key: value for key, value in manifest.items() if key not in optional}))
    model = load(folder)
    assert model.unconditional_label is None and model.guidance_range is None


def mutated(content, rng):
    content = bytearray(content)
    kind = rng.choice(["flip", "flip", "truncate", "cut", "repeat"])
    # Headers and JSON are where structure is: half of the damage goes to the first kilobytes.
    place = rng.randrange(min(len(content), rng.choice([200, 4000, len(content)])))
    if kind == "flip":
        for offset in range(rng.randint(1, 3)):
            content[(place + offset) % len(content)] = rng.choice(
                [rng.randrange(256), ord(rng.choice('0123456789"{[,-.e'))]
            )
    elif kind == "truncate":
        del content[place:]
    elif kind == "cut":
        del content[place : place + rng.randint(1, 40)]
    else:
        content[place:place] = content[place : place + rng.randint(1, 40)]
    return bytes(content)


def test_random_damage_is_an_error_or_harmless(folder):
    files = {name: (folder / name).read_bytes() for name in (WEIGHTS, CONFIG, MANIFEST)}
    rng, outcomes = random.Random(0), []
    for _ in range(1500):
        name = rng.choice(list(files))
        (folder / name).write_bytes(mutated(files[name], rng))
        try:
            load(folder)
            outcomes.append("loaded")
        except (ValueError, OSError) as error:
            assert str(folder) in str(error)
            outcomes.append("refused")
        (folder / name).write_bytes(files[name])
    assert min(outcomes.count("loaded"), outcomes.count("refused")) >= 100
