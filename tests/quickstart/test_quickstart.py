"""The main job with few updates: what it writes, that it resumes, and that its numbers are those of its models."""

import json

import pytest
import torch

import progdistill
from progdistill.data import open_dataset, to_uint8
from progdistill.evaluation import QualityMeter
from progdistill.metrics import load_classifier
from progdistill.quickstart import QuickstartConfig, quickstart
from progdistill.sampling import generate

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart") / "out"
    settings = {"teacher_updates": 40, "updates_per_round": 5, "rounds": 3, "evaluation_images": 70}
    metrics = quickstart(output_dir=str(output), progress=False, device="cpu", evaluation_seeds=2, **settings)
    return output, settings, metrics


def test_files(finished):
    output, _, metrics = finished
    assert json.loads((output / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 3 and "data:image/png;base64," in page and "http://" not in page.split("<svg")[0]
    assert (output / "samples.png").stat().st_size > 1000
    for steps in (4, 2, 1):
        assert (output / "students" / f"steps-{steps:04d}" / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_metrics_name_every_step_count_and_every_stage(finished):
    metrics = finished[2]
    assert set(metrics["steps"]) == {"1", "2", "4", "8"}
    for steps, entry in metrics["steps"].items():
        assert entry["teacher_ddim"]["mean"] > 0 and len(entry["teacher_ddim"]["values"]) == 2
        assert (entry["student"] is None) == (steps == "8")
    assert set(metrics["seconds"]) == {"classifier", "train", "distill", "evaluate", "total"}
    assert "not" not in metrics["features"] and "FID" not in metrics["features"]


def test_numbers_are_those_of_the_saved_models(finished):
    """A stranger who loads the folder measures the same distance."""
    output, _, metrics = finished
    dataset = open_dataset("digits")
    meter = QualityMeter(load_classifier(output / "classifier.safetensors"), dataset, num_images=70, seeds=2)
    student = progdistill.load(output)
    for steps in (1, 2):
        again = meter.distance(to_uint8(generate(student, steps, seeds=torch.arange(70))))
        assert again == pytest.approx(metrics["steps"][str(steps)]["student"]["values"][0], rel=1e-4)


def test_the_same_call_trains_nothing_again(finished):
    output, settings, metrics = finished
    before = (output / "metrics.jsonl").read_text()
    again = quickstart(output_dir=str(output), progress=False, device="cpu", evaluation_seeds=2, **settings)
    assert (output / "metrics.jsonl").read_text() == before
    assert again["seconds"]["train"] == metrics["seconds"]["train"]


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="rounds is 0; use a positive"):
        QuickstartConfig(rounds=0)
    with pytest.raises(ValueError, match="evaluation_images is 1"):
        QuickstartConfig(evaluation_images=1)
