"""Batches of a round: a pure function of the update, however the images come."""

import numpy as np
import pytest
import torch

from progdistill.data import open_dataset
from progdistill.training import DistillConfig
from progdistill.training.batches import BatchInputs, BatchSource

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), dtype=np.uint8)


def source(folder, round_index=0, **settings):
    np.savez(folder / "images.npz", images=PIXELS, labels=np.arange(23) % 4)
    np.save(folder / "images.npy", PIXELS)
    config = DistillConfig(output_dir="unused", train_batch_size=6, random_flip=True, **settings)
    conditional = settings.get("data") != "npy"
    path = folder / ("images.npz" if conditional else "images.npy")
    return BatchSource(open_dataset(path), config, round_index, torch.device("cpu"), conditional)


def batches_of(source, update):
    """What an objective is given of each microbatch."""
    made = []
    for microbatch in source.microbatches(update):
        inputs = BatchInputs(microbatch, source.device, torch.contiguous_format)
        inputs.write(microbatch)
        made.append(inputs.batch())
    return made


def same(a, b):
    labels = [batch.cond.class_labels if batch.cond else torch.zeros(0) for batch in (a, b)]
    return torch.equal(a.x, b.x) and torch.equal(a.seeds, b.seeds) and torch.equal(*labels) and a.update == b.update


@pytest.mark.parametrize("data", ["npz", "npy"])
def test_any_order_of_updates_gives_the_same_batches(tmp_path, monkeypatch, data):
    """From memory in order, or decoded batch by batch in any order, as after a resume."""
    whole = source(tmp_path, data=data)
    expected = {update: batches_of(whole, update) for update in range(9)}
    monkeypatch.setenv("PROGDISTILL_DATA_CACHE_BYTES", "0")
    lazy = source(tmp_path, data=data)
    assert whole.images.resident and not lazy.images.resident
    for update in [0, 1, 2, 5, 4, 8, 8, 0, 3, 6, 7]:
        assert all(same(a, b) for a, b in zip(expected[update], batches_of(lazy, update), strict=True))
    split = source(tmp_path, data=data, gradient_accumulation_steps=3)
    for update in [0, 1, 7, 2]:
        parts = batches_of(split, update)
        assert [len(part.x) for part in parts] == [2, 2, 2]
        assert torch.equal(torch.cat([part.x for part in parts]), expected[update][0].x)


def test_the_batches_are_the_images_at_the_sampled_indices(tmp_path):
    """Every image once an epoch, mirrored or not, with its label."""
    batches = source(tmp_path)
    seen = []
    for batch in [b for update in range(4) for b in batches_of(batches, update)]:
        for x, label in zip(batch.x, batch.cond.class_labels, strict=True):
            pixels = ((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            found = [i for i, p in enumerate(PIXELS) if (p == pixels).all() or (p[:, ::-1] == pixels).all()]
            assert len(found) == 1 and found[0] % 4 == int(label)
            seen += found
    assert sorted(seen[:23]) == list(range(23))


def test_rounds_share_the_images_on_a_device(tmp_path):
    first = source(tmp_path)
    second = BatchSource(first.dataset, first.config, 1, first.device, True)
    assert second.images is first.images
    assert not same(*(batches_of(each, 0)[0] for each in (first, second)))


def test_the_next_batch_is_read_ahead(tmp_path, monkeypatch):
    """Its guess is right, across updates and microbatches: every batch is read once."""
    monkeypatch.setenv("PROGDISTILL_DATA_CACHE_BYTES", "0")
    batches = source(tmp_path, gradient_accumulation_steps=2)
    reads, read = [], batches.dataset.batch
    monkeypatch.setattr(batches.dataset, "batch", lambda indices: reads.append(len(indices)) or read(indices))
    for update in range(5):
        assert len(list(batches.microbatches(update))) == 2
    batches.images.close()
    assert len(reads) in (10, 11)  # the one that follows the last may have begun
