"""sfd_ablation*.py: steps against the literal formula, the same training made twice, cells and the page."""

import itertools
import json
import math
from functools import partial

import pytest
import torch

import ablation
import progdistill
import sfd_ablation
from progdistill.metrics import train_classifier
from progdistill.sampling.latents import seeded_latents
from progdistill.training import TrajectoryConfig
from progdistill.training.trajectory_grid import followed_path
from random_model import random_model
from sfd_ablation_report import difference, page
from sfd_ablation_steps import distances_along, distances_of_one_step, fine_tuned, path_along

TRAINING = {"learning_rate": 1e-3, "train_batch_size": 8, "seed": 0}
Z = seeded_latents(torch.arange(16), (1, 8, 8))
FOUR = TrajectoryConfig(output_dir="", analytic_first_step=False, teacher_solver="ddim", teacher_substeps=2)
FIGURES = ("frechet", "frechet_followed")
DISTANCES = ("to_followed_before", "to_followed", "to_solution")


@pytest.fixture(scope="module")
def teacher():
    return random_model("digits8", "cpu").eval()


def ddim(model, z, start, end):
    """A step of the cosine schedule from x and epsilon, as they are defined."""
    phi, psi = math.pi / 2 * start, math.pi / 2 * end
    with torch.no_grad():
        v = model.raw(z.float(), torch.full((len(z),), phi, dtype=torch.float64)).double()
    x, epsilon = math.cos(phi) * z - math.sin(phi) * v, math.sin(phi) * z + math.cos(phi) * v
    return math.cos(psi) * x + math.sin(psi) * epsilon


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def rms(error):
    return float(error.square().mean().sqrt())


def test_distances_are_those_of_the_literal_steps(teacher):
    states = [Z.double()]
    for n in range(4):
        states.append(ddim(teacher, states[-1], 1 - n / 4, 1 - (n + 1) / 4))
    long_steps = [ddim(teacher, states[n], 1 - n / 4, 1 - (n + 2) / 4) for n in range(3)]
    fine = path_along(teacher, teacher.schedule.grid(4), 1, FOUR)
    found = distances_of_one_step(teacher, teacher, fine, 2, Z)
    assert found == pytest.approx([rms(long_steps[n] - states[n + 2]) for n in range(3)], abs=2e-5)
    two = path_along(teacher, teacher.schedule.grid(4), 2, FOUR)
    last = ddim(teacher, long_steps[0], 0.5, 0.0)
    expected = [rms(long_steps[0] - states[2]), rms(last - states[4])]
    assert distances_along(teacher, teacher, two, Z) == pytest.approx(expected, abs=2e-5)
    assert min(found + expected) > 1e-3


def test_training_at_a_timestamp_lowers_the_distance_there(teacher):
    path, fine = followed_path(teacher, 4, FOUR), path_along(teacher, teacher.schedule.grid(8), 1, FOUR)
    before = distances_of_one_step(teacher, teacher, fine, 2, Z)
    untouched = fine_tuned(teacher, path, iterations=0, **TRAINING)
    assert distances_of_one_step(untouched, teacher, fine, 2, Z) == before
    slowly = {**TRAINING, "learning_rate": 1e-4, "iterations": 10, "start": "teacher"}
    first, last = (
        distances_of_one_step(fine_tuned(teacher, path, trained={step}, **slowly), teacher, fine, 2, Z)
        for step in (0, 3)
    )
    assert first[0] < 0.8 * before[0] and last[6] < 0.8 * before[6]
    assert first[0] < last[0] and last[6] < first[6]


def test_the_loop_written_out_is_finetune_trajectory(teacher, tmp_path):
    settings = {"iterations": 4, "seed": 0, "learning_rate": 1e-3, "train_batch_size": 8, "device": "cpu"}
    student = progdistill.finetune_trajectory(teacher, steps=2, output_dir=str(tmp_path), progress=False, **settings)
    path = followed_path(teacher, 2, TrajectoryConfig(output_dir=""))
    own, other = (fine_tuned(teacher, path, iterations=4, start=start, **TRAINING) for start in ("own", "teacher"))
    moved = (weights(student) - weights(teacher)).norm()
    assert (weights(own) - weights(student)).norm() < 0.02 * moved
    assert (weights(other) - weights(student)).norm() > 0.1 * moved
    with pytest.raises(ValueError, match="own, teacher"):
        fine_tuned(teacher, path, iterations=1, start="elsewhere", **TRAINING)


