"""Runs a Python program on a simulated GPU: progdistill's CUDA path without one.

    python tests/simulated_gpu/run.py -m pytest -m gpu tests/sampling tests/training
    python tests/simulated_gpu/run.py -m progdistill quickstart --teacher-updates 30 --updates-per-round 6

Needs Linux on x86-64, a C++ compiler, cmake, ninja, pybind11, CUDA's headers and an installed progdistill beside a CUDA
build of torch, on a machine where torch sees no GPU. torch's CUDA runtime is replaced by cuda_runtime.cpp, whose device
is this machine's memory, torch's kernels by the CPU's (operations.py), and progdistill's are emulated
(tests/native/cuda_on_cpu). So all that the host does is what it would do beside a GPU: devices, streams, events, the
allocator, page-locked memory, captures and what they forbid, replays. Work is done when it is enqueued, so neither
speed nor a missing wait can be seen, nor cuDNN, torch.compile, Triton and profiles.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOM = Path(__file__).resolve().parent
ROOT = ROOM.parents[1]
BUILD = ROOT / "build" / "simulated-gpu"


def run(*command: object) -> None:
    """Runs a command; what it says is shown only if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def cuda_headers() -> Path:
    """The folder of cuda_runtime_api.h."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    spec = importlib.util.find_spec("nvidia")
    homes += [Path(place) / "cu13" for place in (spec.submodule_search_locations if spec else [])]
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda_runtime_api.h").exists():
            return Path(home) / "include"
    sys.exit("cuda_runtime_api.h was not found; set CUDA_HOME to the folder of a CUDA toolkit")


def build() -> tuple[Path, Path]:
    """The runtime, and progdistill's extension with emulated kernels."""
    import pybind11

    BUILD.mkdir(parents=True, exist_ok=True)
    runtime, driver = BUILD / "libcudart_simulated.so", BUILD / "libcuda.so.1"
    run("c++", "-O1", "-shared", "-fPIC", "-std=c++17", f"-I{cuda_headers()}", ROOM / "cuda_runtime.cpp", "-o", runtime)
    run("cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", ROOM / "cuda_driver.c", "-o", driver)
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": BUILD / "module",
        "PROGDISTILL_CUDA": "EMULATED",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    run("cmake", "-GNinja", "-S", ROOT, "-B", BUILD / "extension", *options)
    run("cmake", "--build", BUILD / "extension")
    (extension,) = (BUILD / "module").glob("_C.*.so")
    return runtime, extension


def main() -> None:
    """Replaces this process by the program."""
    runtime, extension = build()
    paths = [str(ROOM), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(runtime),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(BUILD), os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SIMULATED_GPU_RUNTIME": str(runtime),
        "SIMULATED_GPU_EXTENSION": str(extension),
    }
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
