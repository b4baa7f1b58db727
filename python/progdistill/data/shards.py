"""Tar shards as webdataset writes them: consecutive members that share a name up to its first dot are a sample."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from progdistill.data.decode import check_encoded_size
from progdistill.data.encoded import EncodedStore
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.labels import class_labels
from progdistill.data.resize import Resize
from progdistill.data.splits import check_one_split
from progdistill.data.tar_samples import Sample, Span, open_span, tar_samples

_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "bmp")
_LABEL_FIELDS = ("label", "labels", "cls")
_MAX_LABEL_BYTES = 2**20


def open_shards(
    files: Sequence[Path], name: str, image_column: str | None, label_column: str | None, resize: Resize | None
) -> ImageDataset:
    """The images of one or more tar shards: the samples in order, the files as given.

    The members' positions are read once, here; images are then read from where they lie in the shard, in any order.
    A sample's image is the part `image_column` ("jpg"), or its only one of jpg, jpeg, png, webp and bmp. Its label is
    the part `label_column`, or that field of its json; without, the part cls, else the json if it is a number or a
    name, else the json's field "label", "labels" or "cls".

    Raises:
        KeyError: a sample has no such part; the message lists those it has.
        ValueError: unreadable or compressed shards, several splits in one set, samples without an image, images of
            different sizes.
    """
    check_one_split(files, name)
    images, labels = _Images(files), []
    for number, file in enumerate(files):
        for sample in tar_samples(file):
            images.append(number, sample.name, _image_of(sample, image_column))
            labels.append(_label_of(sample, label_column))
    if not labels:
        raise ValueError(f"{name} holds no samples; they are files such as 0001.jpg and 0001.cls")
    return ImageDataset(EncodedStore(images, name, resize), class_labels(labels, len(labels), name), name)


def _image_of(sample: Sample, image_column: str | None) -> Span:
    if image_column is not None:
        if image_column not in sample.parts:
            raise KeyError(f"{sample} has no part {image_column!r} for image_column; it has {list(sample.parts)}")
        return sample.parts[image_column]
    found = [key for key in _IMAGE_KEYS if key in sample.parts]
    if len(found) != 1:
        raise KeyError(
            f"{sample} has {len(found)} parts that are images by their names ({', '.join(_IMAGE_KEYS)}); it has "
            f"{list(sample.parts)}: name one with image_column="
        )
    return sample.parts[found[0]]


def _label_of(sample: Sample, label_column: str | None) -> int | str | None:
    if label_column is None:
        if "cls" in sample.parts:
            return _text_label(sample, "cls")
        content = _json_of(sample)
        if isinstance(content, dict):
            content = next((content[field] for field in _LABEL_FIELDS if field in content), None)
        return _checked(content, sample)
    if label_column == "json":
        return _checked(_json_of(sample), sample)
    if label_column in sample.parts:
        return _text_label(sample, label_column)
    content = _json_of(sample)
    if isinstance(content, dict) and label_column in content:
        return _checked(content[label_column], sample)
    fields = f", and its json has {list(content)}" if isinstance(content, dict) else ""
    raise KeyError(
        f"{sample} has neither a part nor a json field {label_column!r} for label_column; it has the parts "
        f"{list(sample.parts)}{fields}"
    )


def _text_label(sample: Sample, part: str) -> int | str:
    try:
        text = _small(sample, part).decode().strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    except ValueError as error:
        raise ValueError(f"cannot read the part {part!r} of {sample} as a label: {error}") from error


def _json_of(sample: Sample) -> Any:
    if "json" not in sample.parts:
        return None
    try:
        return json.loads(_small(sample, "json"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the json of {sample}: {error}") from error


def _small(sample: Sample, part: str) -> bytes:
    size = sample.parts[part].size
    if size > _MAX_LABEL_BYTES:
        raise ValueError(f"{size} bytes are more than {_MAX_LABEL_BYTES}")
    with open_span(sample.file, sample.parts[part]) as stream:
        return stream.read()


def _checked(label: Any, sample: Sample) -> int | str | None:
    if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
        return label
    raise TypeError(f"the label of {sample} must be a whole number or a name, not {label!r:.80}")


class _Images:
    """Where every image lies: numbers in arrays, for there may be millions."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._names: list[str] = []
        self._places = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._names)

    def append(self, file_number: int, name: str, span: Span) -> None:
        self._names.append(name)
        for values, value in zip(self._places, (file_number, *span), strict=True):
            values.append(value)

    def open(self, index: int) -> BinaryIO:
        file_number, offset, size = (values[index] for values in self._places)
        check_encoded_size(size)
        return open_span(self._files[file_number], Span(offset, size))

    def describe(self, index: int) -> str:
        return f"{self._names[index]!r} in {self._files[self._places[0][index]]}"
