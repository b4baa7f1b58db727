"""The ablations of Salimans & Ho 2022 on the digits: Table 1, appendix F and appendix I.

    python benchmarks/ablations/ablation.py table1 appendix_f appendix_i --seeds 0 1 --output ablation-digits.json

Table 1: four predictions, three weightings, sampled with DDIM and with the stochastic sampler (gamma 0.5), none of them
distilled; logSNR from -20 to 20 and x clipped to [-1, 1] at each step, as in the released code: without the first an
epsilon network has no finite loss at t = 1, without the second no use, for its x there is off by a factor of e^10.
Appendix F: the best of 11 noise levels of the stochastic sampler against DDIM, for teacher and students.
Appendix I: students with all, half and a quarter of the updates, and with steps divided by 4 in a round.

A cell that is in the output already is not computed again, so the command goes on where it was interrupted. Distances
are the quickstart's: Frechet distances in the features of a digits classifier, 1000 images, three sets of image seeds;
the table's spread is over them. `ablation_report.py` turns the output into tables and plots.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import progdistill
from progdistill.core.files import write_json_atomic
from progdistill.core.machine import machine
from progdistill.data import open_dataset
from progdistill.evaluation import QualityMeter
from progdistill.metrics import train_classifier

PREDICTIONS = ("sample_epsilon", "sample", "epsilon", "v_prediction")
WEIGHTINGS = ("snr", "truncated_snr", "snr_plus_one")
TEACHER = {"learning_rate": 8e-3, "lr_scheduler": "linear", "lr_warmup_steps": 100}
STUDENT = {"learning_rate": 6e-3}
COMMON = {"train_batch_size": 64, "ema_decay": 0.995, "device": "cpu", "progress": False, "logging_steps": 100}
GAMMAS = tuple(k / 10 for k in range(11))


class Results:
    """The output file: a cell is computed once."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.cells: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
        self.settings = settings

    def cell(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell's content, from the file or computed and written to it."""
        if name not in self.cells:
            started = time.process_time()
            self.cells[name] = {**compute(), "cpu_seconds": round(time.process_time() - started, 1)}
            write_json_atomic(self.path, {"settings": self.settings, "machine": machine(), "cells": self.cells})
            print(name, self.cells[name], flush=True)
        return self.cells[name]


class Bench:
    """What the ablations share: data, the meter, folders of models that are trained when they are first needed."""

    def __init__(self, arguments: argparse.Namespace, models: Path) -> None:
        self.arguments = arguments
        self.models = models
        self.dataset = open_dataset("digits")
        self.classifier, _ = train_classifier(self.dataset.images(), self.dataset.labels, data_name="digits")

    def distance(self, model, steps: int, *, sets: int = 3, **options: Any) -> dict[str, Any]:
        """Mean and deviation over sets of image seeds, and the sets' values: those of two models are of equal seeds."""
        meter = QualityMeter(self.classifier, self.dataset, num_images=self.arguments.images, seeds=sets)
        quality = meter.measure(model, steps, **options)
        values = [round(value, 3) for value in quality.values]
        return {"mean": round(quality.mean, 3), "deviation": round(quality.deviation, 3), "values": values}

    def teacher(self, seed: int, prediction_type: str = "v_prediction", weighting: str = "truncated_snr", **settings):
        """A trained teacher."""
        name = f"teacher-{prediction_type}-{weighting}-{'-'.join(map(str, settings.values()))}-{seed}"
        return progdistill.train(
            "digits",
            str(self.models / name),
            network="digits8",
            prediction_type=prediction_type,
            weighting=weighting,
            max_train_steps=self.arguments.teacher_updates,
            seed=seed,
            **settings,
            **TEACHER,
            **COMMON,
        )

    def student(
        self, seed: int, teacher, *, rounds: int, share: float = 1.0, step_factor: int = 2, teacher_substeps: int = 2
    ):
        """The 1-step student of a run that kept all others; twice the updates for 2 and 1 steps."""
        updates = max(1, int(self.arguments.updates_per_round * share))
        return progdistill.distill(
            teacher,
            rounds=rounds,
            output_dir=str(self.models / f"students-{rounds}-{share}-{step_factor}-{teacher_substeps}-{seed}"),
            step_factor=step_factor,
            teacher_substeps=teacher_substeps,
            updates_per_round=updates,
            updates_at={n: 2 * updates for n in (2, 1) if step_factor == 2 or n == 1},
            seed=seed,
            **STUDENT,
            **COMMON,
        )


def table1(bench: Bench, results: Results, seed: int) -> None:
    """Prediction x weighting x sampler, undistilled."""
    for prediction in PREDICTIONS:
        for weighting in WEIGHTINGS:
            name = f"table1/{prediction}/{weighting}/{seed}"
            results.cell(name, partial(_trained_cell, bench, seed, prediction, weighting))


def _trained_cell(bench: Bench, seed: int, prediction: str, weighting: str) -> dict[str, Any]:
    try:
        model = bench.teacher(seed, prediction, weighting, logsnr_min=-20.0, logsnr_max=20.0)
    except FloatingPointError as error:
        return {"diverged": str(error)}
    steps = bench.arguments.steps
    return {
        "ddim": bench.distance(model, steps, clip=1.0),
        "stochastic": bench.distance(model, steps, sampler="stochastic", gamma=0.5, clip=1.0),
    }


def appendix_f(bench: Bench, results: Results, seed: int) -> None:
    """DDIM against 11 noise levels, for the teacher and for each student; one set of image seeds."""
    teacher = bench.teacher(seed)
    student = bench.student(seed, teacher, rounds=5)
    for who, model, counts in (("teacher", teacher, (1, 2, 4, 8, 16, 32, 64)), ("student", student, (1, 2, 4, 8, 16))):
        for steps in counts:
            results.cell(f"appendix_f/{who}/{steps}/{seed}", partial(_noise_levels, bench, model, steps))


def _noise_levels(bench: Bench, model, steps: int) -> dict[str, Any]:
    levels = [bench.distance(model, steps, sets=1, sampler="stochastic", gamma=gamma)["mean"] for gamma in GAMMAS]
    return {"ddim": bench.distance(model, steps, sets=1)["mean"], "gammas": list(GAMMAS), "stochastic": levels}


def appendix_i(bench: Bench, results: Results, seed: int) -> None:
    """Fewer updates, and steps divided by 4: 64 teacher steps in every case."""
    teacher = bench.teacher(seed)
    runs = {
        "all updates": {"rounds": 6},
        "half": {"rounds": 6, "share": 0.5},
        "a quarter": {"rounds": 6, "share": 0.25},
        "factor 4, as many a round": {"rounds": 3, "step_factor": 4},
        "factor 4, twice as many a round": {"rounds": 3, "step_factor": 4, "share": 2.0},
        "factor 4, all 4 teacher steps, twice as many": {
            "rounds": 3,
            "step_factor": 4,
            "teacher_substeps": 4,
            "share": 2.0,
        },
    }
    for name, settings in runs.items():
        results.cell(f"appendix_i/{name}/{seed}", partial(_students_cell, bench, seed, teacher, settings))
    results.cell(
        f"appendix_i/teacher/{seed}",
        lambda: {"ddim": {str(n): bench.distance(teacher, n) for n in (1, 2, 4, 8, 16, 64)}},
    )


def _students_cell(bench: Bench, seed: int, teacher, settings: dict[str, Any]) -> dict[str, Any]:
    student = bench.student(seed, teacher, **settings)
    counts = sorted({*student.valid_steps, *student.students} & {1, 2, 4, 8, 16})
    return {"students": {str(n): bench.distance(student, n) for n in counts}}


PARTS = {"table1": table1, "appendix_f": appendix_f, "appendix_i": appendix_i}


def main() -> None:
    """Computes what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--teacher-updates", type=int, default=3000)
    parser.add_argument("--updates-per-round", type=int, default=400)
    parser.add_argument("--images", type=int, default=1000, help="images for one distance")
    parser.add_argument("--steps", type=int, default=64, help="sampling steps of Table 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, help="where models are kept; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("ablation-digits.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ("teacher_updates", "updates_per_round", "images", "steps")
    results = Results(arguments.output, {name: getattr(arguments, name) for name in names})
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(arguments, arguments.models or Path(temporary))
        for seed in arguments.seeds:
            for part in arguments.parts:
                PARTS[part](bench, results, seed)


if __name__ == "__main__":
    main()
