"""The command line as a user meets it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

import tiny
from progdistill.cli import main
from progdistill.cli.arguments import parse
from progdistill.cli.main import COMMANDS
from progdistill.training import DistillConfig, TrainConfig


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("images.npz", images=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), labels=np.arange(40) % 4)
    (tmp_path / "config.json").write_text(json.dumps(tiny.NETWORK.to_dict()))
    (tmp_path / "quick.yaml").write_text("max-train-steps: 4\ntrain_batch_size: 8\nlr_warmup_steps: 1\n")
    return tmp_path


def test_train_distill_sample_evaluate(files, capsys):
    """The whole way through the commands, each from the other's folders."""
    common = ["--device", "cpu", "--no-progress", "--train-batch-size", "8"]
    train = ["train", "--config", "quick.yaml", "--data", "images.npz", "--network", "config.json"]
    assert main([*train, "--output-dir", "teacher", *common, "--max-train-steps", "3"]) == 0
    ends = [json.loads(line) for line in (files / "teacher" / "metrics.jsonl").read_text().splitlines()]
    assert ends[0]["update"] == 3, "flags override the file"
    distill = ["distill", "--teacher", "teacher", "--output-dir", "student", "--rounds", "2"]
    assert main([*distill, "--updates-per-round", "2", "--updates-at", "1", "3", *common]) == 0
    assert main(["sample", "--model", "student", "--steps", "2", "--num-images", "5", "--output", "grid.png"]) == 0
    with Image.open("grid.png") as grid:
        assert grid.width > 64
    assert main(["sample", "--model", "student", "--num-images", "3", "--seed", "7", "--output", "images"]) == 0
    assert sorted(p.name for p in (files / "images").glob("*.png")) == ["000007.png", "000008.png", "000009.png"]
    evaluate = ["evaluate", "--model", "student", "--data", "images.npz", "--num-images", "40", "--seeds", "2"]
    assert main([*evaluate, "--output", "quality.json"]) == 0
    assert set(json.loads((files / "quality.json").read_text())["steps"]) == {"1", "2"}
    assert "student/model" in capsys.readouterr().out


def test_images_of_other_sizes_and_columns(files, capsys):
    """resolution and the like, by the names of diffusers' scripts; distill takes them over from the teacher."""
    (files / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (8 + index % 3, 9), dtype=np.uint8)).save(f"photos/{index}.png")
    np.savez("odd.npz", pictures=rng.integers(0, 256, (40, 16, 20), dtype=np.uint8), classes=np.arange(40) % 4)
    common = ["--device", "cpu", "--no-progress", "--train-batch-size", "8"]
    train = ["train", "--config", "quick.yaml", "--network", "config.json", *common, "--resolution", "8"]
    assert main([*train, "--data", "photos", "--output-dir", "teacher", "--interpolation", "area"]) == 0
    distill = ["distill", "--teacher", "teacher", "--output-dir", "student", "--rounds", "1"]
    assert main([*distill, "--updates-per-round", "2", *common]) == 0
    columns = ["--data", "odd.npz", "--image-column", "pictures", "--label-column", "classes", "--no-center-crop"]
    assert main([*train, *columns, "--class-conditional", "--output-dir", "labelled"]) == 0
    evaluate = ["evaluate", "--model", "student", "--num-images", "40", "--seeds", "1", "--output", "quality.json"]
    assert main([*evaluate, *columns, "--resolution", "8"]) == 0
    assert json.loads((files / "quality.json").read_text())["data_options"]["center_crop"] is False
    assert main([*train, "--data", "photos", "--output-dir", "x", "--split", "test"]) == 2
    assert "split cannot be used with an image folder" in capsys.readouterr().err


def test_usage_and_unknown_commands(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in COMMANDS)
    assert main(["destill"]) == 2
    assert "unknown command 'destill'; use one of quickstart, train, distill" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"doctor", "runs", "bench"}))
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_a_reader_that_has_had_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "progdistill", "distill", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_errors_are_a_line_not_a_traceback(files, capsys):
    assert main(["sample", "--model", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("progdistill sample: no model in") and "Traceback" not in message
    with pytest.raises(SystemExit) as stopped:
        main(["distill", "--teacher", "nowhere", "--output-dir", "x", "--weighting", "p2"])
    assert stopped.value.code == 2
    assert "unknown weighting 'p2'" in capsys.readouterr().err


def test_missing_required_option(capsys):
    with pytest.raises(SystemExit):
        main(["distill", "--teacher", "x"])
    assert "--output-dir" in capsys.readouterr().err


def test_yaml_with_an_unknown_option(files):
    (files / "bad.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match=r"bad.yaml has unknown options learning_rat; known: .*learning_rate"):
        parse(TrainConfig, ["--config", "bad.yaml", "--output-dir", "x"], "train")
    (files / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds a list"):
        parse(TrainConfig, ["--config", "list.yaml", "--output-dir", "x"], "train")


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "C++ extension" in report and "distillation_loss" in report and "GPU:" in report


def recipes():
    from pathlib import Path

    return sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_recipes_are_valid_defaults(path):
    cls, command = (TrainConfig, "train") if path.stem.endswith("train") else (DistillConfig, "distill")
    config = parse(cls, ["--config", str(path), "--output-dir", "x"], command)
    for name, value in yaml.safe_load(path.read_text()).items():
        assert getattr(config, name) == value
    if cls is DistillConfig:
        assert config.teacher_steps == (8192 if "cifar10" in path.stem else 1024)