def shown_figures(results):
    """Each figure of each cell is in the page: no two of them are equal here."""
    numbers, expected = itertools.count(1001), []
    for cell in results["cells"].values():
        for key in FIGURES:
            if key in cell:
                cell[key] |= {"mean": next(numbers), "deviation": next(numbers)}
                expected.append(f"{cell[key]['mean']:.1f} ± {cell[key]['deviation']:.1f}")
        for key in DISTANCES:
            if key in cell:
                cell[key][0] = next(numbers) / 1000
                expected.append(f"{cell[key][0]:.3f}")
        for key in ("along", "one_step"):
            if key in cell:
                cell[key] = [next(numbers) / 1e6 for _ in cell[key]]
                shown = cell[key] if key == "along" else cell[key][::2]
                expected += [f"{1e3 * distance:.3g}" for distance in shown]
    text = page(results)
    assert len(expected) > 80 and [figure for figure in expected if f">{figure}<" not in text] == []


def test_cells_are_computed_once_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "train_classifier", partial(train_classifier, max_updates=2))
    monkeypatch.setattr(sfd_ablation, "COMPARED", 8)
    monkeypatch.setitem(sfd_ablation.STUDENT, "train_batch_size", 4)
    output, report = tmp_path / "found.json", tmp_path / "page.html"
    words = ["--output", str(output), "--models", str(tmp_path / "models"), "--report", str(report)]
    words += ["--teacher-updates", "2", "--images", "8", "--only", "student/default", "student/substeps/2"]
    words += ["timestamp/", "timestamp-polynomial/2"]
    sfd_ablation.main([*words, "--iterations", "1"])
    written, shown = output.read_bytes(), report.read_text()
    results = json.loads(written)
    cells = results["cells"]
    assert shown == page(results)
    assert {f"timestamp/{name}/0" for name in ("none", "0", "1", "2", "3", "all")} < set(cells)
    assert str(tmp_path) not in written.decode() and "src=" not in shown and "href=" not in shown
    shown_figures(results)
    edm = cells["timestamp-polynomial/2/0"]["times"]
    sigmas = [math.tan(math.pi / 2 * time) for time in edm[::4]]
    assert sigmas == pytest.approx([80, 17.5278, 2.5152, 0.1698], rel=2e-3)  # of rho 7 and sigma_min 0.002
    # A student's settings are those of its cell, and what it follows is measured as it is followed.
    default, coarse = (cells[f"student/{name}/0"] for name in ("default", "substeps/2"))
    assert (default["teacher_calls"], coarse["teacher_calls"], coarse["network_calls"]) == (12, 6, 2)

    def refuse(*_, **__):
        raise AssertionError("a cell was computed again")

    monkeypatch.setattr(sfd_ablation.SeedBench, "student", refuse)
    monkeypatch.setattr(sfd_ablation.SeedBench, "timestamps", refuse)
    sfd_ablation.main([*words, "--iterations", "1"])
    assert output.read_bytes() == written
    with pytest.raises(SystemExit, match="iterations"):
        sfd_ablation.main([*words, "--iterations", "2"])
    assert output.read_bytes() == written
    capsys.readouterr()


def test_differences_are_of_equal_training_seeds_and_image_seeds():
    values = {"default/1": [0.0, 10.0, 20.0], "default/0": [5.0, 5.0, 5.0], "loss/l2/0": [6.0, 7.0, 8.0]}
    values["loss/l2/1"] = [1.0, 11.0, 21.0]
    cells = {f"student/{name}": {"frechet": {"values": own}} for name, own in values.items()}
    assert difference(cells, "loss/l2") == f"+2.0 ± {1 / math.sqrt(3):.1f} / +1.0 ± 0.0"


def test_an_unfinished_output_has_a_page():
    settings = {"student_steps": 2, "iterations": 1, "teacher_updates": 1, "images": 1, "compared": 1}
    results = {"settings": {**settings, "student": sfd_ablation.STUDENT}, "machine": {"processor": "", "torch": ""}}
    assert "Quality by cell" not in page({**results, "cells": {}})
