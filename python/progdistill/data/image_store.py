"""Images that can be fetched by index, in one shape: what a data set is made of."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from progdistill.data.workers import with_progress

_BLOCK = 1024
_BLOCK_BYTES = 2**26


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


def store_bytes(store: ImageStore) -> int:
    """The size of all decoded images."""
    return len(store) * _bytes_per_image(store)


def take_all(store: ImageStore, description: str, device: torch.device | str = "cpu") -> Tensor:
    """All images, uint8 (N, C, H, W), on `device`; no more than 64 MiB (or one image) lie elsewhere meanwhile."""
    images = torch.empty((len(store), *store.shape), dtype=torch.uint8, device=device)
    blocks = torch.arange(len(store)).split(max(1, min(_BLOCK, _BLOCK_BYTES // _bytes_per_image(store))))
    done = (index for block in blocks for index in _copy_block(store, block, images))
    for _ in with_progress(done, len(store), description):
        pass
    return images


def _copy_block(store: ImageStore, block: Tensor, images: Tensor) -> range:
    start, stop = int(block[0]), int(block[-1]) + 1
    images[start:stop] = store.take(block)
    return range(start, stop)


def _bytes_per_image(store: ImageStore) -> int:
    channels, height, width = store.shape
    return channels * height * width
