"""Round trips, what is written, and what is there after a failure."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from interop import models
from progdistill.core import (
    Condition,
    CosineSchedule,
    EDMSchedule,
    FlowMatchingSchedule,
    TableSchedule,
    TimeMap,
)
from progdistill.interop import load, save

SCHEDULES = [
    CosineSchedule(),
    CosineSchedule(-20.0, 20.0),
    TableSchedule.from_betas(torch.linspace(1e-3, 0.2, 50)),
    EDMSchedule(),
    FlowMatchingSchedule(),
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def manifest(folder):
    return json.loads((folder / "progdistill.json").read_text())


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def same_weights(a, b):
    a, b = a.network.state_dict(), b.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "sample_epsilon"])
def test_round_trip(tmp_path, schedule, prediction_type):
    heads = 2 if prediction_type == "sample_epsilon" else 1
    model = models.denoiser(
        network=models.unet(in_channels=1, out_channels=heads, num_class_embeds=5),
        sample_shape=(1, 8, 16),
        schedule=schedule,
        prediction_type=prediction_type,
        num_classes=5,
        valid_steps=(4, 8),
        provenance={"round": 3, "teacher": {"name": "zebra"}},
    )
    assert save(model, tmp_path / "model") == tmp_path / "model"
    loaded = load(str(tmp_path / "model"))
    for name in ("schedule", "time_map", "prediction_type", "sample_shape", "num_classes", "valid_steps", "provenance"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert same_weights(loaded, model)
    assert not loaded.training and not loaded.network.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    z, phi = torch.randn(3, 1, 8, 16), torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)
    cond = Condition(class_labels=torch.tensor([0, 4, 2]))
    torch.testing.assert_close(loaded.v(z, phi, cond), model.v(z, phi, cond), rtol=0, atol=0)


def test_a_foreign_time_map_survives(tmp_path):
    """Although a table of times is stored in its place: outputs are the same bits, also between diffusers' levels."""
    teacher = TableSchedule.from_betas(torch.linspace(1e-3, 0.2, 50))
    time_map = TimeMap(teacher, scale=50.0, minimum=0.0, maximum=49.0)
    model, raw = models.denoiser(time_map=time_map), models.unet(seed=1)
    folder = save(model, tmp_path / "model", raw_state_dict=raw.state_dict())
    assert json.loads((folder / "unet/config.json").read_text())["time_embedding_type"] == "learned"
    assert (folder / "model_index.json").is_file()
    back = load(folder)
    assert back.time_map == time_map and back.network.config == model.network.config
    assert same_weights(back, model) and same_weights(load(folder, weights="raw"), model.with_network(raw))
    z, phi = torch.randn(3, 3, 8, 8), torch.tensor([0.1234, 0.8, 1.5], dtype=torch.float64)
    assert torch.equal(back.raw(z, phi), model.raw(z, phi))
    again = save(back, tmp_path / "again")
    assert content(again) == {name: file for name, file in content(folder).items() if "unet_raw" not in name}


