"""`progdistill evaluate`."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from progdistill.cli.arguments import parse
from progdistill.core.files import write_json_atomic
from progdistill.core.processes import is_main_process
from progdistill.data import ImageDataset, open_dataset
from progdistill.evaluation import Quality, QualityMeter, add_dataset, reference_statistics
from progdistill.interop import load
from progdistill.metrics import (
    compare,
    features_fingerprint,
    features_name,
    metric_names,
    open_features,
    save_classifier,
    train_classifier,
)
from progdistill.metrics.compare import arithmetic_device, bank_for, checked_metrics, needs_features, needs_reference
from progdistill.sampling.arguments import checked_guidance, student_for
from progdistill.training.config import DataConfig
from progdistill.training.device import choose_device


@dataclasses.dataclass(kw_only=True)
class EvaluateConfig(DataConfig):
    """Distances of a model's images, or of given images, to a data set, in the features of a network."""

    model: str | None = None
    """A model's folder, or its id on the Hugging Face hub."""
    images: str | None = None
    """Images to measure instead of a model's: folder, .zip, .npz/.npy or .parquet."""
    data: str | None = None
    """Reference images, as in train. Optional if --reference-statistics exist."""
    metrics: tuple[str, ...] = ("frechet",)
    """frechet, kernel, precision_recall, density_coverage, sliced_wasserstein, inception_score."""
    steps: tuple[int, ...] = ()
    """Step counts to measure; default: those that the student and its kept siblings have, 1 2 4 8 for a teacher."""
    guidance_scale: float | None = None
    """Of the generated images, as diffusers counts it (1: none), for models that can be guided."""
    num_images: int = 5000
    """Generated images for one figure."""
    seeds: int = 3
    """Disjoint sets of image seeds; their spread is the error bar."""
    features: str | None = None
    """A classifier's .safetensors, a TorchScript file (.ts, .pt: code, so only one you trust), "pixels", or for FID
    inception:FILE, FILE being pytorch-fid's .pth or NVIDIA's .pt; default: train a classifier on the data set."""
    classifier: str | None = None
    """A .safetensors file of progdistill.metrics.save_classifier; the same as --features FILE."""
    save_classifier: str | None = None
    """A .safetensors file for the classifier that is trained here, so that later figures are in the same features."""
    per_class: bool = False
    """Also each class's images against that class's in the data set, for class-conditional models."""
    reference_statistics: str | None = None
    """A .safetensors file with the data set's statistics: made if missing, else checked and used."""
    output: str | None = None
    """A .json file for the result."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(EvaluateConfig, arguments, "evaluate")
    _check(config)
    device = choose_device(config.device)
    model, steps = None, ()
    if config.model is not None:
        model = load(config.model, device=device)
        steps = config.steps or _step_counts(model)
        for count in steps:
            student_for(model, count)
        checked_guidance(config.guidance_scale, 1, model)
    dataset = None if config.data is None else open_dataset(config.data, **config.reading_options())
    features, facts = _features(config, dataset)
    features.to(device)
    names = metric_names(features)
    result: dict[str, Any] = {
        "features": features_name(features),
        "features_fingerprint": features_fingerprint(features),
        "classifier": facts,
        "data_options": config.reading_options(),
        "names": names,
    }
    result |= (
        _of_images(config, features, dataset) if model is None else _of_model(config, features, dataset, model, steps)
    )
    if config.output is not None and is_main_process():
        write_json_atomic(config.output, result)


def _check(config: EvaluateConfig) -> None:
    # Before anything is loaded, for some of it takes minutes.
    checked_metrics(config.metrics)
    if (config.model is None) == (config.images is None):
        raise ValueError("name what to measure: either --model FOLDER or --images PATH")
    if config.features is not None and config.classifier is not None:
        raise ValueError("--classifier FILE is --features FILE: give one of them")
    trains = config.features is None and config.classifier is None
    if trains and config.data is None:
        raise ValueError("without --features a classifier is trained on the data set: name one with --data")
    if config.per_class and config.images is not None:
        raise ValueError("--per-class measures a class-conditional --model; leave it out with --images")
    if config.guidance_scale is not None and config.images is not None:
        raise ValueError("--guidance-scale is for the images that a --model makes; leave it out with --images")
    if config.save_classifier is not None and not trains:
        raise ValueError("--save-classifier saves a classifier that is trained here; leave out --features")


def _of_model(
    config: EvaluateConfig, features: nn.Module, dataset: ImageDataset | None, model, steps
) -> dict[str, Any]:
    meter = QualityMeter(
        features,
        dataset,
        num_images=config.num_images,
        seeds=config.seeds,
        metrics=config.metrics,
        reference_file=config.reference_statistics,
        per_class=config.per_class,
    )
    print(f"{features_name(features)}, {config.num_images} images, {config.seeds} sets of seeds: mean ± deviation")
    names, found, by_class = metric_names(features), {}, {}
    for count in steps:
        options = {"guidance_scale": config.guidance_scale}
        if config.per_class:
            qualities, of_classes = meter.measure_classes(model, count, **options)
        else:
            qualities, of_classes = meter.measure_all(model, count, **options), {}
        found[str(count)] = _said(qualities, f"{count:>5} steps", names)
        by_class[str(count)] = {
            str(label): _said(own, f"{count:>5} steps, class {label}", names) for label, own in of_classes.items()
        }
    counts = {"num_images": config.num_images, "seeds": config.seeds, "guidance_scale": config.guidance_scale}
    classes = {"classes": by_class} if config.per_class else {}
    return {**_reference_facts(meter.reference_set), **counts, "steps": found, **classes}


def _said(qualities: dict[str, Quality], what: str, names: dict[str, str]) -> dict[str, dict]:
    """Prints figures; returns them JSON-ready."""
    for name, quality in qualities.items():
        print(f"{what}: {quality.mean:.4g} ± {quality.deviation:.2g}  {names[name]}")
    return {name: quality.record() for name, quality in qualities.items()}


def _of_images(config: EvaluateConfig, features: nn.Module, dataset: ImageDataset | None) -> dict[str, Any]:
    images = open_dataset(config.images)
    reference = None
    if dataset is not None or needs_reference(config.metrics):
        reference = reference_statistics(
            features, dataset, config.reference_statistics, keep_features=needs_features(config.metrics)
        )
    bank = bank_for(features, len(images), config.metrics, errors=True)
    add_dataset(bank, images)
    found = compare(bank, reference, config.metrics, errors=True, device=arithmetic_device(features))
    print(f"{features_name(features)}, {len(images)} images of {images.name}: value ± standard error")
    names = metric_names(features)
    for name, measurement in found.items():
        error = "" if measurement.standard_error is None else f" ± {measurement.standard_error:.2g}"
        print(f"{measurement.value:.4g}{error}  {names[name]}")
    figures = {name: measurement.record() for name, measurement in found.items()}
    return {**_reference_facts(reference), "images": images.name, "num_images": len(images), "figures": figures}


def _features(config: EvaluateConfig, dataset: ImageDataset | None) -> tuple[nn.Module, dict | None]:
    named = config.features or config.classifier
    if named is not None:
        return open_features(named), None
    classifier, facts = train_classifier(dataset.images(), dataset.labels, data_name=dataset.name)
    print(f"classifier: {facts['accuracy']:.1%} right on {facts['held_out_size']} held-out images")
    if config.save_classifier is not None and is_main_process():
        save_classifier(classifier, config.save_classifier)
    return classifier, facts


def _reference_facts(reference) -> dict[str, Any]:
    if reference is None:
        return {"data": None, "data_images": None}
    return {"data": reference.data_name, "data_images": reference.count}


def _step_counts(model) -> tuple[int, ...]:
    if model.valid_steps is None:
        return (1, 2, 4, 8)
    return tuple(sorted({*model.valid_steps, *model.students}))
