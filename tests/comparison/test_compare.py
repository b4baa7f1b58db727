"""`progdistill compare` on a tiny teacher: every field, figures that are those of `evaluate`, nothing trained twice."""

import importlib
import json
from xml.etree import ElementTree

import pytest
import torch

import progdistill
import tiny
from progdistill.cli.compare import with_flags
from progdistill.cli.main import main
from progdistill.comparison import CompareConfig, compare
from progdistill.data import open_dataset, to_uint8
from progdistill.evaluation import QualityMeter
from progdistill.metrics import load_classifier
from progdistill.sampling import generate
from progdistill.sampling.solvers import FittedSolver, chosen_solver
from progdistill.training import distill, train
from small_comparisons import METHODS, TRAINING, settings


def test_every_method_has_its_calls_seconds_and_figures(result):
    methods = result["methods"]
    assert list(methods) == METHODS and result["metrics"] == ["frechet"]
    calls = {name: [point["network_calls"] for point in entry["steps"].values()] for name, entry in methods.items()}
    # Heun calls twice a step, but once in the last one, and once in the first one from pure noise.
    assert calls["ddim"] == [1, 2, 3] and calls["heun"] == [1, 2, 4] and calls["d_ode"] == [2, 3]
    assert calls["sfd"] == calls["pd"] == [1, 2]
    for name, entry in methods.items():
        assert entry["trains"] == (name in ("d_ode", "sfd", "pd"))
        for point in entry["steps"].values():
            assert (point["training_seconds"] > 0) == entry["trains"]
            figure = point["figures"]["frechet"]
            assert len(figure["values"]) == 2 and figure["mean"] > 0 and figure["deviation"] > 0
    assert "nothing to correct" in methods["d_ode"]["left_out"]["1"]
    assert methods["sfd"]["left_out"] == {"3": "students are trained for up to 2 steps (sfd_max_steps)"}
    assert methods["pd"]["left_out"] == {"3": "its students take 1, 2 steps"}
    assert methods["pd"]["steps"]["1"]["training_seconds"] > methods["pd"]["steps"]["2"]["training_seconds"]


def test_the_seconds_of_pd_are_those_of_the_rounds_so_far(folder, result):
    lines = [json.loads(line) for line in (folder / "out" / "pd" / "metrics.jsonl").read_text().splitlines()]
    took = {line["steps"]: line["seconds"] for line in lines if line["event"] == "round_end"}
    steps = result["methods"]["pd"]["steps"]
    assert steps["2"]["training_seconds"] == pytest.approx(took[2], abs=1e-3)
    assert steps["1"]["training_seconds"] == pytest.approx(took[2] + took[1], abs=2e-3)


def test_figures_are_those_of_evaluate(folder, result):
    shared = ["--data", str(folder / "images.npz"), "--features", str(folder / "out" / "classifier.safetensors")]
    shared += [*["--num-images", "6", "--seeds", "2", "--device", "cpu", "--output"], str(folder / "evaluated.json")]
    models = {("ddim", 1): "teacher", ("ddim", 3): "teacher", ("pd", 2): "out/pd", ("sfd", 2): "out/sfd/steps-0002"}
    for (method, steps), model in models.items():
        assert main(["evaluate", "--model", str(folder / model), "--steps", str(steps), *shared]) == 0
        expected = json.loads((folder / "evaluated.json").read_text())["steps"][str(steps)]["frechet"]["values"]
        found = result["methods"][method]["steps"][str(steps)]["figures"]["frechet"]["values"]
        assert found == pytest.approx(expected, rel=1e-4), method


def test_solvers_are_measured_on_the_same_noise(folder, result):
    teacher = progdistill.load(folder / "teacher")
    dataset = open_dataset(str(folder / "images.npz"))
    meter = QualityMeter(load_classifier(folder / "out" / "classifier.safetensors"), dataset, num_images=6, seeds=2)
    fitted = FittedSolver.load(folder / "out" / "d_ode" / "ddim-trailing-3.json")
    solvers = {"dpmpp_3m@logsnr": chosen_solver(teacher, "dpmpp_3m", 3, "logsnr"), "d_ode": fitted}
    for method, solver in solvers.items():
        images = generate(teacher, 3, seeds=torch.arange(6, 12), solver=solver)
        values = result["methods"][method]["steps"]["3"]["figures"]["frechet"]["values"]
        assert values[1] == pytest.approx(meter.distance(to_uint8(images)), rel=1e-4)


def test_the_report_has_a_table_two_charts_and_a_picture(folder):
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 and "data:image/png;base64," in page
    assert "4 calls" in page and "training seconds" in page and "d_ode leaves out 1 steps" in page
    assert (folder / "out" / "samples.png").stat().st_size > 1000
    for against in ("network-calls", "training-seconds"):
        chart = (folder / "out" / f"frechet-{against}.svg").read_text()
        assert chart.strip() in page and "dpmpp_3m@logsnr" in ElementTree.fromstring(chart).itertext()


