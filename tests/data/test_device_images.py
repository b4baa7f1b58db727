"""Batches on a device: the same whichever way they come, and a thread that ends."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from progdistill.data import ImageDataset, open_dataset
from progdistill.data.cache_size import device_cache_bytes
from progdistill.data.device_images import DeviceImages
from progdistill.data.labels import Labels

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"
DEVICE_CACHE = "PROGDISTILL_DEVICE_CACHE_BYTES"
SIZE = 40
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (SIZE, 3, 6, 5), dtype=np.uint8))
LABELS = torch.arange(SIZE) % 7


class Slow:
    """A store of which each read is noted, can be held up, and can fail."""

    shape = (3, 6, 5)

    def __init__(self):
        self.reads, self.threads = [], set()
        self.broken, self.held = set(), set()
        self.change = threading.Condition()

    def __len__(self):
        return SIZE

    def take(self, indices):
        wanted = indices.tolist()
        with self.change:
            self.threads.add(threading.current_thread())
            self.reads.append(wanted)
            self.change.notify_all()
            assert self.change.wait_for(lambda: not self.held & set(wanted), 30)
        for index in wanted:
            if index in self.broken:
                raise ValueError(f"cannot read the image at {index}.png")
        return PIXELS[indices]

    def wait_until_read(self, wanted):
        with self.change:
            assert self.change.wait_for(lambda: wanted in self.reads, 30)

    def release(self):
        with self.change:
            self.held.clear()
            self.change.notify_all()


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setenv(CACHE, "0")
    store = Slow()
    return store, ImageDataset(store, Labels(LABELS, 7), "slow images")


def sequence(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, SIZE, (int(n),), generator=generator) for n in torch.randint(1, 9, (count,))]


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("progdistill-prefetch")]


def check(images, batches, guess):
    for position, indices in enumerate(batches):
        pixels, labels = images.batch(indices, following=guess(position))
        assert torch.equal(pixels.cpu(), PIXELS[indices]) and pixels.device == images.device
        assert torch.equal(labels.cpu(), LABELS[indices]) and labels.device == images.device


def after(batches, position):
    return batches[position + 1] if position + 1 < len(batches) else None


GUESSES = {
    "none": lambda batches: lambda position: None,
    "right": lambda batches: lambda position: after(batches, position),
    "wrong": lambda batches: lambda position: batches[0].flip(0),
    "sometimes": lambda batches: lambda position: after(batches, position) if position % 3 else None,
}


@pytest.mark.parametrize("guess", GUESSES)
def test_guesses_change_nothing(slow, guess):
    batches = sequence(25)
    check(slow[1].on("cpu"), batches, GUESSES[guess](batches))


def test_a_right_guess_is_read_once_and_ahead(slow):
    store, dataset = slow
    images = dataset.on("cpu")
    images.batch(torch.tensor([3, 4]), following=torch.tensor([5]))
    store.wait_until_read([5])  # without having been asked for
    images.batch(torch.tensor([5]))
    assert store.reads == [[3, 4], [5]]
    assert threading.main_thread() not in store.threads


def test_the_caller_does_not_wait_for_what_follows(slow):
    store, dataset = slow
    store.held.add(9)
    images = dataset.on("cpu")
    pixels, _ = images.batch(torch.tensor([1]), following=torch.tensor([9]))
    assert torch.equal(pixels, PIXELS[[1]])
    store.wait_until_read([9])
    store.release()
    assert torch.equal(images.batch(torch.tensor([9]))[0], PIXELS[[9]])


def test_an_error_of_the_thread_is_raised_when_its_batch_is_asked_for(slow):
    store, dataset = slow
    store.broken.add(7)
    images = dataset.on("cpu")
    pixels, _ = images.batch(torch.tensor([1]), following=torch.tensor([7]))
    assert torch.equal(pixels, PIXELS[[1]])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^cannot read the image at 7\.png$"):
            images.batch(torch.tensor([7]))
    images.batch(torch.tensor([1]), following=torch.tensor([7]))
    assert torch.equal(images.batch(torch.tensor([2]))[0], PIXELS[[2]])  # an abandoned guess's error is nobody's
    store.broken.clear()
    assert torch.equal(images.batch(torch.tensor([7]))[0], PIXELS[[7]])


def test_wrong_indices_are_refused_at_once(slow):
    for dataset in (slow[1], open_dataset(PIXELS)):
        images = dataset.on("cpu")
        with pytest.raises(IndexError, match=r"index 40 is outside 0\.\.39"):
            images.batch(torch.tensor([40]))
        with pytest.raises(TypeError, match="int64"):
            images.batch(torch.tensor([0.5]))


@pytest.mark.parametrize("end", ["closed", "dropped", "dropped while reading"])
def test_the_thread_ends(slow, end):
    store, dataset = slow
    before = set(prefetch_threads())
    images = dataset.on("cpu")
    images.batch(torch.tensor([1]), following=torch.tensor([2]))
    (thread,) = set(prefetch_threads()) - before
    if end == "dropped while reading":
        store.held.add(9)
        images.batch(torch.tensor([2]), following=torch.tensor([9]))
        store.wait_until_read([9])
    if end == "closed":
        images.close()
        assert torch.equal(images.batch(torch.tensor([3]), following=torch.tensor([4]))[0], PIXELS[[3]])
        images.close()
    else:
        del images
        gc.collect()
    store.release()
    thread.join(30)
    assert not thread.is_alive()


def test_images_in_memory_need_no_thread_and_no_copy(monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    before = prefetch_threads()
    dataset = open_dataset(PIXELS)
    images = dataset.on("cpu")
    assert images.resident and images._kept.data_ptr() == dataset.images().data_ptr()
    batches = sequence(10)
    pixels, labels = images.batch(batches[0], following=batches[1])
    assert torch.equal(pixels, PIXELS[batches[0]]) and labels is None
    assert prefetch_threads() == before


def test_one_object_a_device_is_shared_while_it_is_used(slow):
    dataset = slow[1]
    images = dataset.on("cpu")
    assert dataset.on(torch.device("cpu")) is images
    gone = weakref.ref(images)
    del images
    gc.collect()
    assert gone() is None


def test_a_wrong_cache_size_is_refused(monkeypatch):
    monkeypatch.setenv(DEVICE_CACHE, "8GB")
    with pytest.raises(ValueError, match=r"PROGDISTILL_DEVICE_CACHE_BYTES must be a number of bytes.*'8GB'"):
        device_cache_bytes(torch.device("cpu"))
    monkeypatch.setenv(DEVICE_CACHE, "0")
    assert device_cache_bytes(torch.device("cpu")) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("lazy", [True, False])
def test_on_a_gpu(slow, kept, lazy, guess):
    dataset = slow[1] if lazy else ImageDataset(open_dataset(PIXELS)._store, Labels(LABELS, 7), "images")
    images = DeviceImages(dataset, "cuda", cache_bytes=None if kept else 0)
    assert images.resident == kept
    batches = sequence(60)
    check(images, batches, GUESSES[guess](batches))
    images.close()
    check(images, batches[:3], GUESSES[guess](batches))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_stays_what_it_was_while_later_ones_are_sent(slow):
    """The page-locked buffers are used again and again; nothing that was returned may change."""
    images = DeviceImages(slow[1], "cuda", cache_bytes=0)
    batches = sequence(50)
    busy = torch.randn(2000, 2000, device="cuda")
    returned = []
    for position, indices in enumerate(batches):
        for _ in range(5):
            busy = busy @ busy / 2000  # keeps the GPU behind, so that copies and reads overlap
        returned.append(images.batch(indices, following=after(batches, position))[0])
    for indices, pixels in zip(batches, returned, strict=True):
        assert torch.equal(pixels.cpu(), PIXELS[indices])
