"""Every method through the same measurement: one teacher, the same noise, the same features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.comparison.config import CompareConfig
from progdistill.comparison.methods import Contender, Method, SolverMethod
from progdistill.comparison.report import write_report
from progdistill.comparison.trained import DistillationMethod, FittedMethod, TrajectoryMethod
from progdistill.core import Denoiser
from progdistill.core.files import write_json_atomic
from progdistill.core.machine import machine
from progdistill.core.processes import is_main_process, join_processes, on_main_process
from progdistill.data import ImageDataset, to_uint8
from progdistill.evaluation import QualityMeter, class_labels_in_turn
from progdistill.metrics import (
    features_fingerprint,
    features_name,
    metric_names,
    open_features,
    save_classifier,
    train_classifier,
)
from progdistill.metrics.compare import checked_metrics
from progdistill.report import labelled_rows, save_png
from progdistill.sampling import generate
from progdistill.training.device import choose_device
from progdistill.training.teacher_and_data import opened_data, opened_teacher

Rows = list[tuple[str, Tensor]]
Say = Callable[[str], None]

PICTURE_COLUMNS = 12
PICTURE_STEP_COUNTS = 4


def compare(
    teacher: Denoiser | str | None = None,
    *,
    data: Any = None,
    output_dir: str | None = None,
    config: CompareConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measures methods against each other, quality against network calls and against training seconds.

    What is trained (solvers fitted, students) is kept in output_dir, and the same call uses it again; figures are
    measured anew each time. Images of class-conditional teachers are of all classes in turn, without guidance.

    Args:
        teacher: a Denoiser, or the folder of one. No student: there is nothing that solvers could do with it.
        data: whatever `progdistill.data.open_dataset` takes; None uses the data set that the teacher's folder records.
        output_dir: where metrics.json, report.html, samples.png and what is trained go.
        config: a CompareConfig instead of keyword settings.
        settings: fields of `CompareConfig` (methods, steps, num_images, sfd_iterations, pd_updates_per_round, ...).

    Returns:
        What metrics.json holds: under `methods`, for each method whether it is trained (`trains`), by step count its
        `network_calls`, `training_seconds` and `figures` (mean, deviation and values over the sets of seeds, by
        metric), and the step counts `left_out` with the reason.

    Raises:
        ValueError: unknown methods (the message lists those there are), a student for a teacher, students of another
            teacher, other settings than those of what output_dir holds, or no step count that a method can do.
    """
    if config is None:
        names = {"output_dir": output_dir} if output_dir is not None else {}
        config = CompareConfig(
            teacher=teacher if isinstance(teacher, str) else "",
            data=data if isinstance(data, str) else "",
            **names,
            **settings,
        )
    checked_metrics(config.metrics)
    join_processes()
    device = choose_device(config.device)
    teacher = opened_teacher(teacher if teacher is not None else config.teacher).to(device)
    _check_teacher(teacher)
    source = data if data is not None else config.data
    dataset = opened_data(source, config, teacher)
    methods = [_method(name, teacher, source, config) for name in config.methods]
    say: Say = print if config.progress and is_main_process() else (lambda *_: None)
    features, facts = _features(config, dataset)
    meter = QualityMeter(
        features.to(device), dataset, num_images=config.num_images, seeds=config.seeds, metrics=config.metrics
    )
    say(f"{features_name(features)}; {config.num_images} images, {config.seeds} sets of seeds: mean ± deviation")
    rows: Rows = []
    found = {method.name: _measured(method, config, meter, rows, say) for method in methods}
    any_point = next(point for entry in found.values() for point in entry["steps"].values())
    result = {
        "teacher": config.teacher or None,
        "data": dataset.name,
        "data_images": len(dataset),
        "features": features_name(features),
        "features_fingerprint": features_fingerprint(features),
        "classifier": facts,
        "num_images": config.num_images,
        "seeds": config.seeds,
        "metrics": list(any_point["figures"]),
        "names": metric_names(features),
        "methods": found,
        "machine": machine(),
    }
    on_main_process(lambda: _write(Path(config.output_dir), result, rows))
    return result


def _check_teacher(teacher: Denoiser) -> None:
    if teacher.valid_steps is not None or teacher.guidance_range is not None:
        what = f"a student for {teacher.valid_steps} steps" if teacher.valid_steps else "one that takes guidance scales"
        raise ValueError(f"the teacher is {what}; name the model that was trained (progdistill train makes one)")


def _method(name: str, teacher: Denoiser, data: Any, config: CompareConfig) -> Method:
    kind, _, grid = name.partition("@")
    if kind == "pd":
        method: Method = DistillationMethod(name, teacher, data, config)
    elif kind == "sfd":
        method = TrajectoryMethod(name, teacher, config)
    elif kind == "d_ode":
        method = FittedMethod(name, teacher, config, grid or "trailing")
    else:
        method = SolverMethod(name, teacher, kind, grid or "trailing")
    reasons = [method.why_not(steps) for steps in config.steps]
    if all(reasons):
        raise ValueError(f"{name} can do none of the steps {config.steps}: {reasons[0]}; leave it out or add steps")
    return method


def _features(config: CompareConfig, dataset: ImageDataset) -> tuple[nn.Module, dict | None]:
    if config.features is not None:
        return open_features(config.features), None
    classifier, facts = train_classifier(dataset.images(), dataset.labels, data_name=dataset.name)
    on_main_process(lambda: save_classifier(classifier, Path(config.output_dir) / "classifier.safetensors"))
    return classifier, facts


def _measured(method: Method, config: CompareConfig, meter: QualityMeter, rows: Rows, say: Say) -> dict[str, Any]:
    """A method's entry in metrics.json; its pictures are added to `rows`."""
    entry: dict[str, Any] = {"trains": method.trains, "steps": {}, "left_out": {}}
    for steps in config.steps:
        reason = method.why_not(steps)
        if reason is not None:
            entry["left_out"][str(steps)] = reason
            say(f"{method.name}, {steps} steps: left out, {reason}")
            continue
        contender = method.contender(steps)
        figures = meter.measure_all(contender.model, contender.steps, **contender.options)
        entry["steps"][str(steps)] = {
            "network_calls": contender.network_calls,
            "training_seconds": contender.training_seconds,
            "figures": {name: quality.record() for name, quality in figures.items()},
        }
        said = ", ".join(f"{name} {quality.mean:.4g} ± {quality.deviation:.2g}" for name, quality in figures.items())
        took = f", trained in {contender.training_seconds:.1f} s" if method.trains else ""
        say(f"{method.name}, {contender.network_calls} calls{took}: {said}")
        if steps in config.steps[:PICTURE_STEP_COUNTS] and contender.model.sample_shape[0] in (1, 3):
            rows.append((f"{method.name}, {contender.network_calls} calls", _drawn(contender)))
    return entry


def _drawn(contender: Contender) -> Tensor:
    labels = class_labels_in_turn(contender.model, PICTURE_COLUMNS)
    seeds = torch.arange(PICTURE_COLUMNS)
    images = generate(contender.model, contender.steps, seeds=seeds, class_labels=labels, **contender.options)
    return to_uint8(images.cpu())


def _write(output: Path, result: dict[str, Any], rows: Rows) -> None:
    picture = labelled_rows(rows) if rows else None
    if picture is not None:
        save_png(picture, output / "samples.png")
    write_json_atomic(output / "metrics.json", result)
    write_report(output, result, picture)
