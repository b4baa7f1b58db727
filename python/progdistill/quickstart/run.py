"""The main job in one call: data, teacher, students, measurement, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from progdistill.core import Denoiser
from progdistill.core.files import write_json_atomic
from progdistill.core.machine import machine
from progdistill.data import ImageDataset, open_dataset, to_uint8
from progdistill.evaluation import Quality, QualityMeter
from progdistill.metrics import mean_and_standard_error, paired_distance, save_classifier, train_classifier
from progdistill.quickstart.config import QuickstartConfig
from progdistill.quickstart.report import write_report
from progdistill.report import labelled_rows, save_png
from progdistill.sampling import generate
from progdistill.sampling.sample import student_for
from progdistill.training import distill, train
from progdistill.training.metrics_log import MetricsLog

PICTURE_COLUMNS = 20
PAIRED_IMAGES = 256
# Of the students of fewer than 16 steps: the less there is to learn, the more a large learning rate undoes.
_RATES = {8: 4e-3, 4: 8e-3, 2: 1.2e-2, 1: 1.2e-2}


def quickstart(config: QuickstartConfig | None = None, **settings: Any) -> dict[str, Any]:
    """Runs the main job end to end on real images; the same call again resumes where it was interrupted.

    Args:
        config: a QuickstartConfig, or keyword settings for one.

    Returns:
        What metrics.json holds: for every step count the Frechet distances of `student` and `teacher_ddim` (the
        undistilled teacher sampled with DDIM), each with its spread over the sampling seeds, and the seconds of each
        stage.

    Raises:
        ImportError: scikit-learn, which brings the images, is missing.
        ValueError: settings out of range, or another run in output_dir.
    """
    config = config or QuickstartConfig(**settings)
    output = Path(config.output_dir)
    say = print if config.progress else (lambda *_: None)
    seconds: dict[str, float] = {}
    dataset = open_dataset("digits")
    say(f"{len(dataset)} real images: {dataset.name}, {dataset.shape[1]}x{dataset.shape[2]}")

    with _timed(seconds, "classifier"):
        classifier, facts = train_classifier(dataset.images(), dataset.labels, seed=config.seed, data_name="digits")
    say(f"classifier for the distances: {facts['accuracy']:.1%} right on {facts['held_out_size']} held-out images")

    teacher, student = _teacher_and_student(config, output)
    # For later figures in the same features (`compare`, `evaluate --features`).
    save_classifier(classifier, output / "classifier.safetensors")
    seconds.update(_training_seconds(output))
    say(f"teacher trained in {seconds['train']:.0f} s, distilled in {seconds['distill']:.0f} s; measuring")

    meter = QualityMeter(classifier, dataset, num_images=config.evaluation_images, seeds=config.evaluation_seeds)
    with _timed(seconds, "evaluate"):
        quality = _measure(meter, teacher, student, config)
    seconds["total"] = round(sum(seconds.values()), 1)
    metrics = {
        "data": dataset.name,
        "features": classifier.description,
        "classifier": facts,
        "images_per_distance": config.evaluation_images,
        "sampling_seeds": config.evaluation_seeds,
        "floor": _floor(meter, dataset),
        "steps": quality,
        "seconds": seconds,
        "distillation_over_training": round(seconds["distill"] / seconds["train"], 3),
        "machine": machine(),
    }
    picture = _picture(teacher, student, config.rounds)
    save_png(picture, output / "samples.png")
    write_json_atomic(output / "metrics.json", metrics)
    write_report(output, metrics, picture, _records(output))
    for line in summary(metrics):
        say(line)
    say(f"look at {output / 'report.html'}, {output / 'samples.png'}; the student is in {output / 'model'}")
    return metrics


def summary(metrics: dict[str, Any]) -> list[str]:
    """The result as a small table."""
    lines = [f"{'steps':>5}  {'student':>16}  {'teacher, DDIM':>16}   ({metrics['features']})"]
    for steps, entry in metrics["steps"].items():
        cells = [
            "-" if entry[who] is None else f"{entry[who]['mean']:.1f} ± {entry[who]['deviation']:.1f}"
            for who in ("student", "teacher_ddim")
        ]
        lines.append(f"{steps:>5}  {cells[0]:>16}  {cells[1]:>16}")
    return lines


def _teacher_and_student(config: QuickstartConfig, output: Path) -> tuple[Denoiser, Denoiser]:
    common = {
        "train_batch_size": 64,
        "ema_decay": 0.995,
        "seed": config.seed,
        "device": config.device,
        "overwrite": config.overwrite,
        "progress": config.progress,
        "logging_steps": 25,
    }
    teacher = train(
        "digits",
        str(output / "teacher"),
        network="digits8",
        max_train_steps=config.teacher_updates,
        optimizer="muon",
        learning_rate=1e-2,
        lr_scheduler="linear",
        lr_warmup_steps=min(100, config.teacher_updates),
        **common,
    )
    few = [steps for steps in (4, 2, 1) if steps < 2**config.rounds]
    student = distill(
        teacher,
        rounds=config.rounds,
        output_dir=str(output),
        updates_per_round=max(1, config.updates_per_round // 2),
        updates_at={steps: config.updates_per_round * (1 if steps == 4 else 2) for steps in few},
        first_teacher_substeps=6,
        optimizer="muon",
        learning_rate=3e-3,
        learning_rate_at={steps: rate for steps, rate in _RATES.items() if steps < 2**config.rounds},
        # Under the squared error a student learns the mean of what it cannot tell apart, which is blurred.
        loss_type="pseudo_huber",
        huber_c=0.01,
        **common,
    )
    return teacher, student


def _measure(meter: QualityMeter, teacher: Denoiser, student: Denoiser, config: QuickstartConfig) -> dict[str, Any]:
    seeds = torch.arange(PAIRED_IMAGES)
    reference = generate(teacher, 2**config.rounds, seeds=seeds).cpu()
    entries: dict[str, Any] = {}
    for k in range(config.rounds + 1):
        steps = 2**k
        entry: dict[str, Any] = {"student": None, "teacher_ddim": None}
        for who, model in (("student", student), ("teacher_ddim", teacher)):
            if who == "student" and k == config.rounds:
                continue
            quality: Quality = meter.measure(model, steps)
            paired = paired_distance(generate(model, steps, seeds=seeds).cpu(), reference)
            mean, error = mean_and_standard_error(paired)
            entry[who] = {**quality.record(), "paired_distance": mean, "paired_distance_error": error}
        entries[str(steps)] = entry
    return entries


def _floor(meter: QualityMeter, dataset: ImageDataset) -> float:
    # What a perfect model would score: as many real images, drawn at random, against all of them.
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    count = min(len(dataset), meter.num_images)
    return meter.distance(dataset.images()[order[:count]])


def _picture(teacher: Denoiser, student: Denoiser, rounds: int):
    seeds = torch.arange(PICTURE_COLUMNS)
    draw = lambda model, steps: to_uint8(generate(model, steps, seeds=seeds).cpu())  # noqa: E731
    rows = [(f"teacher, {2**rounds} steps", draw(teacher, 2**rounds))]
    for steps in (8, 4, 2, 1):
        if steps < 2**rounds:
            rows.append((f"student, {steps} step{'s' * (steps > 1)}", draw(student_for(student, steps), steps)))
    for steps in (4, 1):
        if steps < 2**rounds:
            rows.append((f"teacher, DDIM, {steps} step{'s' * (steps > 1)}", draw(teacher, steps)))
    return labelled_rows(rows, scale=5)


def _records(output: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        "teacher": MetricsLog(output / "teacher" / "metrics.jsonl").records(),
        "students": MetricsLog(output / "metrics.jsonl").records(),
    }


def _training_seconds(output: Path) -> dict[str, float]:
    # From the logs, so that a resumed quickstart reports what the training took and not what was left of it.
    took = {
        name: round(sum(record["seconds"] for record in records if record["event"] == "round_end"), 1)
        for name, records in _records(output).items()
    }
    return {"train": took["teacher"], "distill": took["students"]}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 1)
