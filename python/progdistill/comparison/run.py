"""Every method through the same measurement: one teacher, the same noise, the same features."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill.comparison.config import CompareConfig
from progdistill.comparison.features import opened_features
from progdistill.comparison.kept_figures import KeptFigures
from progdistill.comparison.measurement import Measurement, Say
from progdistill.comparison.methods import Method, SolverMethod
from progdistill.comparison.quickstart_folder import with_contents
from progdistill.comparison.report import write_report
from progdistill.comparison.trained import DistillationMethod, FittedMethod, TrajectoryMethod
from progdistill.core import Denoiser
from progdistill.core.files import write_json_atomic
from progdistill.core.machine import machine
from progdistill.core.processes import is_main_process, join_processes, on_main_process
from progdistill.data import ImageDataset
from progdistill.evaluation import QualityMeter, dataset_fingerprint
from progdistill.metrics import features_fingerprint, features_name
from progdistill.metrics.compare import checked_metrics
from progdistill.report import labelled_rows, save_png
from progdistill.training.device import choose_device
from progdistill.training.teacher_and_data import opened_data, opened_teacher


def compare(
    teacher: Denoiser | str | None = None,
    *,
    data: Any = None,
    output_dir: str | None = None,
    config: CompareConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measures methods against each other, quality against network calls and against training seconds.

    What is trained (solvers fitted, students) and each figure is kept in output_dir as soon as it is there: the same
    call goes on where it was interrupted, and one with more methods or steps adds to it. Images of class-conditional
    teachers are of all classes in turn, without guidance. Several processes (torchrun) share training and images.

    Args:
        teacher: a Denoiser, or the folder of one; the folder of a quickstart, whose teacher, students (for pd) and
            classifier are taken. No student alone: there is nothing that solvers could do with it.
        data: whatever `progdistill.data.open_dataset` takes; None uses the data set that the teacher's folder records.
        output_dir: where metrics.json, report.html, samples.png, what is trained and the figures go.
        config: a CompareConfig instead of keyword settings.
        settings: fields of `CompareConfig` (methods, steps, num_images, sfd_iterations, pd_updates_per_round, ...).

    Returns:
        What metrics.json holds: under `methods`, for each method whether it is trained (`trains`), by step count its
        `network_calls`, `training_seconds` and `figures` (mean, deviation and values over the sets of seeds, by
        metric), and the step counts `left_out` with the reason.

    Raises:
        ValueError: unknown methods (the message lists those there are), a student for a teacher, students of another
            teacher, other settings than those of what output_dir holds, or no step count that any method can do.
    """
    if config is None:
        names = {"output_dir": output_dir} if output_dir is not None else {}
        config = CompareConfig(
            teacher=teacher if isinstance(teacher, str) else "",
            data=data if isinstance(data, str) else "",
            **names,
            **settings,
        )
    started = time.perf_counter()
    checked_metrics(config.metrics)
    join_processes()
    config, teacher = _opened(config, teacher)
    source = data if data is not None else config.data
    dataset = opened_data(source, config, teacher)
    methods = _methods(teacher, source, config)
    measurement, classifier = _measurement(config, dataset, teacher.device)
    found = {method.name: measurement.entry(method) for method in methods}
    result = {
        "teacher": config.teacher or None,
        "students": config.pd,
        "num_classes": teacher.num_classes,
        "data": dataset.name,
        "data_images": len(dataset),
        "classifier": classifier,
        **measurement.facts(),
        "methods": found,
        "seconds": {**measurement.seconds(), "total": round(time.perf_counter() - started, 1)},
        "machine": machine(),
    }
    on_main_process(lambda: _write(Path(config.output_dir), result, measurement.rows()))
    return result


def _opened(config: CompareConfig, teacher: Denoiser | str | None) -> tuple[CompareConfig, Denoiser]:
    """The settings with what the teacher's folder holds besides it, and the teacher on its device."""
    if not isinstance(teacher, Denoiser):
        config = with_contents(dataclasses.replace(config, teacher=teacher or config.teacher))
        teacher = opened_teacher(config.teacher)
    _check_teacher(teacher)
    return config, teacher.to(choose_device(config.device))


def _check_teacher(teacher: Denoiser) -> None:
    if teacher.valid_steps is not None or teacher.guidance_range is not None:
        what = f"a student for {teacher.valid_steps} steps" if teacher.valid_steps else "one that takes guidance scales"
        raise ValueError(f"the teacher is {what}; name the model that was trained (progdistill train makes one)")


def _methods(teacher: Denoiser, data: Any, config: CompareConfig) -> list[Method]:
    methods = [_method(name, teacher, data, config) for name in config.methods]
    reasons = {method.name: [method.why_not(steps) for steps in config.steps] for method in methods}
    if all(all(own) for own in reasons.values()):
        said = "; ".join(f"{name}: {own[0]}" for name, own in reasons.items())
        raise ValueError(f"no method can do any of the steps {config.steps} ({said}); add steps or methods")
    return methods


def _method(name: str, teacher: Denoiser, data: Any, config: CompareConfig) -> Method:
    kind, _, grid = name.partition("@")
    if kind == "pd":
        return DistillationMethod(name, teacher, data, config)
    if kind == "sfd":
        return TrajectoryMethod(name, teacher, config)
    if kind == "d_ode":
        return FittedMethod(name, teacher, config, grid or "trailing")
    return SolverMethod(name, teacher, kind, grid or "trailing")


def _measurement(
    config: CompareConfig, dataset: ImageDataset, device: torch.device
) -> tuple[Measurement, dict[str, Any] | None]:
    """The measurement, and the facts of its classifier if one was trained for it."""
    features, classifier = opened_features(config, dataset)
    counts = {"num_images": config.num_images, "seeds": config.seeds}
    meter = QualityMeter(features.to(device), dataset, metrics=config.metrics, **counts)
    conditions = {"metrics": list(config.metrics), **counts, "data": dataset_fingerprint(dataset)}
    conditions["features"] = features_fingerprint(features)
    kept = KeptFigures(Path(config.output_dir) / "figures", conditions, fresh=config.overwrite)
    say: Say = print if config.progress and is_main_process() else (lambda *_: None)
    say(f"{features_name(features)}; {config.num_images} images, {config.seeds} sets of seeds: mean ± deviation")
    return Measurement(config, meter, kept, say), classifier


def _write(output: Path, result: dict[str, Any], rows: Sequence[tuple[str, Tensor]]) -> None:
    picture = labelled_rows(rows) if rows else None
    if picture is not None:
        save_png(picture, output / "samples.png")
    write_json_atomic(output / "metrics.json", result)
    write_report(output, result, picture)
