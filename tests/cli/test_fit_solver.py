"""`progdistill fit-solver` on a tiny teacher."""

import torch

import tiny_models
from progdistill import sample
from progdistill.cli.main import main
from progdistill.interop import load, save
from progdistill.sampling.solvers import FittedSolver


def test_the_fitted_solver_lies_beside_the_model(tmp_path, capsys):
    save(tiny_models.model(), tmp_path / "teacher")
    given = ["--solver", "ddim", "--steps", "3", "--scale", "2", "--batch-size", "4", "--device", "cpu"]
    assert main(["fit-solver", "--model", str(tmp_path / "teacher"), *given]) == 0
    path = tmp_path / "teacher" / "solvers" / "ddim-3.json"
    assert "ddim in 3 steps (3 network calls), fitted in" in capsys.readouterr().out
    fitted = FittedSolver.load(path)
    assert len(fitted.kappas) == 3 and fitted.provenance["batch_size"] == 4
    model = load(tmp_path / "teacher")
    images = sample(model, 3, solver=fitted, output_type="pt")
    assert torch.isfinite(images).all() and not torch.equal(images, sample(model, 3, output_type="pt"))


def test_with_guidance_the_file_is_another(tmp_path, capsys):
    model = tiny_models.model(classes=3)
    save(model.with_network(model.network, num_classes=2, unconditional_label=2), tmp_path / "teacher")
    given = ["--steps", "3", "--scale", "2", "--batch-size", "4", "--device", "cpu"]
    for guided in ([], ["--guidance-scale", "2.5"]):
        assert main(["fit-solver", "--model", str(tmp_path / "teacher"), *given, *guided]) == 0
    assert "(3 network calls, twice that for the guidance)" in capsys.readouterr().out
    folder = tmp_path / "teacher" / "solvers"
    plain, guided = (FittedSolver.load(folder / name) for name in ("ddim-3.json", "ddim-3-guidance-2.5.json"))
    assert (plain.guidance_scale, guided.guidance_scale) == (None, 2.5) and plain.kappas != guided.kappas
    given = ["--model", str(tmp_path / "teacher"), "--steps", "3", "--num-images", "2", "--device", "cpu"]
    given += ["--solver", str(folder / "ddim-3-guidance-2.5.json"), "--output", str(tmp_path / "images.npz")]
    assert main(["sample", *given]) == 2
    assert "fitted at 2.5" in capsys.readouterr().err
    assert main(["sample", *given, "--guidance-scale", "2.5"]) == 0


def test_a_student_is_refused(tmp_path, capsys):
    save(tiny_models.model(valid_steps=(2,)), tmp_path / "student")
    assert main(["fit-solver", "--model", str(tmp_path / "student"), "--device", "cpu"]) == 2
    assert "fit a solver to its teacher" in capsys.readouterr().err
