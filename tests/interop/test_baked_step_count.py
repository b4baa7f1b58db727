"""A student for several step counts that is told the number, with one fixed: the same images, in diffusers too."""

import pytest
import torch

from interop import models
from progdistill import sample
from progdistill.cli import main
from progdistill.interop import baked_step_count, load, save


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def told():
    return models.denoiser(network=models.unet(step_embed_dim=16), step_conditioned=True, valid_steps=(4, 2))


def images(model, steps):
    return sample(model, steps, batch_size=3, generator=torch.Generator().manual_seed(7), output_type="np")


def test_the_fixed_count_samples_as_before():
    model = told()
    fixed = baked_step_count(model, 2)
    assert not fixed.step_conditioned and fixed.valid_steps == (2,)
    assert abs(images(fixed, 2) - images(model, 2)).max() < 1e-6
    other = fixed.with_network(fixed.network, valid_steps=None)
    assert abs(images(other, 4) - images(model, 4)).max() > 1e-3, "the number does not matter"
    again = load(save(fixed, "fixed"))
    assert (images(again, 2) == images(fixed, 2)).all()


def test_diffusers_draws_the_images_of_that_count(capsys):
    diffusers = pytest.importorskip("diffusers")
    model = told()
    save(model, "student")
    assert main(["export", "--format", "diffusers", "--model", "student", "--output", "all"]) == 2
    assert "--steps N` writes one of them into the weights" in capsys.readouterr().err
    given = ["--format", "diffusers", "--steps", "4", "--model", "student", "--output", "four"]
    assert main(["export", *given]) == 0
    pipeline = diffusers.DiffusionPipeline.from_pretrained("four", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    theirs = pipeline(batch_size=3, num_inference_steps=4, generator=generator, output_type="np").images
    assert abs(theirs - images(model, 4)).max() < 1e-5


def test_what_cannot_be_fixed_says_so():
    with pytest.raises(ValueError, match="steps is 3; this model was trained for 4, 2"):
        baked_step_count(told(), 3)
    with pytest.raises(ValueError, match="told no number of steps"):
        baked_step_count(models.denoiser(), 1)
