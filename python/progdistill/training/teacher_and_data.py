"""The teacher of a run and the images it is to be taught on, from whatever the caller names them by."""

from __future__ import annotations

from typing import Any

from progdistill.core import Denoiser
from progdistill.data import ImageDataset, open_dataset
from progdistill.interop import load
from progdistill.training.config import DataConfig


def opened_teacher(teacher: Denoiser | str) -> Denoiser:
    """The teacher itself, or the one in the folder of that name.

    Raises:
        ValueError: an empty name.
    """
    if isinstance(teacher, Denoiser):
        return teacher
    if not teacher:
        raise ValueError(
            "teacher is missing; name a folder of ours or of diffusers, or a model on the Hugging Face hub "
            "(--teacher), or pass a Denoiser in Python"
        )
    return load(teacher)


def opened_data(data: Any, config: DataConfig, teacher: Denoiser) -> ImageDataset:
    """The data set that `data` names, or the one that the teacher's folder records.

    Raises:
        ValueError: neither names one; images of another shape than the teacher makes; a class-conditional teacher and
            images without labels, or with labels that it does not know.
    """
    source, options = _data_source(data, config, teacher)
    dataset = open_dataset(source, **options)
    if tuple(dataset.shape) != teacher.sample_shape:
        raise ValueError(
            f"{dataset.name} has images of shape {tuple(dataset.shape)}, the teacher makes {teacher.sample_shape}; "
            "use the data it was trained on"
        )
    known = teacher.num_classes
    if known is not None and (dataset.num_classes is None or dataset.num_classes > known):
        labels = "no labels" if dataset.num_classes is None else f"{dataset.num_classes} classes"
        raise ValueError(
            f"the teacher is conditioned on {known} classes, but {dataset.name} has {labels}; use the data it was "
            "trained on (label_column=... names the column of a table)"
        )
    return dataset


def _data_source(data: Any, config: DataConfig, teacher: Denoiser) -> tuple[Any, dict[str, Any]]:
    """What `open_dataset` is given; options of the run replace those that the teacher's folder records."""
    if data is not None and not (isinstance(data, str) and not data):
        return data, config.reading_options()
    facts: Any = teacher.provenance
    while isinstance(facts, dict):
        if facts.get("data_source"):
            return facts["data_source"], {**(facts.get("data_options") or {}), **config.reading_options()}
        facts = facts.get("teacher")
    raise ValueError(
        "the teacher's folder does not record a data set; name one with --data, or data=... in Python (a folder, .zip, "
        ".npz, .parquet or a torch Dataset); distillation needs images like those that the teacher was trained on"
    )
