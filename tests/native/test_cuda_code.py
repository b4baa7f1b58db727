"""The machine code of the CUDA kernels, looked at without a GPU: 128-bit loads and stores where they are meant."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"


def disassembler() -> str | None:
    """nvdisasm on PATH, beside nvcc, or in a Triton installation."""
    places = [Path(found).resolve().parent for found in [shutil.which("nvcc")] if found]
    places += [Path("/usr/local/cuda/bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        places += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"]
    candidates = [shutil.which("nvdisasm"), *(shutil.which("nvdisasm", path=str(place)) for place in places)]
    return next((candidate for candidate in candidates if candidate), None)


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory):
    """Function name -> instructions of kernels/cuda/diffuse.cu for the H100 and H200."""
    nvcc, tool = shutil.which("nvcc"), disassembler()
    if nvcc is None or tool is None:
        pytest.skip(f"needs nvcc (found: {nvcc}) and nvdisasm (found: {tool})")
    cubin = tmp_path_factory.mktemp("cuda") / "diffuse.cubin"
    source = KERNELS / "cuda" / "diffuse.cu"
    command = [nvcc, "-std=c++17", "-cubin", "-arch=sm_90", f"-I{KERNELS / 'include'}", str(source), "-o", str(cubin)]
    subprocess.run(command, check=True)
    text = subprocess.run([tool, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    sections = re.split(r"^\.text\.(\S+):", text, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def kernel(machine_code, element: str, vectors: bool) -> str:
    mark = f"diffuse_kernelI{element}Lb{int(vectors)}E"
    (code,) = [code for name, code in machine_code.items() if mark in name]
    return code


@pytest.mark.parametrize("element", ["f", "d"])
def test_whole_vectors_move_by_16_bytes(machine_code, element):
    code = kernel(machine_code, element, vectors=True)
    loads, stores = re.findall(r"\bLDG\.E\S*", code), re.findall(r"\bSTG\.E\S*", code)
    assert sum(".128" in load for load in loads) == 8  # four of x, four of noise
    assert stores and all(".128" in store for store in stores)
    assert all(".128" in load or ".64" in load for load in loads)  # .64: the angle


def test_loads_are_under_way_before_the_rotation_is_waited_for(machine_code):
    code = kernel(machine_code, "f", vectors=True)
    assert code.index("LDG.E.128") < code.rindex("LDG.E.128") < code.index("BAR.SYNC")


def test_odd_samples_have_a_kernel_of_their_own(machine_code):
    code = kernel(machine_code, "f", vectors=False)
    assert ".128" not in code and "STG.E " in code
