"""Distillation rounds in bfloat16 and in float32, on the same data, and what became of the students."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import progdistill
from low_precision import Autocast
from progdistill.core import Denoiser
from progdistill.data import ImageDataset
from progdistill.evaluation.compare_round import any_steps, class_labels_in_turn
from progdistill.metrics import mean_and_standard_error, paired_distance
from progdistill.nets.unet import UNet
from progdistill.sampling import generate

# float32 a second time with other data: what differs no more than these two is not for lack of precision.
RUNS: dict[str, dict[str, Any]] = {
    "float32": {"mixed_precision": "no", "seed": 0},
    "bfloat16": {"mixed_precision": "bf16", "seed": 0},
    "float32, other data": {"mixed_precision": "no", "seed": 1},
    "bfloat16, two parts": {"mixed_precision": "no", "seed": 0},  # it computes in bfloat16 by itself
}


def compare_rounds(
    teacher: Denoiser, dataset: ImageDataset, steps: int, images: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The round from 2 N to N = `steps` steps, each of `RUNS`, from the same teacher.

    Distances are root-mean-square pixel differences of `images` images, data range 2, from those that the teacher makes
    in 2 N steps from the same noise; all are sampled in float32 without TF32.

    Returns:
        {"student_steps", "teacher": the distance in N steps of the teacher itself, which is a student that has learned
        nothing, "runs": {name: {"distance", "excess", ...}}}: mean and standard error, "excess" of the difference from
        the first run's distances image by image.
    """
    imitated = _images(teacher, 2 * steps, images)
    found: dict[str, Any] = {"student_steps": steps, "runs": {}}
    found["teacher"] = mean_and_standard_error(paired_distance(_images(teacher, steps, images), imitated))
    first: Tensor | None = None
    for name, own in RUNS.items():
        begins_as = teacher
        if name == "bfloat16, two parts":
            if not isinstance(teacher.network, UNet):
                continue
            begins_as = teacher.with_network(Autocast(teacher.network, in_two_parts=True))
        started = time.perf_counter()
        student, loss = _round(begins_as, dataset, steps, {**settings, **own})
        seconds = time.perf_counter() - started
        distances = paired_distance(_images(student, steps, images), imitated)
        first = distances if first is None else first
        found["runs"][name] = {
            "distance": mean_and_standard_error(distances),
            "excess": mean_and_standard_error(distances - first),
            "last_loss": loss,
            "seconds": round(seconds, 1),
        }
    return found


def _round(
    teacher: Denoiser, dataset: ImageDataset, steps: int, settings: dict[str, Any]
) -> tuple[Denoiser, float | None]:
    """The student with its averaged weights, and the mean loss of the last updates."""
    with tempfile.TemporaryDirectory() as folder:
        student = progdistill.distill(
            teacher, rounds=1, end_steps=steps, data=dataset, output_dir=folder, validation_images=2, **settings
        )
        log = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        student.students.clear()
    return student, _last_loss(log)


def _last_loss(log: list[str]) -> float | None:
    losses = [record["loss"] for record in map(json.loads, log) if record.get("event") == "update"]
    return losses[-1] if losses else None


def _images(model: Denoiser, steps: int, count: int) -> Tensor:
    labels = class_labels_in_turn(model, count)
    if isinstance(model.network, Autocast):
        model.network.enabled = False
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return generate(any_steps(model), steps, seeds=torch.arange(count), class_labels=labels).cpu()


def harmless(found: dict[str, Any], run: str, allowed: float) -> bool:
    """Whether the student of `run` is no further from its teacher than `allowed` of the float32 student's distance,
    beyond two standard errors and beyond what other data would have changed."""
    runs = found["runs"]
    distance = runs["float32"]["distance"][0]
    excess, error = runs[run]["excess"]
    other = abs(runs["float32, other data"]["excess"][0])
    return math.isfinite(excess) and excess <= max(allowed * distance, 2 * error, other)
