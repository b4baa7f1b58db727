"""The thread that writes: in order, bounded, and nothing after a failure."""

import threading
import time

import pytest

from progdistill.data.writer_thread import WriterThread

PATIENCE = 10.0


def test_writes_in_order_in_another_thread():
    written = []
    with WriterThread(lambda *a: written.append((threading.get_ident(), *a))) as writer:
        for k in range(20):
            writer.submit(k, -k)
    assert [entry[1:] for entry in written] == [(k, -k) for k in range(20)]
    assert {entry[0] for entry in written}.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_at_most_the_limit_is_held(limit):
    """`submit` waits while `limit` things are unwritten, and not before."""
    full, ahead = threading.Event(), []
    accepted = 0

    def write(k):
        if k == 0:
            assert full.wait(PATIENCE), "submit waited though there was room"
        time.sleep(0.005)
        ahead.append(accepted - k)

    with WriterThread(write, limit) as writer:
        for k in range(12):
            writer.submit(k)
            accepted += 1
            if accepted == limit:
                full.set()
    assert len(ahead) == 12 and max(ahead) == limit


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_failure_is_raised_and_nothing_is_written_after_it(limit):
    written = []

    def write(k):
        if k == 3:
            raise OSError("disk full")
        written.append(k)

    def all_of_them():
        with WriterThread(write, limit) as writer:
            for k in range(20):
                writer.submit(k)

    with pytest.raises(OSError, match="disk full"):
        all_of_them()
    assert written == [0, 1, 2]


def test_the_last_failure_is_not_missed():
    with pytest.raises(ZeroDivisionError), WriterThread(lambda k: 1 / k) as writer:
        writer.submit(0)


def test_an_exception_in_the_block_drops_what_waits():
    started, go = threading.Event(), threading.Event()
    written = []

    def write(k):
        started.set()
        assert go.wait(PATIENCE)
        written.append(k)

    def block():
        with WriterThread(write, limit=3) as writer:
            for k in range(3):
                writer.submit(k)
            assert started.wait(PATIENCE)
            threading.Timer(0.05, go.set).start()
            raise ValueError("the network")

    with pytest.raises(ValueError, match="the network"):
        block()
    assert written == [0]
