"""A round's updates as CUDA graphs: the first ones are run as they are, then recorded and replayed."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from progdistill.core.processes import is_main_process, process_count
from progdistill.nets.unet import UNet
from progdistill.sampling.cuda_graph import GraphPool, recording
from progdistill.sampling.sampler import GraphMode

# cuDNN chooses its algorithms, Triton compiles, libraries make their workspaces, the optimizer its state.
WARM_UP_UPDATES = 3


class UpdateGraph:
    """Runs the microbatches of updates: the first three updates on a stream of its own, all others as graphs.

    Both count alike, and compute the same.

    Args:
        run: `run(last)` is a microbatch, an update's last one or not. It reads memory that stays where it is, without
            a look at it from the host, and leaves nothing behind but in such memory.
        forget: drops what a recording has left that failed half way, for `run` to be called as it is.
        network: what is trained.
        device: where.
        mode: "auto", "require" (True is the same) or False, as a run's `cuda_graph`.
        on_host: None, or why `run` does look at something on the host.

    Raises:
        ValueError: "require" where no graph can be.
    """

    def __init__(
        self,
        run: Callable[[bool], None],
        forget: Callable[[], None],
        network: nn.Module,
        device: torch.device,
        mode: GraphMode,
        on_host: str | None = None,
    ) -> None:
        self._run = run
        self._forget = forget
        self._required = mode in ("require", True)
        obstacle = _obstacle(network, device, self._required) or on_host
        if obstacle is not None and self._required:
            raise ValueError(f"cuda_graph is {mode!r}, but {obstacle}; use 'auto'")
        if obstacle is not None and mode == "auto" and device.type == "cuda":
            _say(obstacle)
        self.wanted = mode is not False and obstacle is None
        """Whether graphs are used, or will be."""
        self._recorder = CudaRecorder(device) if self.wanted else None
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._kinds: set[bool] = set()
        self._waits: list[str] = []
        self._warm_ups = 0

    def prepare(self) -> None:
        """Records the graphs, if it is time to: to be called between two updates.

        Raises:
            RuntimeError: "require", and an update cannot be captured.
        """
        if not self.wanted or self._graphs or self._warm_ups < WARM_UP_UPDATES:
            return
        try:
            if self._waits:
                raise RuntimeError(f"the host waits for the device: {self._waits[0]}")
            self._graphs = {kind: self._recorder.record(lambda kind=kind: self._run(kind)) for kind in self._kinds}
        except RuntimeError as error:
            if self._required:
                raise
            self.wanted = False
            self._forget()
            _say(f"an update cannot be captured ({error})")

    def __call__(self, last: bool) -> None:
        """Enqueues a microbatch on the current stream."""
        if not self.wanted:
            self._run(last)
        elif self._graphs:
            self._graphs[last].replay()
        else:
            self._waits = self._recorder.warm_up(lambda: self._run(last))
            self._kinds.add(last)
            self._warm_ups += last

    def close(self) -> None:
        """Frees the graphs' memory; nothing can be run any more."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()


class CudaRecorder:
    """The stream on which a round's updates are warmed up and recorded, and the memory that their graphs share."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = GraphPool(device)

    def warm_up(self, run: Callable[[], None]) -> list[str]:
        """Runs it on the stream that it will be recorded on, for autograd goes where the forward pass has been.

        Returns what made the host wait for the device, which a capture would not survive.
        """
        current, stream = torch.cuda.current_stream(self._device), self._pool.stream
        stream.wait_stream(current)
        with torch.cuda.stream(stream), _waits_of_the_host() as waits:
            run()
        current.wait_stream(stream)
        return waits

    def record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """What replays the work of `run`, which is not done now."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        with torch.cuda.device(self._device), recording(graph, self._device, self._pool):
            run()
        return graph


def _obstacle(network: nn.Module, device: torch.device, required: bool) -> str | None:
    """Why there can be no graph, if that is known beforehand."""
    if device.type != "cuda":
        return f"updates are computed on {device}, which has no CUDA graphs"
    if process_count() > 1:
        return f"{process_count()} processes exchange their gradients, which is not captured"
    if not required and not isinstance(network, UNet):
        return (
            f"{type(network).__name__} is a network of your own, and a graph would repeat whatever its Python code "
            "decided while it was recorded (cuda_graph='require' captures it all the same)"
        )
    return None


def _say(reason: str) -> None:
    if is_main_process():
        warnings.warn(f"updates are made without CUDA graphs: {reason}", stacklevel=4)


@contextlib.contextmanager
def _waits_of_the_host() -> Iterator[list[str]]:
    """What torch warns of as synchronising within the block; other warnings are passed on."""
    waits: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        message = str(warning.message)
        if "synchronizing CUDA operation" in message:
            waits.append(f"{warning.filename}, line {warning.lineno}")
        elif not message.startswith("Synchronization debug mode is a prototype"):  # said of this very way to find out
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
