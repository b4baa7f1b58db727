"""The pool of threads that reads and writes images."""

import time

import pytest

from progdistill.data.workers import map_indices


def test_results_come_in_order():
    assert list(map_indices(lambda index: index**2, range(1000))) == [index**2 for index in range(1000)]
    assert list(map_indices(str, [])) == []


@pytest.mark.parametrize("ended_by", ["an error", "nobody asking"])
def test_nothing_goes_on_in_the_background(ended_by):
    begun, ended = [], []

    def work(index):
        if index == 0:
            if ended_by == "an error":
                time.sleep(0.02)  # others have begun
                raise OSError("the disk is full")
            return index
        begun.append(index)
        time.sleep(0.02)
        ended.append(index)

    results = map_indices(work, range(32))
    if ended_by == "an error":
        with pytest.raises(OSError, match="the disk is full"):
            list(results)
    else:
        assert next(results) == 0
        results.close()
    assert sorted(begun) == sorted(ended)
    done = len(ended)
    time.sleep(0.1)
    assert len(ended) == done
