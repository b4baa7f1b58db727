"""A data set's images where the training is: kept on the device, or made ready ahead of use and sent there."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from progdistill.data.cache_size import device_cache_bytes

if TYPE_CHECKING:
    from progdistill.data.image_dataset import ImageDataset


class DeviceImages:
    """Batches of a data set on a device, the same bytes whichever way they come.

    A set that fits the GPU's cache is kept there and indexed there. Otherwise a thread makes the batch announced as
    `following` ready while the current one is in use: for a GPU in one of two page-locked buffers, from where it is
    copied on a stream of its own. On the CPU nothing is copied, and only sets that are decoded batch by batch need
    the thread. It ends with `close` or when the object is dropped.

    `ImageDataset.on` shares one object between all that use a device.
    """

    def __init__(self, dataset: ImageDataset, device: torch.device | str, *, cache_bytes: int | None = None) -> None:
        """`cache_bytes`: the size of the largest decoded set that is kept on a GPU, 0 for none; None: see
        `cache_size.device_cache_bytes`.

        Raises:
            ValueError: an image cannot be decoded, or a cache size that is no number.
        """
        self.dataset = dataset
        self.device = exact_device(device)
        self._labels = None if dataset.labels is None else dataset.labels.to(self.device)
        self._kept: Tensor | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._ahead: _Ahead | None = None
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            limit = device_cache_bytes(self.device) if cache_bytes is None else cache_bytes
            if dataset.nbytes <= limit:
                self._kept = dataset.images(self.device)
        elif dataset.in_memory:
            self._kept = dataset.images()
        if self._kept is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="progdistill-prefetch")
            self._slots = [_PinnedSlot(self.device), _PinnedSlot(self.device)] if on_gpu else [None, None]

    @property
    def resident(self) -> bool:
        """Whether all images lie decoded on the device."""
        return self._kept is not None

    def batch(self, indices: Tensor, following: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The images and labels at `indices`, as `ImageDataset.batch` gives them, on the device.

        Args:
            indices: int64, (B,).
            following: what will probably be asked for next. A wrong guess costs its work, nothing else.

        Returns:
            images, uint8 (B, C, H, W), and labels, int64 (B,), or None.

        Raises:
            TypeError, IndexError, ValueError: as `ImageDataset.batch`; what went wrong in the thread is raised when
                its batch is asked for.
        """
        indices = self.dataset.check(indices)
        where = _sent(indices, self.device)
        if self._kept is not None:
            images = self._kept.index_select(0, where)
        elif self._worker is None:
            images = self.dataset.batch(indices)[0].to(self.device)
        else:
            ahead, self._ahead = self._ahead, None
            if ahead is None or not torch.equal(ahead.indices, indices):
                ahead = self._start(indices)
            images = ahead.images.result()
            if ahead.slot is not None:
                images = ahead.slot.send(images)
            if following is not None:
                self._ahead = self._start(following)
        return images, None if self._labels is None else self._labels.index_select(0, where)

    def close(self) -> None:
        """Ends the thread; later batches are read when they are asked for."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
        self._worker = self._ahead = None

    def _start(self, indices: Tensor) -> _Ahead:
        slot = self._slots[0]
        self._slots.reverse()
        if slot is not None:
            slot.reserve(len(indices) * self.dataset.nbytes // len(self.dataset))
        # Neither the task nor its result may hold `self`: dropping it is what ends the thread.
        return _Ahead(indices, slot, self._worker.submit(_collect, self.dataset, indices, slot))


class _Ahead(NamedTuple):
    indices: Tensor
    slot: _PinnedSlot | None
    images: Future[Tensor]


class _PinnedSlot:
    """A page-locked buffer and its way to a GPU.

    Only `fill` runs in the thread, and it calls nothing of CUDA, which would spoil a graph that the main thread may be
    capturing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copied = torch.cuda.Event()
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def reserve(self, nbytes: int) -> None:
        """Waits until the last batch has left the buffer, and makes it large enough for the next one."""
        self._copied.synchronize()
        if self._buffer.numel() < nbytes:
            self._buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def fill(self, images: Tensor) -> Tensor:
        """`images` in the buffer."""
        return self._buffer[: images.numel()].view(images.shape).copy_(images)

    def send(self, images: Tensor) -> Tensor:
        """What `fill` returned on the GPU, for use on the current stream."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            arriving = images.to(self._device, non_blocking=True)
            self._copied.record()
        current.wait_event(self._copied)
        arriving.record_stream(current)
        return arriving


def exact_device(device: torch.device | str) -> torch.device:
    """`device` with its number: "cuda" is the current GPU."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _collect(dataset: ImageDataset, indices: Tensor, slot: _PinnedSlot | None) -> Tensor:
    images, _ = dataset.batch(indices)
    return images if slot is None else slot.fill(images)


def _sent(indices: Tensor, device: torch.device) -> Tensor:
    return indices if device.type == "cpu" else indices.pin_memory().to(device, non_blocking=True)
