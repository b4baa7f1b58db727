"""One function for every source of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from progdistill.data.archive import open_archive
from progdistill.data.arrays import array_dataset
from progdistill.data.digits import open_digits
from progdistill.data.folder import files_below, open_folder
from progdistill.data.hugging_face import (
    HUB_PREFIX,
    is_hugging_face,
    is_saved,
    load_from_hub,
    load_saved,
    open_hugging_face,
)
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.numpy_files import open_npy, open_npz
from progdistill.data.parquet import open_parquet
from progdistill.data.path_patterns import beside, is_pattern, matching
from progdistill.data.resize import DEFAULT_INTERPOLATION, Interpolation, Resize, resize_to
from progdistill.data.shards import open_shards
from progdistill.data.torch_dataset import open_torch_dataset
from progdistill.data.tree import image_names, summary

_KINDS = (
    "an image folder, a .zip, .npz, .npy, .parquet or .tar file, a folder, list or pattern "
    '("train-*.parquet", "train-{000..009}.tar") of parquet or tar files, a folder of datasets\' save_to_disk, '
    '"hf:" and a name on the Hugging Face hub, or "digits"'
)
_HUGGING_FACE_OPTIONS = ("split", "image_column", "label_column")
_TABLES = {".parquet": open_parquet, ".tar": open_shards}


def open_dataset(
    source: Any,
    *,
    dataset_config_name: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    key: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    center_crop: bool = True,
    interpolation: Interpolation = DEFAULT_INTERPOLATION,
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
            - a .parquet file with a column of encoded images, or webdataset's .tar shard; of either also a
              folder, a list of paths or a pattern: "train-*.tar", "train-{000..009}.tar";
            - a folder that `save_to_disk` of Hugging Face's `datasets` wrote, or "hf:" and a data set's name
              on the hub ("hf:uoft-cs/cifar10"), which is downloaded or taken from the cache;
            - "digits": scikit-learn's 1797 grey 8x8 digits ("./digits" is a folder of that name);
            - a `datasets.Dataset` or `DatasetDict`;
            - a torch.utils.data.Dataset or a sequence of images, (image, label) pairs or mappings with
              "image" and "label"; floating-point images of items are in [-1, 1];
            - an array or tensor of images; an `ImageDataset`.
        dataset_config_name: which configuration of a data set on the hub.
        split: which split of a data set of `datasets`; "train", or the only one, without. For the hub also
            its expressions, such as "train[:10%]".
        image_column: the column with the images, or the key of a mapping, the array of an .npz, the part of a
            sample in a tar shard ("jpg").
        label_column: the one with the labels.
        key: the same as `image_column`, for .npz; "images", "image", "x" or "arr_0" are found without.
        resolution: the side of square images, or (height, width); every image is cropped and resized to it.
            Without, all images must have one size.
        center_crop: True keeps the largest centred part that has the wanted aspect; False squeezes the whole
            image.
        interpolation: how to resize, always antialiased: "bilinear", as diffusers' training scripts and the
            paper's LSUN; "area", the mean over each new pixel's box, as the paper's ImageNet 64x64; "bicubic";
            "lanczos".

    Returns:
        A data set that is decoded once, here, if it takes at most 2 GiB ($PROGDISTILL_DATA_CACHE_BYTES), else
        batch by batch. Grey images keep one channel if all are grey, else all are RGB.

    Raises:
        FileNotFoundError: `source` is no path that exists.
        TypeError: `source` or its items are of no kind that can be read.
        KeyError: the split, column or array asked for does not exist.
        ValueError: an option that does not apply, an unreadable image (the message names it), images of
            different sizes, no images at all, floating-point images of an unclear range, a hub that cannot be
            reached.
        ImportError: the source needs a package that is not installed.
    """
    resize = resize_to(resolution, center_crop, interpolation)
    options = _Options(dataset_config_name, split, image_column, label_column, key, resize)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), options)
    if isinstance(source, ImageDataset):
        options.allow("an ImageDataset")
        return source if resize is None else source.resized(resize)
    if isinstance(source, np.ndarray | Tensor):
        options.allow("an array")
        return array_dataset(source, f"{type(source).__name__} of shape {tuple(source.shape)}", resize=resize)
    if is_hugging_face(source):
        name = f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"
        options.allow("a DatasetDict" if isinstance(source, dict) else "a Dataset", *_HUGGING_FACE_OPTIONS)
        return open_hugging_face(source, name, split, image_column, label_column, resize)
    if isinstance(source, Sequence) and source and all(isinstance(item, str | os.PathLike) for item in source):
        files = [Path(item).expanduser() for item in source]
        return _open_files(files, f"files {files[0]} and {len(files) - 1} more", options)
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if isinstance(source, IterableDataset | Mapping | bytes | bytearray) or not indexed:
        raise TypeError(
            f"cannot open a {type(source).__name__} as a data set: give {_KINDS}, an array, or a data set "
            "with __len__ and __getitem__ (a stream has no order that a resumed run could repeat)"
        )
    options.allow("a data set of items", "image_column", "label_column")
    return open_torch_dataset(source, image_column, label_column, resize)


