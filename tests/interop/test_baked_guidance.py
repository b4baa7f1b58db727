"""A student that takes a guidance scale, with one scale fixed: the same images everywhere, diffusers included."""

import json
from pathlib import Path

import pytest
import torch

from interop import models
from progdistill import sample
from progdistill.cli import main
from progdistill.core import TableSchedule, TimeMap
from progdistill.interop import baked_guidance, export_diffusers, load, save
from progdistill.sampling import UnrolledSampler

LABELS, SCALE = [3, 9, 0], 2.5
LINEAR = TableSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
TIMES = {"own": {}, "teacher's": {"time_map": TimeMap(LINEAR, scale=1000.0, offset=-1.0, minimum=0.0, maximum=999.0)}}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def guided(**description):
    network = models.unet(num_class_embeds=11, guidance_embed_dim=16)
    return models.denoiser(
        network=network, num_classes=10, guidance_range=(1.0, 4.0), **{"valid_steps": (4, 2, 1), **description}
    )


def images(model, steps, **arguments):
    generator = torch.Generator().manual_seed(7)
    return sample(model, steps, generator=generator, class_labels=LABELS, output_type="np", **arguments)


@pytest.mark.parametrize("times", TIMES)
def test_diffusers_draws_the_images_of_that_scale(times, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = guided(**TIMES[times])
    found = export_diffusers(baked_guidance(model, SCALE), "out")
    assert max(found.deviations.values()) < 1e-5
    pipeline = diffusers.DiffusionPipeline.from_pretrained("out", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    for steps in (1, 4):
        generator = torch.Generator().manual_seed(7)
        theirs = pipeline(
            batch_size=3, num_inference_steps=steps, class_labels=LABELS, generator=generator, output_type="np"
        ).images
        ours = images(model, steps, guidance_scale=SCALE)
        assert abs(theirs - ours).max() < 1e-5
        assert abs(ours - images(model, steps, guidance_scale=1.0)).max() > 1e-2, "the scale does not matter"


def test_a_fixed_scale_is_no_input_any_more():
    model = guided()
    fixed = baked_guidance(model, SCALE)
    assert fixed.guidance_range is None and fixed.provenance["guidance_scale"] == SCALE and model.provenance == {}
    torch.testing.assert_close(images(fixed, 2), images(model, 2, guidance_scale=SCALE), rtol=0, atol=1e-6)
    again = load(save(fixed, "fixed"))
    torch.testing.assert_close(images(again, 2), images(fixed, 2), rtol=0, atol=0)
    assert "scale 2.5, fixed in the weights" in Path("fixed/README.md").read_text()
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    unrolled = UnrolledSampler(fixed, 2)(noise, torch.tensor(LABELS)) / 2 + 0.5
    expected = torch.from_numpy(images(model, 2, guidance_scale=SCALE)).movedim(-1, 1)
    torch.testing.assert_close(unrolled, expected, rtol=0, atol=1e-5)


def test_without_a_fixed_scale_every_format_refuses_with_that_advice():
    model = guided()
    with pytest.raises(ValueError, match="export --guidance-scale S"):
        UnrolledSampler(model, 1)
    with pytest.raises(ValueError, match=r"takes a guidance scale \(1 to 4\).*--guidance-scale S"):
        export_diffusers(model, "out")
    save(model, "student")
    assert not Path("student/model_index.json").exists()
    manifest = json.loads(Path("student/progdistill.json").read_text())
    assert manifest["guidance_range"] == [1, 4] and "guidance scale" in manifest["diffusers"]["reason"]
    card = Path("student/README.md").read_text()
    assert "1 to 4 (1: none)" in card and "guidance_scale=4)" in card
    for wrong in (0.5, 4.5, float("nan")):
        with pytest.raises(ValueError, match="this model takes 1 to 4"):
            baked_guidance(model, wrong)
    guidable = models.denoiser(network=models.unet(num_class_embeds=11), num_classes=10, unconditional_label=10)
    with pytest.raises(ValueError, match="is guided by two network calls a step"):
        baked_guidance(guidable, 2.0)
    with pytest.raises(ValueError, match="cannot be guided"):
        baked_guidance(models.denoiser(), 2.0)


def test_the_command(capsys):
    save(guided(valid_steps=(2,)), "steps-2")
    save(guided(valid_steps=(1,)), "student", students={2: "../steps-2"})
    export = ["export", "--model", "student", "--guidance-scale", "2.5"]
    assert main([*export, "--format", "torch", "--steps", "2", "--output", "a.pt2"]) == 0
    assert main([*export, "--format", "diffusers", "--output", "a"]) == 0
    assert load("a").valid_steps == (1,)
    assert main([*export, "--format", "diffusers", "--steps", "2", "--output", "b", "--no-verify"]) == 0
    assert load("b").valid_steps == (2,)
    capsys.readouterr()
    assert main(["export", "--model", "student", "--output", "a.onnx"]) != 0
    assert "--guidance-scale" in capsys.readouterr().err
