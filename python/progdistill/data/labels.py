"""Class labels of any spelling as int64 numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Labels(NamedTuple):
    """`values`: int64, (N,), each in 0..num_classes-1."""

    values: Tensor
    num_classes: int


def class_labels(raw: Sequence[Any] | np.ndarray, count: int, where: str, num_classes: int = 0) -> Labels | None:
    """Labels of `count` images.

    Args:
        raw: one label an image: integers from 0 on, or names, which are sorted and numbered 0..k-1. All of
            them None or -1 (how Hugging Face marks an unlabelled split) means no labels.
        where: what the labels are, for messages.
        num_classes: what the source itself declares; the largest label + 1 if that is more.

    Returns:
        The labels, or None.

    Raises:
        TypeError: the labels are neither integers nor names.
        ValueError: a label is missing or negative, or there is not one label an image.
    """
    values = np.asarray(raw)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (count,):
        raise ValueError(
            f"{where}: {count} images need labels of shape ({count},), not {values.shape}; "
            "turn one-hot rows into numbers with argmax(axis=1)"
        )
    if values.dtype == object:
        missing = [index for index, value in enumerate(values) if value is None]
        if len(missing) == count:
            return None
        if missing:
            raise ValueError(f"{where}: image {missing[0]} has no label but others have; label all or none")
        values = np.asarray(values.tolist())
    if values.dtype.kind in "US":
        names, numbers = np.unique(values, return_inverse=True)
        return Labels(torch.from_numpy(numbers.astype(np.int64)), len(names))
    if values.dtype.kind not in "iub":
        raise TypeError(f"{where}: labels must be integers or names, not {values.dtype}; store them as int64")
    return _numbered(values.astype(np.int64), where, num_classes)


def _numbered(values: np.ndarray, where: str, num_classes: int) -> Labels | None:
    if (values == -1).all():
        return None
    if values.min() < 0:
        first = int(np.argmax(values < 0))
        raise ValueError(f"{where}: image {first} has label {values[first]}; labels count from 0")
    return Labels(torch.from_numpy(values), max(num_classes, int(values.max()) + 1))
