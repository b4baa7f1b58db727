"""Any torch.utils.data.Dataset or sequence of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from progdistill.data.arrays import channel_axis, check_signed, tensor_to_numpy
from progdistill.data.cache_size import cache_bytes
from progdistill.data.decode import Header, channels_first, image_to_array
from progdistill.data.encoded import common_shape
from progdistill.data.image_dataset import ImageDataset
from progdistill.data.image_store import TensorStore
from progdistill.data.labels import class_labels
from progdistill.data.pixels import to_uint8
from progdistill.data.resize import Resize
from progdistill.data.workers import with_progress


def open_torch_dataset(
    dataset: Any, image_column: str | None, label_column: str | None, resize: Resize | None
) -> ImageDataset:
    """A map-style data set: `len(dataset)` items `dataset[i]`.

    An item is an image, (image, label), or a mapping with "image" and perhaps "label" (or the columns named).
    An image is a PIL image, or a tensor or array of shape (H, W), (C, H, W) or (H, W, C), which is uint8 or
    floating point in [-1, 1]. All items are read once here, one after the other, since a foreign data set
    need not be thread-safe; what fits the cache is not read again, so random augmentation in `dataset` would
    be frozen.

    Raises:
        TypeError, KeyError, ValueError: an item is none of these; the message names its index.
    """
    name = f"data set {type(dataset).__module__}.{type(dataset).__qualname__}"
    store = _ItemStore(dataset, image_column, label_column, name, resize)
    limit, kept, kept_bytes = cache_bytes(), [], 0
    labels, headers, lowest = [], [], float("inf")
    for index in with_progress(range(len(store)), len(store), f"reading {name}"):
        pixels, label, low = store.item(index)
        labels.append(label)
        headers.append(Header(*pixels.shape[:2], grey=pixels.ndim == 2))
        lowest = min(lowest, low)
        kept_bytes += pixels.nbytes
        if kept_bytes <= limit:
            kept.append(pixels)
    if 0 <= lowest < float("inf"):
        raise ValueError(
            f"{name}: no floating-point image has a negative value, so they seem to be in [0, 1]; [-1, 1] is "
            "expected: return image * 2 - 1, or uint8"
        )
    store.shape = common_shape(headers, store.describe, resize)
    classes = class_labels(labels, len(store), name)
    if len(kept) < len(store) or len(store) * int(np.prod(store.shape)) > limit:
        return ImageDataset(store, classes, name)
    images = torch.empty((len(kept), *store.shape), dtype=torch.uint8)
    for index, pixels in enumerate(kept):
        images[index] = torch.tensor(channels_first(pixels, store.shape[0]))
    return ImageDataset(TensorStore(images), classes, name)


class _ItemStore:
    shape: tuple[int, int, int]

    def __init__(
        self, dataset: Any, image_column: str | None, label_column: str | None, name: str, resize: Resize | None
    ) -> None:
        self._dataset, self._name, self._resize = dataset, name, resize
        self._image_column, self._label_column = image_column, label_column

    def __len__(self) -> int:
        return len(self._dataset)

    def describe(self, index: int) -> str:
        return f"item {index} of {self._name}"

    def take(self, indices: Tensor) -> Tensor:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for position, index in enumerate(indices.tolist()):
            pixels = channels_first(self.item(index)[0], self.shape[0])
            if pixels.shape != self.shape:
                raise ValueError(f"{self.describe(index)} is now {pixels.shape}, not {self.shape} as it was at first")
            images[position] = pixels
        return torch.from_numpy(images)

    def item(self, index: int) -> tuple[np.ndarray, Any, float]:
        """Pixels, uint8 (H, W) or (H, W, 3); the label or None; a float image's minimum, else infinity."""
        pixels, label, low = self._unsized_item(index)
        return self._resize(pixels) if self._resize else pixels, label, low

    def _unsized_item(self, index: int) -> tuple[np.ndarray, Any, float]:
        where = self.describe(index)
        try:
            item = self._dataset[index]
        except Exception as error:
            raise ValueError(f"cannot read {where}: {error!r}") from error
        image, label = self._split(item, where)
        if isinstance(label, Tensor | np.ndarray):
            label = label.tolist()
        if isinstance(image, Image.Image):
            try:
                return image_to_array(image), label, float("inf")
            except Exception as error:
                raise ValueError(f"cannot decode {where}: {error}") from error
        pixels, low = _array_pixels(image, where)
        return pixels, label, low

    def _split(self, item: Any, where: str) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            column = self._image_column or "image"
            for wanted in (column, self._label_column):
                if wanted is not None and wanted not in item:
                    raise KeyError(
                        f"{where} has no {wanted!r}; it has {list(item)}: pass image_column= or label_column="
                    )
            return item[column], item.get(self._label_column or "label")
        if self._image_column is not None or self._label_column is not None:
            raise ValueError(f"{where} is a {type(item).__name__}; image_column and label_column are for mappings")
        if isinstance(item, tuple | list):
            if len(item) not in (1, 2):
                raise ValueError(f"{where} has {len(item)} parts; allowed are image and (image, label)")
            return item[0], item[1] if len(item) == 2 else None
        return item, None


def _array_pixels(image: Any, where: str) -> tuple[np.ndarray, float]:
    if isinstance(image, Tensor):
        image = tensor_to_numpy(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{where} is a {type(image).__name__}; allowed are PIL images, tensors and NumPy arrays")
    if 0 in image.shape:
        raise ValueError(f"{where} is empty: shape {image.shape}")
    axis = channel_axis(image.shape, where)
    low = float("inf")
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        check_signed(low, high, where)
        image = to_uint8(torch.tensor(image, dtype=torch.float32)).numpy()
    elif image.dtype != np.uint8:
        raise TypeError(f"{where}: pixels must be uint8 or floating point in [-1, 1], not {image.dtype}")
    image = image if axis != 0 else image.transpose(1, 2, 0)
    return np.array(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image), low
