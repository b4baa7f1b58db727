"""One random number a sample: every backend against Philox in Python's own integers, and what it may depend on."""

import pytest
import torch
from torch.library import opcheck

from captured_graph import captured, need_backend
from progdistill.ops import integers, native, normal, random_bits, uniform

WORD, STREAM = 2**32 - 1, 2**32 - 3
SIZES = [0, 1, 7, 128, 1000]
STEPS = [0, 5, -1, 2**32 + 3, 2**63 - 1]
OPS = torch.ops.progdistill


def philox(key, low, high):
    """The four words of the block of a 64-bit key and both halves of a counter (Salmon et al. 2011), one after another.

    Held against Random123's known answers below.
    """
    c, k = [low & WORD, low >> 32 & WORD, high & WORD, high >> 32 & WORD], [key & WORD, key >> 32 & WORD]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & WORD, first >> 32 ^ c[3] ^ k[1], first & WORD]
        k = [k[0] + 0x9E3779B9 & WORD, k[1] + 0xBB67AE85 & WORD]
    return c


def test_known_answers():
    pi = 0x85A308D3243F6A88, 0x0370734413198A2E  # counter and key are digits of pi
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(-1, -1, -1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox(0x299F31D0A4093822, *pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    for key, low, high in [(0, 0, 0), (-1, -1, -1), (0x299F31D0A4093822, *pi)]:
        w0, w1, *_ = philox(key, low, high)
        number = torch.tensor([(low + 2**63) % 2**64 - 2**63])
        assert random_bits(number, key, high).item() % 2**64 == w0 + (w1 << 32)


def seeds_of(size):
    """Small, negative and large ones."""
    return torch.arange(size) * 0x1234567890ABCDF - 3


def by_reference(operation, *arguments):
    return operation(*arguments, backend="reference")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", STEPS)
def test_every_bit(backend, size, step):
    seeds = seeds_of(size)
    words = [philox(seed, STREAM << 32, step)[:2] for seed in seeds.tolist()]
    exact = [((w0 >> 5) * 2**26 + (w1 >> 6)) / 2**53 for w0, w1 in words]
    for call in (backend.call, by_reference):
        drawn = call(uniform, seeds, step, STREAM)
        assert drawn.dtype == torch.float64 and drawn.tolist() == exact
        for high in (1, 2, 1000, 2**31):
            drawn = call(integers, seeds, torch.tensor([step]), STREAM, high)
            assert drawn.dtype == torch.int64 and drawn.tolist() == [w0 * high // 2**32 for w0, _ in words]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [7, -7, 2**63 - 1, 2**64 - 1])
def test_every_bit_of_64(backend, size, key):
    numbers = seeds_of(size)
    for high in STEPS:
        words = [philox(key, number, high)[:2] for number in numbers.tolist()]
        exact = [w0 + (w1 << 32) for w0, w1 in words]
        for call in (backend.call, by_reference):
            drawn = call(random_bits, numbers, key, high)
            assert drawn.dtype == torch.int64 and [bits % 2**64 for bits in drawn.tolist()] == exact


def test_seeds_with_gaps_between_them(backend):
    seeds = seeds_of(40)[::2]
    assert torch.equal(backend.call(uniform, seeds, 1, 2), backend.call(uniform, seeds.clone(), 1, 2))
    assert torch.equal(backend.call(random_bits, seeds, 1, 2), backend.call(random_bits, seeds.clone(), 1, 2))


def test_a_step_is_read_from_memory(backend):
    step = backend.place(torch.tensor(3))
    seeds = backend.place(seeds_of(9))
    before = integers(seeds, step, 1, 2**31, backend=backend.name)
    step.add_(1)
    after = integers(seeds, step, 1, 2**31, backend=backend.name)
    assert torch.equal(after.cpu(), backend.call(integers, seeds_of(9), 4, 1, 2**31)) and not torch.equal(before, after)


def test_uniform_is_uniform():
    numbers = uniform(torch.arange(20_000), 1, 2).sort()[0]
    assert numbers[0] >= 0 and numbers[-1] < 1
    distance = (numbers - (torch.arange(20_000) + 0.5) / 20_000).abs().max()
    assert distance < 1.95 / 20_000**0.5  # Kolmogorov-Smirnov at 0.1 %
    counts = integers(torch.arange(20_000), 1, 3, 10).bincount(minlength=10)
    assert ((counts - 2000).square() / 2000).sum() < 27.9  # chi-square with 9 degrees of freedom at 0.1 %


def test_a_number_depends_on_its_own_seed_alone():
    whole = uniform(torch.tensor([5, 6, 7]), 2, 1)
    assert torch.equal(uniform(torch.tensor([7, 5]), 2, 1), whole[[2, 0]])
    for seed, step, stream in [(6, 2, 1), (5, 3, 1), (5, 2, 2), (5 + 2**32, 2, 1), (5, 2 + 2**32, 1), (-5, 2, 1)]:
        assert uniform(torch.tensor([seed]), step, stream) != whole[0]


def test_opcheck_and_compile():
    seeds, step = seeds_of(5), torch.tensor(2**40)
    opcheck(OPS.draw.default, (seeds, step, 3, None, None))
    opcheck(OPS.draw.default, (seeds[::2], step, 3, 10, None))
    opcheck(OPS.random_bits.default, (seeds[::2], -3, 10, None))

    def draws(seeds, step):
        return uniform(seeds, step, 1), integers(seeds, step, 2, 9), random_bits(seeds, 2**64 - 1, 7)

    compiled = torch.compile(draws, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(seeds, step), draws(seeds, step)))
    on_meta = draws(seeds.to("meta"), step.to("meta"))
    assert [(t.shape, t.dtype, t.device.type) for t in on_meta] == [((5,), t.dtype, "meta") for t in draws(seeds, step)]


def test_bad_arguments(backend):
    seeds, device = torch.arange(3), backend.device
    for error, message, call in [
        (TypeError, r"seeds is torch.float32", lambda: uniform(seeds.float(), 0, 0)),
        (TypeError, r"seeds is torch.int64 of shape \(1, 3\)", lambda: integers(seeds[None], 0, 0, 5)),
        (TypeError, "one int64 element", lambda: uniform(seeds, torch.zeros(2), 0)),
        (ValueError, "stream is 4294967296", lambda: uniform(seeds, 0, 2**32)),
        (ValueError, r"high is 0; it must lie in \[1, 2\^31\]", lambda: integers(seeds, 0, 0, 0)),
        (ValueError, "high is 2147483649", lambda: integers(seeds, 0, 0, 2**31 + 1)),
        (TypeError, r"numbers is torch.int32 .*int64 of shape \(B,\)", lambda: random_bits(seeds.int(), 0, 0)),
        (ValueError, "step is on meta", lambda: uniform(seeds.to(device), torch.zeros(1).long().to("meta"), 0)),
    ]:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
def test_the_extension_refuses_what_it_could_not_read_safely():
    out, whole, seeds, step = torch.empty(2).double(), torch.empty(2).long(), torch.arange(2), torch.tensor(0)
    draw, bits = native._C.draw, native._C.random_bits
    for error, call, arguments in [
        (TypeError, draw, (whole, seeds, step, 0, None)),
        (TypeError, draw, (out, seeds, step, 0, 5)),
        (ValueError, draw, (out[None], seeds, step, 0, None)),
        (ValueError, draw, (out, torch.arange(3), step, 0, None)),
        (ValueError, draw, (torch.empty(4).double()[::2], seeds, step, 0, None)),
        (ValueError, draw, (out, torch.arange(4)[::2], step, 0, None)),
        (ValueError, draw, (out, seeds, torch.arange(2), 0, None)),
        (ValueError, draw, (out, seeds, step, -1, None)),
        (TypeError, bits, (out, seeds, 0, 0)),
        (ValueError, bits, (whole, torch.arange(3), 0, 0)),
        (ValueError, bits, (whole[None], seeds[None], 0, 0)),
    ]:
        with pytest.raises(error):
            call(*arguments, 1)


def test_any_number_of_threads_gives_the_same_numbers():
    seeds, before = seeds_of(20_000), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = uniform(seeds, 1, 2), integers(seeds, 1, 2, 77), random_bits(seeds, 1, 2)
        torch.set_num_threads(1)
        assert all(
            map(torch.equal, several, (uniform(seeds, 1, 2), integers(seeds, 1, 2, 77), random_bits(seeds, 1, 2)))
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
def test_uniform_is_made_of_the_words_of_normal():
    """As its docstring says: the first normal's radius is sqrt(-2 log u)."""
    seeds = torch.arange(1000)
    radius = normal(seeds, 3, 1, (2,), backend="reference").double().square().sum(1).sqrt()
    expected = (-2 * uniform(seeds, 3, 1).clamp(min=2.0**-33).log()).sqrt()
    torch.testing.assert_close(radius, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_sees_new_seeds_and_steps(name):
    need_backend(name)
    seeds, step = seeds_of(128).cuda(), torch.zeros((), dtype=torch.int64, device="cuda")

    def draws():
        drawn = [f(seeds, step, 1, *rest, backend=name) for f, *rest in ((uniform,), (integers, 1000))]
        return [*drawn, random_bits(seeds, 5, 6, backend=name)]

    graph, results = captured(draws)
    for number in (1, 2):
        seeds.add_(number)
        step.fill_(number + 2**32)
        graph.replay()
        assert all(map(torch.equal, results, draws()))
