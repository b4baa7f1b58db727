"""Image folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from progdistill.data.encoded import EncodedStore
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.tree import (
    image_names,
    label_file_of,
    labels_from_folders,
    labels_from_json,
    summary,
    visible,
)


def open_folder(folder: Path, names: Sequence[str]) -> ImageDataset:
    """The images of a folder and its sub-folders, in the order of their sorted names.

    Args:
        folder: the root.
        names: its files, as `files_below` lists them.

    Raises:
        ValueError: no image, images of different sizes, an unreadable one, or some in class folders and some
            beside them.
    """
    name = f"image folder {folder}"
    images = image_names(names)
    if not images:
        raise ValueError(f"{name} holds no PNG, JPEG, WebP or BMP image; found: {summary(names)}")
    label_file = label_file_of(names, images)
    if label_file is None:
        labels = labels_from_folders(images, name)
    else:
        with (folder / label_file).open("rb") as stream:
            labels = labels_from_json(stream, label_file, images, name)
    return ImageDataset(EncodedStore(_Files(folder, images), name), labels, name)


def files_below(folder: Path) -> list[str]:
    """Relative POSIX names of the files below `folder`, without hidden ones; follows links, each folder once.

    Raises:
        OSError: a folder cannot be listed.
    """
    names, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = sorted(f for f in folders if os.path.realpath(os.path.join(here, f)) not in seen)
        seen.update(os.path.realpath(os.path.join(here, f)) for f in folders)
        names += [Path(here, file).relative_to(folder).as_posix() for file in files]
    return sorted(visible(names))


class _Files:
    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> BinaryIO:
        return (self._folder / self._names[index]).open("rb")

    def describe(self, index: int) -> str:
        return str(self._folder / self._names[index])


def _raise(error: OSError) -> None:
    raise error
