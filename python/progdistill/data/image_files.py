"""Images that are files: those of a folder, the entries of an archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO

from progdistill.data.encoded import EncodedStore
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.resize import Resize
from progdistill.data.tree import image_names, label_file_of, labels_from_folders, labels_from_json, summary


def open_image_files(
    names: Sequence[str],
    open_file: Callable[[str], BinaryIO],
    describe: Callable[[str], str],
    where: str,
    resize: Resize | None,
) -> ImageDataset:
    """The images among the files `names`, in sorted order, labelled by sub-folder or by EDM's `dataset.json`.

    Args:
        names: relative POSIX names.
        open_file: gives the stream of a name; called from several threads at once.
        describe: says where a name is, for messages.
        where: what all of them are, for people.

    Raises:
        ValueError: no image, images of different sizes, an unreadable one or label file, or some in class folders
            and some beside them.
    """
    images = image_names(names)
    if not images:
        raise ValueError(f"{where} holds no PNG, JPEG, WebP or BMP image; found: {summary(names)}")
    label_file = label_file_of(names, images)
    if label_file is None:
        labels = labels_from_folders(images, where)
    else:
        try:
            stream = open_file(label_file)
        except Exception as error:
            raise ValueError(f"cannot read {label_file} of {where}: {error}") from error
        with stream:
            labels = labels_from_json(stream, label_file, images, where)
    return ImageDataset(EncodedStore(_ImageFiles(images, open_file, describe), where, resize), labels, where)


class _ImageFiles:
    def __init__(
        self, names: Sequence[str], open_file: Callable[[str], BinaryIO], describe: Callable[[str], str]
    ) -> None:
        self._names, self._open_file, self._describe = names, open_file, describe

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> BinaryIO:
        return self._open_file(self._names[index])

    def describe(self, index: int) -> str:
        return self._describe(self._names[index])
