"""The one data set class of the package, whatever the images come from."""

from __future__ import annotations

import os
from typing import Protocol

import torch
from torch import Tensor

from progdistill.data.labels import Labels
from progdistill.data.workers import with_progress

CACHE_VARIABLE = "PROGDISTILL_DATA_CACHE_BYTES"
_DEFAULT_CACHE_BYTES = 2 * 2**30
_BLOCK = 1024


class ImageStore(Protocol):
    """N images of one shape that can be fetched by index."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor:
        """int64 (B,) in 0..N-1 on the CPU -> uint8 (B, C, H, W)."""
        ...


class TensorStore:
    """Images that lie in memory, decoded: uint8, (N, C, H, W)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.shape = tuple(images.shape[1:])

    def __len__(self) -> int:
        return self.images.shape[0]

    def take(self, indices: Tensor) -> Tensor:
        return self.images.index_select(0, indices)


class ImageDataset:
    """Images of one size as uint8 tensors, with class labels where the source has them.

    Made by `progdistill.data.open_dataset`. A set whose decoded images fit the cache (2 GiB, or the number of
    bytes in the environment variable PROGDISTILL_DATA_CACHE_BYTES) is decoded once, when it is opened; a
    larger one is decoded batch by batch.
    """

    def __init__(self, store: ImageStore, labels: Labels | None, name: str) -> None:
        """Wraps `store`, whose images are loaded here if they fit the cache; `name` describes the source."""
        if len(store) * _bytes_per_image(store) <= cache_bytes() and not isinstance(store, TensorStore):
            store = TensorStore(_take_all(store, f"loading {name}"))
        self._store = store
        self._labels = labels
        self._name = name

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        classes = "no labels" if self.num_classes is None else f"{self.num_classes} classes"
        return f"ImageDataset({self.name}: {len(self)} images {size}, {classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image; C is 1 if all images are grey, else 3."""
        return self._store.shape

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None without labels."""
        return None if self._labels is None else self._labels.num_classes

    @property
    def labels(self) -> Tensor | None:
        """int64, (N,), values in 0..num_classes-1; None without labels."""
        return None if self._labels is None else self._labels.values

    @property
    def name(self) -> str:
        """What the images come from, for people and for JSON."""
        return self._name

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images and labels at `indices`.

        Args:
            indices: int64, (B,), values in 0..N-1, in any order, repeated or not.

        Returns:
            images, uint8 (B, C, H, W), and labels, int64 (B,), or None; both on the CPU.

        Raises:
            TypeError: `indices` is not an int64 tensor.
            IndexError: an index is out of range.
            ValueError: `indices` is not one-dimensional, or an image cannot be decoded.
        """
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
            kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"indices must be an int64 tensor, not {kind}")
        if indices.ndim != 1:
            raise ValueError(f"indices must have shape (B,), not {tuple(indices.shape)}")
        indices = indices.cpu()
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise IndexError(f"index {int(outside[0])} is outside 0..{len(self) - 1} of {self.name}")
        return self._store.take(indices), None if self.labels is None else self.labels[indices]

    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W), on the CPU: N * C * H * W bytes. Read it, do not write into it.

        Raises:
            ValueError: an image cannot be decoded.
        """
        if isinstance(self._store, TensorStore):
            return self._store.images
        return _take_all(self._store, f"loading {self.name}")


def cache_bytes() -> int:
    """How many bytes of decoded images are kept in memory: 2 GiB or $PROGDISTILL_DATA_CACHE_BYTES.

    Raises:
        ValueError: the variable is not a whole number from 0 on.
    """
    text = os.environ.get(CACHE_VARIABLE, str(_DEFAULT_CACHE_BYTES)).strip()
    if not text.isdecimal():
        raise ValueError(f"{CACHE_VARIABLE} must be a number of bytes, 0 or more, not {text!r}")
    return int(text)


def _bytes_per_image(store: ImageStore) -> int:
    channels, height, width = store.shape
    return channels * height * width


def _take_all(store: ImageStore, description: str) -> Tensor:
    images = torch.empty((len(store), *store.shape), dtype=torch.uint8)
    blocks = torch.arange(len(store)).split(max(1, min(_BLOCK, 2**26 // _bytes_per_image(store))))
    done = (index for block in blocks for index in _copy_block(store, block, images))
    for _ in with_progress(done, len(store), description):
        pass
    return images


def _copy_block(store: ImageStore, block: Tensor, images: Tensor) -> range:
    start, stop = int(block[0]), int(block[-1]) + 1
    images[start:stop] = store.take(block)
    return range(start, stop)
