"""Image folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from progdistill.data.image_dataset import ImageDataset
from progdistill.data.image_files import open_image_files
from progdistill.data.resize import Resize
from progdistill.data.tree import visible


def open_folder(folder: Path, names: Sequence[str], resize: Resize | None) -> ImageDataset:
    """The images of a folder and its sub-folders, in the order of their sorted names.

    Args:
        folder: the root.
        names: its files, as `files_below` lists them.

    Raises:
        ValueError: no image, images of different sizes, an unreadable one, or some in class folders and some
            beside them.
    """
    return open_image_files(
        names,
        lambda name: (folder / name).open("rb"),
        lambda name: str(folder / name),
        f"image folder {folder}",
        resize,
    )


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


def _raise(error: OSError) -> None:
    raise error