class _Options(NamedTuple):
    dataset_config_name: str | None
    split: str | None
    image_column: str | None
    label_column: str | None
    key: str | None
    resize: Resize | None

    def allow(self, kind: str, *usable: str) -> None:
        """Refuses the options given that mean nothing to this kind of source."""
        given = [name for name, value in self._asdict().items() if value is not None and name != "resize"]
        useless = [name for name in given if name not in usable]
        if useless:
            raise ValueError(
                f"{', '.join(useless)} cannot be used with {kind}; it takes "
                f"{', '.join(usable) or 'none of ' + ', '.join(self._fields[:-1])}"
            )


def _open_path(source: str, options: _Options) -> ImageDataset:
    if source == "digits":
        options.allow('"digits"')
        return open_digits(options.resize)
    if source.startswith(HUB_PREFIX):
        return _open_hub(source, options)
    path = Path(source).expanduser()
    if is_pattern(path):
        return _open_files(matching(path), f"files {path}", options)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}; {beside(path)}. Allowed are {_KINDS}")
    if path.is_dir():
        return _open_folder_of_any_kind(path, options)
    match path.suffix.lower():
        case ".zip":
            options.allow("a .zip archive")
            return open_archive(path, options.resize)
        case ".npz":
            options.allow("an .npz file", "image_column", "label_column", "key")
            return open_npz(path, options.key or options.image_column, options.label_column, options.resize)
        case ".npy":
            options.allow("an .npy file")
            return open_npy(path, options.resize)
    return _open_files([path], f"file {path}", options)


def _open_hub(source: str, options: _Options) -> ImageDataset:
    options.allow("the Hugging Face hub", "dataset_config_name", *_HUGGING_FACE_OPTIONS)
    loaded = load_from_hub(source.removeprefix(HUB_PREFIX), options.dataset_config_name, options.split)
    return open_hugging_face(loaded, source, None, options.image_column, options.label_column, options.resize)


def _open_folder_of_any_kind(folder: Path, options: _Options) -> ImageDataset:
    if is_saved(folder):
        options.allow("a folder of datasets' save_to_disk", *_HUGGING_FACE_OPTIONS)
        return open_hugging_face(
            load_saved(folder), str(folder), options.split, options.image_column, options.label_column, options.resize
        )
    names = files_below(folder)
    tables = [folder / name for name in names if name.lower().endswith(tuple(_TABLES))]
    if tables and image_names(names):
        suffix = tables[0].suffix
        raise ValueError(
            f"{folder} holds both images and {suffix[1:]} files ({summary(names)}): name a sub-folder, a file or the "
            f'pattern "{folder}/*{suffix}", or move one kind elsewhere'
        )
    if tables:
        return _open_files(tables, f"folder {folder}", options)
    options.allow("an image folder")
    return open_folder(folder, names, options.resize)


def _open_files(files: list[Path], name: str, options: _Options) -> ImageDataset:
    """Files that each hold many images, all of one kind; `name` is what they are, without the kind."""
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise FileNotFoundError(f"no such file: {missing}; {beside(missing)}")
    suffixes = sorted({file.suffix.lower() for file in files})
    if suffixes[0] not in _TABLES or len(suffixes) > 1:
        odd = next(file for file in files if file.suffix.lower() not in _TABLES or file.suffix != files[0].suffix)
        compressed = odd.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst")
        hint = "decompress it first; " if compressed else ""
        raise ValueError(
            f"cannot open {odd} by its suffix {odd.suffix!r}: {hint}allowed are {_KINDS}; several files must be all "
            f"{' or all '.join(_TABLES)}"
        )
    kind = suffixes[0][1:]
    options.allow(f"{kind} files", "image_column", "label_column")
    return _TABLES[suffixes[0]](files, f"{kind} {name}", options.image_column, options.label_column, options.resize)
