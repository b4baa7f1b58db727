"""A model made ready to sample again and again, under CUDA graphs where there is a GPU."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.core.modes import evaluating
from progdistill.nets.unet import UNet
from progdistill.sampling.arguments import checked_guidance, checked_labels, checked_latents, image_count, student_for
from progdistill.sampling.cuda_graph import CudaGraph, GraphPool
from progdistill.sampling.fixed_steps import FixedSteps
from progdistill.sampling.images import FORM_OF, FORMS, check_output_type, delivered
from progdistill.sampling.latents import image_seeds

GraphMode = Literal["auto", "require"] | bool
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEMORY_BUDGET = 4 * 2**30


class Sampler:
    """DDIM of a model in a fixed number of steps, for many calls.

        sampler = Sampler(student, steps=4, batch_sizes=(1, 8, 64)).warmup()
        images = sampler(seed=7, batch_size=5)

    On a GPU a call of n images is one replay of the CUDA graph for the smallest of `batch_sizes` that holds them, all
    steps in it: noise from seeds in device memory, the network in `dtype` and channels_last, no embedding left to
    compute. Calls of more images than the largest size replay it several times. Elsewhere the same steps run without a
    graph, at the size asked for.

    Calls from several threads take turns; calls on several streams wait for one another on the device.

    Args:
        model: a teacher or a student; a student of this step count is found as `sample` finds it.
        steps: network calls an image.
        batch_sizes: what graphs are made for, when first needed or by `warmup`.
        dtype: what the network computes in; default bfloat16 for our own networks on a GPU or a CPU that has it (AVX512
            BF16, AMX: up to 1.8 times faster there), float32 for others and elsewhere. States are float32.
        clip: None, or the bound of |x| at each step; the last image is clamped anyway.
        cuda_graph: "auto" (if the model is on a GPU and can be captured; says why where it cannot), "require" (else an
            error) or False.
        memory_budget: bytes that the graphs of this sampler may hold, 4 GiB; the least recently used go first, and
            leave their memory to those that are made later.

    Weights: a sampler in another dtype than the model's has a copy of them. It takes in changed weights when `refresh`
    is called, not by itself: looking at every tensor costs more than a small batch. `sample` does look.

    Raises:
        ValueError: a step count that the model cannot sample in; batch sizes that are not positive; "require" for a
            model that is not on a GPU.
    """

    def __init__(
        self,
        model: Denoiser,
        steps: int = 1,
        *,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        dtype: torch.dtype | None = None,
        clip: float | None = None,
        cuda_graph: GraphMode = "auto",
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        if cuda_graph not in ("auto", "require", True, False):
            raise ValueError(f'cuda_graph is {cuda_graph!r}; use "auto", "require" or False')
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes is {tuple(batch_sizes)}; use positive numbers such as (1, 8, 64)")
        self.model = student_for(model, steps)
        self._on_gpu = self.model.device.type == "cuda"
        if cuda_graph in ("require", True) and not self._on_gpu:
            raise ValueError(
                f"cuda_graph={cuda_graph!r}, but the model is on {self.model.device}; move it to a GPU, or use 'auto'"
            )
        self.steps = steps
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self.cuda_graph = cuda_graph
        self.memory_budget = memory_budget
        self._graphs_wanted = self._on_gpu and cuda_graph is not False
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[int, bool, bool, str], _Captured] = OrderedDict()
        self._pool: GraphPool | None = None
        self._done: torch.cuda.Event | None = None
        with self._in_turn(), _plainly(self.model):
            self._program = FixedSteps(self.model, steps, dtype or default_dtype(self.model), clip)

    def warmup(self, output_type: str = "pt") -> Sampler:
        """Makes the graphs of all batch sizes for calls with seeds and that output type now. Returns itself.

        On a GPU; elsewhere nothing is to be made.
        """
        check_output_type(output_type, self.model.sample_shape)
        if self._graphs_wanted:
            with self._in_turn():
                for size in reversed(self.batch_sizes):  # the smaller ones find room in the memory of the largest
                    self._captured(size, True, self.model.guidance_range is not None, FORM_OF[output_type])
        return self

    def refresh(self) -> None:
        """Takes in the model's weights as they are now.

        Graphs stay, for they read the same memory; but not if they read the model's own, and it has others now.
        """
        with self._in_turn(), _plainly(self.model):
            self._program.refresh()
            places = _places(self._weights())
            if any(_places(captured.weights) != places for captured in self._graphs.values()):
                self._graphs.clear()
                self._pool = None

    def _weights(self) -> list[Tensor]:
        """What the steps read."""
        copied = self._program.network is not self.model.network and type(self.model).raw is Denoiser.raw
        module = self._program.network if copied else self.model
        return [*module.parameters(), *module.buffers()]

    def graph_memory(self) -> int:
        """Bytes that this sampler's graphs have reserved; a graph made later counts with what it needs beyond them."""
        return sum(captured.graph.memory for captured in self._graphs.values())

    def __call__(
        self,
        *,
        batch_size: int | None = None,
        seed: int | Sequence[int] | Tensor = 0,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float | Sequence[float] | Tensor | None = None,
        latents: Tensor | None = None,
        output_type: str = "pt",
    ) -> Any:
        """Generates images; arguments and results are those of `sample`, output_type "uint8" included."""
        check_output_type(output_type, self.model.sample_shape)
        count = image_count(batch_size, seed, class_labels, latents)
        labels = checked_labels(class_labels, count, self.model.num_classes)
        scales = checked_guidance(guidance_scale, count, self.model)
        if latents is None:
            start = image_seeds(seed, count)
        else:
            start = checked_latents(latents, count, self.model.sample_shape)
        return delivered(self.generate(start, labels, scales, form=FORM_OF[output_type]), output_type)

    def generate(
        self, start: Tensor, labels: Tensor | None = None, scales: Tensor | None = None, *, form: str = "samples"
    ) -> Tensor:
        """Samples (B, ...) float32 in [-1, 1] on the model's device, in memory of their own.

        Args:
            start: (B,) int64 seeds, or (B, ...) latents.
            labels: (B,) int64 for a model with classes.
            scales: (B,) float32 guidance scales, for a model that is to be guided.
            form: "samples"; or "pt" or "uint8", images as `sample` gives them, made within the graph.
        """
        device, largest = self.model.device, self.batch_sizes[-1]
        if len(start) == 0:
            return FORMS[form](torch.empty((0, *self.model.sample_shape), device=device))
        with self._in_turn():
            parts = []
            for first in range(0, len(start), largest):
                own = [None if given is None else given[first : first + largest] for given in (start, labels, scales)]
                parts.append(self._run(*own, form))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run(self, start: Tensor, labels: Tensor | None, scales: Tensor | None, form: str) -> Tensor:
        count = len(start)
        size = next(s for s in self.batch_sizes if s >= count)
        captured = self._captured(size, start.dim() == 1, scales is not None, form)
        if captured is not None:
            return captured.replay(start, labels, scales)
        device = self.model.device
        labels, scales = (None if given is None else given.to(device) for given in (labels, scales))
        with _plainly(self.model):
            return self._program.run(self._program.constants(count), start.to(device), labels, scales, form)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One call after the other: on the host, and on the device whichever streams they are on."""
        with self._lock:
            if not self._on_gpu:
                yield
                return
            stream = torch.cuda.current_stream(self.model.device)
            if self._done is not None:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done = self._done or torch.cuda.Event()
                self._done.record(stream)

    def _captured(self, size: int, from_seeds: bool, guided: bool, form: str) -> _Captured | None:
        """The graph for a batch size and form, made if need be; None where there is to be none."""
        if not self._graphs_wanted:
            return None
        key = (size, from_seeds, guided, form)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        try:
            if self._pool is None:
                self._pool = GraphPool(self.model.device)
            with _plainly(self.model):
                self._graphs[key] = _Captured(self._program, self._weights(), *key, self._pool)
        except RuntimeError as error:
            self._pool = None
            if self.cuda_graph in ("require", True):
                raise
            self._graphs_wanted = False
            self._graphs.clear()
            warnings.warn(
                f"sampling goes on without CUDA graphs: the network cannot be captured ({error})", stacklevel=4
            )
            return None
        while len(self._graphs) > 1 and self.graph_memory() > self.memory_budget:
            self._graphs.popitem(last=False)
        return self._graphs[key]


class _Captured:
    """The graph of a batch size, and the memory that it reads its inputs and weights from."""

    def __init__(
        self,
        program: FixedSteps,
        weights: list[Tensor],
        size: int,
        from_seeds: bool,
        guided: bool,
        form: str,
        pool: GraphPool,
    ) -> None:
        device = program.device
        self.size = size
        shape, dtype = ((), torch.int64) if from_seeds else (program.sample_shape, torch.float32)
        self._start = torch.zeros((size, *shape), dtype=dtype, device=device)
        self._labels = None
        if program.num_classes is not None:
            self._labels = torch.zeros(size, dtype=torch.int64, device=device)
        self._scales = torch.ones(size, device=device) if guided else None
        constants = program.constants(size)
        # As long as the graph, which reads them, even if the model is given others.
        self._constants = constants
        self.weights = [tensor.detach() for tensor in weights]
        inputs = constants, self._start, self._labels, self._scales
        self.graph = CudaGraph(lambda: program.run(*inputs, form), device, pool)

    def replay(self, start: Tensor, labels: Tensor | None, scales: Tensor | None) -> Tensor:
        """Fewer images than the graph makes leave the rest of its inputs as they were."""
        count = len(start)
        inputs = ((self._start, start), (self._labels, labels), (self._scales, scales))
        for mine, given in inputs:
            if given is not None:
                # From page-locked memory the copy may be under way when the caller writes there again.
                mine[:count].copy_(given, non_blocking=not given.is_pinned())
        return self.graph.replay()[:count].clone()


def _places(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@contextmanager
def _plainly(model: Denoiser) -> Iterator[None]:
    """The model in eval mode, and neither autocast nor inference mode, which a caller may be in.

    What is made here outlasts them: a graph would read weights from autocast's cache, and tensors made in inference
    mode cannot be written to after it.
    """
    plain = torch.autocast(model.device.type, enabled=False, cache_enabled=False)
    with torch.inference_mode(False), torch.no_grad(), plain, evaluating(model):
        yield


def default_dtype(model: Denoiser) -> torch.dtype:
    """bfloat16 for our own networks on a GPU, and on a CPU that has instructions for it; else float32.

    A network of the user's own may hold float32 constants, so it is asked for.
    """
    if not isinstance(model.network, UNet):
        return torch.float32
    if model.device.type == "cpu":
        fast = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if model.device.type == "cuda" else torch.float32
