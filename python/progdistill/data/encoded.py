"""Sets of encoded images: files of a folder, entries of an archive, cells of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from progdistill.data.decode import Header, channels_first, decode, read_header
from progdistill.data.resize import Resize
from progdistill.data.workers import map_indices, with_progress


class Entries(Protocol):
    """N encoded images; `open` is called from several threads at once."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> BinaryIO:
        """A stream at the beginning of the image's bytes; the caller closes it."""
        ...

    def describe(self, index: int) -> str:
        """Where the image is, for messages."""
        ...


class EncodedStore:
    """Images that are decoded when they are asked for, by a pool of threads.

    Opening reads every image's header, because one colour image makes the whole set RGB and, where they are not
    resized, one odd size spoils it.
    """

    def __init__(self, entries: Entries, name: str, resize: Resize | None = None) -> None:
        self._entries, self._resize = entries, resize
        headers = with_progress(map_indices(self._header, range(len(entries))), len(entries), f"scanning {name}")
        self.shape = common_shape(headers, entries.describe, resize)

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, indices: Tensor) -> Tensor:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for position, pixels in enumerate(map_indices(self._pixels, indices.tolist())):
            images[position] = pixels
        return torch.from_numpy(images)

    def _header(self, index: int) -> Header:
        with _opened(self._entries, index) as stream:
            return read_header(stream, self._entries.describe(index))

    def _pixels(self, index: int) -> np.ndarray:
        where = self._entries.describe(index)
        with _opened(self._entries, index) as stream:
            pixels = decode(stream, where)
        pixels = channels_first(self._resize(pixels) if self._resize else pixels, self.shape[0])
        if pixels.shape != self.shape:
            raise ValueError(f"{where} is now {pixels.shape}, not {self.shape}: it changed after the set was opened")
        return pixels


def common_shape(
    headers: Iterable[Header], describe: Callable[[int], str], resize: Resize | None
) -> tuple[int, int, int]:
    """The (C, H, W) that all images share, after `resize`: C is 1 if all of them are grey, else 3.

    Raises:
        ValueError: two images differ in size and are not resized.
    """
    first: Header | None = None
    channels = 1
    for index, header in enumerate(headers):
        first = first or header
        if resize is None and header[:2] != first[:2]:
            raise ValueError(
                f"all images must have one size, but {describe(0)} has {_size(first)} and {describe(index)} "
                f"has {_size(header)} pixels (width x height); resolution={min(first[:2])} would crop and resize "
                "them all to a square"
            )
        channels = channels if header.grey else 3
    if first is None:
        raise ValueError("a data set needs at least one image")
    return channels, *((first.height, first.width) if resize is None else (resize.height, resize.width))


def _size(header: Header) -> str:
    return f"{header.width}x{header.height}"


def _opened(entries: Entries, index: int) -> BinaryIO:
    try:
        return entries.open(index)
    except Exception as error:
        raise ValueError(f"cannot read the image at {entries.describe(index)}: {error}") from error
