"""The order of samples, against Philox written out in Python integers."""

from __future__ import annotations

import pytest
import torch

from progdistill.data import epoch_order, sample_indices


def philox(counter, key):
    """Philox4x32-10 as the paper writes it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def literal_order(seed, epoch, size):
    def key(index):
        seed_words = seed % 2**32, (seed >> 32) % 2**32 ^ 0x6F726472
        words = philox((index % 2**32, index >> 32, epoch % 2**32, epoch >> 32), seed_words)
        unsigned = words[0] + 2**32 * words[1]
        return unsigned if unsigned < 2**63 else unsigned - 2**64, index

    return sorted(range(size), key=key)


def test_the_literal_philox_gives_the_published_answer():
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**40 + 7, 2**64 - 1, -1])
@pytest.mark.parametrize(("epoch", "size"), [(0, 1), (0, 97), (5, 97), (2**33 + 1, 64)])
def test_epoch_order_is_the_sort_of_the_literal_keys(seed, epoch, size):
    assert epoch_order(seed, epoch, size).tolist() == literal_order(seed, epoch, size)


def test_an_order_never_changes_between_versions():
    assert epoch_order(0, 0, 10).tolist() == [3, 0, 7, 9, 8, 4, 5, 6, 1, 2]


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_epoch_order_is_a_permutation(size):
    order = epoch_order(3, 4, size)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(size))


def test_epochs_and_seeds_are_unrelated():
    size = 2000
    orders = [epoch_order(seed, epoch, size).double() for seed in (0, 1) for epoch in (0, 1, 2)]
    orders.append(torch.arange(size).double())
    correlation = torch.corrcoef(torch.stack(orders)) - torch.eye(len(orders))
    assert correlation.abs().max() < 5 / size**0.5
    matches = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    assert max(matches) < 12  # one coincidence is expected


def test_every_image_is_equally_often_early():
    first = torch.cat([epoch_order(7, epoch, 20)[:5] for epoch in range(400)])
    counts = torch.bincount(first, minlength=20)
    assert counts.min() > 60 and counts.max() < 145  # 100 expected, standard deviation 8.7


def test_sample_indices_continue_the_epochs():
    seed, size = 11, 13
    whole = torch.cat([epoch_order(seed, epoch, size) for epoch in range(5)])
    for start in range(0, 30):
        for count in (0, 1, 4, 13, 14, 27):
            expected = whole[start : start + count]
            actual = sample_indices(seed, start, count, size)
            assert actual.dtype == torch.int64
            assert actual.tolist() == expected.tolist()


def test_resumed_equals_uninterrupted():
    whole = sample_indices(5, 0, 120, 37)
    parts = [sample_indices(5, start, 8, 37) for start in range(0, 120, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_results_may_be_changed_without_harm():
    before = epoch_order(0, 0, 16).tolist()
    epoch_order(0, 0, 16).zero_()
    sample_indices(0, 0, 16, 16).zero_()
    assert epoch_order(0, 0, 16).tolist() == before


@pytest.mark.parametrize("arguments", [(0, -1, 5), (0, 0, 0), (2**64, 0, 5), (-(2**63) - 1, 0, 5)])
def test_epoch_order_refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be between"):
        epoch_order(*arguments)


@pytest.mark.parametrize("arguments", [(0, -1, 5, 5), (0, 0, -1, 5), (0, 0, 5, 0)])
def test_sample_indices_refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be between"):
        sample_indices(*arguments)


@pytest.mark.parametrize("arguments", [(0.0, 0, 5), (0, 1.5, 5), (0, 0, "5"), (True, 0, 5)])
def test_epoch_order_refuses_what_is_no_integer(arguments):
    with pytest.raises(TypeError, match="must be an int"):
        epoch_order(*arguments)
