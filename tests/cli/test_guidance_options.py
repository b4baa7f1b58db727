"""Guidance and solvers on the command line: `sample` and `evaluate`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import progdistill
import tiny
import tiny_models
from progdistill.cli import main
from progdistill.data import open_dataset
from progdistill.evaluation import QualityMeter
from progdistill.metrics import PixelFeatures
from progdistill.sampling.solvers import fit_solver
from progdistill.training.guidance import guided_student


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Folders `teacher`, which can be guided, and `student`, which takes a scale."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    teacher = tiny_models.model(classes=3)
    teacher = teacher.with_network(teacher.network, num_classes=2, unconditional_label=2)
    student = guided_student(teacher, (1.0, 4.0))
    torch.nn.init.normal_(student.network.guidance_embedding.projection.weight)
    progdistill.save(teacher, "teacher")
    progdistill.save(student.with_network(student.network, valid_steps=(2,)), "student")
    np.savez("data.npz", images=tiny.IMAGES, labels=np.arange(24) % 2)
    yield tmp_path
    torch.set_num_threads(before)


def command(*more, model="teacher", steps=2, output="images.npz"):
    words = ["sample", "--model", model, "--steps", steps, "--num-images", 5, "--device", "cpu", "--output", output]
    return main([str(word) for word in (*words, *more)])


def pixels(file="images.npz"):
    with np.load(file) as arrays:
        return torch.from_numpy(arrays["arr_0"])


def expected(model, **options):
    labels = torch.arange(5) % 2
    return progdistill.sample(
        progdistill.load(model), seed=torch.arange(5), class_labels=labels, output_type="uint8", **options
    )


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_images_of_a_scale(model, capsys):
    assert command("--guidance-scale", 3, model=model) == 0
    assert torch.equal(pixels(), expected(model, steps=2, guidance_scale=3.0))
    assert not torch.equal(pixels(), expected(model, steps=2, guidance_scale=1.0))
    assert command("--guidance-scale", 2, model=model) == 2
    assert "guidance_scale was 3.0, is 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(("solver", "grid", "calls"), [("heun", "logsnr", 3), ("dpmpp_2m", "trailing", 2)])
def test_images_of_a_solver(solver, grid, calls, capsys):
    assert command("--solver", solver, "--grid", grid) == 0
    assert f"{solver}: {calls} network calls an image\n" in capsys.readouterr().out
    assert torch.equal(pixels(), expected("teacher", steps=2, solver=solver, grid=grid))
    assert command("--solver", "ddim", "--grid", grid) == 2
    assert re.search(f"solver was '{solver}', is 'ddim'", capsys.readouterr().err)
    assert command("--solver", solver, "--grid", grid, "--guidance-scale", 2, output="guided.npz") == 0
    assert f"{calls} network calls an image, twice that for the guidance" in capsys.readouterr().out


def test_images_of_a_fitted_solver(capsys):
    unlabelled = tiny_models.model()
    fitted = fit_solver(unlabelled, solver="ddim", steps=2, scale=2, batch_size=4)
    fitted.save("fitted.json")
    assert command("--solver", "fitted.json") == 0
    assert "fitted.json: 2 network calls an image" in capsys.readouterr().out
    assert torch.equal(pixels(), expected("teacher", steps=2, solver=fitted))
    fit_solver(unlabelled, solver="ddim", steps=2, scale=4, batch_size=4).save("fitted.json")
    assert command("--solver", "fitted.json") == 2, "the numbers of the file count, not its name"
    assert command("--solver", "fitted.json", "--steps", 3) == 2
    assert "fitted for 2 steps; pass --steps 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("student", (), "distilled for guidance scales 1 to 4; pass guidance_scale"),
        ("student", ("--guidance-scale", 5), "this model takes 1 to 4"),
        ("student", ("--guidance-scale", 2, "--solver", "heun"), "student was distilled for DDIM"),
        ("teacher", ("--guidance-scale", 0.5), "1 (none) and above"),
        ("teacher", ("--solver", "hein"), "solver is 'hein'; use one of ddim"),
        ("teacher", ("--solver", "heun", "--grid", "square"), "square"),
        ("teacher", ("--solver", "heun", "--sampler", "stochastic"), "give one of them"),
        ("teacher", ("--solver", "heun", "--mixed-precision", "bf16"), "computes in float32"),
        ("teacher", ("--grid", "logsnr"), "is for a --solver by name"),
        ("teacher", ("--solver", "none.json"), "none.json"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(model, more, message, capsys, place):
    before = sorted(place.rglob("*"))
    assert command(*more, model=model) == 2
    assert message in capsys.readouterr().err and sorted(place.rglob("*")) == before


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_figures_of_a_scale(model, capsys):
    words = ["evaluate", "--model", model, "--data", "data.npz", "--features", "pixels", "--steps", "2"]
    words += ["--num-images", "20", "--seeds", "1", "--per-class"]
    assert main([*words, "--guidance-scale", "3", "--output", "figures.json"]) == 0
    figures = json.loads(Path("figures.json").read_text())
    assert figures["guidance_scale"] == 3
    images = progdistill.sample(
        progdistill.load(model),
        2,
        seed=torch.arange(20),
        class_labels=torch.arange(20) % 2,
        guidance_scale=3.0,
        output_type="uint8",
    )
    meter = QualityMeter(PixelFeatures(), open_dataset("data.npz"), num_images=20, seeds=1)
    distance = meter.distance(images.movedim(-1, 1))
    assert figures["steps"]["2"]["frechet"]["mean"] == pytest.approx(distance, rel=1e-6)
    scales = torch.full((20,), 3.0)
    assert meter.measure(progdistill.load(model), 2, guidance_scale=scales).mean == pytest.approx(distance, rel=1e-6)
    other = meter.measure(progdistill.load(model), 2, guidance_scale=1.0).mean
    assert other != pytest.approx(distance, rel=1e-4)


def test_a_student_is_not_measured_without_a_scale(capsys):
    words = ["evaluate", "--data", "data.npz", "--features", "pixels", "--num-images", "4"]
    assert main([*words, "--model", "student"]) == 2
    assert "pass guidance_scale" in capsys.readouterr().err
    assert main([*words, "--images", "data.npz", "--guidance-scale", "2"]) == 2
    assert "leave it out with --images" in capsys.readouterr().err
