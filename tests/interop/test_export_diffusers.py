"""What leaves for plain diffusers: the images there, what is refused, and what is on the disk when something fails."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interop import models
from progdistill.core import CosineSchedule, EDMSchedule, FlowMatchingSchedule, TableSchedule, TimeMap
from progdistill.interop import export_diffusers, load, save
from progdistill.sampling import sample

OLD_DIFFUSERS = "PROGDISTILL_OLD_DIFFUSERS_PYTHON"
SAMPLE = Path(__file__).with_name("sample_with_diffusers.py")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LABELS = [3, 9, 0]

LINEAR = TableSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
TEACHERS_TIMES = TimeMap(LINEAR, scale=1000.0, offset=-1.0, minimum=0.0, maximum=999.0)
TRUNCATED = CosineSchedule(-10.118, 9.210)
GOOGLE = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def halving(*, classes=None, architecture=None, **description):
    network = models.unet(num_class_embeds=classes, **(architecture or {}))
    return models.denoiser(
        network=network, num_classes=classes, **{"valid_steps": (8, 4, 2, 1), "provenance": {"zebra": 1}, **description}
    )


STUDENTS = {
    "own times": halving(),
    "own times, classes": halving(classes=10),
    "epsilon teacher's times": halving(architecture=GOOGLE, schedule=TRUNCATED, time_map=TEACHERS_TIMES),
    "epsilon teacher's times, classes": halving(classes=10, schedule=TRUNCATED, time_map=TEACHERS_TIMES),
    "epsilon teacher's times, pure noise": halving(time_map=TEACHERS_TIMES, prediction_type="sample"),
    "flow matching's times on EDM's grid": halving(
        schedule=EDMSchedule(), time_map=TimeMap(FlowMatchingSchedule(), scale=1000.0, offset=0.0)
    ),
    "thirds": halving(valid_steps=(27, 9, 3, 1)),
    "a table of 1000 levels in 16 steps": halving(schedule=LINEAR, time_map=TEACHERS_TIMES, valid_steps=(16, 1)),
}
NAMES = sorted(STUDENTS)
CASES = [(name, steps) for name in NAMES for steps in STUDENTS[name].valid_steps]


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def labels_of(model):
    return None if model.num_classes is None else LABELS


def our_images(model, steps):
    generator = torch.Generator().manual_seed(7)
    return sample(model, steps, batch_size=3, generator=generator, class_labels=labels_of(model), output_type="np")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with every student, and what the export says of each."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, {name: export_diffusers(model, folder / name, verify=False) for name, model in STUDENTS.items()}


def images_of_a_process(python, folder, place):
    """By name and steps, what a fresh process that imports only diffusers draws, and the version that it has."""
    jobs = [
        [str(folder / name), steps, labels_of(STUDENTS[name]), str(place / f"{name}-{steps}.npy")]
        for name, steps in CASES
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, str(SAMPLE), json.dumps(jobs)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {(name, steps): np.load(place / f"{name}-{steps}.npy") for name, steps in CASES}, done.stdout.strip()


@pytest.fixture(scope="module")
def theirs(exported, tmp_path_factory):
    pytest.importorskip("diffusers")
    return images_of_a_process(sys.executable, exported[0], tmp_path_factory.mktemp("images"))[0]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_a_process_with_diffusers_alone_draws_our_images(theirs, name, steps):
    ours = our_images(STUDENTS[name], steps)
    assert ((ours > 0) & (ours < 1)).mean() > 0.3, "saturated pixels would agree whatever happened"
    np.testing.assert_allclose(theirs[name, steps], ours, rtol=0, atol=1e-5)


@pytest.mark.skipif(not os.environ.get(OLD_DIFFUSERS), reason=f"set {OLD_DIFFUSERS} to a Python with diffusers 0.24")
def test_diffusers_of_2023_draws_our_images(exported, tmp_path):
    images, version = images_of_a_process(os.environ[OLD_DIFFUSERS], exported[0], tmp_path)
    assert version.startswith("0.24.")
    for (name, steps), theirs in images.items():
        np.testing.assert_allclose(theirs, our_images(STUDENTS[name], steps), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_read_back_is_the_same_model(exported, name):
    model, back = STUDENTS[name], load(exported[0] / name)
    assert (back.valid_steps, back.num_classes, back.provenance) == (model.valid_steps, model.num_classes, {"zebra": 1})
    assert back.schedule == model.schedule
    for steps in model.valid_steps:
        np.testing.assert_allclose(our_images(back, steps), our_images(model, steps), rtol=0, atol=1e-6)
    again = export_diffusers(back, exported[0] / "again", verify=False)
    assert content(again.path) == content(exported[0] / name)


def test_times_become_a_table_only_where_they_must(exported):
    for name, result in exported[1].items():
        config = json.loads((result.path / "unet/config.json").read_text())
        own = name.startswith("own times")
        assert config["time_embedding_type"] == ("positional" if own else "learned"), name
        assert own or config["num_train_timesteps"] == result.levels
    assert exported[1]["thirds"].levels == 999 and exported[1]["own times"].levels == 1024
    scheduler = {
        name: json.loads((exported[0] / name / "scheduler/scheduler_config.json").read_text()) for name in NAMES
    }
    for name, config in scheduler.items():
        last = np.cumprod(1 - np.array(config["trained_betas"]))[-1]
        assert config["rescale_betas_zero_snr"] == (last == 0), name
        assert config["timestep_spacing"] == "trailing" and config["clip_sample"] is False
    assert scheduler["own times"]["rescale_betas_zero_snr"]
    assert not scheduler["epsilon teacher's times"]["rescale_betas_zero_snr"]


def test_images_are_compared_before_the_folder_is_there(tmp_path):
    pytest.importorskip("diffusers")
    model = halving(classes=10, schedule=TRUNCATED, time_map=TEACHERS_TIMES)
    result = export_diffusers(model, tmp_path / "model")
    assert set(result.deviations) == {8, 4, 2, 1} and 0 < max(result.deviations.values()) < 1e-5
    before = content(tmp_path / "model")
    with pytest.raises(RuntimeError, match="steps deviate.*more than the tolerance of 1e-12; nothing was written"):
        export_diffusers(models.denoiser(seed=1), tmp_path / "model", tolerance=1e-12)
    assert content(tmp_path / "model") == before and [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("description", "compared"),
    [
        ({"valid_steps": (512, 64)}, {1, 16}),
        ({"valid_steps": None}, {1, 16}),
        # In one step its rounding is divided by alpha = 0.006.
        ({"valid_steps": None, "prediction_type": "epsilon", "schedule": LINEAR, "time_map": TEACHERS_TIMES}, {10}),
    ],
)
def test_few_images_are_compared(tmp_path, description, compared):
    pytest.importorskip("diffusers")
    assert set(export_diffusers(halving(**description), tmp_path / "model").deviations) == compared


def test_wrong_images_are_noticed(tmp_path, monkeypatch):
    """diffusers' default spacing of steps is another one."""
    pytest.importorskip("diffusers")
    saving = importlib.import_module("progdistill.interop.save")  # its function hides it
    right = saving.ddim_config
    monkeypatch.setattr(saving, "ddim_config", lambda model: {**right(model), "timestep_spacing": "leading"})
    with pytest.raises(RuntimeError, match="diffusers' images of 8 steps deviate"):
        export_diffusers(halving(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_without_diffusers(tmp_path):
    model = halving(schedule=TRUNCATED, time_map=TEACHERS_TIMES)
    save(model, tmp_path / "student")
    program = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from progdistill import export_diffusers, load\n"
        "print(export_diffusers(load('student'), 'exported').deviations)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n" and "diffusers is not installed" in done.stderr
    export_diffusers(model, tmp_path / "here", verify=False)
    assert content(tmp_path / "exported") == content(tmp_path / "here")


def test_float16(tmp_path):
    pytest.importorskip("diffusers")
    model = halving(schedule=TRUNCATED, time_map=TEACHERS_TIMES)
    result = export_diffusers(model, tmp_path / "model", dtype=torch.float16)
    assert 1e-5 < max(result.deviations.values()) < 2e-3
    with safe_open(result.path / WEIGHTS, "pt") as stored:
        dtypes = {name: stored.get_tensor(name).dtype for name in stored.keys()}  # noqa: SIM118 (no mapping)
    assert dtypes.pop("time_proj.weight") == torch.float32 and set(dtypes.values()) == {torch.float16}
    np.testing.assert_allclose(our_images(load(result.path), 4), our_images(model, 4), rtol=0, atol=2e-3)
    with torch.no_grad():
        model.network.conv_out.bias[0] = 70000
    with pytest.raises(ValueError, match="conv_out.bias.*float16; use dtype=torch.float32"):
        export_diffusers(model, tmp_path / "large", dtype=torch.float16)
    assert not (tmp_path / "large").exists()


TWO_HEADED = {"network": models.unet(out_channels=6), "prediction_type": "sample_epsilon"}
TABLE = {"network": models.unet(time_embedding_type="learned", num_train_timesteps=1000)}


@pytest.mark.parametrize(
    ("description", "arguments", "message"),
    [
        (TWO_HEADED, {}, "two-headed networks; `progdistill convert --teacher FOLDER.*same step counts"),
        ({"valid_steps": (2048, 1)}, {}, "of 2048 steps is another one"),
        ({"prediction_type": "epsilon"}, {}, "nothing at SNR 0"),
        ({"network": torch.nn.Conv2d(3, 3, 1)}, {}, "this network is a Conv2d.*EDM's preconditioning"),
        ({**TABLE, "time_map": TEACHERS_TIMES}, {}, "rows 0 to 999 of its own table"),
        ({}, {"dtype": torch.bfloat16}, "torch.bfloat16; use torch.float32 or torch.float16"),
        ({}, {"tolerance": 0.0}, "tolerance is 0.0"),
        ({}, {"repo_id": "no name"}, "repo_id is 'no name'; use a name on the hub"),
    ],
)
def test_what_is_refused(tmp_path, description, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_diffusers(models.denoiser(**description), tmp_path / "model", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_left_alone(tmp_path):
    model = halving(time_map=TEACHERS_TIMES, provenance={"data_source": "/home/somebody/images"})
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    result = export_diffusers(model, tmp_path / "model", verify=False)
    assert model.time_map == TEACHERS_TIMES and model.provenance == {"data_source": "/home/somebody/images"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.network.state_dict().items())
    assert not any(b"somebody" in data for data in content(result.path).values())