def test_the_same_call_trains_nothing_again(folder, result, copy, monkeypatch):
    kept = [*copy.glob("d_ode/*.json"), *copy.glob("sfd/*/*.jsonl"), *copy.glob("pd/students/*/progdistill.json")]
    before = {path: path.read_bytes() for path in kept}

    def refuse(*_, **__):
        raise AssertionError("trains again")

    monkeypatch.setattr("progdistill.comparison.trained.fit_solver", refuse)
    for recipe in ("finetune_trajectory", "distill"):  # by import: the room has functions of these names
        monkeypatch.setattr(importlib.import_module(f"progdistill.training.{recipe}"), "run_round", refuse)
    # Another method may join.
    again = compare(**settings(folder, output_dir=str(copy), methods=("ipndm", "d_ode", "sfd", "pd")))
    assert len(before) == 6 and before == {path: path.read_bytes() for path in kept}
    for name in ("d_ode", "sfd", "pd"):
        assert again["methods"][name] == result["methods"][name]
    assert list(again["methods"]["ipndm"]["steps"]) == ["1", "2", "3"]


def test_a_solver_that_was_fitted_otherwise_is_refused_and_kept(folder, copy):
    path = copy / "d_ode" / "ddim-trailing-2.json"
    before = path.read_text()
    wanted = settings(folder, output_dir=str(copy), methods=("d_ode",), d_ode_batch_size=5)
    with pytest.raises(ValueError, match="batch_size was 4, is 5; use the same settings"):
        compare(**wanted)
    assert path.read_text() == before
    compare(**wanted, overwrite=True)
    assert FittedSolver.load(path).provenance["batch_size"] == 5


def test_a_finished_distillation_serves_as_pd(folder, result, tmp_path):
    finished = str(folder / "out" / "pd")
    found = compare(**settings(folder, output_dir=str(tmp_path), methods=("pd",), pd=finished, steps=(2,)))
    assert found["methods"]["pd"]["steps"]["2"] == result["methods"]["pd"]["steps"]["2"]
    assert not (tmp_path / "pd").exists()


def test_students_of_this_teacher_alone_are_taken(folder, tmp_path):
    data = str(folder / "images.npz")
    other = train(data, str(tmp_path / "other"), network=tiny.NETWORK, max_train_steps=1, **TRAINING)
    distill(other, rounds=1, output_dir=str(tmp_path / "students"), updates_per_round=1, **TRAINING)
    own = settings(folder, output_dir=str(tmp_path), teacher=str(tmp_path / "other"), methods=("pd",), steps=(1,))
    assert compare(**own, pd=str(tmp_path / "students"))["methods"]["pd"]["steps"]["1"]["network_calls"] == 1
    with pytest.raises(ValueError, match="made of another teacher"):
        compare(**settings(folder, output_dir=str(tmp_path), methods=("pd",), pd=str(tmp_path / "students")))
    with pytest.raises(ValueError, match="holds a teacher"):
        compare(**settings(folder, output_dir=str(tmp_path), methods=("pd",), pd=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"a student for \(1,\) steps"):
        compare(**settings(folder, output_dir=str(tmp_path), teacher=str(tmp_path / "students")))


def test_wrong_arguments_name_what_is_allowed(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", str(folder / "teacher"), "--methods", "ddim,magic", "--steps", "1"])
    assert end.value.code == 2 and "unknown method 'magic'; use d_ode, sfd, pd" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown method 'magic'; use d_ode, sfd, pd or a solver: ddim, euler"):
        CompareConfig(methods=("magic",))
    with pytest.raises(ValueError, match=r"unknown grid 'round'; use one of trailing"):
        CompareConfig(methods=("ddim@round",))
    with pytest.raises(ValueError, match="sfd has steps of its own"):
        CompareConfig(methods=("sfd@logsnr",))
    with pytest.raises(
        ValueError, match=r"no method can do any of the steps \(3,\) \(pd: its students take 1, 2 steps"
    ):
        compare(**settings(folder, output_dir=str(tmp_path / "none"), methods=("pd",), steps=(3,)))
    assert not (tmp_path / "none").exists()


def test_a_method_that_can_do_nothing_is_left_out_of_figures_and_charts(folder, copy, measured):
    found = compare(**settings(folder, output_dir=str(copy), methods=("ddim", "pd"), steps=(3,)))
    assert found["methods"]["pd"]["steps"] == {} and list(found["methods"]["pd"]["left_out"]) == ["3"]
    assert "pd leaves out 3 steps: its students take 1, 2 steps" in (copy / "report.html").read_text()


def test_lists_may_have_commas_or_spaces():
    expected = ["--teacher", "t", "--methods", "ddim", "pd", "--steps", "1", "2", "4", "--data", "a,b"]
    assert with_flags(["t", "--methods", "ddim,pd", "--steps=1,2", "4", "--data", "a,b"]) == expected
