"""Counter-based noise: the published integers, the distribution, and what it may depend on."""

import pytest
import torch

from progdistill.ops import normal
from progdistill.ops.philox import join_words, philox_4x32_10, split_words

# Known answers of Random123 for philox4x32 with 10 rounds: (counter, key, result).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox_4x32_10(counter, key)) == expected


def test_words_of_negative_seeds_round_trip():
    value = torch.tensor([-1, -(2**63), 2**63 - 1, 0, 12345])
    low, high = split_words(value)
    assert torch.equal(join_words(low, high), value)
    assert (low >= 0).all() and (high >= 0).all()


def test_standard_normal():
    noise = normal(torch.arange(64), 3, 7, (3, 32, 32)).double()
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / count) ** 0.5
    correlation = (noise[:, :, :, 1:] * noise[:, :, :, :-1]).mean()
    assert abs(correlation) < 5 / count**0.5
    samples = torch.sort(noise.flatten())[0]
    cdf = torch.special.ndtr(samples)
    distance = (cdf - torch.arange(1, count + 1) / count).abs().max()
    assert distance < 1.95 / count**0.5  # Kolmogorov-Smirnov at 0.1 %


def test_noise_depends_on_its_own_seed_alone():
    whole = normal(torch.tensor([5, 6, 7, 8]), 2, 1, (3, 5, 7))
    assert torch.equal(normal(torch.tensor([7]), 2, 1, (3, 5, 7))[0], whole[2])
    assert torch.equal(normal(torch.tensor([8, 5]), 2, 1, (3, 5, 7)), whole[[3, 0]])


def test_seed_step_stream_each_matter():
    base = normal(torch.tensor([1]), 1, 1, (4, 4))
    for seed, step, stream in [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1 + 2**32, 1, 1), (1, 1 + 2**32, 1), (-1, 1, 1)]:
        other = normal(torch.tensor([seed]), step, stream, (4, 4))
        assert not torch.isclose(other, base, atol=1e-3).any(dim=-1).all()


def test_prefix_property():
    """A larger sample starts with the smaller one's numbers, in contiguous order."""
    assert torch.equal(normal(torch.tensor([3]), 0, 0, (7,))[0], normal(torch.tensor([3]), 0, 0, (50,))[0, :7])


def test_step_as_tensor():
    seeds = torch.arange(3)
    assert torch.equal(normal(seeds, torch.tensor(9), 0, (5,)), normal(seeds, 9, 0, (5,)))


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"int64 of shape \(B,\)"):
        normal(torch.zeros(3), 0, 0, (4,))
    with pytest.raises(ValueError, match="stream is -1"):
        normal(torch.arange(3), 0, -1, (4,))
    with pytest.raises(TypeError, match="one int64 element"):
        normal(torch.arange(3), torch.zeros(2), 0, (4,))
    with pytest.raises(ValueError, match="2\\^34"):
        normal(torch.arange(1), 0, 0, (2**20, 2**20))


def test_plain_pytorch_copies_nothing_to_a_device():
    """Numbers beside tensors of a device: "meta" allows what a GPU does, a CPU tensor of no dimension."""
    seeds, step = torch.zeros(4, dtype=torch.int64, device="meta"), torch.zeros((), dtype=torch.int64, device="meta")
    for number in (step, step.reshape(1), 3):
        assert normal(seeds, number, 7, (3, 5, 5), backend="reference").shape == (4, 3, 5, 5)
