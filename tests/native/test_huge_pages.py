"""Large results of CPU operations ask for huge pages, in which fresh memory costs a fraction of the time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from progdistill import ops
from progdistill.ops import native

CHOICES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

if native._C is None:
    pytest.skip(f"the extension was not built: {native.import_error}", allow_module_level=True)
if sys.platform != "linux" or not CHOICES.exists():
    pytest.skip("this system has no transparent huge pages", allow_module_level=True)


def asked_for(tensor: torch.Tensor) -> bool:
    """Whether huge pages were asked for in the middle of a tensor's memory, by the kernel's own account."""
    middle, found = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            begin, end = (int(address, 16) for address in words[0].split("-"))
            found = begin <= middle < end
        elif found and words[0] == "VmFlags:":
            return "hg" in words
    raise AssertionError("the tensor's memory is not among the process's")


def test_large_results_ask_for_huge_pages():
    x = torch.zeros(2**16, 1, 16, 16)  # 64 MiB, a mapping of its own
    phi = torch.full((len(x),), 0.5, dtype=torch.float64)
    results = {
        "diffuse": ops.diffuse(x, x, phi, backend="cpu"),
        "ddim_step": ops.ddim_step(x, x, phi, 0.5 * phi, backend="cpu"),
        "normal": ops.normal(torch.arange(len(x)), 0, 0, x.shape[1:], backend="cpu"),
        "linear_combination": ops.linear_combination([x, x], [1.0, 2.0], backend="cpu"),
    }
    assert not asked_for(x)
    for operation, result in results.items():
        assert asked_for(result), operation
