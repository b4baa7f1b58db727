"""The CUDA kernels without a GPU: compiled as C++ with the headers of tests/native/cuda_on_cpu, run on CPU tensors.

What they compute, read and write is the code that nvcc compiles; speed and hardware's races they cannot show.
"""

import contextlib
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from progdistill.ops import backends, native

ROOT = Path(__file__).parents[1]


def tool(name: str) -> str | None:
    """A program beside this Python, or on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@contextlib.contextmanager
def alone(folder: Path):
    """Waits until no other process (of pytest-xdist, say) builds in a folder."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def extension():
    """The emulated extension, built in build/ (again only where sources have changed)."""
    cmake, ninja, compiler = tool("cmake"), tool("ninja"), tool("c++") or tool("g++")
    linux = sys.platform == "linux" and platform.machine() == "x86_64"
    if not (linux and cmake and ninja and compiler and importlib.util.find_spec("pybind11")):
        pytest.skip("the emulated CUDA kernels need Linux on x86-64, a C++ compiler, cmake, ninja and pybind11")
    import pybind11

    build = ROOT / "build" / f"cuda-on-cpu-{sysconfig.get_config_var('SOABI')}"
    definitions = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_BUILD_TYPE": "Release",
        "PROGDISTILL_CUDA": "EMULATED",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": build / "module",
    }
    configure = [
        cmake,
        "-GNinja",
        "-S",
        ROOT,
        "-B",
        build,
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    with alone(build):
        for command in (configure, [cmake, "--build", build, "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (build / "module").glob("_C.*.so")
    spec = importlib.util.spec_from_file_location("cuda_on_cpu._C", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use(monkeypatch) -> None:
    """Has backend="cuda" run the emulated kernels on CPU tensors, until the test ends."""
    module = extension()
    monkeypatch.setattr(native, "_C", module)
    monkeypatch.setattr(native, "_exchange_api", None)  # tensors as descriptions: they claim no device
    monkeypatch.setattr(native, "run", lambda tensor: (0, 0))
    monkeypatch.setattr(backends, "unavailable", lambda backend: None)
    monkeypatch.setitem(backends._DEVICE, "cuda", "cpu")
