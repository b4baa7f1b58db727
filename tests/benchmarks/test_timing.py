"""The timers, with clocks whose time is known."""

import time

import numpy as np
import pytest
import torch

from copy_rate import copy_rate
from rotation import MOST_COPIES, Rotation, captured, copies_beyond, tensor_bytes
from timing import EventClock, HostClock, interleaved, latencies, percentile_99, spread

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class FakeClock:
    """Time passes only when a call says so; what was told to the device is done when somebody waits."""

    def __init__(self):
        self.now, self.pending, self.log = 0.0, 0.0, []

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.pending += seconds

        return run

    def mark(self):
        return self.now + self.pending

    def elapsed(self, start, end):
        return end - start

    def wait(self):
        self.now, self.pending = self.now + self.pending, 0.0


def test_contenders_take_turns_of_equal_length():
    clock = FakeClock()
    calls = {"short": clock.call("s", 0.25), "long": clock.call("l", 2.0)}
    seconds = interleaved(calls, clock, repetitions=3, seconds_per_turn=1.0)
    assert seconds == {"short": [0.25] * 3, "long": [2.0] * 3}
    # Two calls each to warm up and to learn the length of a turn.
    assert "".join(clock.log) == "ss" + "ll" + 3 * ("ssss" + "l")


def test_a_turn_has_a_largest_number_of_calls():
    clock = FakeClock()
    interleaved({"a": clock.call("a", 1e-6)}, clock, repetitions=1, seconds_per_turn=1.0, most_calls=5)
    assert len(clock.log) == 2 + 5
    clock = FakeClock()
    interleaved({"nothing": clock.call("n", 0.0)}, clock, repetitions=1, most_calls=7)
    assert len(clock.log) == 2 + 7


def test_the_first_call_is_not_measured():
    clock, costs = FakeClock(), iter([100.0, *[1.0] * 10])

    def slow_at_first():
        clock.pending += next(costs)

    assert interleaved({"a": slow_at_first}, clock, repetitions=2, seconds_per_turn=3.0) == {"a": [1.0, 1.0]}


def test_the_host_clock_sees_a_sleep():
    seconds = interleaved({"sleep": lambda: time.sleep(0.02)}, HostClock(), repetitions=3, seconds_per_turn=0.01)
    assert all(0.02 <= value < 0.5 for value in seconds["sleep"])


def test_latencies_are_of_single_calls_that_are_waited_for():
    clock = FakeClock()
    calls = {"short": clock.call("s", 0.25), "long": clock.call("l", 2.0)}
    assert latencies(calls, clock, most=3, most_seconds=100) == {"short": [0.25] * 3, "long": [2.0] * 3}
    assert "".join(clock.log) == "sl" + 3 * "sl"


def test_long_calls_are_made_less_often():
    clock = FakeClock()
    calls = {"short": clock.call("s", 0.25), "long": clock.call("l", 2.0), "longest": clock.call("x", 9.0)}
    seconds = latencies(calls, clock, most=10, least=2, most_seconds=5.0)
    assert {name: len(values) for name, values in seconds.items()} == {"short": 10, "long": 3, "longest": 2}
    assert "".join(clock.log[3:]) == "slx" + "slx" + "sl" + 7 * "s"


def test_percentile_99():
    values = np.random.default_rng(0).exponential(size=200).tolist()
    assert percentile_99(values) == pytest.approx(np.quantile(values, 0.99))
    assert percentile_99(values[:99]) is None


def test_spread():
    values = np.random.default_rng(0).exponential(size=21).tolist()
    got = spread(values)
    assert got == pytest.approx((*np.quantile(values, [0.2, 0.5, 0.8]), min(values)))
    assert spread([3.0]) == (3.0, 3.0, 3.0, 3.0)


def test_rotation_visits_every_set_and_keeps_its_results():
    seen = []
    rotation = Rotation(lambda x: seen.append(x) or torch.full((2,), float(x)), [1, 2, 3])
    rotation()
    addresses = {result.data_ptr() for result in rotation._results}
    assert seen == [1, 2, 3] and len(addresses) == 3
    rotation()
    assert seen == [1, 2, 3] * 2 and [int(result[0]) for result in rotation._results] == [1, 2, 3]
    rotation.forget()
    assert rotation._results == [None] * 3


@pytest.mark.parametrize(("cache", "one"), [(60, 7), (60, 120), (60, 121), (60, 1000), (1, 1)])
def test_copies_exceed_twice_the_cache(cache, one):
    copies = copies_beyond(cache, one)
    assert copies * one > 2 * cache
    assert copies == 1 or (copies - 1) * one <= 2 * cache
    assert copies_beyond(0, one) == 1


def test_tiny_working_sets_have_a_bounded_number_of_copies():
    assert copies_beyond(60_000_000, 3_000) == MOST_COPIES


def test_tensor_bytes_of_nested_values():
    float32, bfloat16 = torch.zeros(3, 4), torch.zeros(5, dtype=torch.bfloat16)
    assert tensor_bytes({"a": float32, "b": [bfloat16, (float32, None)], "c": (3, 4), "d": "text"}) == 48 + 10 + 48


def test_copy_rate_counts_reading_and_writing():
    found = copy_rate("cpu", HostClock(), largest=2**20, repetitions=2)
    assert found["buffer_bytes"] == 2**20
    assert found["bytes_per_second"] == pytest.approx(2 * 2**20 / found["median"])


@pytest.mark.gpu
@gpu
def test_a_replay_computes_what_the_calls_compute():
    sets = [torch.randn(1000, device="cuda") for _ in range(3)]
    results = []
    rotation = Rotation(lambda x: results.append(x.square()) or results[-1], sets)
    replay = captured(rotation, torch.cuda.graph_pool_handle())
    for tensor in sets:
        tensor.normal_()
    replay()
    torch.cuda.synchronize()
    for tensor, result in zip(sets, results[-3:], strict=True):
        assert torch.equal(result, tensor.square())


@pytest.mark.gpu
@gpu
def test_events_see_the_device_and_the_host_clock_does_not():
    a = torch.randn(8192, 8192, device="cuda")
    calls = {"product": lambda: a @ a}
    # Few calls a turn: a host that launches a thousand waits for the device, whose queue holds no more.
    options = {"repetitions": 3, "seconds_per_turn": 0.05, "most_calls": 4}
    device = interleaved(calls, EventClock(), **options)["product"]
    host = interleaved(calls, HostClock("cuda"), **options)["product"]
    assert min(device) > 5 * min(host)
