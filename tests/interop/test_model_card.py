"""The card of a saved model: what it says is recorded, what it tells to do works, and it tells nothing else."""

import re

import pytest
import torch
import yaml

from interop import models
from progdistill.core import CosineSchedule, TableSchedule, TimeMap
from progdistill.interop import export_diffusers, save

LINEAR = TableSchedule.from_diffusers({})
TEACHERS_TIMES = TimeMap(LINEAR, scale=1000.0, offset=-1.0, minimum=0.0, maximum=999.0)
TEACHER = {"source": "google/ddpm-cifar10-32", "revision": "abc"}
CONVERTED = {
    "recipe": "convert",
    "from": "epsilon",
    "to": "v_prediction",
    "updates": 300,
    "sampling_steps": 64,
    "conversion_distance": 0.01234,
    "conversion_distance_error": 0.00056,
    "teacher": TEACHER,
}
DISTILLED = {
    "recipe": "distill",
    "steps": 4,
    "teacher_steps": 8,
    "updates": 12345,
    "seconds": 67.8,
    "data": "parquet cifar10.parquet",
    "weighting": "truncated_snr",
    "student_distance": 0.0789,
    "student_distance_error": 0.0012,
    "teacher_distance": 0.345,
    "teacher_distance_error": 0.006,
    "teacher": CONVERTED,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def card(folder):
    """(front matter, text)."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def exported(tmp_path, **description):
    arguments = {name: description.pop(name) for name in ("repo_id", "dtype") if name in description}
    return card(export_diffusers(models.denoiser(**description), tmp_path / "model", verify=False, **arguments).path)


def test_everything_that_is_recorded(tmp_path):
    front, text = exported(
        tmp_path,
        schedule=CosineSchedule(-10.118, 9.21),
        time_map=TEACHERS_TIMES,
        valid_steps=(4,),
        provenance=DISTILLED,
        repo_id="somebody/few-steps",
        dtype=torch.float16,
    )
    assert front == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "unconditional-image-generation", "progressive-distillation"],
        "license": "unknown",
        "base_model": "google/ddpm-cifar10-32",
    }
    assert "# Diffusion model in 4 steps: parquet cifar10.parquet\n" in text
    assert "First teacher: google/ddpm\\-cifar10\\-32\n" in text and "stored as float16" in text
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    head, _, loaded, converted, distilled = ({} | dict(zip(table[0], row, strict=True)) for row in table)
    assert "loss" not in head and "last loss" not in head
    assert loaded == {**dict.fromkeys(head, ""), "": "as it was found"}
    assert converted[""] == "conversion, epsilon to v\\_prediction" and converted["updates"] == "300"
    assert converted["distance to the teacher"] == "0.0123 ± 0.00056"
    assert distilled == {
        "": "distillation",
        "steps": "4",
        "updates": "12,345",
        "seconds": "67.8",
        "weighting": "truncated\\_snr",
        "teacher's steps": "8",
        "distance to the teacher": "0.0789 ± 0.0012",
        "teacher in as few steps": "0.345 ± 0.006",
    }


def test_what_is_not_recorded_is_not_said(tmp_path):
    front, text = exported(tmp_path, valid_steps=(2,), provenance={"recipe": "distill", "seconds": None, "loss": True})
    assert "base_model" not in front
    for word in ("Data", "teacher:", "distance", "|", "None", "True"):
        assert word not in text.replace("None is stated", ""), word
    _, text = exported(tmp_path)
    assert "progressive-distillation" not in text and "student" not in text.lower()


@pytest.mark.parametrize("repo_id", [None, "somebody/few-steps"])
@pytest.mark.parametrize("classes", [None, 3])
def test_its_lines_run_as_they_stand(tmp_path, monkeypatch, classes, repo_id):
    pytest.importorskip("diffusers")
    network = models.unet(num_class_embeds=classes)
    model = {"network": network, "num_classes": classes, "valid_steps": (8, 2), "provenance": DISTILLED}
    front, text = exported(tmp_path, repo_id=repo_id, **model)
    assert ("class-conditional" if classes else "unconditional-image-generation") in front["tags"]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(code.splitlines()) == 2 and f'"{repo_id or "."}"' in code
    monkeypatch.chdir(tmp_path / "model")
    names = {}
    exec(code.replace(f'"{repo_id}"', '"."'), names)
    assert len(names["images"]) == (classes or 4) and names["images"][0].size == (8, 8)


def test_the_hub_reads_it(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    exported(tmp_path, valid_steps=(4,), provenance=DISTILLED)
    read = hub.ModelCard.load(tmp_path / "model" / "README.md")
    assert read.data.license == "unknown" and read.data.library_name == "diffusers"


def test_step_counts_and_why_no_others(tmp_path):
    _, text = exported(tmp_path, valid_steps=(8, 4))
    assert "`num_inference_steps`: 4 or 8, nothing else" in text
    assert "default is 50, and 50 does not divide the schedule's 1024 levels" in text
    assert "goes down 20 levels from steps that lie 20.48 apart" in text
    _, text = exported(tmp_path, valid_steps=(1,), network=models.unet(num_class_embeds=3), num_classes=3)
    assert "`num_inference_steps`: 1, nothing else" in text and "default" not in text.split("* The scheduler")[0]
    _, text = exported(tmp_path, schedule=LINEAR, time_map=TEACHERS_TIMES)
    assert "a divisor of 1000 (1, 2, 4, 5, 8, 10, 20" in text and "num_inference_steps=50" in text
    assert "divide by zero" not in text
    _, text = exported(tmp_path)
    assert "a divisor of 1024 (1, 2, 4" in text and "Not the pipeline's default" in text and "divide by zero" in text


def test_what_it_says_of_other_schedulers(tmp_path):
    """With noise or other levels mixed in they draw other images, or none."""
    diffusers = pytest.importorskip("diffusers")
    folder = export_diffusers(models.denoiser(valid_steps=(4,)), tmp_path / "model").path
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config

    def images(**arguments):
        generator = torch.Generator().manual_seed(0)
        drawn = pipeline(batch_size=2, num_inference_steps=4, generator=generator, output_type="np", **arguments)
        return torch.from_numpy(drawn.images)

    right = images()
    assert not (images(eta=0.5) - right).abs().max() < 0.05
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(4)
        z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in scheduler.timesteps:
                z = scheduler.step(pipeline.unet(z, t).sample, t, z).prev_sample
        theirs = (z / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        assert not (theirs - right).abs().max() < 0.005, name


HOSTILE = "`x` | <script>alert(1)</script> [a](http://evil) **b**\n# title\n---\n$y$ {{z}}"


def test_values_of_the_user_mean_nothing(tmp_path):
    front, text = exported(tmp_path, valid_steps=(2,), provenance={**DISTILLED, "data": HOSTILE, "recipe": HOSTILE})
    assert set(front) == {"library_name", "pipeline_tag", "tags", "license", "base_model"}
    assert "<script" not in text and "\n# title" not in text and "](http://evil" not in text.replace("\\", "@")
    assert len(re.findall("^# ", text, flags=re.M)) == 1
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/alice/my data/cifar10.parquet", "cifar10.parquet"),
        ("image folder /home/alice/my data/photos", "image folder photos"),
        ("zip archive C:\\Users\\alice\\photos.zip", "zip archive photos.zip"),
        ("~/alice/photos/", "photos"),
        ("../alice/photos", "photos"),
        ("'/home/alice/photos', split 'train'", "'photos', split 'train'"),
        ("/alice.npz", "alice.npz"),
        ("file:///home/alice/photos", "file:photos"),
        ("photos/train", "photos/train"),
        ("hf://somebody/cifar10", "hf://somebody/cifar10"),
        ("https://alice:secret@host/photos.zip?token=alice", "https://host/photos.zip"),
    ],
)
def test_folders_of_this_machine_are_nobodys_business(tmp_path, name, shown):
    _, text = exported(tmp_path, valid_steps=(2,), provenance={"recipe": "distill", "data": name, "steps": 2})
    (line,) = re.findall(r"^\* Data: (.*)$", text, flags=re.M)
    assert line.replace("\\", "") == shown
    assert "/home" not in text and "Users" not in text and "secret" not in text


def test_a_card_of_ones_own_stays(tmp_path):
    folder = save(models.denoiser(valid_steps=(4,)), tmp_path / "model")
    ours = (folder / "README.md").read_text()
    save(models.denoiser(valid_steps=(2,)), folder)
    replaced = (folder / "README.md").read_text()
    assert "4, nothing else" in ours and "2, nothing else" in replaced
    mine = "".join(line for line in replaced.splitlines(True) if "Written by progdistill" not in line) + "And mine.\n"
    (folder / "README.md").write_text(mine)
    export_diffusers(models.denoiser(valid_steps=(8,)), folder, verify=False)
    assert (folder / "README.md").read_text() == mine


def test_what_diffusers_cannot_sample(tmp_path):
    network = models.unet(out_channels=6)
    model = models.denoiser(network=network, prediction_type="both", valid_steps=(4,), provenance=DISTILLED)
    front, text = card(save(model, tmp_path / "model"))
    assert front["library_name"] == "progdistill" and "diffusers" not in front["tags"]
    assert "two-headed" in text and "progdistill convert" in text and "DiffusionPipeline" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names = {}
    exec(code.replace('"."', repr(str(tmp_path / "model"))), names)
    assert names["images"][0].size == (8, 8)
