"""One function for every source of images."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from progdistill.data.archive import open_archive
from progdistill.data.arrays import array_dataset, open_npy, open_npz
from progdistill.data.digits import open_digits
from progdistill.data.folder import files_below, open_folder
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.parquet import open_parquet
from progdistill.data.torch_dataset import open_torch_dataset
from progdistill.data.tree import image_names, summary

_KINDS = (
    "an image folder, a .zip, .npz, .npy or .parquet file, a folder or pattern "
    '("train-*.parquet") of parquet files, or "digits"'
)


def open_dataset(
    source: Any, *, image_column: str | None = None, label_column: str | None = None, key: str | None = None
) -> ImageDataset:
    """Opens images of any source as one `ImageDataset` of uint8 tensors.

    Args:
        source: one of
            - a folder of PNG, JPEG, WebP or BMP images, searched recursively. The sub-folders below the
              folder that all images share are the classes, numbered by sorted name; a `dataset.json` in EDM's
              form ({"labels": [[name, label], ...]}) takes precedence; images in one flat folder have no
              labels;
            - a .zip archive of images, by the same rules;
            - an .npz or .npy file of images, (N, H, W), (N, H, W, C) or (N, C, H, W), uint8, or floating
              point: [-1, 1] if any value is negative, else [0, 1], nothing beyond;
            - a .parquet file, a folder of them or a pattern, with a column of encoded images;
            - "digits": scikit-learn's 1797 grey 8x8 digits ("./digits" is a folder of that name);
            - a torch.utils.data.Dataset or a sequence of images, (image, label) pairs or mappings with
              "image" and "label"; floating-point images of items are in [-1, 1];
            - an array or tensor of images; an `ImageDataset`, returned as it is.
        image_column: the column, or key of the mapping, with the images; for parquet and mappings.
        label_column: the one with the labels; for parquet, mappings and .npz.
        key: the name of the images in an .npz; "images", "image", "x" or "arr_0" are found without.

    Returns:
        A data set that is decoded once, here, if it takes at most 2 GiB ($PROGDISTILL_DATA_CACHE_BYTES), else
        batch by batch. Grey images keep one channel if all are grey, else all are RGB.

    Raises:
        FileNotFoundError: `source` is no path that exists.
        TypeError: `source` or its items are of no kind that can be read.
        KeyError: the column or array asked for does not exist.
        ValueError: an option that does not apply, an unreadable image (the message names it), images of
            different sizes, no images at all, floating-point images of an unclear range.
        ImportError: the source needs a package that is not installed.
    """
    options = _Options(image_column, label_column, key)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), options)
    if isinstance(source, ImageDataset):
        options.allow("an ImageDataset")
        return source
    if isinstance(source, np.ndarray | Tensor):
        options.allow("an array")
        return array_dataset(source, f"{type(source).__name__} of shape {tuple(source.shape)}")
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if isinstance(source, IterableDataset | Mapping | bytes | bytearray) or not indexed:
        raise TypeError(
            f"cannot open a {type(source).__name__} as a data set: give {_KINDS}, an array, or a data set "
            "with __len__ and __getitem__ (a stream has no order that a resumed run could repeat)"
        )
    options.allow("a data set of items", "image_column", "label_column")
    return open_torch_dataset(source, image_column, label_column)


class _Options(NamedTuple):
    image_column: str | None
    label_column: str | None
    key: str | None

    def allow(self, kind: str, *usable: str) -> None:
        """Refuses the options given that mean nothing to this kind of source."""
        useless = [name for name, value in self._asdict().items() if value is not None and name not in usable]
        if useless:
            raise ValueError(
                f"{', '.join(useless)} cannot be used with {kind}; it takes "
                f"{' and '.join(usable) or 'none of image_column, label_column and key'}"
            )


def _open_path(source: str, options: _Options) -> ImageDataset:
    if source == "digits":
        options.allow('"digits"')
        return open_digits()
    path = Path(source).expanduser()
    if "*" in path.name and not path.exists():
        return _open_tables(_matching(path), f"parquet files {path}", options)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}; {_beside(path)}. Allowed are {_KINDS}")
    if path.is_dir():
        return _open_folder_of_any_kind(path, options)
    match path.suffix.lower():
        case ".zip":
            options.allow("a .zip archive")
            return open_archive(path)
        case ".npz":
            options.allow("an .npz file", "label_column", "key")
            return open_npz(path, options.key, options.label_column)
        case ".npy":
            options.allow("an .npy file")
            return open_npy(path)
        case ".parquet":
            return _open_tables([path], f"parquet file {path}", options)
    raise ValueError(f"cannot open {path} by its suffix {path.suffix!r}; allowed are {_KINDS}")


def _open_folder_of_any_kind(folder: Path, options: _Options) -> ImageDataset:
    names = files_below(folder)
    tables = [folder / name for name in names if name.lower().endswith(".parquet")]
    if tables and image_names(names):
        raise ValueError(
            f"{folder} holds both images and parquet files ({summary(names)}): name a sub-folder, a parquet "
            f'file, or the pattern "{folder}/*.parquet"'
        )
    if tables:
        return _open_tables(tables, f"parquet folder {folder}", options)
    options.allow("an image folder")
    return open_folder(folder, names)


def _open_tables(files: list[Path], name: str, options: _Options) -> ImageDataset:
    options.allow("parquet files", "image_column", "label_column")
    return open_parquet(files, name, options.image_column, options.label_column)


def _matching(pattern: Path) -> list[Path]:
    files = [Path(name) for name in sorted(glob.glob(str(pattern)))]
    others = [file for file in files if file.suffix.lower() != ".parquet"]
    if others:
        raise ValueError(f"a pattern may match parquet files only, but {pattern} matches {others[0]}")
    if not files:
        raise FileNotFoundError(f"no file matches {pattern}; {_beside(pattern)}")
    return files


def _beside(path: Path) -> str:
    """What there is in the nearest folder above `path` that exists, to show a mistyped name."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(os.listdir(folder))
    return f"{folder} holds " + (", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing")
