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


def test_a_student_is_refused(tmp_path, capsys):
    save(tiny_models.model(valid_steps=(2,)), tmp_path / "student")
    assert main(["fit-solver", "--model", str(tmp_path / "student"), "--device", "cpu"]) == 2
    assert "fit a solver to its teacher" in capsys.readouterr().err
