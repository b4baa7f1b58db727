"""The backends that tests of operations run on."""

import importlib
import math
import os
from collections import defaultdict
from typing import NamedTuple

import pytest
import torch

import cuda_on_cpu
import triton_interpreter
import triton_launches
from progdistill.ops import backends

# Triton's interpreter must be chosen before the kernels are imported: test_triton_interpreted.py starts a pytest of its
# own for it, in which there is no other compiled backend.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED and backends.unavailable("triton") is None:
    triton_interpreter.round_as_gpus()
COMPILED = ["cpu", "cuda_on_cpu", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton"))]
# group_norm_silu's CUDA kernels read small samples once; "_in_chunks" has them read twice, as large ones are.
IN_CHUNKS = ["cuda_on_cpu_in_chunks", pytest.param("cuda_in_chunks", marks=pytest.mark.gpu)]
# Every weighting of every prediction type, and quick.
WHOLE = ("test_prediction_loss_in_float64",)


def pytest_generate_tests(metafunc):
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "backend" not in metafunc.fixturenames or "backend" in own:
        return
    compiled = COMPILED + IN_CHUNKS if getattr(metafunc.module, "OPERATION", None) == "group_norm_silu" else COMPILED
    metafunc.parametrize("backend", ["triton"] if INTERPRETED else compiled, indirect=True)


def pytest_collection_modifyitems(items):
    """Leaves some eight cases of every test to the interpreter, which is a hundred times slower.

    They are taken at equal distances that share no divisor with their number, or a parameter might keep one value.
    """
    if not INTERPRETED:
        return
    cases = defaultdict(list)
    for item in items:
        cases[item.function].append(item)
    kept = set()
    for function, group in cases.items():
        count, distance = len(group), 1
        if count > 8 and function.__name__ not in WHOLE:
            distance = next(d for d in range(max(3, count // 8), count) if math.gcd(d, count) == 1)
        kept.update(group[::distance])
    items[:] = [item for item in items if item in kept]


class Backend(NamedTuple):
    """A backend as a call names it, and where its tensors must be."""

    name: str
    device: str
    interpreted: bool = False
    in_chunks: bool = False

    def place(self, value):
        """Tensors, also those in lists, on the backend's device; layout and all else as they are."""
        if isinstance(value, (list, tuple)):
            return [self.place(item) for item in value]
        return value.to(self.device) if isinstance(value, torch.Tensor) else value

    def call(self, operation, *arguments, **options):
        """The operation's results on the CPU, from arguments on the CPU."""
        result = operation(*self.place(arguments), backend=self.name, **options)
        return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()


@pytest.fixture
def backend(request, monkeypatch) -> Backend:
    """Each compiled backend that has the OPERATION of the module, if it names one; "cuda_on_cpu" is emulated."""
    chosen = request.param.removesuffix("_in_chunks")
    in_chunks = chosen != request.param
    if in_chunks:
        monkeypatch.setattr(importlib.import_module("progdistill.ops.group_norm_kernels"), "TILE_BYTES", 0)
    name = chosen.removesuffix("_on_cpu")
    operation = getattr(request.module, "OPERATION", None)
    if operation and name not in backends.declared()[operation]:
        pytest.skip(f"backend {name} has no {operation}")
    if chosen == "cuda_on_cpu":
        cuda_on_cpu.use(monkeypatch)
        return Backend("cuda", "cpu", in_chunks=in_chunks)
    device = "cpu" if INTERPRETED or chosen == "cpu" else "cuda"
    reason = backends.unavailable(chosen)
    if device == "cuda" and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    if reason is not None:
        pytest.skip(f"backend {chosen}: {reason}")
    return Backend(chosen, device, INTERPRETED, in_chunks)


@pytest.fixture
def launches(monkeypatch, tmp_path_factory):
    """Everything that Triton launches while a test runs, compiled for sm_90."""
    return triton_launches.keep(monkeypatch, tmp_path_factory.getbasetemp() / "triton")
