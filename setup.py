"""Builds the C++/CUDA extension with CMake; everything else about the package is in pyproject.toml.

Environment:
    PROGDISTILL_CUDA            AUTO (default: with nvcc), ON (fail without nvcc), OFF, or EMULATED (for tests).
    CUDAARCHS                   CUDA architectures as CMake writes them; default "80-real;90": machine code for the
                                A100 and H100 families, PTX for what comes after.
    CMAKE_ARGS                  further arguments for CMake.
    CMAKE_CXX_COMPILER_LAUNCHER, CMAKE_CUDA_COMPILER_LAUNCHER   e.g. ccache (CMake reads them itself).
    MAX_JOBS                    parallel compiler processes.
    PROGDISTILL_NO_EXTENSION=1  no extension: operations run as plain PyTorch, several times slower.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Hands each extension to CMake, which drops the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        require_compiler()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install keeps its build folder, so that a second one compiles only what has changed.
        kept = ROOT / "build" / f"editable-{sysconfig.get_config_var('SOABI')}"
        build = kept if self.inplace or self.editable_mode else Path(self.build_temp).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build.mkdir(parents=True, exist_ok=True)
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        try:
            subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *configuration(target)], check=True)
            subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"progdistill: building the C++ extension failed (exit status {error.returncode}, messages above). "
                "PROGDISTILL_NO_EXTENSION=1 installs without it: plain PyTorch, several times slower."
            )


def configuration(target: Path) -> list[str]:
    """CMake's arguments. Tools are named every time: a kept cache may point into a deleted isolated environment."""
    import pybind11

    return [
        "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPROGDISTILL_CUDA={os.environ.get('PROGDISTILL_CUDA', 'AUTO')}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


def tool(name: str, directory: str) -> str:
    """The program that the build requirement of that name brings, else the one on PATH."""
    try:
        found = shutil.which(name, path=getattr(importlib.import_module(name), directory))
    except (ImportError, AttributeError):
        found = None
    found = found or shutil.which(name)
    if found is None:
        sys.exit(f"progdistill: {name} was not found; install it: pip install {name}")
    return found


def require_compiler() -> None:
    """Fails early, and says what to do, where CMake would fail late."""
    wished = os.environ.get("CXX")
    candidates = [shlex.split(wished)[0]] if wished else ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        sys.exit(
            f"progdistill: no C++17 compiler found (looked for {', '.join(candidates)}). Install one (Debian: apt "
            "install g++) or set CXX; or set PROGDISTILL_NO_EXTENSION=1 to install without the extension: plain "
            "PyTorch, several times slower."
        )


packages = {name: f"python/{name.replace('.', '/')}" for name in find_packages("python")}
if any((ROOT / "kernels/triton").glob("*.py")):
    packages["progdistill.ops.triton_kernels"] = "kernels/triton"

skip = os.environ.get("PROGDISTILL_NO_EXTENSION") == "1"
setup(
    packages=list(packages),
    package_dir={
        "progdistill": "python/progdistill",
        **{name: folder for name, folder in packages.items() if folder == "kernels/triton"},
    },
    ext_modules=[] if skip else [Extension("progdistill._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
