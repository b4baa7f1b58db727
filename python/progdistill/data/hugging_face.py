"""Data sets of Hugging Face's library `datasets`: in memory, in a folder of `save_to_disk`, or on the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO

from progdistill.data.encoded import EncodedStore
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.labels import class_labels
from progdistill.data.resize import Resize
from progdistill.data.torch_dataset import open_torch_dataset

HUB_PREFIX = "hf:"
_IMAGE_COLUMNS = ("image", "img", "images")
_LABEL_COLUMNS = ("label", "labels")


def is_hugging_face(source: Any) -> bool:
    """Whether `source` is a `datasets.Dataset` or `DatasetDict`."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(source, library.Dataset | library.DatasetDict)


def is_saved(folder: Path) -> bool:
    """Whether `folder` was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def load_saved(folder: Path) -> Any:
    """The `datasets.Dataset` or `DatasetDict` in a folder that `save_to_disk` wrote, memory-mapped.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: a damaged folder.
    """
    datasets = _library()
    try:
        loaded = datasets.load_from_disk(str(folder))
        for split in loaded.values() if isinstance(loaded, dict) else [loaded]:
            split.data.validate(full=True)  # else a damaged file could lead out of the memory that it maps
    except Exception as error:
        raise ValueError(f"cannot read {folder}, a folder of datasets' save_to_disk: {error}") from error
    return loaded


def load_from_hub(name: str, config_name: str | None, split: str | None) -> Any:
    """The data set that `datasets.load_dataset(name, config_name, split=split)` gives, downloaded or cached.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: no such data set, configuration or split, or no network and no cached copy.
    """
    datasets = _library()
    try:
        return datasets.load_dataset(name, config_name, split=split)
    except Exception as error:
        raise ValueError(
            f"cannot load the data set {name!r} from the Hugging Face hub: {error}. Check its name, "
            "dataset_config_name and split; a private one needs `hf auth login`. Without network, call "
            "datasets.load_dataset(...).save_to_disk(folder) where there is one, and open that folder"
        ) from error


def open_hugging_face(
    source: Any,
    name: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    resize: Resize | None,
) -> ImageDataset:
    """The images of a `datasets.Dataset`, or of one split of a `DatasetDict`: "train", or the only one.

    The image column is `image_column`, or the only one with the feature `Image`, or of several that named "image",
    "img" or "images". The labels are `label_column`, or "label" or "labels" if there is one, or the only column with
    the feature `ClassLabel`. Encoded images are read where Arrow has them mapped, by any number of threads. A data
    set with a transform of its own (`set_transform`) is read item by item, as that returns them.

    Raises:
        KeyError: no such split or column; the message lists those there are.
        ValueError: no column of images, an unreadable image, images of different sizes.
    """
    dataset = _one_split(source, name, split)
    if dataset.format["type"] == "custom":
        return open_torch_dataset(dataset, image_column, label_column, resize)
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    image_column, label_column = _columns(dataset, name, image_column, label_column)
    labels = None
    if label_column is not None:
        values = dataset.select_columns([label_column]).with_format("arrow")[:].column(0).to_pylist()
        num_classes = getattr(dataset.features[label_column], "num_classes", 0) or 0
        labels = class_labels(values, len(dataset), f"column {label_column!r} of {name}", num_classes)
    return ImageDataset(EncodedStore(_Rows(dataset, image_column, name), name, resize), labels, name)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'data sets of Hugging Face need the package datasets: pip install "progdistill[data]"'
        ) from error
    return datasets


def _one_split(source: Any, name: str, split: str | None) -> Any:
    if not isinstance(source, dict):
        if split not in (None, str(source.split)):
            raise KeyError(f"{name} is one split, {str(source.split)!r}; open the DatasetDict to choose {split!r}")
        return source
    wanted = split or ("train" if "train" in source or len(source) != 1 else next(iter(source)))
    if wanted not in source:
        raise KeyError(f"{name} has no split {wanted!r}; it has {list(source)}: pass one of them as split=")
    return source[wanted]


def _columns(dataset: Any, name: str, image_column: str | None, label_column: str | None) -> tuple[str, str | None]:
    features = dataset.features
    found = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    for option, wanted in (("image_column", image_column), ("label_column", label_column)):
        if wanted is not None and wanted not in features:
            raise KeyError(f"{name} has no column {wanted!r} for {option}; its columns: {found}")
    kinds = _library()
    images = [column for column, feature in features.items() if isinstance(feature, kinds.Image)]
    if image_column is None:
        image_column = _usual(_IMAGE_COLUMNS, images) or (images[0] if len(images) == 1 else None)
    elif image_column not in images:
        raise ValueError(
            f"column {image_column!r} of {name} is no column of images; its columns: {found}; "
            f"dataset.cast_column({image_column!r}, datasets.Image()) makes it one, if it holds encoded images"
        )
    if image_column is None:
        raise KeyError(f"{name} has {len(images)} columns of images; its columns: {found}; name one by image_column=")
    if label_column is None:
        classes = [column for column, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
        label_column = _usual(_LABEL_COLUMNS, features) or (classes[0] if len(classes) == 1 else None)
    return image_column, label_column


def _usual(names: tuple[str, ...], among: Any) -> str | None:
    return next((name for name in names if name in among), None)


class _Rows:
    def __init__(self, dataset: Any, image_column: str, name: str) -> None:
        undecoded = dataset.select_columns([image_column]).cast_column(image_column, _library().Image(decode=False))
        self._rows, self._name = undecoded.with_format("arrow"), name

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, index: int) -> BinaryIO:
        import pyarrow

        cell = self._rows[index].column(0)[0]
        if not cell.is_valid:
            raise ValueError("the row holds no image")
        if cell["bytes"].is_valid:
            return pyarrow.BufferReader(cell["bytes"].as_buffer())
        if not cell["path"].is_valid:
            raise ValueError("the row holds neither an image nor the path of one")
        return Path(cell["path"].as_py()).open("rb")

    def describe(self, index: int) -> str:
        return f"row {index} (the first is 0) of {self._name}"
