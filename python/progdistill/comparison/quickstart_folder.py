"""A folder with a teacher and its students, as the quickstart makes it: what a comparison finds there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from progdistill.comparison.config import CompareConfig
from progdistill.comparison.features import CLASSIFIER
from progdistill.interop.folders import MANIFEST

_TEACHER, _STUDENT = "teacher", "model"


def with_contents(config: CompareConfig) -> CompareConfig:
    """The settings with teacher, students (`pd`) and classifier (`features`) of the folder that is named as teacher.

    What is named by itself stays; a folder that holds no teacher of its own, in FOLDER/teacher, is left as it is.

    Raises:
        ValueError: the teacher is there, but its distillation is not finished.
    """
    folder = Path(config.teacher).expanduser()
    if not config.teacher or not _is_model(folder / _TEACHER):
        return config
    if not _is_model(folder / _STUDENT):
        raise ValueError(
            f"{folder} holds a teacher, but no finished student: the command that made it goes on where it stopped; or "
            f"name {folder / _TEACHER}, whose own students will be trained"
        )
    classifier = folder / CLASSIFIER
    return dataclasses.replace(
        config,
        teacher=str(folder / _TEACHER),
        pd=config.pd or str(folder),
        features=config.features or (str(classifier) if classifier.is_file() else None),
    )


def _is_model(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / _STUDENT / MANIFEST).is_file()
