"""`progdistill export --format diffusers`."""

import json

import pytest
import torch

from interop import models
from progdistill.cli import main
from progdistill.core import TableSchedule, TimeMap
from progdistill.interop import save

LINEAR = TableSchedule.from_diffusers({})
EXPORT = ["export", "--model", "student", "--format", "diffusers"]


@pytest.fixture(autouse=True)
def students(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    times = TimeMap(LINEAR, scale=1000.0, offset=-1.0, minimum=0.0, maximum=999.0)
    save(models.denoiser(time_map=times, valid_steps=(2,)), "steps-2")
    save(models.denoiser(time_map=times, valid_steps=(1,)), "student", students={2: "../steps-2"})
    return tmp_path


def written(folder, name):
    return json.loads((folder / name).read_text())


def test_the_model_and_the_kept_students(students, capsys):
    pytest.importorskip("diffusers")
    assert main([*EXPORT, "--output", "one"]) == 0
    assert main([*EXPORT, "--output", "two", "--steps", "2", "--dtype", "fp16", "--repo-id", "somebody/two"]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("diffusers pipeline in one; its images (1 steps) within") and "(2 steps)" in two
    assert written(students / "one", "progdistill.json")["valid_steps"] == [1]
    assert written(students / "two", "progdistill.json")["valid_steps"] == [2]
    assert written(students / "two", "unet/config.json")["time_embedding_type"] == "learned"
    assert 'from_pretrained("somebody/two")' in (students / "two" / "README.md").read_text()


def test_without_a_comparison(students, capsys):
    assert main([*EXPORT, "--output", "one", "--no-verify"]) == 0
    assert capsys.readouterr().out == "diffusers pipeline in one; images not compared\n"
    assert (students / "one" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--steps", "4"], "distilled for 1 steps, not 4"),
        (["--dtype", "bf16"], "dtype is 'bf16'; use one of float32"),
        (["--clip", "1"], "--clip means nothing to --format diffusers"),
        (["--output-type", "uint8"], "--output-type means nothing to --format diffusers"),
        (["--batch-size", "4"], "--batch-size means nothing to --format diffusers"),
        (["--format", "torch", "--no-verify"], "--verify means nothing to --format torch"),
        (["--format", "onnx", "--dtype", "fp16"], "--dtype means nothing to --format onnx"),
    ],
)
def test_wrong_options(students, capsys, wrong, message):
    assert main([*EXPORT, "--output", "x", *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not (students / "x").exists()


def test_two_heads_are_sent_to_the_conversion(students, capsys):
    save(models.denoiser(network=models.unet(out_channels=6), prediction_type="both", valid_steps=(1,)), "student")
    assert main([*EXPORT, "--output", "x"]) == 2
    assert "`progdistill convert --teacher" in capsys.readouterr().err
    assert sorted(entry.name for entry in students.iterdir()) == ["steps-2", "student"]
