"""The one data set class of the package, whatever the images come from."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from progdistill.data.cache_size import cache_bytes
from progdistill.data.device_images import DeviceImages, exact_device
from progdistill.data.image_store import ImageStore, TensorStore, store_bytes, take_all
from progdistill.data.labels import Labels
from progdistill.data.resize import Resize, ResizedStore


class ImageDataset:
    """Images of one size as uint8 tensors, with class labels where the source has them.

    Made by `progdistill.data.open_dataset`. A set whose decoded images fit the cache (2 GiB, or the number of
    bytes in the environment variable PROGDISTILL_DATA_CACHE_BYTES) is decoded once, when it is opened; a
    larger one is decoded batch by batch.
    """

    def __init__(self, store: ImageStore, labels: Labels | None, name: str) -> None:
        """Wraps `store`, whose images are loaded here if they fit the cache; `name` describes the source."""
        if store_bytes(store) <= cache_bytes() and not isinstance(store, TensorStore):
            store = TensorStore(take_all(store, f"loading {name}"))
        self._store = store
        self._labels = labels
        self._name = name
        # Weak: whoever uses the images on a device keeps them there, not the data set.
        self._on_device: weakref.WeakValueDictionary[torch.device, DeviceImages] = weakref.WeakValueDictionary()

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

    @property
    def nbytes(self) -> int:
        """The size of all images, decoded."""
        return store_bytes(self._store)

    @property
    def in_memory(self) -> bool:
        """Whether all images lie decoded in memory; otherwise each batch is decoded when it is asked for."""
        return isinstance(self._store, TensorStore)

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
        indices = self.check(indices)
        return self._store.take(indices), None if self.labels is None else self.labels[indices]

    def check(self, indices: Tensor) -> Tensor:
        """`indices` on the CPU; raises what `batch` raises for wrong ones."""
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
            kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"indices must be an int64 tensor, not {kind}")
        if indices.ndim != 1:
            raise ValueError(f"indices must have shape (B,), not {tuple(indices.shape)}")
        indices = indices.cpu()
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise IndexError(f"index {int(outside[0])} is outside 0..{len(self) - 1} of {self.name}")
        return indices

    def images(self, device: torch.device | str = "cpu") -> Tensor:
        """All images, uint8 (N, C, H, W), on `device`: N * C * H * W bytes. Read it, do not write into it.

        Raises:
            ValueError: an image cannot be decoded.
        """
        if isinstance(self._store, TensorStore):
            return self._store.images.to(device)
        return take_all(self._store, f"loading {self.name}", device)

    def on(self, device: torch.device | str) -> DeviceImages:
        """The images for use on a device; one `DeviceImages` for all that ask while one of them keeps it."""
        device = exact_device(device)
        shared = self._on_device.get(device)
        if shared is None:
            self._on_device[device] = shared = DeviceImages(self, device)
        return shared

    def resized(self, resize: Resize) -> ImageDataset:
        """The same images at another size."""
        return ImageDataset(ResizedStore(self._store, resize), self._labels, self._name)
