"""The backends that tests of operations run on."""

from typing import NamedTuple

import pytest
import torch

import cuda_on_cpu
from progdistill.ops import backends


class Backend(NamedTuple):
    """A backend as a call names it, and where its tensors must be."""

    name: str
    device: str

    def place(self, value):
        """Tensors, also those in lists, on the backend's device; layout and all else as they are."""
        if isinstance(value, (list, tuple)):
            return [self.place(item) for item in value]
        return value.to(self.device) if isinstance(value, torch.Tensor) else value

    def call(self, operation, *arguments, **options):
        """The operation's results on the CPU, from arguments on the CPU."""
        result = operation(*self.place(arguments), backend=self.name, **options)
        return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()


@pytest.fixture(params=["cpu", "cuda_on_cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request, monkeypatch) -> Backend:
    """Each compiled backend; "cuda_on_cpu" is the CUDA code, emulated."""
    if request.param == "cuda_on_cpu":
        cuda_on_cpu.use(monkeypatch)
        return Backend("cuda", "cpu")
    reason = backends.unavailable(request.param)
    if request.param == "cuda" and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return Backend(request.param, request.param)
