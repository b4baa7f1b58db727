"""The machine code of the optimizer's CUDA kernels: 128-bit accesses, what is under way when, registers, spills."""

import re
import shutil

import pytest

from native.test_cuda_code import KERNELS, Kernel, compiled, disassembler


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[str, Kernel]:
    """The kernels of both files, by the name between `cuda` and their template arguments."""
    nvcc, tool = shutil.which("nvcc"), disassembler()
    if nvcc is None or tool is None:
        pytest.skip(f"needs nvcc (found: {nvcc}) and nvdisasm (found: {tool})")
    folder = tmp_path_factory.mktemp("cuda")
    found = {}
    for name in ("adamw_ema", "gradient_norm"):
        found |= compiled(nvcc, tool, KERNELS / "cuda" / f"{name}.cu", folder)
    return found


def one(kernels, mark: str) -> Kernel:
    (kernel,) = [kernel for name, kernel in kernels.items() if mark in name]
    return kernel


def test_an_update_moves_by_16_bytes(kernels):
    kernel = one(kernels, "adamw_ema_kernelIf")
    # Twice (the first unit is loaded before the factors are there): five tensors of float, or bfloat16 gradients.
    assert kernel.count(r"\bLDG\.E\.128") == 2 * (5 * 2 + 1)
    assert kernel.count(r"\bSTG\.E\.128") == 4 * 2 + 1
    # The tail moves element by element.
    assert kernel.count(r"\bSTG\.E ") and kernel.count(r"\bSTG\.E\.U16")
    assert kernel.registers <= 80, "three blocks shall fit on a multiprocessor"
    assert kernel.spilled == 0


def test_first_loads_are_under_way_before_the_factors_are_waited_for(kernels):
    code = one(kernels, "adamw_ema_kernelIf").code
    assert len(re.findall(r"\bLDG\.E\.128", code[: code.index("BAR.SYNC")])) == 5 * 2 + 1


def test_a_norm_reads_16_bytes(kernels):
    kernel = one(kernels, "sum_of_squares_kernel")
    assert kernel.count(r"\bLDG\.E\.128") >= 2 + 1 + 4  # of float, bfloat16 and float64
    assert kernel.spilled == 0 and kernel.registers <= 64


def test_tables_are_read_from_the_parameters(kernels):
    # Not copied into local memory, as an array would be that is indexed without __grid_constant__.
    for mark in ("adamw_ema_kernelIf", "adamw_ema_kernelId", "sum_of_squares_kernel"):
        kernel = one(kernels, mark)
        assert not kernel.count(r"\b(LDL|STL)\b") and kernel.count(r"c\[0x0\]\[U?R\d+\+")
