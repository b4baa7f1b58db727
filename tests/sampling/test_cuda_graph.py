"""`CudaGraph` on stand-ins for torch.cuda: which stream, what is put back after a failure, who waits for whom.

On a GPU: test_sampler_on_a_gpu.py.
"""

import contextlib
import gc
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from progdistill.sampling import cuda_graph
from progdistill.sampling.cuda_graph import CudaGraph, GraphPool

DEVICE = torch.device("cpu")
BEFORE = "torch's state of random numbers"


class Stream:
    device = SimpleNamespace(index=0)

    def __init__(self, device=None):
        self.waits = []

    def wait_stream(self, other):
        self.waits.append(other)


class Cuda:
    """What `CudaGraph` takes of torch.cuda and torch, with a note of what was done."""

    def __init__(self):
        self.user = self.current = Stream()
        self.reserved, self.handles, self.log, self.capturing = 100, 0, [], 0
        self.generator = SimpleNamespace(get_state=lambda: BEFORE, graphsafe_set_state=self.swap)

    def swap(self, state):
        self.log.append(("random numbers", state))

    def new_generator(self, device):
        kept = []
        return SimpleNamespace(set_state=kept.append, graphsafe_get_state=lambda: kept[-1])

    def handle(self):
        self.handles += 1
        return (0, self.handles)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        """As torch.cuda.graph: where the capture's end fails, the stream stays current."""
        assert capture_error_mode == "thread_local" and not gc.isenabled()
        self.capturing += 1
        assert self.capturing == 1
        self.current, before = stream, self.current
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        finally:
            self.capturing -= 1
        self.current = before


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    replaced = {
        "Stream": Stream,
        "CUDAGraph": object,
        "graph": cuda.graph,
        "graph_pool_handle": cuda.handle,
        "stream": cuda.stream,
        "current_stream": lambda device: cuda.current,
        "set_stream": lambda stream: setattr(cuda, "current", stream),
        "device": lambda device: contextlib.nullcontext(),
        "default_generators": (cuda.generator,),
        "memory_reserved": lambda device: cuda.reserved,
    }
    for name, stand_in in replaced.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "Generator", cuda.new_generator)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: cuda.log.append((name, *given)))
    cuda_graph._side_stream.cache_clear()
    yield cuda
    cuda_graph._side_stream.cache_clear()


def test_graphs_of_a_pool_are_recorded_on_its_stream_and_warmed_up_on_another(cuda):
    pool, other, streams = GraphPool(DEVICE), GraphPool(DEVICE), []
    for own in (pool, pool, other):
        CudaGraph(lambda: streams.append(cuda.current), DEVICE, own)
    warm_ups, recorded = [streams[i] for i in (0, 1, 2, 4, 5, 6, 8, 9, 10)], streams[3::4]
    assert recorded == [pool.stream, pool.stream, other.stream] and len({pool.stream, other.stream}) == 2
    assert len(set(warm_ups)) == 1 and not {*warm_ups} & {cuda.user, pool.stream, other.stream}
    assert pool.handle != other.handle
    # What the user has queued comes first, and what comes later waits for the warm-up and the recording.
    assert cuda.user in warm_ups[0].waits and {warm_ups[0], pool.stream} <= set(cuda.user.waits)
    assert cuda.current is cuda.user and gc.isenabled() and cuda.log == []


def test_memory_is_what_the_recording_takes(cuda, monkeypatch):
    """Not what a warm-up leaves in torch's cache, nor what is given back from there before the recording."""
    changes = iter([50, 0, 0, 7])

    def run():
        cuda.reserved += next(changes)

    @contextlib.contextmanager
    def emptied(*given, **options):
        cuda.reserved -= 90
        with cuda.graph(*given, **options):
            yield

    monkeypatch.setattr(torch.cuda, "graph", emptied)
    assert CudaGraph(run, DEVICE, GraphPool(DEVICE)).memory == 7


def test_a_failure_leaves_all_as_it_was(cuda):
    pool, runs = GraphPool(DEVICE), iter([None, None, None, RuntimeError("item() of a tensor")])

    def run():
        error = next(runs)
        if error is not None:
            raise error

    with pytest.raises(RuntimeError, match="item"):
        CudaGraph(run, DEVICE, pool)
    assert cuda.current is cuda.user and gc.isenabled() and not torch.backends.cudnn.benchmark
    assert cuda.log == [
        ("random numbers", BEFORE),
        ("_cuda_endAllocateToPool", 0, pool.handle),
        ("_cuda_releasePool", 0, pool.handle),
    ]


def test_a_pool_that_nothing_was_recorded_to_is_not_released(cuda, monkeypatch):
    def not_recording(*given):
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording)
    with pytest.raises(RuntimeError, match="no"), cuda_graph.recording(object(), DEVICE, GraphPool(DEVICE)):
        raise RuntimeError("no")
    assert cuda.log == [("random numbers", BEFORE)]


def test_captures_of_several_threads_take_turns(cuda):
    def run():
        assert cuda.capturing <= 1
        time.sleep(0.002)

    def capture():
        CudaGraph(run, DEVICE, GraphPool(DEVICE))
        made.append(1)

    made, threads = [], [threading.Thread(target=capture) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
