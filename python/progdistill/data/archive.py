"""Zip archives of images; nothing is extracted to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from progdistill.data.decode import check_encoded_size
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.image_files import open_image_files
from progdistill.data.resize import Resize
from progdistill.data.tree import visible


def open_archive(path: Path, resize: Resize | None) -> ImageDataset:
    """The images of a zip archive, labelled as a folder's: by sub-folder or by EDM's `dataset.json`.

    Raises:
        ValueError: no zip archive, no image in it, images of different sizes, an unreadable one, or some in
            class folders and some beside them.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged ones raise many kinds, such as UnicodeDecodeError for a name
        raise ValueError(f"{path} is not a readable zip archive: {error}") from error
    names = visible(name for name in archive.namelist() if not name.endswith("/"))

    def open_entry(name: str) -> BinaryIO:
        entry = archive.getinfo(name)
        check_encoded_size(entry.file_size)  # zipfile never yields more than this, whatever lies in the archive
        return archive.open(entry)

    return open_image_files(names, open_entry, lambda name: f"{name!r} in {path}", f"zip archive {path}", resize)
