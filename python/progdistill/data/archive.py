"""Zip archives of images; nothing is extracted to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from progdistill.data.decode import check_encoded_size
from progdistill.data.encoded import EncodedStore
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.labels import Labels
from progdistill.data.tree import (
    image_names,
    label_file_of,
    labels_from_folders,
    labels_from_json,
    summary,
    visible,
)


def open_archive(path: Path) -> ImageDataset:
    """The images of a zip archive, labelled as a folder's: by sub-folder or by EDM's `dataset.json`.

    Raises:
        ValueError: no zip archive, no image in it, images of different sizes, an unreadable one, or some in
            class folders and some beside them.
    """
    name = f"zip archive {path}"
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path} is not a readable zip archive: {error}") from error
    names = visible(info.filename for info in archive.infolist() if not info.is_dir())
    images = image_names(names)
    if not images:
        raise ValueError(f"{name} holds no PNG, JPEG, WebP or BMP image; found: {summary(names)}")
    label_file = label_file_of(names, images)
    if label_file is None:
        labels = labels_from_folders(images, name)
    else:
        labels = _read_labels(archive, label_file, images, name)
    return ImageDataset(EncodedStore(_ZipEntries(archive, images, path), name), labels, name)


def _read_labels(archive: zipfile.ZipFile, label_file: str, images: list[str], where: str) -> Labels | None:
    try:
        stream = archive.open(label_file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"cannot read {label_file} of {where}: {error}") from error
    with stream:
        return labels_from_json(stream, label_file, images, where)


class _ZipEntries:
    def __init__(self, archive: zipfile.ZipFile, names: list[str], path: Path) -> None:
        self._archive, self._names, self._path = archive, names, path

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> BinaryIO:
        entry = self._archive.getinfo(self._names[index])
        check_encoded_size(entry.file_size)  # zipfile never yields more than this, whatever lies in the archive
        return self._archive.open(entry)

    def describe(self, index: int) -> str:
        return f"{self._names[index]!r} in {self._path}"
