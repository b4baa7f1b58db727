"""Arrays and tensors that hold all images at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from progdistill.data.image_dataset import ImageDataset
from progdistill.data.labels import class_labels
from progdistill.data.pixels import to_uint8
from progdistill.data.resize import Resize, resized

_RANGE_SLACK = 1e-4


def array_dataset(
    images: np.ndarray | Tensor,
    name: str,
    labels: np.ndarray | None = None,
    labels_name: str = "",
    resize: Resize | None = None,
) -> ImageDataset:
    """A data set of one array or tensor.

    Args:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3. uint8, or floating point whose range
            is clear: [-1, 1] if any value is negative, else [0, 1]. Other ranges and other types are refused,
            for a wrong guess would silently train on wrong contrast.
        labels: one a sample; see `labels.class_labels`.

    Raises:
        TypeError: neither uint8 nor floating point.
        ValueError: a shape or range that is not as above.
    """
    if isinstance(images, Tensor):
        images = tensor_to_numpy(images)
    store = _ArrayStore(images, name)
    classes = None if labels is None else class_labels(labels, len(store), labels_name)
    return ImageDataset(resized(store, resize), classes, name)


def tensor_to_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's values on the CPU; NumPy has no bfloat16, which becomes float32."""
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def channel_axis(shape: tuple[int, ...], where: str) -> int | None:
    """The axis of the channels in one image's shape: None for (H, W), 0 for (C, H, W), 2 for (H, W, C).

    Raises:
        ValueError: neither end of a three-dimensional shape is 1 or 3, or both are.
    """
    if len(shape) == 2:
        return None
    ends = [axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in (1, 3)]
    if len(ends) != 1:
        reason = "could be either layout" if ends else "is no image"
        raise ValueError(
            f"{where}: an image of shape {tuple(shape)} {reason}; allowed are (H, W), (H, W, C) and "
            "(C, H, W) with C of 1 (grey) or 3 (RGB)"
        )
    return ends[0]


def check_signed(low: float, high: float, where: str) -> None:
    """Refuses floating-point pixels outside [-1, 1]; NaN is outside.

    Raises:
        ValueError: they are.
    """
    if not (low >= -1 - _RANGE_SLACK and high <= 1 + _RANGE_SLACK):
        raise ValueError(
            f"{where}: floating-point pixels run from {low:g} to {high:g}; allowed are [-1, 1] and, for a "
            "whole array without negative values, [0, 1]; convert 0..255 to uint8"
        )


class _ArrayStore:
    def __init__(self, array: np.ndarray, name: str) -> None:
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise TypeError(f"{name}: images must be uint8 or floating point, not {array.dtype}; use astype(np.uint8)")
        if array.ndim not in (3, 4) or 0 in array.shape:
            raise ValueError(
                f"{name} has shape {array.shape}; images must be (N, H, W), (N, H, W, C) or (N, C, H, W), "
                "none of them 0"
            )
        self._array = array
        self._axis = channel_axis(array.shape[1:], name)
        self.shape = self._channels_first(array[:1]).shape[1:]
        self._unit_range = False
        if array.dtype.kind == "f":
            low, high = float(array.min()), float(array.max())
            check_signed(low, high, name)
            self._unit_range = low >= 0

    def __len__(self) -> int:
        return len(self._array)

    def take(self, indices: Tensor) -> Tensor:
        pixels = self._channels_first(self._array[indices.numpy()])
        if self._array.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(pixels))
        values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        return to_uint8(values * 2 - 1 if self._unit_range else values)

    def _channels_first(self, images: np.ndarray) -> np.ndarray:
        if self._axis is None:
            return images[:, None]
        return images if self._axis == 0 else images.transpose(0, 3, 1, 2)
