"""NumPy's .npz and .npy files of images."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from progdistill.data.arrays import array_dataset
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.resize import Resize

_IMAGE_KEYS = ("images", "image", "x", "arr_0")
_LABEL_KEYS = ("labels", "label", "y")
_NPY_MAGIC = b"\x93NUMPY"
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_CHUNK = 2**24


def open_npz(path: Path, key: str | None, label_column: str | None, resize: Resize | None) -> ImageDataset:
    """Images of an .npz file: the array `key`, or the first of "images", "image", "x", "arr_0".

    Labels are the array `label_column`, or the first of "labels", "label", "y", if there is one. See
    `array_dataset`.

    Raises:
        KeyError: the file has no such array; the message lists those it has.
        TypeError, ValueError: not an .npz file of plain arrays, or an array that is no set of images.
    """
    if _starts_with(path, _NPY_MAGIC):
        raise ValueError(f"cannot read {path}: it is not what its suffix says; rename it to .npy")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise _unreadable(str(path), error) from error
    with archive:
        found = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        image_key = _choose(path, found, key, _IMAGE_KEYS, "key", "images")
        label_key = _choose(path, found, label_column, _LABEL_KEYS, "label_column", None)
        images = _array_of(archive, image_key, path)
        labels = None if label_key is None else _array_of(archive, label_key, path)
    names = (f"array {name!r} of {path}" for name in (image_key, label_key))
    return array_dataset(images, next(names), labels, next(names), resize)


def open_npy(path: Path, resize: Resize | None) -> ImageDataset:
    """Images of an .npy file, memory-mapped: a large one is read batch by batch. See `array_dataset`.

    Raises:
        TypeError, ValueError: not an .npy file of a plain array, or an array that is no set of images.
    """
    if _starts_with(path, b"PK"):
        raise ValueError(f"cannot read {path}: it is not what its suffix says; rename it to .npz")
    try:
        with path.open("rb") as stream:
            header = _read_header(stream)
            if stream.tell() + header.nbytes > path.stat().st_size:
                raise ValueError(f"its header says {header.shape} of {header.dtype}, which is more than the file holds")
            array = np.memmap(path, header.dtype, "r", stream.tell(), header.shape, header.order)
    except Exception as error:
        raise _unreadable(str(path), error) from error
    return array_dataset(array, f"array {path}", resize=resize)


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _array_of(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    try:
        with archive.open(f"{key}.npy") as stream:
            return _read_array(stream)
    except Exception as error:
        raise _unreadable(f"array {key!r} of {path}", error) from error


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(stream: BinaryIO) -> _Header:
    """The header of an .npy file, refused where NumPy's own readers would run code, overflow or crash."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"version {version} of the format is for structured arrays")
    shape, fortran_order, dtype = _HEADER_READERS[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if dtype.itemsize == 0 or any(length <= 0 for length in shape):
        raise ValueError(f"its shape {shape} of {dtype} holds nothing")
    return _Header(shape, "F" if fortran_order else "C", dtype)


def _read_array(stream: BinaryIO) -> np.ndarray:
    """What numpy.load reads, but memory grows with the bytes that there are, not with those that the header claims."""
    header, content = _read_header(stream), bytearray()
    while chunk := stream.read(min(_CHUNK, header.nbytes - len(content))):
        content += chunk
    if len(content) != header.nbytes or stream.read(1):
        raise ValueError(f"its header says {header.shape} of {header.dtype}, but other bytes follow")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order=header.order)


def _unreadable(where: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot read {where}: {error}. Pickled (object) arrays are refused because loading them runs code; "
        "save plain uint8 images with numpy.savez or numpy.save"
    )


def _choose(
    path: Path, found: list[str], wanted: str | None, usual: tuple[str, ...], option: str, needed: str | None
) -> str | None:
    if wanted is not None:
        if wanted not in found:
            raise KeyError(f"{path} has no array {wanted!r}; it has {found}: pass one of them as {option}=")
        return wanted
    chosen = next((key for key in usual if key in found), None)
    if chosen is None and needed is not None:
        raise KeyError(
            f"{path} has no array named {' or '.join(map(repr, usual))} for the {needed}; it has {found}: "
            f"pass one of them as {option}="
        )
    return chosen
