"""`progdistill evaluate`."""

from __future__ import annotations

import dataclasses

from progdistill.cli.arguments import parse
from progdistill.core.files import write_json_atomic
from progdistill.data import open_dataset
from progdistill.evaluation import QualityMeter
from progdistill.interop import load
from progdistill.metrics import load_classifier, train_classifier
from progdistill.sampling.sample import student_for
from progdistill.training.config import DataConfig
from progdistill.training.loop import choose_device


@dataclasses.dataclass(kw_only=True)
class EvaluateConfig(DataConfig):
    """Frechet distance of a model's images against a data set, in the features of a classifier of that data set."""

    model: str
    """A model's folder."""
    data: str
    """As in train."""
    steps: tuple[int, ...] = ()
    """Step counts to measure; default: those that the student and its kept siblings have, 1 2 4 8 for a teacher."""
    num_images: int = 5000
    """Generated images for one distance."""
    seeds: int = 3
    """Disjoint sets of image seeds; their spread is the error bar."""
    classifier: str | None = None
    """A .safetensors file of progdistill.metrics.save_classifier; default: train a classifier on the data set."""
    output: str | None = None
    """A .json file for the result."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(EvaluateConfig, arguments, "evaluate")
    model = load(config.model, device=choose_device(config.device))
    counts = config.steps or _step_counts(model)
    for steps in counts:
        student_for(model, steps)
    dataset = open_dataset(config.data, **config.reading_options())
    if config.classifier is not None:
        classifier, facts = load_classifier(config.classifier), None
    else:
        classifier, facts = train_classifier(dataset.images(), dataset.labels, data_name=dataset.name)
        print(f"classifier: {facts['accuracy']:.1%} right on {facts['held_out_size']} held-out images")
    meter = QualityMeter(classifier, dataset, num_images=config.num_images, seeds=config.seeds)
    print(f"{classifier.description}, {config.num_images} images, {config.seeds} sets of seeds")
    result = {}
    for steps in counts:
        quality = meter.measure(model, steps)
        result[str(steps)] = quality.record()
        print(f"{steps:>5} steps: {quality.mean:.3f} ± {quality.deviation:.3f}")
    if config.output is not None:
        description = {"features": classifier.description, "classifier": facts, "data": dataset.name}
        description |= {"data_options": config.reading_options(), "num_images": config.num_images}
        write_json_atomic(config.output, {**description, "steps": result})


def _step_counts(model) -> tuple[int, ...]:
    if model.valid_steps is None:
        return (1, 2, 4, 8)
    return tuple(sorted({*model.valid_steps, *model.students}))