def test_weights_are_contiguous_float32(tmp_path):
    model = models.denoiser()
    expected = {name: tensor.bfloat16().float() for name, tensor in model.network.state_dict().items()}
    model.network.to(torch.bfloat16).to(memory_format=torch.channels_last)
    save(model, tmp_path / "model")
    with safe_open(tmp_path / "model/unet/diffusion_pytorch_model.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(expected)
        for name, tensor in expected.items():
            found = stored.get_tensor(name)
            assert found.dtype == torch.float32 and torch.equal(found, tensor)


def test_loaded_weights_do_not_depend_on_the_file(tmp_path):
    model = models.denoiser()
    folder = save(model, tmp_path / "model")
    loaded = load(folder)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(-4000, os.SEEK_END)
        stream.write(b"\1" * 4000)
    assert same_weights(loaded, model)


def test_raw_weights(tmp_path):
    averaged, raw = models.denoiser(seed=0), models.denoiser(seed=1)
    folder = save(averaged, tmp_path / "model", raw_state_dict=raw.network.state_dict())
    assert same_weights(load(folder), averaged)
    assert same_weights(load(folder, weights="raw"), raw)


def test_raw_weights_that_are_not_there(tmp_path):
    folder = save(models.denoiser(), tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="without weights before averaging"):
        load(folder, weights="raw")
    with pytest.raises(ValueError, match="'EMA'.*'ema', 'raw'"):
        load(folder, weights="EMA")


def test_raw_weights_of_another_network_are_refused(tmp_path):
    state = models.unet().state_dict()
    state["conv_in.weight"] = state["conv_in.weight"][:4]
    del state["conv_in.bias"]
    with pytest.raises(ValueError, match=r"1 missing: conv_in.bias.*conv_in.weight \(found \(4, 3, 3, 3\)"):
        save(models.denoiser(), tmp_path / "model", raw_state_dict=state)
    assert list(tmp_path.iterdir()) == []


def test_students_are_loaded_when_asked_for(tmp_path):
    eight, four = models.denoiser(seed=8, valid_steps=(8,)), models.denoiser(seed=4, valid_steps=(4,))
    save(eight, tmp_path / "steps_8")
    folder = save(four, tmp_path / "steps_4", students={8: Path("../steps_8"), 16: "../steps_16"})
    assert manifest(folder)["students"] == {"8": "../steps_8", "16": "../steps_16"}
    loaded = load(folder)
    assert list(loaded.students) == [8]
    assert same_weights(loaded.students[8](), eight)


@pytest.mark.parametrize("students", [{4: "/somewhere/else"}, {0: "../steps_0"}, {"4": "../steps_4"}])
def test_students_must_have_a_step_count_and_a_relative_folder(tmp_path, students):
    with pytest.raises(ValueError, match="step"):
        save(models.denoiser(), tmp_path / "model", students=students)


def test_a_run_folder_is_loaded_by_its_model(tmp_path):
    model = models.denoiser()
    save(model, tmp_path / "run" / "model")
    assert same_weights(load(tmp_path / "run"), model)


def test_the_device_is_honoured(tmp_path):
    folder = save(models.denoiser(), tmp_path / "model")
    assert load(folder, device="meta").device.type == "meta"
    assert load(folder, device=torch.device("cpu")).device.type == "cpu"


def test_the_image_size_is_that_of_the_samples(tmp_path):
    wide = models.denoiser(network=models.unet(sample_size=None), sample_shape=(3, 8, 24))
    config = json.loads((save(wide, tmp_path / "wide") / "unet/config.json").read_text())
    assert config["sample_size"] == [8, 24] and config["_class_name"] == "UNet2DModel"
    square = models.denoiser(sample_shape=(3, 16, 16))
    assert json.loads((save(square, tmp_path / "square") / "unet/config.json").read_text())["sample_size"] == 16


@pytest.mark.parametrize(
    "description, fragment",
    [
        ({"sample_shape": (1, 8, 8)}, "takes 3 channels"),
        ({"prediction_type": "both"}, "out_channels = 3.*needs 6"),
        ({"num_classes": 10}, "neither know classes"),
        ({"network": models.unet(num_class_embeds=4)}, "neither know classes"),
        ({"network": models.unet(num_class_embeds=4), "num_classes": 5}, "num_classes is 5"),
        ({"network": torch.nn.Conv2d(3, 3, 1)}, "Conv2d.*state_dict"),
        ({"network": torch.nn.DataParallel(models.unet())}, "DataParallel.*network.module"),
        ({"sample_shape": (3, 7, 7)}, "sample_size"),
    ],
)
def test_what_cannot_be_saved(tmp_path, description, fragment):
    with pytest.raises(ValueError, match=fragment):
        save(models.denoiser(**description), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_provenance_must_be_json(tmp_path):
    folder = save(models.denoiser(), tmp_path / "model")
    before = content(folder)
    with pytest.raises(TypeError, match="provenance.when"):
        save(models.denoiser(seed=1, provenance={"when": {1, 2}}), folder)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_saving_again_replaces_everything_of_ours_and_nothing_else(tmp_path):
    first, second = models.denoiser(seed=0), models.denoiser(seed=1, valid_steps=(2048,))
    folder = save(first, tmp_path / "model", raw_state_dict=first.network.state_dict())
    assert (folder / "model_index.json").is_file() and (folder / "unet_raw").is_dir()
    (folder / "README.md").write_text("a model card")
    (folder / "samples").mkdir()
    (folder / "samples" / "0.png").write_bytes(b"image")
    save(second, folder)
    assert same_weights(load(folder), second)
    assert not (folder / "model_index.json").exists() and not (folder / "unet_raw").exists()
    assert (folder / "README.md").read_text() == "a model card"
    assert (folder / "samples" / "0.png").read_bytes() == b"image"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    folder = save(models.denoiser(), tmp_path / "model")
    before, calls, rename = content(folder), [], Path.rename

    def fails(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="disk trouble"):
        save(models.denoiser(seed=1), folder)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = save(models.denoiser(), tmp_path / "model")
    before, fsync, calls = content(folder), os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(models.denoiser(seed=1), folder)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_killed_replacement_is_found_again(tmp_path):
    folder = save(models.denoiser(), tmp_path / "model[1]")
    aside = folder.rename(tmp_path / ".old-model[1]-123-abc")
    with pytest.raises(FileNotFoundError, match="interrupted") as caught:
        load(folder)
    assert str(aside) in str(caught.value)


def test_only_model_folders_are_replaced(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="this is a file"):
        save(models.denoiser(), file)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no progdistill.json.*choose another path"):
        save(models.denoiser(), thesis)
    assert file.read_text() == (thesis / "chapter").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    load(save(models.denoiser(), tmp_path / "empty"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "file", "thesis"]


def test_a_link_is_followed(tmp_path):
    save(models.denoiser(), tmp_path / "steps_4")
    (tmp_path / "latest").symlink_to("steps_4", target_is_directory=True)
    second = models.denoiser(seed=1)
    save(second, tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert same_weights(load(tmp_path / "steps_4"), second)


def test_the_manifest(tmp_path):
    written = manifest(save(models.denoiser(valid_steps=(2, 4)), tmp_path / "model"))
    assert written.pop("progdistill_version")
    assert written == {
        "format_version": 1,
        "prediction_type": "v_prediction",
        "schedule": {"kind": "cosine", "logsnr_min": None, "logsnr_max": None},
        "time_map": {
            "schedule": {"kind": "cosine", "logsnr_min": None, "logsnr_max": None},
            "scale": 1024.0,
            "offset": -1.0,
            "minimum": None,
            "maximum": None,
        },
        "sample_shape": [3, 8, 8],
        "num_classes": None,
        "unconditional_label": None,
        "guidance_range": None,
        "valid_steps": [4, 2],
        "students": {},
        "provenance": {},
        "diffusers": {"loadable": True, "reason": None},
    }


def test_what_is_looked_for_is_listed(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / "teacher")
    for fragment in ("progdistill.json", "unet/config.json", "model/progdistill.json", "no such folder", "hub"):
        assert fragment in str(caught.value)
    with pytest.raises(FileNotFoundError, match="looked for"):
        load(tmp_path)
    folder = save(models.denoiser(), tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="pass the folder it is in"):
        load(folder / "unet/config.json")
