"""The features of a comparison: those that are named, or a classifier that stays the comparison's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from progdistill.comparison.config import CompareConfig
from progdistill.core.files import write_json_atomic
from progdistill.core.processes import on_main_process
from progdistill.data import ImageDataset
from progdistill.evaluation import dataset_fingerprint
from progdistill.metrics import load_classifier, open_features, save_classifier, train_classifier

CLASSIFIER = "classifier.safetensors"
_FACTS = "classifier.json"


def opened_features(config: CompareConfig, dataset: ImageDataset) -> tuple[nn.Module, dict[str, Any] | None]:
    """The module, and the facts of the classifier if it is one that the comparison has trained.

    A classifier of the same images that is in the folder is taken: another one, be it trained alike with another
    number of threads, would make the figures that are kept useless.
    """
    if config.features is not None:
        return open_features(config.features), None
    # One process trains, and all read the file: their features are the same to the last bit.
    facts = on_main_process(lambda: _kept(config, dataset) or _trained(config, dataset))
    return load_classifier(Path(config.output_dir) / CLASSIFIER), facts["classifier"]


def _kept(config: CompareConfig, dataset: ImageDataset) -> dict[str, Any] | None:
    folder = Path(config.output_dir)
    if config.overwrite or not (folder / CLASSIFIER).exists():
        return None
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        return facts if facts["data"] == dataset_fingerprint(dataset) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _trained(config: CompareConfig, dataset: ImageDataset) -> dict[str, Any]:
    folder = Path(config.output_dir)
    classifier, facts = train_classifier(dataset.images(), dataset.labels, data_name=dataset.name)
    (folder / _FACTS).unlink(missing_ok=True)  # it speaks of the file that is replaced
    save_classifier(classifier, folder / CLASSIFIER)
    facts = {"data": dataset_fingerprint(dataset), "classifier": facts}
    write_json_atomic(folder / _FACTS, facts)
    return facts
